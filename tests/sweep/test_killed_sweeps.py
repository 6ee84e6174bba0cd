"""A sweep that is killed goes on when started again: nothing is lost, nothing is done twice, nothing stays running."""

import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from recorded_sweep import end_started, start, started

from harness import tracking

pytestmark = pytest.mark.timeout(7200)

POINTS = 8
KILLS = int(os.environ.get("HARNESS_KILLS", "7"))
SEED = 20261121
# Seconds that a busy machine may take to start a sweep and end it.
PATIENCE = 1800
SWEEP = [f"seed=range(0,{POINTS})", "seconds=3"]
MICRO = [
    "-m", "method=head,bitfit", "task.generator_rows={train: 96, development: 32, validation: 32}",
    "train.max_steps=20", "train.checkpoint_minutes=0.001", "measure.costs=false", "forgetting.text=null",
    "hydra.launcher.workers=1",
]  # fmt: skip
RACE = [
    "-m", "hydra/sweeper=equal_budget", "method=bitfit",
    "task.generator_rows={train: 96, development: 64, validation: 32}", "train.epochs=4",
    "measure.costs=false", "forgetting.text=null", "hydra.launcher.workers=1",
    "hydra.sweeper.trials=2", "hydra.sweeper.rungs=[0.5]", "hydra.sweeper.race=0.5", "hydra.sweeper.seeds=[1]",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """No sweep outlives its test."""
    yield
    end_started()


def store(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def done(folder: Path) -> dict[str, Any]:
    """Identity -> score of what is finished."""
    found = tracking.finished(store(folder))
    return {key: run["scores"]["validation"] for key, run in found.items() if run["status"] == "finished"}


def finished_runs(folder: Path) -> list[str]:
    """The identity of every finished run, as often as there are runs."""
    runs = tracking.read_runs(store(folder))
    return sorted(run["tags"]["identity"] for run in runs if run["tags"]["status"] == "finished")


def unended(folder: Path) -> int:
    """Runs that the store shows as running, or that were sent by half."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        query = """SELECT count(DISTINCT r.run_uuid) FROM runs r LEFT JOIN tags t
            ON t.run_uuid = r.run_uuid AND t.key = 'harness.pending' AND t.value != 'no'
            WHERE r.lifecycle_stage = 'active' AND (r.status = 'RUNNING' OR t.key IS NOT NULL)"""
        return int(connection.execute(query).fetchone()[0])


def workers(sweep: int) -> list[int]:
    """The worker processes of a sweep."""
    children = [int(pid) for file in Path(f"/proc/{sweep}/task").glob("*/children") for pid in file.read_text().split()]
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def kill(sweep: "subprocess.Popen[str]", victim: str, order: random.Random) -> bool:
    """SIGKILL one worker, whose death ends no sweep, or the parent alone, or all at once; whether there was one."""
    if victim == "worker":
        found = workers(sweep.pid)
        if found:
            os.kill(order.choice(found), signal.SIGKILL)
        return bool(found)
    if victim == "group":
        os.killpg(sweep.pid, signal.SIGKILL)
    else:
        sweep.kill()
    sweep.wait(timeout=PATIENCE)
    return True


def begun(folder: Path) -> int:
    return len(list(folder.glob("runs/*/*/*/console.log")))


def wait_for(condition: Callable[[], bool], sweep: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and sweep.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.slow
def test_a_sweep_killed_many_times_ends_as_an_undisturbed_one(tmp_path: Path, capsys: Any) -> None:
    """The parent, a worker or all of them, at random moments of starting, working, recording and sending."""
    order = random.Random(SEED)
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert start(undisturbed, *SWEEP).wait(timeout=PATIENCE) == 0

    kills = {"parent": 0, "worker": 0, "group": 0}
    sweep = None
    while sum(kills.values()) < KILLS:
        ended = len(done(disturbed))
        assert ended < POINTS, f"all was done after {kills}: a longer task is needed"
        seen = begun(disturbed)
        if sweep is None or sweep.poll() is not None:
            sweep = start(disturbed, *SWEEP)
        victim = order.choice(sorted(kills))
        if order.random() < 0.15:
            time.sleep(order.uniform(0, 2))  # while it starts
        else:
            wait_for(lambda seen=seen: begun(disturbed) > seen, sweep)
            # A point takes a while, is recorded and sent; no faster than that all kills find something to do.
            ahead = ended / POINTS > sum(kills.values()) / KILLS
            time.sleep(order.uniform(0, 0.8 if ahead else 3))
        if sweep.poll() is None:
            kills[victim] += kill(sweep, victim, order)
    assert sweep is not None
    sweep.wait(timeout=PATIENCE)
    last = start(disturbed, *SWEEP)
    assert last.wait(timeout=PATIENCE) == 0, (disturbed / "output.txt").read_text()[-2000:]

    with capsys.disabled():
        print(f"\nkilled {kills}; {begun(disturbed)} points were begun for {POINTS}")
    assert done(disturbed) == done(undisturbed)
    assert len(done(disturbed)) == POINTS
    assert finished_runs(disturbed) == finished_runs(undisturbed)
    assert unended(disturbed) == 0
    # What else there is tells of workers that were killed while they ran a point: one that had none costs none.
    others = [run["tags"]["error"] for run in tracking.read_runs(store(disturbed)) if run["tags"]["status"] == "failed"]
    assert len(others) <= kills["worker"]
    assert all("killed by SIGKILL" in error for error in others)


@pytest.mark.slow
def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    """Killed with all its processes, it is started again and does only what was not done."""
    sweep = start(tmp_path / "sweep", "seed=range(0,4)", "seconds=0.2")
    wait_for(lambda: len(done(tmp_path / "sweep")) > 1, sweep)
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.wait()
    before = set(done(tmp_path / "sweep"))
    again = start(tmp_path / "sweep", "seed=range(0,4)", "seconds=0.2")
    assert again.wait(timeout=PATIENCE) == 0
    assert before <= set(done(tmp_path / "sweep"))
    assert len(finished_runs(tmp_path / "sweep")) == len(done(tmp_path / "sweep")) == 4
    # A third may have been recorded and not sent: then it was sent now.
    skipped = re.search(r"(\d) of 4 points have their result in the store", (tmp_path / "sweep/output.txt").read_text())
    assert skipped
    assert len(before) <= int(skipped[1]) < 4
    assert unended(tmp_path / "sweep") == 0


@pytest.mark.slow
def test_two_sweeps_started_at_once_do_each_point_once(tmp_path: Path) -> None:
    """The second takes what the first is not at, and then the outcomes of the first."""
    arguments = ["seed=range(0,6)", "seconds=0.5", "hydra.launcher.workers=1"]
    both = [start(tmp_path / "sweep", *arguments, f"hydra.sweep.dir=runs/toy/{name}") for name in ("one", "two")]
    assert [sweep.wait(timeout=PATIENCE) for sweep in both] == [0, 0]
    assert len(finished_runs(tmp_path / "sweep")) == len(done(tmp_path / "sweep")) == 6
    # Six records, not twelve, and none of them was only not sent.
    assert len(list((tmp_path / "sweep").glob("runs/toy/*/*/result.json"))) == 6


@pytest.mark.slow
def test_a_store_that_fails_in_the_middle_stops_nothing(tmp_path: Path) -> None:
    """The points finish and keep their records; the same sweep started again sends them and runs nothing.

    The first point makes the store, the second breaks it.
    """
    folder = tmp_path / "sweep"
    arguments = ["seed=range(0,3)", "seconds=0.1", "hydra.launcher.workers=1"]
    assert start(folder, *arguments, "act=break_store").wait(timeout=PATIENCE) == 1
    shown = (folder / "output.txt").read_text()
    assert "2 runs could not be sent to the store and are kept: harness-report --sync runs/toy/" in shown
    assert shown.count(" finished ") >= 3
    (folder / "away.db").rename(folder / "mlflow.db")
    seen = begun(folder)
    assert start(folder, *arguments, "act=break_store").wait(timeout=PATIENCE) == 0
    assert len(finished_runs(folder)) == 3
    assert begun(folder) == seen == 3


def harness(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start the command in a folder; what it prints lies there."""
    return started(folder, ["-m", "harness", *arguments])


@pytest.mark.slow
def test_a_race_killed_in_the_middle_of_a_round_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Its rounds stop the same trials, and the same rate is chosen and scored, from the records of both starts."""
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert harness(undisturbed, *RACE).wait(timeout=PATIENCE) == 0, (undisturbed / "output.txt").read_text()
    sweep = harness(disturbed, *RACE)
    # A record of the first round is there, and the next trial is on its way.
    wait_for(lambda: bool(tracking.finished(store(disturbed))) and begun(disturbed) > 1, sweep)
    assert kill(sweep, "group", random.Random(SEED))
    assert harness(disturbed, *RACE).wait(timeout=PATIENCE) == 0, (disturbed / "output.txt").read_text()[-2000:]
    ended = [
        {key: (run["status"], run["scores"]) for key, run in tracking.finished(store(folder)).items()}
        for folder in (undisturbed, disturbed)
    ]
    assert ended[0] == ended[1]
    statuses = [status for status, _ in ended[0].values()]
    assert statuses.count("stopped") == 2


@pytest.mark.slow
def test_the_command_itself_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Runs on the shipped encoder, cut off while they train: they go on from their checkpoints to the same scores.

    Each start imports torch anew, which is most of what this takes; above, many kills meet a task without it.
    """
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert harness(undisturbed, *MICRO).wait(timeout=PATIENCE) == 0, (undisturbed / "output.txt").read_text()
    order = random.Random(SEED)
    for victim in ("group", "worker"):
        sweep = harness(disturbed, *MICRO)
        seen = set(disturbed.glob("runs/checkpoints/*/checkpoint.pt"))
        wait_for(lambda seen=seen: bool(set(disturbed.glob("runs/checkpoints/*/checkpoint.pt")) - seen), sweep)
        if sweep.poll() is None:
            kill(sweep, victim, order)
            sweep.wait(timeout=PATIENCE)
    assert harness(disturbed, *MICRO).wait(timeout=PATIENCE) == 0, (disturbed / "output.txt").read_text()[-2000:]
    assert done(disturbed) == done(undisturbed)
    assert len(finished_runs(disturbed)) == 2
    assert unended(disturbed) == 0
    assert not list(disturbed.glob("runs/checkpoints/*/*"))
