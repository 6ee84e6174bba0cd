"""Frozen weights stay where the operating system maps them from their file, once for all processes of a machine."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness import measure, methods, models
from harness.config.build import build
from harness.config.compose import compose
from harness.methods import Adapter
from harness.models.architectures import Backbone

MAPS = Path("/proc/self/maps")
pytestmark = pytest.mark.skipif(not MAPS.is_file(), reason="Linux alone tells what is mapped")


def load(folder: Path, method: str) -> tuple[Backbone, Adapter]:
    experiment = build(compose("config", [f"model.path={folder}", f"method={method}"]))
    configuration = models.load_config(folder, 2, False)
    backbone = models.load_model(folder, configuration, experiment, torch.float32)
    adapter = experiment.method.attach(backbone)
    methods.prepare_trained(adapter)
    adapter.model.to(torch.device("cpu"))
    return backbone, adapter


def mapped(folder: Path) -> list[range]:
    """Addresses at which a folder's weights are mapped into this process."""
    lines = [line.split() for line in MAPS.read_text().splitlines() if f"{folder}/model.safetensors" in line]
    return [range(*(int(end, 16) for end in line[0].split("-"))) for line in lines]


def step(adapter: Adapter) -> torch.Tensor:
    inputs = {"input_ids": torch.arange(8).reshape(2, 4) + 4, "labels": torch.tensor([0, 1])}
    optimizer = torch.optim.AdamW(methods.trained_parameters(adapter).values(), lr=0.1)
    adapter.model.train()
    adapter.model(**inputs).loss.backward()
    optimizer.step()
    adapter.model.eval()
    with torch.no_grad():
        return adapter.model(**inputs).logits


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_what_is_frozen_lies_in_the_mapping_of_its_file(model_type: str, tiny_model: Callable[[str], Path]) -> None:
    """Also after a step; a copy of it in each worker would be memory for nothing."""
    folder = tiny_model(model_type)
    backbone, adapter = load(folder, "lora")
    step(adapter)
    places = mapped(folder)
    frozen = [
        parameter
        for name, parameter in backbone.model.named_parameters()
        if not parameter.requires_grad and not backbone.is_head(name)
    ]
    assert len(frozen) > 10
    assert all(any(parameter.data_ptr() in place for place in places) for parameter in frozen)
    # Counted as what they are, wherever they lie.
    named = {id(one): one for one in [*adapter.model.parameters(), *adapter.model.buffers()]}
    assert measure.weight_bytes(adapter.model) == sum(one.nbytes for one in named.values())


def test_full_fine_tuning_changes_its_own_copy_and_not_the_file(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """What is written to is copied on write; a second process sees the weights as they are on disk."""
    folder = tiny_model("bert")
    before = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    backbone, adapter = load(folder, "full")
    first = {name: parameter.detach().clone() for name, parameter in backbone.model.named_parameters()}
    step(adapter)
    changed = [name for name, one in backbone.model.named_parameters() if not torch.equal(one, first[name])]
    assert len(changed) > 10
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == before
    other, _ = load(folder, "full")
    weights = dict(other.model.named_parameters())
    assert all(torch.equal(weights[name], first[name]) for name in changed if not other.is_head(name))


def test_a_file_that_is_replaced_meanwhile_changes_nothing(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """A rename leaves the file that is mapped to those who have it."""
    for path in tiny_model("bert").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    backbone, _ = load(tmp_path, "lora")
    weights = {name: parameter.detach().clone() for name, parameter in backbone.model.named_parameters()}
    other = tmp_path / "other"
    other.write_bytes(b"\0" * (tmp_path / "model.safetensors").stat().st_size)
    other.replace(tmp_path / "model.safetensors")
    assert all(torch.equal(one, weights[name]) for name, one in backbone.model.named_parameters())
