"""Runs that train in one pack end as each of them does alone."""

import json
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from tiny import method_of, random_backbone

from harness.config.compose import compose
from harness.methods import prepare_trained, trained_parameters
from harness.methods.packed import Pack, SharedWeights
from harness.models.architectures import Kind
from harness.models.streams import Stream
from harness.run import packing, prepare, run
from harness.run.together import run_together
from harness.tracking.record import RunRecord, Status
from harness.training.trainer import Trainer

# Ranks, rates, targets, seeds, scales and dropouts that differ.
SHORT = ("train.max_steps=8", "train.evaluations_per_epoch=2")
POINTS = [
    ["method.rank=4", "train.learning_rate=0.002", "seed=1"],
    ["method.rank=8", "method.use_rslora=true", "seed=2"],
    ["method.rank=2", "method.dropout=0.1", "method.target_modules=[attention]", "seed=3"],
    ["method.rank=8", "method.loraplus_lr_ratio=4", "method.init_weights=gaussian", "seed=1"],
]


def inputs(experiment: list[str], *overrides: str):
    quick = ["data_seed=0", "forgetting.text=null", "measure.costs=false"]
    return prepare(composed(*experiment, *quick, *overrides))


@cache
def composed(*overrides: str) -> DictConfig:
    """A configuration, composed once for a point that trains in a pack and alone: Hydra takes as long as the run."""
    return compose("config", list(overrides))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter/adapter_model.safetensors")


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "steps.jsonl").read_text().splitlines())
    return [line.get("loss", line.get("development.loss")) for line in lines]


def carry_out(
    points: list[list[str]], experiment: list[str], folder: Path, *overrides: str
) -> list[tuple[Path, RunRecord]]:
    """Train points in one pack."""
    folders = [folder / str(number) for number in range(len(points))]
    given = [inputs(experiment, *overrides, *point) for point in points]
    records = run_together(list(zip(given, folders, strict=True)))
    assert all(isinstance(record, RunRecord) for record in records), records
    return list(zip(folders, records, strict=True))  # type: ignore[arg-type]


def alone(point: list[str], experiment: list[str], folder: Path, *overrides: str) -> tuple[Path, RunRecord]:
    return folder, run(inputs(experiment, *overrides, *point), folder)


def assert_the_same(one: tuple[Path, RunRecord], other: tuple[Path, RunRecord], atol: float = 1e-4) -> None:
    """Scores, losses and weights agree up to rounding, and the adapters' files have the same tensors."""
    (folder, record), (packed_folder, packed) = one, other
    assert packed.status == record.status == Status.finished, packed.error
    for split in ("development", "validation"):
        assert packed.scores[split] == pytest.approx(record.scores[split], abs=atol)
    assert losses(packed_folder) == pytest.approx(losses(folder), abs=atol)
    own, its = weights(folder), weights(packed_folder)
    assert own.keys() == its.keys()
    for name, tensor in own.items():
        assert torch.allclose(tensor, its[name], atol=atol), name


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "kind"), [("bert", Kind.classification), ("llama", Kind.causal_lm)])
def test_gradients_of_a_pack_are_those_of_each_adapter_alone(model_type: str, kind: Kind) -> None:
    """In float32, with dropout wherever there is any, and afterwards the random numbers stand where they do alone."""
    weighted = SharedWeights()
    adapters, streams = [], []
    for number, point in enumerate(POINTS):
        backbone = random_backbone(model_type, kind)
        weighted.share(backbone)
        adapter = method_of("lora", *(one for one in point if one.startswith("method.")), "method.dropout=0.2")
        torch.manual_seed(number)
        adapters.append(adapter.attach(backbone))
        for name, parameter in prepare_trained(adapters[-1]).items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        adapters[-1].model.train()
        torch.manual_seed(number)
        streams.append(Stream(torch.device("cpu")))
    tokens = torch.randint(5, 60, (3, 7))
    labels = torch.tensor([0, 1, 1]) if kind is Kind.classification else tokens.clone()
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    batch["attention_mask"][0, 4:] = 0
    with Pack(adapters, streams).answering():
        torch.stack([adapter.model(**batch).loss for adapter in adapters]).sum().backward()
    for number, (adapter, stream) in enumerate(zip(adapters, streams, strict=True)):
        together = {name: p.grad.clone() for name, p in trained_parameters(adapter).items()}
        adapter.model.zero_grad()
        torch.manual_seed(number)
        adapter.model(**batch).loss.backward()
        assert torch.equal(torch.get_rng_state(), stream.state[0])
        for name, parameter in trained_parameters(adapter).items():
            assert torch.allclose(parameter.grad, together[name], atol=1e-5), name


