"""A run has its page from its first seconds on, and no kill leaves one that runs for ever."""

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsing import free_port
from run_directories import SampleRun, new_store
from waiting import until

from harness import tracking
from harness.config.errors import ConfigError
from harness.report import __main__ as report
from harness.tracking import live
from harness.tracking.record import STEPS_FILE, RunRecord

LINES = [{"step": step, "loss": 1 / step, "train_seconds": step / 100} for step in range(1, 6)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats follow each other at once."""
    monkeypatch.setattr(live, "FIRST_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(live, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(live, "SHARE", 100.0)
    monkeypatch.setattr(live, "STORE_SHARE", 100.0)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return new_store(tmp_path)


def begun(uri: str, lines: list[dict[str, Any]] = LINES, **changes: Any) -> tuple[live.LiveRun, RunRecord]:
    """A run that trains, whose lines the store has."""
    record = SampleRun(**changes).record(1 + changes.get("seed", 0))
    page = live.LiveRun(record, uri, "tests", 300)
    for line in lines:
        page.line(line)
    until(lambda: page.run_id and beat_of(uri, page.run_id).lines == len(lines))
    return page, record


def beat_of(uri: str, mlflow_run_id: str) -> live.Heartbeat:
    (found,) = [run for run in tracking.running(uri) if run["mlflow_run_id"] == mlflow_run_id]
    beat = live.Heartbeat.read(found["tags"]["harness.heartbeat"])
    assert beat is not None
    return beat


def stored(uri: str, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        return connection.execute(query).fetchall()


def test_a_page_is_there_while_the_run_trains_and_becomes_the_run(tmp_path: Path, uri: str) -> None:
    """RUNNING, with parameters and a curve; no reader takes it for a run that ended, until `send` completes it."""
    page, record = begun(uri)
    (running,) = tracking.running(uri)
    assert (running["tags"]["status"], running["tags"]["method"]) == ("running", "lora")
    assert (running["params"]["method.name"], running["metrics"]["train.loss"]) == ("lora", 0.2)
    assert stored(uri, "SELECT status FROM runs WHERE name NOT LIKE 'sweep%'") == [("RUNNING",)]
    assert (tracking.read_runs(uri), tracking.finished(uri), tracking.sweeps(uri)) == ([], {}, {})
    page.line({"step": 6, "loss": 0.1, "train_seconds": 0.06})
    page.close()
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    record.write(run_dir)
    lines = [*LINES, {"step": 6, "loss": 0.1, "train_seconds": 0.06}, {"step": 7, "loss": 0.05, "train_seconds": 0.07}]
    (run_dir / STEPS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tracking.send(run_dir, uri, "tests") == page.run_id
    (run,) = tracking.read_runs(uri)
    assert (run["mlflow_run_id"], run["tags"]["status"]) == (page.run_id, "finished")
    assert run["metrics"]["validation.accuracy"] == 0.9
    assert not [name for name in run["tags"] if name.startswith("harness.live") or name == "harness.heartbeat"]
    assert stored(uri, "SELECT status FROM runs WHERE name NOT LIKE 'sweep%'") == [("FINISHED",)]
    curve = stored(uri, "SELECT step, value FROM metrics WHERE key = 'train.loss' ORDER BY step")
    assert curve == [(line["step"], line["loss"]) for line in lines]
    assert tracking.running(uri) == []
    assert tracking.send(run_dir, uri, "tests") == page.run_id


def test_a_tag_asks_a_run_to_stop(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`harness-report stop=` sets it, by the beginning of either id; no other run is touched."""
    page, record = begun(uri)
    other, _ = begun(uri, seed=1)
    assert not page.stop_asked
    assert page.run_id is not None
    assert other.run_id is not None
    assert report.main([f"stop={page.run_id[:12]}", f"tracking.uri={uri}"]) == 0
    until(lambda: page.stop_asked)
    assert "was asked to stop" in capsys.readouterr().out
    assert not other.stop_asked
    assert report.main([f"stop={'0' * 40}", f"tracking.uri={uri}"]) == 2
    err = capsys.readouterr().err
    assert all(f"{one.run_id[:8]} lora lr=1e-3" in err for one in (page, other))
    with pytest.raises(ConfigError, match="2 running runs begin so"):
        tracking.ask_to_stop(uri, "")
    for one in (page, other):
        one.close()
    assert record.run_id != other.record.run_id


def test_the_record_of_a_killed_run_may_spell_its_parameters_otherwise(tmp_path: Path, uri: str) -> None:
    """It is written by the process that started it, before types are applied: the run is sent, with what it said."""
    page, record = begun(uri)
    page.close()
    spelled = {**record.config, "train": {**record.config["train"], "epochs": 3.0, "resume": True}}
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    replace(record, config=spelled, status="failed", error="killed").write(run_dir)
    assert tracking.send(run_dir, uri, "tests") == page.run_id
    (run,) = tracking.read_runs(uri)
    assert (run["tags"]["status"], run["tags"]["error"]) == ("failed", "killed")
    assert (run["params"]["train.epochs"], run["params"]["train.resume"]) == ("3", "true")


KILLED = """
import sys, time
sys.path.insert(0, {support!r})
from run_directories import SampleRun
from harness.tracking import live
live.FIRST_BEAT_SECONDS = 0.01
page = live.LiveRun(SampleRun(seed=3).record(3), {uri!r}, "tests", 300)
page.line({{"step": 1, "loss": 0.5}})
time.sleep(1000)
"""


@pytest.mark.slow
def test_a_killed_run_is_ended_by_whoever_comes_next(tmp_path: Path, uri: str) -> None:
    """`harness-report --sync`, a later sweep, another run: its end is the last that was heard of it."""
    program = KILLED.format(support=str(Path(__file__).parents[1] / "support"), uri=uri)
    killed = subprocess.Popen([sys.executable, "-c", program])
    (run,) = until(lambda: [one for one in tracking.running(uri) if one["metrics"]])
    assert tracking.end_killed(uri, "tests") == 0
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    (tmp_path / "empty").mkdir()
    assert report.main(["--sync", "empty", f"tracking.uri={uri}", "tracking.experiment=tests"]) == 0
    assert tracking.running(uri) == []
    ((status, ended),) = stored(uri, "SELECT status, end_time FROM runs WHERE name NOT LIKE 'sweep%'")
    beat = live.Heartbeat.read(run["tags"]["harness.heartbeat"])
    assert (status, beat is not None and abs(ended / 1000 - beat.at) < 60) == ("KILLED", True)
    assert ("error", True) in [
        (key, "it was killed" in value) for key, value in stored(uri, "SELECT key, value FROM tags")
    ]
    assert tracking.read_runs(uri) == []


def test_what_is_known_at_the_end_alone_is_there_then(tmp_path: Path, uri: str) -> None:
    """Such as what forgetting was measured by, which a run that has just begun can't say."""
    page, record = begun(uri)
    page.close()
    record.scores["forgetting"] = {"metric": "masked_loss", "before": 1.0, "after": 1.5, "tokens": 8}
    record.write(tmp_path)
    assert tracking.send(tmp_path, uri, "tests") == page.run_id
    (run,) = tracking.read_runs(uri)
    assert run["tags"]["forgetting_metric"] == "masked_loss"


def test_a_run_elsewhere_is_dead_once_it_was_silent_for_long(uri: str) -> None:
    """Its process can't be seen from here, its heartbeat can."""
    page, _ = begun(uri)
    page.close()
    beat = replace(beat_of(uri, str(page.run_id)), host="another machine", pid=1)
    assert not beat.is_over(beat.at + live.SILENT_SECONDS - 1)
    assert beat.is_over(beat.at + live.SILENT_SECONDS + 1)
    assert not replace(beat, host=live._host(), pid=os.getpid()).is_over(beat.at)
    assert live.Heartbeat.read("{}") is None
    assert live.Heartbeat.read(beat.text()) == beat


def test_a_run_that_was_taken_for_dead_says_that_it_lives(uri: str) -> None:
    """Clocks and process numbers can mislead; the next beat repairs it."""
    page, _ = begun(uri)
    path = uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE runs SET status = 'KILLED' WHERE run_uuid = ?", (page.run_id,))
    until(lambda: tracking.running(uri))
    page.close()


def test_a_beat_that_outlives_its_run_does_not_begin_it_anew(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a crowd, the last beat may wait for the store until after the run has ended and was sent."""
    page, record = begun(uri)
    late, sent = threading.Event(), threading.Event()

    @contextmanager
    def taken(_: Any) -> Iterator[None]:
        late.set()
        assert sent.wait(60)
        yield

    monkeypatch.setattr(live, "_lock", taken)
    monkeypatch.setattr(live, "CLOSING_SECONDS", 0.01)
    assert late.wait(60)
    page.close()
    record.write(tmp_path)
    assert tracking.send(tmp_path, uri, "tests") == page.run_id
    sent.set()
    page._thread.join(60)
    assert stored(uri, "SELECT status FROM runs WHERE name NOT LIKE 'sweep%'") == [("FINISHED",)]


def test_a_store_that_is_away_costs_nothing_and_is_caught_up(
    uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line waits, one warning, and everything is there once the store is back."""
    page, _ = begun(uri, LINES[:1])
    path = uri.removeprefix("sqlite:///")
    monkeypatch.setattr(live, "_client", _away(live._client, away := [True]))
    with caplog.at_level(logging.WARNING):
        start = time.monotonic()
        for line in LINES[1:]:
            page.line(line)
        assert time.monotonic() - start < 0.1
        until(lambda: [r for r in caplog.records if "can't be watched for now" in r.message])
        time.sleep(0.3)
    assert len([r for r in caplog.records if "can't be watched" in r.message]) == 1
    away[0] = False
    until(lambda: len(stored(f"sqlite:///{path}", "SELECT * FROM metrics WHERE key = 'train.loss'")) == len(LINES))
    page.close()


def _away(client: Callable[..., Any], away: list[bool]) -> Callable[..., Any]:
    def open_client(store: Any) -> Any:
        if away[0]:
            raise ConnectionError("the tracking store is away")
        return client(store)

    return open_client


def test_a_server_that_no_one_answers_for_keeps_no_run_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's end waits a few seconds for the thread at most."""
    monkeypatch.setattr(live, "CLOSING_SECONDS", 0.5)
    page = live.LiveRun(SampleRun().record(0), f"http://127.0.0.1:{free_port()}", "tests", 300)
    time.sleep(0.2)
    start = time.monotonic()
    page.line(LINES[0])
    page.close()
    assert time.monotonic() - start < 5


def test_what_runs_is_shown(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`harness-report watch=true` prints a table, of one sweep where it is asked for."""
    lines = [*LINES, {"step": 5, "development.accuracy": 0.75, "tokens_per_second": 1234.0}]
    page, _ = begun(uri, lines, sweep="grid")
    other, _ = begun(uri, sweep="other", seed=1)
    assert report.main(["watch=true", "sweep=grid", f"tracking.uri={uri}"]) == 0
    shown = capsys.readouterr().out
    assert (str(page.run_id)[:8] in shown, str(other.run_id)[:8] in shown) == (True, False)
    assert ("5/300" in shown, "accuracy 0.7500" in shown) == (True, True)
    for one in (page, other):
        one.close()
    assert report.main(["watch=true", "sweep=nothing", f"tracking.uri={uri}"]) == 0
    assert "Nothing is running." in capsys.readouterr().out
    assert report.main(["watch=true", "sweep=a,b", f"tracking.uri={uri}"]) == 2


def test_a_page_that_was_begun_by_half_or_twice_is_one_run_in_the_end(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that fails between the run and its parameters, and a server that made it twice, leave no second one."""
    make, failed = live.LiveRun._create_run, []

    def fail_once(page: live.LiveRun, client: Any, experiment_id: str) -> str:
        made = make(page, client, experiment_id)
        if not failed:
            failed.append(make(page, client, experiment_id))
            raise ConnectionError("the tracking store is away")
        return made

    monkeypatch.setattr(live.LiveRun, "_create_run", fail_once)
    page, record = begun(uri)
    page.close()
    assert failed
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    record.write(run_dir)
    (run_dir / STEPS_FILE).write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert tracking.send(run_dir, uri, "tests") == page.run_id
    (run,) = tracking.read_runs(uri)
    assert run["params"]["seed"] == "0"
    assert stored(uri, "SELECT count(*) FROM metrics WHERE key = 'train.loss'") == [(len(LINES),)]
    query = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active' AND name NOT LIKE 'sweep%'"
    assert stored(uri, query) == [(1,)]
