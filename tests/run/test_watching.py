"""A run can be watched, stopped where it is watched, and killed, while it trains."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from run_directories import SampleRun, new_store
from waiting import until

from harness import tracking
from harness.config.build import build
from harness.config.compose import compose
from harness.report import __main__ as report
from harness.run.watching import RunWatch, watching
from harness.tracking.record import LIVE_FILE, LOG_FILE, RESULT_FILE, STEPS_FILE, RunRecord

LONG = ("method=lora train.max_steps=100000 measure.costs=false forgetting.text=null train.device=cpu").split()


@contextmanager
def started(*overrides: str) -> Iterator["subprocess.Popen[str]"]:
    """A command of ours in the working directory, which is killed if it is still there in the end."""
    flags = [override for override in overrides if override.startswith("-")]
    command = [sys.executable, "-m", "harness", *flags, *LONG, *overrides[len(flags) :]]
    with Path("output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def lines(run_dir: str) -> int:
    path = Path(run_dir) / STEPS_FILE
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_a_run_is_seen_while_it_trains_and_stopped_where_it_is_watched(tmp_path: Path) -> None:
    """Steps in its folder and in the store, scores in its log; its tag ends it, and from its checkpoint it goes on."""
    uri = new_store(tmp_path)
    with started("hydra.run.dir=watched", "train.checkpoint_minutes=60") as run:
        (live,) = until(lambda: tracking.running(uri))
        first = until(lambda: lines("watched"))
        until(lambda: lines("watched") > first)
        until(lambda: tracking.running(uri)[0]["metrics"].get("train.loss"))
        state = json.loads((Path("watched") / LIVE_FILE).read_text())
        assert (state["run_id"], state["steps"]) == (live["run_id"], 100_000)
        assert tracking.read_runs(uri) == []
        until(lambda: "left" in (Path("watched") / LOG_FILE).read_text())
        until(lambda: "development accuracy" in (Path("watched") / LOG_FILE).read_text())
        assert report.main([f"stop={live['mlflow_run_id'][:8]}", f"tracking.uri={uri}"]) == 0
        assert run.wait(120) == 130
    record = RunRecord.read(Path("watched"))
    assert (record.status, "stopped where it was watched" in str(record.error)) == ("interrupted", True)
    (sent,) = tracking.read_runs(uri)
    assert (sent["mlflow_run_id"], sent["tags"]["status"]) == (live["mlflow_run_id"], "interrupted")
    assert not (Path("watched") / LIVE_FILE).exists()
    reached = json.loads((Path("watched") / STEPS_FILE).read_text().splitlines()[-1])["step"]
    with started("hydra.run.dir=again", "train.resume=true"):
        begun = until(lambda: lines("again"))
        until(lambda: lines("again") > begun + 1)
        steps = [json.loads(line)["step"] for line in (Path("again") / STEPS_FILE).read_text().splitlines()[:-1]]
        assert (steps[0], max(steps) > reached) == (1, True)
        (second,) = until(lambda: tracking.running(uri))
    # Killed outright: it is ended by whoever comes next.
    (tmp_path / "runs").mkdir(exist_ok=True)
    assert report.main(["--sync", "runs", f"tracking.uri={uri}"]) == 0
    assert tracking.running(uri) == []
    assert second["run_id"] != live["run_id"]


def test_a_run_can_be_kept_from_being_watched(tmp_path: Path) -> None:
    """`tracking.live=false`: its steps are in its folder, and it appears in the store once it has ended."""
    uri = new_store(tmp_path)
    experiment = build(compose("config", ["tracking.live=false", f"tracking.uri={uri}"]))
    watch = RunWatch(tmp_path / "run", SampleRun().record(0), experiment)
    (tmp_path / "run").mkdir()
    with watching(watch):
        watch.begin([{"step": 1, "loss": 0.5}], 3)
        watch.line({"step": 2, "loss": math.nan})
        watch.line({"step": 2, "development.accuracy": 0.75})
        assert (watch.page, watch.stop_asked()) == (None, False)
        state = json.loads((tmp_path / "run" / LIVE_FILE).read_text())
        assert (state["step"], state["loss"], state["development"]) == (2, None, 0.75)
    assert [json.loads(line) for line in (tmp_path / "run" / STEPS_FILE).read_text().splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
        {"step": 2, "development.accuracy": 0.75},
    ]
    assert not (tmp_path / "run" / LIVE_FILE).exists()


def test_a_folder_that_can_not_be_written_stops_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A watch is worth no run: it warns."""
    watch = RunWatch(tmp_path / "none", SampleRun().record(0), build(compose("config", ["tracking=none"])))
    with watching(watch):
        watch.begin([], 3)
        watch.line({"step": 1, "loss": 0.5})
    assert "the run goes on" in caplog.text


@pytest.mark.slow
def test_a_sweep_goes_on_where_a_point_is_stopped_or_killed(tmp_path: Path) -> None:
    """One stopped by its tag, one whose worker is killed, one that finishes: one run each, none is left running."""
    uri = new_store(tmp_path)
    sweep = ("-m", "train.max_steps=20000,20001,10", "hydra.launcher.workers=1", "sweep.name=three")
    with started(*sweep) as process:
        (stopped,) = until(lambda: tracking.running(uri))
        tracking.ask_to_stop(uri, stopped["run_id"], say=lambda _: None)
        (killed,) = until(lambda: [one for one in tracking.running(uri) if one["run_id"] != stopped["run_id"]])
        until(lambda: tracking.running(uri)[0]["metrics"].get("train.loss"))
        beat = json.loads(killed["tags"]["harness.heartbeat"])
        os.kill(beat["pid"], signal.SIGKILL)
        assert process.wait(240) == 1, Path("output").read_text()
    runs = {run["params"]["train.max_steps"]: run for run in tracking.read_runs(uri, "three")}
    assert sorted(run["tags"]["status"] for run in runs.values()) == ["failed", "finished", "interrupted"]
    by_id = {run["mlflow_run_id"]: run for run in runs.values()}
    assert by_id[stopped["mlflow_run_id"]]["tags"]["status"] == "interrupted"
    assert by_id[killed["mlflow_run_id"]]["tags"]["status"] == "failed"
    assert "SIGKILL" in by_id[killed["mlflow_run_id"]]["tags"]["error"]
    assert by_id[killed["mlflow_run_id"]]["metrics"]["train.loss"] > 0
    assert tracking.running(uri) == []
    assert len(list(tmp_path.rglob(RESULT_FILE))) >= 3