@pytest.mark.slow
def test_a_pack_ends_as_its_points_do_alone(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Also with dropout in the backbone and in LoRA; and no second or byte of the pack is one point's."""
    packed = carry_out(POINTS, tiny_experiment, tmp_path / "packed", *SHORT)
    for number, point in enumerate(POINTS):
        assert_the_same(alone(point, tiny_experiment, tmp_path / f"alone{number}", *SHORT), packed[number])
        folder, record = packed[number]
        assert record.provenance["packed"] == len(POINTS)
        for name, value in record.cost.items():
            if name.endswith(("_seconds", "_bytes", "_joules", "_per_second")) and name != "adapter_file_bytes":
                assert value is None, name
                assert record.unmeasured[f"cost.{name}"].startswith("packed, K=4"), name
        assert record.cost["adapter_file_bytes"]
        assert "seconds" not in (folder / "steps.jsonl").read_text()


@pytest.mark.slow
def test_a_point_that_diverges_ends_no_other(tiny_experiment: list[str], tmp_path: Path) -> None:
    """The others go on in a smaller pack and end as alone."""
    points = [POINTS[0], [*POINTS[1], "train.learning_rate=1e30"], POINTS[2]]
    packed = carry_out(points, tiny_experiment, tmp_path / "packed", *SHORT)
    assert [record.status for _, record in packed] == ["finished", "diverged", "finished"]
    assert_the_same(alone(points[2], tiny_experiment, tmp_path / "alone", *SHORT), packed[2])


@pytest.mark.slow
def test_too_little_memory_halves_a_pack(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the allocator of a GPU raises where two points are too many; masks are drawn as if nothing had been."""
    forward = Pack._forward

    def limited(self: Pack, given: dict[str, Any]) -> Any:
        if self.model.training and len(self.adapters) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, given)

    monkeypatch.setattr(Pack, "_forward", limited)
    packed = carry_out(POINTS[:3], tiny_experiment, tmp_path / "packed", *SHORT)
    assert_the_same(alone(POINTS[1], tiny_experiment, tmp_path / "alone", *SHORT), packed[1])
    assert [record.status for _, record in packed] == ["finished"] * 3


@pytest.mark.slow
def test_an_interrupted_pack_goes_on_alone_or_packed(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal leaves a checkpoint of every point; one goes on alone, two in another pack."""
    took_step = Trainer.took_step

    def signalled(self: Trainer, *given: Any) -> bool:
        if self.state.step == 3:
            signal.raise_signal(signal.SIGINT)
        return took_step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "took_step", signalled)
        cut = carry_out(POINTS[:1], tiny_experiment, tmp_path / "cut", *SHORT)
        cut += carry_out(POINTS[1:3], tiny_experiment, tmp_path / "both", *SHORT)
    assert [record.status for _, record in cut] == ["interrupted"] * 3
    whole = [
        alone(point, tiny_experiment, tmp_path / f"whole{number}", *SHORT, f"train.checkpoint_dir={tmp_path}/other")
        for number, point in enumerate(POINTS[:2])
    ]
    resumed = alone(POINTS[1], tiny_experiment, tmp_path / "resumed", *SHORT, "train.resume=true")
    assert_the_same(whole[1], resumed)
    assert resumed[1].cost["train_seconds"] is None
    again = carry_out([POINTS[0], POINTS[2]], tiny_experiment, tmp_path / "again", *SHORT, "train.resume=true")
    assert_the_same(whole[0], again[0])


@pytest.mark.slow
def test_packed_qlora_ends_as_alone(tiny_experiment: list[str], tmp_path: Path) -> None:
    """On NF4 weights, of which there is one copy."""
    options = [*SHORT, "model.quantization=nf4"]
    packed = carry_out(POINTS[:2], tiny_experiment, tmp_path / "packed", *options)
    for number in range(2):
        one = alone(POINTS[number], tiny_experiment, tmp_path / f"alone{number}", *options)
        assert_the_same(one, packed[number], 1e-3)


@pytest.mark.slow
def test_the_micro_decoder_in_a_pack_ends_as_alone(tiny_experiment: list[str], tmp_path: Path) -> None:
    """The shipped decoder as a classifier on the same rows."""
    experiment = ["model=micro_decoder", *tiny_experiment[1:], "train.learning_rate=0.002"]
    options = ["train.max_steps=4", "train.evaluations_per_epoch=2", "train.batch_size=16"]
    packed = carry_out(POINTS, experiment, tmp_path / "packed", *options)
    for number, point in enumerate(POINTS):
        assert_the_same(alone(point, experiment, tmp_path / f"alone{number}", *options), packed[number], 1e-3)


@pytest.mark.slow
def test_minilm_in_a_pack_ends_as_alone(minilm: Path, tiny_experiment: list[str], tmp_path: Path) -> None:
    """A real encoder with its dropout, where rounding has more layers to grow in."""
    experiment = ["model=minilm", f"model.path={minilm}", *tiny_experiment[1:], "train.learning_rate=0.001"]
    options = ["train.max_steps=3", "train.batch_size=8"]
    packed = carry_out(POINTS[:3], experiment, tmp_path / "packed", *options)
    for number, point in enumerate(POINTS[:3]):
        assert_the_same(alone(point, experiment, tmp_path / f"alone{number}", *options), packed[number], 1e-3)


def key(experiment: list[str], *overrides: str) -> str | None:
    return packing.key(inputs(experiment, *overrides).experiment, {"model": "a", "data": "b"})


def test_what_a_pack_may_differ_in_does_not_part_it(tiny_experiment: list[str]) -> None:
    """Rank, rate, scale, dropout, targets, seed and LoRA+; a trial's costs are not reported, so they may be taken."""
    assert len({key(tiny_experiment, *point) for point in POINTS}) == 1
    assert key(tiny_experiment, "measure.costs=true", "sweep.stage=tune") is not None


def test_other_batches_or_another_backbone_are_another_pack(tiny_experiment: list[str]) -> None:
    """Points pack when they train on the same batches of the same weights."""
    changes = ["data_seed=1", "train.batch_size=8", "task.max_length=12", "model.quantization=nf4"]
    keys = [key(tiny_experiment), *(key(tiny_experiment, change) for change in changes)]
    assert None not in keys
    assert len(set(keys)) == len(keys)


@pytest.mark.slow
def test_what_has_no_packed_form_or_reports_costs_trains_alone(tiny_experiment: list[str]) -> None:
    """DoRA, another method, what computes twice, a run whose costs count, and a loss that takes several passes."""
    preference = ["tracking=none", "task=preference/micro", "model=micro_decoder"]
    for change in ("method.use_dora=true", "method=bitfit", "train.gradient_checkpointing=true", "measure.costs=true"):
        assert key(tiny_experiment, change) is None, change
    assert key(preference) is None
