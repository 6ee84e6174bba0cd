"""Runs that train in one pack end as each of them does alone."""

import json
import signal
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from tiny import method_of, random_backbone
from transformers import AutoConfig

from harness.config.compose import compose
from harness.doctor.compatibility import TINY, backbones
from harness.methods import Adapter, earlier, prepare_trained, trained_parameters
from harness.methods.packed import CannotPack, Pack, SharedWeights
from harness.models import fast_dropout
from harness.models.architectures import ARCHITECTURES, Kind
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


@cache
def lora(*overrides: str) -> Any:
    return method_of("lora", *overrides)


def pack_of(model_type: str, kind: Kind, patch: pytest.MonkeyPatch, **further: float) -> tuple[Pack, dict[str, Any]]:
    """The points on a tiny backbone with dropout wherever it has any, each with a stream of its number, and a batch."""
    plain = AutoConfig.for_model(model_type).to_dict()
    rates = {name: 0.2 for name in plain if "drop" in name and isinstance(plain[name], float) and name != "layerdrop"}
    patch.setitem(TINY, model_type, {**TINY[model_type], **rates, **further})
    weighted = SharedWeights()
    adapters: list[Adapter] = []
    streams = []
    for number, point in enumerate(POINTS):
        backbone = random_backbone(model_type, kind)
        weighted.share(backbone)
        method = lora(*(one for one in point if one.startswith("method.")), "method.dropout=0.2")
        torch.manual_seed(number)
        adapters.append(method.attach(backbone))
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
    return Pack(adapters, streams), batch


def every_backbone() -> list[Any]:
    """Encoders and decoders; by default one whose dropout is in modules, and one that calls it."""
    quick = [("bert", Kind.classification), ("opt", Kind.causal_lm)]
    found = [one for one in backbones() if not ARCHITECTURES[one[0]].pair]
    return [pytest.param(*one, marks=() if one in quick else pytest.mark.slow) for one in found]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("model_type", "kind"), every_backbone())
