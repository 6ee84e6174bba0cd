"""A sweep with `sweep.pack` trains in one pack what fits together, and says whose time it was not."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode

from harness.__main__ import register_plugins, run_point
from harness.config.build import assemble, resolved
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.sources import conf_root
from harness.plan import plan_point
from harness.plan.costs import PlanSettings
from harness.run import prepare
from harness.run.estimate import CONTEXT_BYTES
from harness.sweep.launchers import local
from harness.sweep.launchers.composing import Composer
from harness.sweep.launchers.launcher import SweepLauncher
from harness.sweep.launchers.packs import Packs
from harness.sweep.launchers.slots import free_memory, visible_gpus
from harness.tracking.record import RunRecord

# Trials that pack, and read the same batches.
TRIALS = [
    "sweep.stage=tune",
    "evaluate.validation=false",
    "forgetting.text=null",
    "data_seed=0",
    "tracking=none",
    "train.precision=float32",
]
MIB = 2**20


@contextmanager
def sweep(*overrides: str) -> Iterator[SweepLauncher]:
    """The launcher of a sweep on this machine, which `harness -m` would make."""
    register_plugins()
    with initialize_config_dir(str(conf_root() / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=run_point, config=config
        )
        assert isinstance(launcher, SweepLauncher)
        try:
            yield launcher
        finally:
            launcher.stop()


def driver(folder: Path, gpus: dict[str, int | str]) -> None:
    """A driver's tool that lists these GPUs, with so many MiB free; a text is what it says in their place."""
    listed = "\n".join(f"GPU {number}: NVIDIA H200 (UUID: {gpu})" for number, gpu in enumerate(gpus))
    free = "\n".join(f"--id={gpu}) echo '{told}';;" for gpu, told in gpus.items())
    folder.mkdir(exist_ok=True)
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncase $1 in\n-L) cat <<'E'\n{listed}\nE\n;;\n{free}\n*) exit 6;;\nesac\n")
    tool.chmod(0o755)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep finds GPUs, by the tool in this folder; its workers see none, and compute on the CPU."""
    folder = tmp_path / "driver"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(local, "device_type", lambda asked: "cuda")
    return folder


@pytest.mark.slow
def test_a_sweep_packs_trials_that_fit_together(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Two of LoRA in one pack; the one of DoRA beside them alone, with its own costs."""
    options = ["train.max_steps=2", "sweep.stage=tune", "evaluate.validation=false", "forgetting.text=null"]
    points = ["method.use_dora=false,true", "train.learning_rate=0.001,0.01", f"hydra.sweep.dir={tmp_path}/points"]
    packed = ["sweep.pack=4", "hydra.launcher.workers=1"]
    command = [sys.executable, "-m", "harness", "-m", *tiny_experiment, *options, *points, *packed]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("packed, K=2") == 2
    records = [RunRecord.read(tmp_path / "points" / str(number)) for number in range(4)]
    for record in records:
        alone = record.config["method"]["use_dora"]
        assert record.provenance.get("packed") == (None if alone else 2)
        assert (record.cost["train_seconds"] is None) == (not alone)
    assert sum(record.config["method"]["use_dora"] for record in records) == 2


def test_a_pack_that_is_no_positive_number_is_refused() -> None:
    """In a sentence with the key, the value and what is allowed, by a run and by a sweep."""
    plain = resolved(compose("config", []))
    allowed = "a positive whole number or auto is allowed"
    for given in (0, -1, 1.5, "many", "", True, None):
        with pytest.raises(ConfigError, match=re.escape(f"sweep.pack={given}: {allowed}")):
            assemble({**plain, "sweep": {**plain["sweep"], "pack": given}})
    for given in ("many", "1.5", ""):
        with sweep(f"sweep.pack={given}") as launcher, pytest.raises(ConfigError, match=f"={given}: {allowed}"):
            launcher.launch(trials(2), 0)
    only = pytest.raises(ConfigError, match=r"sweep\.pack=auto: only hydra/launcher=local trains several points")
    with sweep("hydra/launcher=submitit_slurm", "sweep.pack=auto") as launcher, only:
        launcher.launch(trials(2), 0)


def test_the_size_of_packs_is_no_part_of_a_runs_identity() -> None:
    """Neither a number nor auto; and the configuration of a record holds what was asked for."""
    packed = [prepare(compose("config", ["tracking=none", f"sweep.pack={size}"])) for size in (4, "auto")]
    assert len({one.identity for one in packed}) == 1
    assert [one.experiment.resolved["sweep"]["pack"] for one in packed] == [4, "auto"]


@pytest.mark.gpu
def test_trials_on_a_gpu_train_in_a_pack_unasked(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of a tiny encoder fit in any; with one worker, which sees one GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible_gpus()[0])
    own = ["train.max_steps=6", "train.learning_rate=0.001,0.01,0.02", f"hydra.sweep.dir={tmp_path}/points"]
    packed = ["sweep.pack=auto", "hydra.launcher.workers=1"]
    command = [sys.executable, "-m", "harness", "-m", *tiny_experiment, *TRIALS, *own, *packed]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("packed, K=3") == 3
    assert "sweep.pack=auto: the first pack has 3 points, by their plan" in ended.stderr


