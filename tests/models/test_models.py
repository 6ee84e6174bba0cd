"""Backbones are loaded from safe files only, and score right whatever the padding."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import models
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.schema import EarlierAdapter, ModelConfig, Quantization
from harness.doctor.compatibility import TINY
from harness.models.architectures import architecture
from harness.training.batches import collator_for

TinyModel = Callable[[str], Path]


def backbone_of(path: str | Path | None, pretrained: bool = True) -> ModelConfig:
    path = None if path is None else str(path)
    return ModelConfig("test", path, None, pretrained, Quantization.none, True, EarlierAdapter.merged, None)


def load(folder: Path, *overrides: str):
    experiment = build(compose("config", [f"model.path={folder}", "task=glue/sst2", *overrides]))
    configuration = models.load_config(folder, labels=2, regression=False)
    torch.manual_seed(0)
    return models.load_model(folder, configuration, experiment, torch.float32)


@pytest.fixture
def copy_of_bert(tiny_model: TinyModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("bert"), tmp_path / "bert"))


def test_a_missing_folder_is_named() -> None:
    """The sentence has the key and the path."""
    with pytest.raises(ConfigError, match=r"model\.path=\./nowhere: there is no such folder"):
        models.resolve(backbone_of("./nowhere"))


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    """config.json is asked for."""
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        models.resolve(backbone_of(tmp_path))


def test_a_folder_without_weights_is_refused_unless_random_ones_are_wanted(copy_of_bert: Path) -> None:
    """`pretrained=false` needs the configuration alone."""
    (copy_of_bert / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no \*\.safetensors weights"):
        models.resolve(backbone_of(copy_of_bert))
    assert models.resolve(backbone_of(copy_of_bert, pretrained=False)) == copy_of_bert


def test_pickled_weights_are_refused_and_not_read(copy_of_bert: Path) -> None:
    """Only safetensors files are loaded."""
    (copy_of_bert / "model.safetensors").rename(copy_of_bert / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        models.resolve(backbone_of(copy_of_bert))


def test_a_hub_name_without_a_network_says_what_to_do() -> None:
    """A local folder is offered instead."""
    with pytest.raises(ConfigError, match=r"model\.path=someone/nothing: .*can't be reached; give model\.path=FOLDER"):
        models.resolve(backbone_of("someone/nothing"))


def test_an_architecture_without_weights_can_only_be_planned() -> None:
    """To run it, a path is needed."""
    with pytest.raises(ConfigError, match=r"set model\.path"):
        models.resolve(backbone_of(None))


def test_damaged_weights_are_refused(copy_of_bert: Path) -> None:
    """A shortened file is one sentence."""
    weights = copy_of_bert / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="the weights can't be loaded"):
        load(copy_of_bert)


def test_a_checkpoint_that_lacks_backbone_weights_is_refused(copy_of_bert: Path) -> None:
    """The missing tensors are counted."""
    tensors = load_file(copy_of_bert / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layer.1." not in name}
    save_file(kept, copy_of_bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 16 weights of the backbone"):
        load(copy_of_bert)


def test_a_pooler_that_the_checkpoint_lacks_is_trained_with_the_head(copy_of_bert: Path) -> None:
    """It counts as a part of the head."""
    tensors = load_file(copy_of_bert / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler")}
    save_file(kept, copy_of_bert / "model.safetensors", metadata={"format": "pt"})
    assert load(copy_of_bert).head == ("classifier", "bert.pooler")


def test_code_that_comes_with_a_model_is_not_run(copy_of_bert: Path) -> None:
    """A configuration that names code of its own is refused."""
    (copy_of_bert / "evil.py").write_text("raise SystemExit('executed')")
    content = json.loads((copy_of_bert / "config.json").read_text())
    content |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (copy_of_bert / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"config\.json can't be used"):
        models.load_config(copy_of_bert, 2, False)


def test_a_tokenizer_of_another_model_is_refused(tiny_model: TinyModel) -> None:
    """It has more tokens than the model has rows."""
    folder = tiny_model("bert")
    configuration = models.load_config(folder, 2, False)
    tokenizer = models.load_tokenizer(folder, architecture(configuration))
    tokenizer.add_tokens(["more"])
    with pytest.raises(ConfigError, match="the tokenizer has 65 tokens, the model 64"):
        models.check_fit(folder, tokenizer, configuration, {"task.max_length": 16}, 0)


def test_text_longer_than_the_model_is_refused(tiny_model: TinyModel) -> None:
    """The sentence has the number of positions."""
    folder = tiny_model("bert")
    configuration = models.load_config(folder, 2, False)
    tokenizer = models.load_tokenizer(folder, architecture(configuration))
    with pytest.raises(ConfigError, match=r"task\.max_length=513: the model has 512 positions"):
        models.check_fit(folder, tokenizer, configuration, {"task.max_length": 513}, 0)


def test_a_revision_is_of_content_and_not_of_place(copy_of_bert: Path, tiny_model: TinyModel) -> None:
    """A copy has the same, changed weights have another."""
    original = tiny_model("bert")
    assert models.revision(backbone_of(original), original) == models.revision(backbone_of(copy_of_bert), copy_of_bert)
    tensors = load_file(copy_of_bert / "model.safetensors")
    save_file({n: t + 1 for n, t in tensors.items()}, copy_of_bert / "model.safetensors", metadata={"format": "pt"})
    assert models.revision(backbone_of(original), original) != models.revision(backbone_of(copy_of_bert), copy_of_bert)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(TINY))
def test_a_row_scores_the_same_alone_and_padded_in_a_batch(kind: str, tiny_model: TinyModel) -> None:
    """On every architecture."""
    folder = tiny_model(kind)
    backbone = load(folder)
    tokenizer = models.load_tokenizer(folder, backbone.architecture)
    backbone.model.config.pad_token_id = tokenizer.pad_token_id
    backbone.model.eval()
    collate = collator_for(backbone, tokenizer, torch.device("cpu"))
    # An encoder with a decoder reads the score at the end of sequence.
    end = [3] * backbone.architecture.pair
    rows = [[5, 6, 7, 8, 9, 10, 11, *end], [12, *end], [13, 14, 15, *end]]
    features = [
        {"input_ids": row, "attention_mask": [1] * len(row), "length": len(row), "weight": 1, "label": 0}
        for row in rows
    ]
    with torch.no_grad():
        together = backbone.model(**collate(features, [0, 1, 2]).inputs).logits
        alone = torch.cat([backbone.model(**collate(features, [row]).inputs).logits for row in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)