def test_gradients_of_a_pack_are_those_of_each_adapter_alone(
    model_type: str, kind: Kind, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, with masks as a CPU and as a GPU draws them; afterwards the random numbers stand where they do alone.

    The check before the first step says so too, and leaves them where they were.
    """
    pack, batch = pack_of(model_type, kind, monkeypatch)
    begun = [stream.state[0] for stream in pack.streams]
    with fast_dropout(device):
        outside = torch.get_rng_state()
        pack.check(batch, 1e-3)
        assert torch.equal(torch.get_rng_state(), outside)
        assert all(torch.equal(stream.state[0], own) for stream, own in zip(pack.streams, begun, strict=True))
        with pack.answering():
            torch.stack([adapter.model(**batch).loss for adapter in pack.adapters]).sum().backward()
        assert torch.equal(torch.get_rng_state(), outside)
    for number, (adapter, stream) in enumerate(zip(pack.adapters, pack.streams, strict=True)):
        together = {name: p.grad.clone() for name, p in trained_parameters(adapter).items()}
        adapter.model.zero_grad()
        torch.manual_seed(number)
        with fast_dropout(device):
            adapter.model(**batch).loss.backward()
        assert torch.equal(torch.get_rng_state(), stream.state[0])
        assert not torch.equal(begun[number], stream.state[0])
        for name, parameter in trained_parameters(adapter).items():
            assert torch.allclose(parameter.grad, together[name], atol=1e-5), name


def test_a_backbone_that_leaves_layers_out_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each point leaves out others; the number that decides it is drawn for the whole batch."""
    pack, batch = pack_of("opt", Kind.causal_lm, monkeypatch, layerdrop=0.5)
    begun, outside = [stream.state[0] for stream in pack.streams], torch.get_rng_state()
    with pytest.raises(CannotPack, match="draws random numbers in training"):
        pack.check(batch, 1e-3)
    assert torch.equal(torch.get_rng_state(), outside)
    assert all(torch.equal(stream.state[0], own) for stream, own in zip(pack.streams, begun, strict=True))


def test_a_backbone_that_draws_for_the_whole_batch_trains_its_points_alone(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it draws, and though its answers are the same; they end with the bits that they have alone."""
    forward = torch.nn.LayerNorm.forward

    def drawing(self: torch.nn.LayerNorm, states: torch.Tensor) -> torch.Tensor:
        if self.training:
            torch.rand(3)
        return forward(self, states)

    monkeypatch.setattr(torch.nn.LayerNorm, "forward", drawing)
    quick = ["train.max_steps=2", "evaluate.validation=false"]
    packed = carry_out(POINTS[:2], tiny_experiment, tmp_path / "packed", *quick)
    assert "not each point's own: the 2 runs of this pack train one after the other" in caplog.text
    folder, record = alone(POINTS[1], tiny_experiment, tmp_path / "alone", *quick)
    assert packed[1][1].scores["development"] == record.scores["development"]
    assert all(torch.equal(tensor, weights(packed[1][0])[name]) for name, tensor in weights(folder).items())


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


def out_of_memory_once(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Have a call of a function by its number do its work, and then find no memory."""
    function, calls = getattr(owner, name), count(1)

    def limited(*given: Any, **named: Any) -> Any:
        done = function(*given, **named)
        if next(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return done

    patch.setattr(owner, name, limited)


@pytest.mark.slow
def test_a_point_that_runs_out_of_memory_in_a_pack_runs_again_alone(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind half a step of the optimizer, in an evaluation, or while it is loaded; and the others go on."""
    own = [alone(point, tiny_experiment, tmp_path / f"alone{number}", *SHORT) for number, point in enumerate(POINTS)]
    places = [(torch.optim.AdamW, "step", 3), (Trainer, "_evaluate", 2), (earlier, "load_model", 3)]
    for owner, name, call in places:
        caplog.clear()
        with monkeypatch.context() as patch:
            out_of_memory_once(patch, owner, name, call)
            packed = carry_out(POINTS, tiny_experiment, tmp_path / name, *SHORT)
        for number in range(len(POINTS)):
            assert_the_same(own[number], packed[number])
            folder, record = packed[number]
            assert RunRecord.read(folder).status == Status.finished
            hit = number == call - 1
            assert record.provenance.get("out_of_memory_in_pack") == (len(POINTS) if hit else None), name
            assert ("packed" in record.provenance) != hit, name
            said = f"memory was not enough for {folder} in a pack of 4 runs: it runs again alone, from the start"
            assert (said in caplog.text) == hit, name


@pytest.mark.slow
def test_a_point_that_runs_out_of_memory_goes_on_from_the_checkpoint_of_its_pack(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here that of its fifth step, which it took in the pack: its time is the pack's still."""
    saving = [*SHORT, "train.checkpoint_minutes=1e-9"]
    with monkeypatch.context() as patch:
        out_of_memory_once(patch, torch.optim.AdamW, "step", 12)
        packed = carry_out(POINTS[:2], tiny_experiment, tmp_path / "packed", *saving)
    assert "it runs again alone, from its checkpoint" in caplog.text
    assert_the_same(alone(POINTS[1], tiny_experiment, tmp_path / "alone", *SHORT), packed[1])
    assert packed[1][1].provenance["packed"] == packed[1][1].provenance["out_of_memory_in_pack"] == 2


def interrupt_in(patch: pytest.MonkeyPatch, step: int) -> None:
    """Have Ctrl-C come when this step has been taken and its end has not."""
    took_step = Trainer.took_step

    def signalled(self: Trainer, *given: Any) -> bool:
        if self.state.step == step:
            signal.raise_signal(signal.SIGINT)
        return took_step(self, *given)

    patch.setattr(Trainer, "took_step", signalled)


def test_a_point_that_would_run_again_is_left_when_all_are_interrupted(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no end yet, neither here nor in its folder, so that a sweep that goes on has it to do."""
    interrupt_in(monkeypatch, 1)
    out_of_memory_once(monkeypatch, torch.optim.AdamW, "step", 2)
    points = [(inputs(tiny_experiment, *SHORT, *POINTS[number]), tmp_path / str(number)) for number in range(3)]
    ended = run_together(points)
    assert [one and getattr(one, "status", one) for one in ended] == ["interrupted", None, "interrupted"]
    assert not (tmp_path / "1/result.json").exists()


@pytest.mark.slow
def test_an_interrupted_pack_goes_on_alone_or_packed(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal leaves a checkpoint of every point; one goes on alone, two in another pack."""
    with monkeypatch.context() as patch:
        interrupt_in(patch, 3)
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
