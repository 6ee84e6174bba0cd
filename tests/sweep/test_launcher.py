"""The launcher: no point harms another, whatever it does, and what was done is recorded and not done again."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError
from toy_sweep import ToySweep, die_while_starting, task, values

from harness import tracking
from harness.config.compose import without_hydra
from harness.config.errors import ConfigError
from harness.sweep.launchers import composing, local, workers
from harness.sweep.launchers.composing import Composer
from harness.sweep.launchers.launcher import SweepLauncher
from harness.sweep.launchers.slots import available_cores, visible_gpus
from harness.sweep.outcome import LOST, Ended, Outcome, gathering
from harness.sweep.points import Point
from harness.tracking.record import RunRecord

ACTS = ["finish", "raise", "exit", "kill", "leave", "hang", "garbage", "diverge", "record_then_die"]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    return ToySweep(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def disaster(tmp_path_factory):
    """One sweep in which nearly every point goes wrong in another way; two workers, so that each has survivors."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("disaster")
        toy = ToySweep(folder, monkeypatch)
        limits = {"hang": "sweep.timeout_minutes=0.05"}
        points = [
            [f"act={act}", limits.get(act, "seed=0"), f"+folder={folder}/sweep/{i}"] for i, act in enumerate(ACTS)
        ]
        points += [["act=finish", "seed=7"], ["act=finish", "train.rate=1"]]
        began = time.monotonic()
        outcomes = toy.launch(points, "hydra.launcher.workers=2")
        named = dict(zip([*ACTS, "last", "wrong"], outcomes, strict=True))
        yield toy, named, time.monotonic() - began


@pytest.mark.parametrize(
    ("act", "status", "reason"),
    [
        ("finish", "finished", ""),
        ("last", "finished", ""),
        ("diverge", "diverged", "the loss is NaN at step 3"),
        ("raise", "failed", "RuntimeError: no such luck"),
        ("exit", "failed", "the run called sys.exit(3)"),
        ("kill", "failed", "its worker process was killed by SIGKILL (perhaps the machine ran out of memory)"),
        ("leave", "failed", "its worker process ended with exit status 70"),
        ("hang", "failed", "took longer than sweep.timeout_minutes=0.05 and was stopped"),
        (
            "wrong",
            "failed",
            "train.rate=1: there is no key train.rate; Valid: checkpoint_dir, device, learning_rate, resume",
        ),
        ("record_then_die", "finished", ""),
    ],
)
def test_each_point_ends_with_its_own_status_and_reason(disaster, act, status, reason):
    """A point that raises, leaves, is killed or hangs harms no other, and says what became of it."""
    outcome = disaster[1][act]
    assert (outcome["status"], outcome.get("error") or "") == (status, reason)


def test_a_value_that_is_no_result_is_a_failure(disaster):
    """A run that returns garbage failed."""
    assert disaster[1]["garbage"]["status"] == "failed"
    assert "where a result was expected" in disaster[1]["garbage"]["error"]


def test_a_run_that_died_after_recording_keeps_its_scores(disaster):
    """The record on disk counts more than the death of the worker that wrote it."""
    assert disaster[1]["record_then_die"]["scores"]["validation"] == {"x": 0.75}


def test_points_that_could_not_record_their_end_have_a_record_and_are_in_the_store(disaster):
    """The launcher writes result.json for a run that could not, and sends it."""
    toy, named, _ = disaster
    for act in ("raise", "exit", "kill", "leave", "hang"):
        record = RunRecord.read(Path(named[act]["run_dir"]))
        assert (record.status, record.error) == ("failed", named[act]["error"])
        assert record.config["act"] == act
        assert record.identity == named[act]["identity"]
        assert record.run_id in {sent.run_id for sent in toy.sent}


def test_a_hanging_point_leaves_the_place_where_it_hung_in_its_log(disaster):
    """console.log of a point that was stopped shows its stack, and of any other its output."""
    assert "in task" in (Path(disaster[1]["hang"]["run_dir"]) / "console.log").read_text()
    assert "no such luck" in (Path(disaster[1]["raise"]["run_dir"]) / "console.log").read_text()
    assert "a word from the worker" in (Path(disaster[1]["finish"]["run_dir"]) / "console.log").read_text()


