"""Runs that train in one pack end as each of them does alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.config.compose import compose
from harness.run import prepare, run
from harness.run.together import run_together
from harness.tracking.record import RunRecord, Status

# Ranks, rates, targets, seeds, scales and dropouts that differ.
POINTS = (
    ["method.rank=4", "train.learning_rate=0.002", "seed=1"],
    ["method.rank=8", "method.use_rslora=true", "seed=2"],
    ["method.rank=2", "method.dropout=0.1", "method.target_modules=[attention]", "seed=3"],
    ["method.rank=8", "method.loraplus_lr_ratio=4", "method.init_weights=gaussian", "seed=1"],
)


def inputs(experiment: list[str], *overrides: str):
    quick = ["data_seed=0", "forgetting.text=null", "measure.costs=false"]
    return prepare(compose("config", [*experiment, *quick, *overrides]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter/adapter_model.safetensors")


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "steps.jsonl").read_text().splitlines())
    return [line.get("loss", line.get("development.loss")) for line in lines]


def assert_the_same(alone: RunRecord, packed: RunRecord, folders: tuple[Path, Path], atol: float) -> None:
    assert packed.status == alone.status == Status.finished, packed.error
    for split in ("development", "validation"):
        assert packed.scores[split] == pytest.approx(alone.scores[split], abs=atol)
    assert losses(folders[1]) == pytest.approx(losses(folders[0]), abs=atol)
    own, other = weights(folders[0]), weights(folders[1])
    assert own.keys() == other.keys()
    for name, tensor in own.items():
        assert torch.allclose(tensor, other[name], atol=atol), name


def test_a_pack_ends_as_its_points_do_alone(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Also with dropout in the backbone and in LoRA: the random numbers of each are those that it draws alone."""
    points = [inputs(tiny_experiment, *point) for point in POINTS]
    alone = [run(one, tmp_path / f"alone{number}") for number, one in enumerate(points)]
    packed = run_together([(one, tmp_path / f"packed{number}") for number, one in enumerate(points)])
    for number, (one, other) in enumerate(zip(alone, packed, strict=True)):
        assert isinstance(other, RunRecord)
        assert_the_same(one, other, (tmp_path / f"alone{number}", tmp_path / f"packed{number}"), 1e-4)