def planned(*overrides: str) -> tuple[int, int]:
    """Bytes that a pack on a GPU has once, and for each of its points, by the plan of one."""
    cost = plan_point("config", list(overrides), PlanSettings(device="cuda"))["cost"]
    once = cost["weight_bytes"] - cost["gradient_bytes"]
    return once, cost["train_peak_bytes"] - once


@pytest.mark.slow
def test_an_automatic_pack_is_what_the_free_memory_holds(
    tiny_experiment: list[str], tmp_path: Path, gpu: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of three trials two, where the GPU has room for two and a half by their plan; the third trains alone.

    What can't be planned is not packed, and says itself why.
    """
    options = [*tiny_experiment, *TRIALS, "train.max_steps=2", "task.max_length=128"]
    once, each = planned(*options)
    driver(gpu, {"GPU-1a": round((CONTEXT_BYTES + once + 2.5 * each) / MIB)})
    assert each > 2 * MIB
    with sweep(*options, "sweep.pack=auto", f"hydra.sweep.dir={tmp_path}/points") as launcher:
        assert mates(launcher, trials(2, *options, "method.target_modules=[nowhere]"), 1) == [0]
        ended = launcher.launch(trials(3, *options), 0)
    assert [one.return_value["status"] for one in ended] == ["finished"] * 3
    records = [RunRecord.read(tmp_path / "points" / str(number)) for number in range(3)]
    assert sorted(record.provenance.get("packed", 1) for record in records) == [1, 2, 2]
    assert all((record.cost["train_seconds"] is None) == ("packed" in record.provenance) for record in records)
    said = capfd.readouterr()
    assert "points train one at a time: their step can't be planned: method.target_modules=" in said.err
    assert said.out.count("packed, K=2") == 2
    assert said.err.count("sweep.pack=auto: the first pack has 2 points, by their plan") == 1


def trials(count: int, *options: str) -> list[list[str]]:
    """The overrides of points that differ in their learning rate."""
    return [[*options, f"train.learning_rate=0.00{number}"] for number in range(1, count + 1)]


def mates(launcher: SweepLauncher, points: list[list[str]], *idle: int) -> list[int]:
    """How many of the points the first one would train with, by the number of workers that have nothing to do."""
    composer = Composer(launcher.context, launcher.config, launcher.workers.device)
    launcher.workers.begin(launcher.config)
    first, *others = composer.points(points, 0)
    memory = launcher.workers.memory(launcher.workers.prepare([first, *others]))
    packs = Packs(None, composer, launcher.workers, memory, launcher.said)
    return [len(packs.mates(first, others, count)) for count in idle]


def test_automatic_packs_leave_a_cpu_alone_and_say_so_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number packs there still."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    points = trials(3, *TRIALS)
    with sweep() as launcher:
        assert mates(launcher, points, 1, 1) == [0, 0]
        composer = Composer(launcher.context, launcher.config, launcher.workers.device)
        first, *others = composer.points(points, 0)
        assert Packs(2, composer, launcher.workers, None, set()).mates(first, others, 1) == others[:1]
    said = capsys.readouterr().err
    assert said.count("sweep.pack=auto: points train one at a time: a CPU gains little from a pack") == 1


@pytest.mark.slow
def test_nothing_is_packed_unasked_that_reports_costs_has_a_gpu_to_itself_or_knows_no_memory(
    gpu: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A final run with measured costs, two trials where two GPUs are idle, and trials on a part of a GPU."""
    driver(gpu, {"GPU-1a": 10**6})
    with sweep() as launcher:
        assert mates(launcher, trials(2, *TRIALS, "sweep.stage=final", "measure.costs=true"), 1) == [0]
        assert mates(launcher, trials(2, *TRIALS), 2) == [0]
        assert not capsys.readouterr().err
    driver(gpu, {"GPU-1a": "[N/A]"})
    with sweep() as launcher:
        assert mates(launcher, trials(2, *TRIALS), 1) == [0]
    assert "the free memory of its GPUs is not known" in capsys.readouterr().err


def test_workers_of_a_gpu_share_its_free_memory_as_it_was_before_they_began(gpu: Path) -> None:
    """Of several GPUs the fullest counts; what the driver can't say is not known."""
    driver(gpu, {"GPU-1a": 900, "GPU-2b": 500})
    workers = local.LocalWorkers(None, 1, [])
    assert workers.memory(["GPU-1a", "GPU-1a", "GPU-1a"]) == 300 * MIB
    assert workers.memory(["GPU-1a", "GPU-2b"]) == 500 * MIB
    driver(gpu, {"GPU-1a": 100, "GPU-2b": 100})
    assert workers.memory(["GPU-1a"]) == 900 * MIB
    assert workers.memory(["GPU-1a", "MIG-3c"]) is None
    assert workers.memory([None]) is None
    assert free_memory("GPU-2b") == 100 * MIB