def test_a_disaster_takes_no_longer_than_its_timeout_and_new_workers(disaster):
    """Nothing waits for a worker that is gone."""
    assert disaster[2] < 40


@pytest.mark.slow
def test_workers_live_on_and_compute_with_their_threads(toy, monkeypatch):
    """Five points share two processes, whose thread variables are set while the parent's stay."""
    monkeypatch.setenv("HARNESS_TOY", "inherited")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    points = [["act=report", f"seed={seed}"] for seed in range(5)]
    outcomes = toy.launch(points, "hydra.launcher.workers=2", "hydra.launcher.threads=1")
    assert 1 <= len({outcome["pid"] for outcome in outcomes}) <= 2
    expected = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HARNESS_TOY": "inherited"}
    assert all(expected.items() <= outcome["environment"].items() for outcome in outcomes)
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert not [child for child in multiprocessing.active_children() if "pebble" in child.name]


@pytest.mark.slow
@pytest.mark.parametrize(("deaths", "status"), [(2, "finished"), (50, "failed")])
def test_a_worker_that_dies_before_it_takes_a_point_costs_no_point(toy, monkeypatch, deaths, status):
    """Another one takes it; of a machine on which none can start, the sweep comes to an end."""
    for number in range(deaths):
        (toy.folder / f"death{number}").touch()
    monkeypatch.setenv("HARNESS_TOY", str(toy.folder))
    monkeypatch.setattr(workers, "_prepare", die_while_starting)
    outcomes = toy.launch([["act=finish", f"seed={seed}"] for seed in range(3)], "hydra.launcher.workers=1")
    assert [outcome["status"] for outcome in outcomes] == [status] * 3
    reason = None if status == "finished" else "its worker process died before the run began, 3 times in a row"
    assert [outcome["error"] for outcome in outcomes] == [reason] * 3
    assert bool(list(toy.folder.glob("death*"))) == (status == "failed")


@pytest.mark.slow
def test_a_worker_imports_before_its_first_point(toy, monkeypatch):
    """Within no run's time limit; what can't be imported, or kills the worker, fails no point."""
    (toy.folder / "slow_to_import.py").write_text("import time; time.sleep(4)")
    (toy.folder / "deadly.py").write_text(
        "import os, pathlib\nfile = pathlib.Path(__file__).with_name('died')\n"
        "if not file.exists():\n    file.touch()\n    os._exit(3)\n"
    )
    monkeypatch.syspath_prepend(str(toy.folder))
    points = [["act=imported", f"seed={seed}", "sweep.timeout_minutes=0.05"] for seed in range(2)]
    settings = ["hydra.launcher.workers=1", "hydra.launcher.imports=[not_there_at_all,slow_to_import]"]
    outcomes = toy.launch(points, *settings)
    assert [(outcome["status"], outcome["imported"]) for outcome in outcomes] == [("finished", True)] * 2
    outcomes = toy.launch(points, "hydra.launcher.workers=1", "hydra.launcher.imports=[deadly]")
    assert (toy.folder / "died").exists()
    assert [outcome["status"] for outcome in outcomes] == ["finished"] * 2


@pytest.mark.slow
def test_points_with_a_result_are_skipped_with_the_stored_outcome(toy, capsys):
    """The store is asked once, finished and diverged points keep their result, failed ones run again."""
    points = [["seed=0"], ["seed=1"], ["seed=2"]]
    first = toy.launch(points)
    for outcome, status in zip(first, ("finished", "diverged", "failed"), strict=True):
        scores = {"validation": {"x": 0.25}, "development": {}}
        toy.stored[outcome["identity"]] = {
            "status": status,
            "primary_metric": "x",
            "scores": scores,
            "run_id": "stored",
        }
    toy.questions = 0
    again = toy.launch(points)
    assert [outcome.get("skipped", False) for outcome in again] == [True, True, False]
    assert again[0]["scores"] == {"primary_metric": "x", "validation": {"x": 0.25}, "development": {}}
    assert toy.questions == 1
    assert "2 of 3 points have their result in the store and are skipped" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("rerun", "skipped"), [("failed", 1), ("all", 0)])
