"""Several processes take the steps that one would."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from run_directories import SampleRun
from safetensors.torch import load_file

from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.run import job
from harness.tracking.record import RunRecord
from harness.training import processes

# Rows that two processes can't halve evenly, accumulated batches, and dropout nowhere.
SMALL = (
    "method=lora task.max_train_rows=200 train.batch_size=7 train.gradient_accumulation_steps=2 train.device=cpu "
    "forgetting.text=null tracking=none train.distributed=ddp"
).split()


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "harness", *SMALL, *overrides]


def run(folder: Path, *overrides: str) -> RunRecord:
    """Carry out a run from the shell, in a folder below `folder` that is named by `hydra.run.dir`."""
    ended = subprocess.run(command(*overrides), cwd=folder, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    (place,) = [part.partition("=")[2] for part in overrides if part.startswith("hydra.run.dir=")]
    return RunRecord.read(folder / place)


@contextmanager
def started_until_checkpoint(folder: Path, *overrides: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A run from the shell that has written its first checkpoint, in `cut` below `folder`; its output is beside it."""
    told = command(*overrides, "hydra.run.dir=cut", "train.checkpoint_minutes=0.0001")
    with (folder / "output").open("w") as output:
        started = subprocess.Popen(told, cwd=folder, stdout=output, stderr=output)
        deadline = time.monotonic() + 300
        while not list(folder.glob("runs/checkpoints/*/*.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield started


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "adapter").glob("*.safetensors")
    return load_file(file)


def losses(folder: Path) -> list[float]:
    steps = map(json.loads, (folder / "steps.jsonl").read_text().splitlines())
    return [step["loss"] for step in steps if "loss" in step]


@pytest.mark.parametrize("rows", [0, 1, 2, 7])
def test_every_row_is_one_processs(rows: int) -> None:
    """Shares are disjoint, complete and as equal as can be."""
    shares = []
    for rank in range(3):
        process = processes.Processes()
        process.rank, process.count = rank, 3
        shares.append(process.share(list(range(rows))))
    assert sorted(row for share in shares for row in share) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_changes() -> None:
    """Sums are the values themselves, and random numbers stay."""
    alone = processes.Processes()
    assert alone.is_first
    assert alone.sums([1.5, True]) == [1.5, True]
    assert alone.of_all("a") == ["a"]
    state = torch.get_rng_state()
    alone.part_random_numbers()
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_are_summed_in_pieces_of_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter is in one bucket, and only a large one exceeds the limit, alone."""
    monkeypatch.setattr(processes, "BUCKET", 10)
    sizes = [(4, torch.float32), (3, torch.float64), (5, torch.float32), (30, torch.float32), (2, torch.float32)]
    parameters = [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in sizes]
    buckets = list(processes._buckets(parameters))
    assert sorted(id(p) for bucket in buckets for p in bucket) == sorted(map(id, parameters))
    assert all(len({p.dtype for p in bucket}) == 1 for bucket in buckets)
    assert all(len(bucket) == 1 or sum(p.numel() for p in bucket) <= 10 for bucket in buckets)


@pytest.mark.parametrize(
    ("overrides", "gpus", "expected"),
    [
        ([], 0, 1),
        (["train.distributed=ddp", "train.processes=3"], 0, 3),
        (["train.distributed=ddp"], 4, 4),
        (["train.distributed=ddp", "train.device=cpu"], 4, "there is no GPU to count processes by"),
        (["train.distributed=ddp"], 0, "there is no GPU to count processes by; set train.processes"),
        (["train.distributed=ddp", "train.processes=3"], 2, "this machine has 2 GPUs"),
        (["train.distributed=fsdp"], 2, 2),
        (["train.distributed=fsdp", "model.quantization=nf4"], 2, "nf4 weights are packed and can't be spread"),
        (["train.distributed=ddp", "model.quantization=nf4"], 2, 2),
    ],
)
def test_how_many_processes(monkeypatch: pytest.MonkeyPatch, overrides, gpus, expected) -> None:
    """As many as were asked for, or one per GPU; contradictions are refused."""
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(device_count=lambda: gpus))
    experiment = build(compose("config", overrides))
    if isinstance(expected, int):
        assert job.wanted(experiment) == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            job.wanted(experiment)


@pytest.mark.parametrize("wrong", ["train.processes=0", "train.distributed=zero"])
def test_a_mistake_is_told(wrong: str) -> None:
    """The sentence names the key."""
    with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
        build(compose("config", [wrong]))


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    """The same rows per step give the same weights and scores, within what the order of a sum changes."""
    # Of the last of eleven batches, of a single row, the second process has none.
    rows = ("task.max_train_rows=31", "train.batch_size=3")
    short = (*rows, "train.max_steps=8", "forgetting.text=micro")
    one = run(tmp_path, *short, "hydra.run.dir=one", "train.distributed=none")
    for way in ("ddp", "fsdp"):
        told = (*short, f"hydra.run.dir={way}", f"train.distributed={way}", "train.processes=2")
        two = run(tmp_path, *told)
        assert two.provenance["command"][1:] == [*SMALL, *told]
        assert_the_same(one, tmp_path / "one", two, tmp_path / way)
        if way == "ddp":
            assert two.cost["weight_bytes"] == one.cost["weight_bytes"]
        else:
            assert two.cost["weight_bytes"] < 0.8 * one.cost["weight_bytes"]
            assert two.cost["latency_ms"] is None
            assert "fsdp" in two.unmeasured["cost.latency_ms"]
            assert "fsdp" in two.unmeasured["cost.train_peak_bytes"]


def assert_the_same(one: RunRecord, one_dir: Path, two: RunRecord, two_dir: Path) -> None:
    """One process and two have the same identity, counts, scores, weights and losses."""
    assert (one.identity, one.provenance["processes"], two.provenance["processes"]) == (two.identity, 1, 2)
    assert two.scores["validation"] == pytest.approx(one.scores["validation"], abs=1e-5)
    assert two.scores["forgetting"]["after"] == pytest.approx(one.scores["forgetting"]["after"], rel=1e-5)
    apart, together = weights(one_dir), weights(two_dir)
    assert apart.keys() == together.keys()
    for name, value in apart.items():
        assert torch.allclose(value, together[name], atol=1e-4), name
    assert losses(two_dir) == pytest.approx(losses(one_dir), abs=1e-5)
    assert two.cost["trainable_parameters"] == one.cost["trainable_parameters"]
    assert two.cost["total_parameters"] == one.cost["total_parameters"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs or none")
def test_a_method_that_freezes_nothing_can_not_be_spread(tmp_path: Path) -> None:
    """The run fails with a sentence that names the other way."""
    # On whatever device there is: the processes must find each other without being told that it is the CPU.
    two = ("train.distributed=fsdp", "train.processes=2", "train.device=auto")
    told = command("method=full", *two, "hydra.run.dir=full")
    ended = subprocess.run(told, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 1, ended.stderr
    assert "train.distributed=ddp is for it" in str(RunRecord.read(tmp_path / "full").error)


# Why a method is not held against itself with whole weights; the others all are.
NOT_SPREAD = {
    "full": "this method trains all of the layers",
    "diff_pruning": "this method trains all of the layers",
    "qlora": "quantized",
    "lora_int8": "quantized",
}


@pytest.mark.slow
def test_spread_weights_compute_what_whole_ones_do(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Every method of the catalog, three steps and switched off again, on two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(__file__).parents[1] / "support/spread.py"
    told = [*launcher, str(script), "found.json", str(tiny_model("bert")), str(tiny_model("llama"))]
    ended = subprocess.run(told, cwd=tmp_path, capture_output=True, text=True, timeout=1000)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(NOT_SPREAD) < set(found)
    for name, reason in found.items():
        assert NOT_SPREAD[name] in str(reason) if name in NOT_SPREAD else reason is None, (name, reason)


@pytest.mark.slow
def test_interrupted_processes_go_on_where_they_stopped(tmp_path: Path) -> None:
    """A polite kill of the command reaches all of them; resumed, they end where two undisturbed ones do."""
    short = ("train.max_steps=60", "measure.costs=false", "train.processes=2")
    undisturbed = run(tmp_path, *short, "hydra.run.dir=undisturbed", "train.checkpoint_dir=other")
    with started_until_checkpoint(tmp_path, *short) as started:
        os.kill(started.pid, signal.SIGTERM)
        assert started.wait(300) == 130, (tmp_path / "output").read_text()
    assert RunRecord.read(tmp_path / "cut").status == "interrupted"
    resumed = run(tmp_path, *short, "hydra.run.dir=resumed", "train.resume=true")
    assert resumed.scores["validation"] == pytest.approx(undisturbed.scores["validation"], abs=1e-6)


@pytest.mark.parametrize(("returncode", "status"), [(1, "failed"), (0, "interrupted")])
def test_who_stopped_the_first_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, returncode: int, status: str
) -> None:
    """The launcher, as another had died: then the run failed. Whoever asked all of them to stop: it was interrupted."""
    (result,) = SampleRun(status="interrupted", error="stopped by the user").write(tmp_path / "other").glob("*.json")
    launcher = tmp_path / "launcher"
    launcher.write_text(f'#!/bin/sh\nfor run_dir; do :; done\ncp "{result}" "$run_dir"\nexit {returncode}\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(launcher))
    record = job.start_together(build(compose("config", SMALL)), 2, tmp_path)
    assert record is not None
    assert record.status == status
    assert ("one of its 2 processes ended" in str(record.error)) == (status == "failed")


@pytest.mark.slow
def test_a_process_that_dies_fails_the_run(tmp_path: Path) -> None:
    """The others do not wait for it for ever, and the record says so."""
    with started_until_checkpoint(tmp_path, "train.processes=2", "train.max_steps=5000") as started:
        found = subprocess.run(["pgrep", "-f", "harness.run.job .*cut"], capture_output=True, text=True).stdout
        *_, last = map(int, found.split())
        os.kill(last, signal.SIGKILL)
        assert started.wait(300) == 1, (tmp_path / "output").read_text()
    assert RunRecord.read(tmp_path / "cut").status == "failed"