def test_rerun_runs_points_again(toy, rerun, skipped):
    """`failed` runs what diverged again, all everything."""
    points = [["act=diverge"], ["act=tie"]]
    for point, status in zip(points, ("diverged", "finished"), strict=True):
        with toy.hydra(point, None) as (_, config):
            plain = OmegaConf.to_container(without_hydra(config), resolve=True)
            toy.stored[composing.identities()(plain)] = {"status": status, "scores": {}}
    outcomes = toy.launch([[*point, f"sweep.rerun={rerun}"] for point in points])
    assert sum(outcome.get("skipped", False) for outcome in outcomes) == skipped


@pytest.mark.slow
def test_the_sweep_is_named_after_its_file(toy):
    """Every point is told the sweep's name; without a file it is multirun."""
    outcomes = toy.launch([["act=raise"], ["act=raise", "sweep.name=mine"]])
    names = [RunRecord.read(Path(outcome["run_dir"])).sweep["name"] for outcome in outcomes]
    assert names == ["multirun", "mine"]


def test_fail_fast_stops_the_sweep_at_the_first_failure(toy):
    """Points after the failure are not run."""
    points = [["act=finish"], ["act=raise"], ["seed=2"], ["seed=3"]]
    outcomes = toy.launch(points, "hydra.launcher.workers=1", "sweep.fail_fast=true")
    assert [outcome["status"] for outcome in outcomes] == ["finished", "failed", "not run", "not run"]


def test_an_interrupted_sweep_records_what_was_running_and_stops_its_workers(toy, capsys):
    """Ctrl-C ends the sweep at once, with the table of what was done."""

    def interrupt_the_second_point() -> None:
        while not (toy.folder / "sweep" / "1" / "console.log").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_the_second_point).start()
    with gathering() as outcomes, pytest.raises(KeyboardInterrupt):
        toy.launch([["act=finish"], ["act=hang"], ["seed=5"]], "hydra.launcher.workers=1")
    statuses = [outcome.status for outcome in outcomes]
    assert statuses == ["finished", "interrupted", "not run"]
    assert [record.status for record in toy.sent if record.config["act"] == "hang"] == ["interrupted"]
    assert "1 finished, 1 interrupted, 1 not run" in capsys.readouterr().out


def test_an_interrupt_while_a_point_is_composed_is_no_fault_of_the_point(toy, monkeypatch):
    """OmegaConf, interrupted while it copies, raises what looks like a user's mistake."""
    compose = ConfigLoaderImpl.load_sweep_config

    def interrupted(loader, master, overrides):
        if "act=hang" not in overrides:
            return compose(loader, master, overrides)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        finally:
            raise ConfigAttributeError("'NoneType' object has no attribute '_invalidate_flags_cache'")

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", interrupted)
    with gathering() as outcomes, pytest.raises(KeyboardInterrupt):
        toy.launch([["act=finish"], ["act=hang"]], "hydra.launcher.workers=1")
    assert outcomes[-1].status == "not run"


def test_workers_die_with_a_sweep_that_was_killed(tmp_path):
    """No orphan goes on computing beside a sweep that was started again."""
    code = (
        "import os, sys, time\n"
        "from multiprocessing import get_context\n"
        "from harness.sweep.launchers.workers import _prepare\n"
        "from pebble import ProcessPool\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPool(1, 0, _prepare, (1, None), get_context('spawn'))\n"
        "    print(pool.schedule(os.getpid).result(), flush=True)\n"
        "    pool.schedule(time.sleep, args=(600,))\n"
        "    time.sleep(600)\n"
    )
    script = tmp_path / "sweep.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    sweep = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    assert sweep.stdout is not None
    worker = int(sweep.stdout.readline())
    sweep.kill()
    sweep.wait()
    sweep.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and "Z" not in state(worker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{worker}").exists() or "Z" in state(worker)


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_the_table_names_every_point_and_the_log_of_each_failure(toy, capsys):
    """What the points share stands above the table, what sets them apart in it."""
    outcomes = toy.launch([["seed=3", "act=finish"], ["seed=3", "act=raise"]])
    shown = capsys.readouterr().out
    assert "every point with seed=3" in shown
    assert any(line.split()[:3] == ["1", "act=raise", "failed"] for line in shown.splitlines())
    assert f"log of point 1: {outcomes[1]['run_dir']}/console.log" in shown
    assert "2 points: 1 failed, 1 finished" in shown


def test_more_workers_than_cores_are_warned_of(toy, capsys):
    """Points that slow each other down are worth a sentence."""
    cores = available_cores()
    toy.launch([["seed=1"]], f"hydra.launcher.workers={cores + 1}")
    assert f"is more than the {cores} cores" in capsys.readouterr().err


def test_long_points_are_run_first(toy, monkeypatch, capsys):
    """By what earlier runs of the store took; of what nobody knows it comes before."""
    seconds = {("narrow", "None", "None"): [90.0, 110.0], ("wide", "None", "None"): [5.0]}
    monkeypatch.setattr(tracking, "durations", lambda uri: seconds)
    points = [[f"method={method}", "train.learning_rate=2"] for method in ("wide", "narrow", "single")]
    toy.launch(points, "hydra.launcher.workers=1")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert [line.split()[1] for line in lines] == ["method=single:", "method=narrow:", "method=wide:"]


@pytest.mark.slow
def test_points_share_the_gpus(toy, monkeypatch):
    """Each worker sees one GPU, and there are as many workers as slots."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    outcomes = toy.launch([["act=report", "train.device=cuda", f"seed={seed}"] for seed in range(2)])
    seen = [outcome["environment"]["CUDA_VISIBLE_DEVICES"] for outcome in outcomes]
    assert sorted(seen) == ["3", "5"]
    with toy.hydra(["sweep.slots_per_gpu=2"], None) as (context, config):
        composer, workers = Composer(context, config), local.LocalWorkers(None, 1, [])
        workers.begin(config)
        points = composer.points([["train.device=auto", f"seed={seed}"] for seed in range(9)], 0)
        assert workers.prepare(points) == ["3", "5", "3", "5"]
        assert workers.prepare(points[:3]) == ["3", "5", "3"]
        on_cpu = composer.points([["train.device=cpu"], ["train.device=cpu", "seed=1"]], 0)
        assert set(workers.prepare(on_cpu)) == {None}


def test_a_gpu_that_is_not_there_is_asked_for_in_vain(toy, monkeypatch):
    """The points that ask for one fail before anything starts, and a sweep of nothing else is refused."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"train\.device=cuda: there is no GPU here"):
        toy.launch([["train.device=cuda"], ["train.device=cuda", "seed=1"]])
    outcomes = toy.launch([["train.device=cuda"], ["train.device=auto"]])
    assert [outcome["status"] for outcome in outcomes] == ["failed", "finished"]


def test_gpus_are_found_by_the_drivers_tool(tmp_path, monkeypatch):
    """Their names are those that CUDA_VISIBLE_DEVICES takes; a GPU in parts is its parts."""
    listed = tmp_path / "nvidia-smi"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def found(*lines):
        listed.write_text("#!/bin/sh\ncat <<'E'\n" + "\n".join(lines) + "\nE\n")
        listed.chmod(0o755)
        return visible_gpus()

    whole = "GPU 0: NVIDIA H200 (UUID: GPU-1a2b-3c)"
    assert found(whole, "GPU 1: NVIDIA H200 (UUID: GPU-4d)") == ["GPU-1a2b-3c", "GPU-4d"]
    assert found(whole, "  MIG 1g.18gb Device 0: (UUID: MIG-5e-6f)") == ["MIG-5e-6f"]
    assert found("No devices found.") == []


def test_a_point_that_was_cut_off_goes_on_from_its_checkpoint(toy):
    """Unless everything is to be done anew, or the user says otherwise."""
    with toy.hydra([], None) as (context, config):
        composer = Composer(context, config)
        points = composer.points([["seed=1"], ["sweep.rerun=all"], ["train.resume=false"]], 0)
        for point in points:
            composer.compose(point)
        assert [point.config.train.resume for point in points] == [True, False, False]


class Threads:
    """Workers of one's own: each is a thread of this process."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, config: DictConfig) -> None:
        self.calls.append("begin")

    def device(self, asked: str) -> str:
        return "cpu"

    def prepare(self, points: list[Point]) -> list[str | None]:
        self.calls.append("prepare")
        return [None] * 2

    def hire(self, places: Sequence[str | None]) -> "list[Thread]":
        self.calls.append(f"hire {len(places)}")
        return [Thread() for _ in places]

    def stop(self) -> None:
        self.calls.append("stop")


class Thread:
    """Runs one point at a time; one whose seed is 1 dies before it begins, the first two times."""

    deaths = 0

    def start(self, task: Any, config: DictConfig, context: HydraContext, seconds: Any, lock: Any) -> "Future[Ended]":
        return ThreadPoolExecutor(1).submit(self.run, task, config)

    def run(self, task: Any, config: DictConfig) -> Ended:
        if config.seed == 1 and Thread.deaths < 2:
            Thread.deaths += 1
            return Ended(Outcome(LOST, "its thread was lost"), lost=True)
        return Ended(Outcome.of(task(config)))


def test_a_launcher_needs_no_more_than_workers_of_its_own(toy):
    """Composing, scheduling, settling and the records are the same whatever carries points out."""
    workers = Threads()
    with toy.hydra([], task) as (context, config):
        launcher = SweepLauncher(workers)
        launcher.setup(hydra_context=context, task_function=task, config=config)
        outcomes = values(launcher.launch([["seed=0"], ["seed=1"], ["seed=1"], ["method=none", "wrong=1"]], 0))
        launcher.stop()
    assert [outcome["status"] for outcome in outcomes] == ["finished", "finished", "finished", "failed"]
    assert [outcome["skipped"] for outcome in outcomes] == [False, False, True, False]
    assert workers.calls == ["begin", "prepare", "hire 2", "stop"]
    assert Thread.deaths == 2
    assert [record.status for record in toy.sent] == ["finished", "finished"]
    assert RunRecord.read(Path(outcomes[3]["run_dir"])).status == "failed"


@pytest.mark.slow
def test_a_kept_record_that_still_cannot_be_sent_leaves_its_point_to_run(toy, tmp_path, monkeypatch):
    """The store is away at both starts of a sweep: the second runs the points again and ends as the first did."""

    def refuse(*_):
        raise ConnectionError("the store is away")

    monkeypatch.setattr(tracking, "send", refuse)
    for start in ("one", "two"):
        points = [["sweep.name=kept", f"seed={seed}"] for seed in range(2)]
        outcomes = toy.launch(points, f"hydra.sweep.dir={tmp_path}/starts/{start}")
        assert [(one["status"], one["skipped"], one["tracked"]) for one in outcomes] == [("finished", False, False)] * 2


@pytest.mark.parametrize(
    ("points", "setting", "sentence"),
    [
        ([], "seed=0", "the sweep is empty"),
        ([["seed=0"]], "hydra.launcher.imports=5", "hydra.launcher.imports=5: a list of module names is needed"),
        ([["seed=0"]], "hydra.launcher.imports=os", "hydra.launcher.imports=os: a list of module names is needed"),
        ([["seed=0"]], "hydra.launcher.workers=0", "hydra.launcher.workers=0: a positive whole number is needed"),
        (
            [["method=wid"], ["method=wid", "seed=1"]],
            "seed=0",
            "method=wid: there is no such method; did you mean wide?",
        ),
        ([["sweep.rerun=fail"]], "seed=0", "sweep.rerun=fail: there is no such choice; did you mean failed?"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused(toy, points, setting, sentence):
    """Nothing starts when no point could run."""
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")):
        toy.launch(points, setting)


def test_the_exit_status_counts_failures_but_not_trials_that_diverge():
    """A learning rate that is too high is what a trial is there to find out."""
    assert Outcome("diverged", stage="run").counts_as_failure
    assert Outcome("not run", stage="run").counts_as_failure
    assert not Outcome("diverged", stage="tune").counts_as_failure
    assert not Outcome("finished", stage="tune").counts_as_failure
