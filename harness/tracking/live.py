"""Live runs: a run's page in a store while it trains, fed by a thread of the run, and the end of one that was killed.

A live run is an MLflow run with the status RUNNING and the tag `harness.live`, its run's id. It has no `harness.run_id`
until `send` has completed it, so no reader takes it for one that ended. Its tag `harness.heartbeat` says which process
feeds it and when it last did: `end_killed` ends those whose process is gone, or silent for too long, as KILLED.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.config.errors import ConfigError
from harness.tracking import entries
from harness.tracking.client import (
    TAG_LENGTH,
    _client,
    _create,
    _experiment_id,
    _lock,
    _mlflow,
    _sweep_parent,
    plain_run,
)
from harness.tracking.entries import milliseconds, run_name, run_params, run_provenance, run_tags, step_numbers
from harness.tracking.record import RunRecord
from harness.tracking.sqlite import read_sqlite
from harness.tracking.sweep_view import ensure_view
from harness.tracking.uri import Store, _quoted, parse

log = logging.getLogger(__name__)

LIVE_TAG, HEARTBEAT_TAG, STOP_TAG = "harness.live", "harness.heartbeat", "harness.stop"
RUNNING = "RUNNING"
# A run that is over sooner is sent when it has ended, and no one would have watched it.
FIRST_BEAT_SECONDS = 2.0
# Between beats; longer where one takes so much processor time that they would be more than SHARE of the run's (the
# first, which begins the page, is as much again in a run of a minute), or where a crowded store answers so slowly that
# they would keep it busy for more than STORE_SHARE of the time.
BEAT_SECONDS, LONGEST_PAUSE, SHARE, STORE_SHARE = 5.0, 60.0, 0.005, 0.1
# Without a beat for so long, a run is taken for killed wherever it ran: beats are a minute apart at most.
SILENT_SECONDS = 600.0
CLOSING_SECONDS = 10.0
# MLflow's own limits (mlflow.utils.validation): longer values and larger batches are refused.
VALUE_LENGTH, PARAMS_A_BATCH, METRICS_A_BATCH = 6000, 100, 1000


@dataclass(frozen=True)
class Heartbeat:
    """Which process feeds a live run, and where it stands.

    Attributes:
        at: Seconds since the epoch.
        host: The machine, since its start, and what it takes for process numbers.
        pid: Of the process.
        lines: How many lines of `steps.jsonl` the store has.
        step: The last of them.
        steps: How many there will be.
    """

    at: float
    host: str
    pid: int
    lines: int = 0
    step: int = 0
    steps: int | None = None

    @classmethod
    def read(cls, text: str | None) -> "Heartbeat | None":
        """Heartbeat as a tag holds it; null where it is none."""
        try:
            return cls(**json.loads(text or ""))
        except (ValueError, TypeError):
            return None

    def text(self) -> str:
        """As a tag holds it."""
        return json.dumps({name: value for name, value in vars(self).items() if value is not None})

    def is_over(self, now: float) -> bool:
        """Whether its process is gone, or has been silent for too long."""
        import psutil

        gone = self.host == _host() and not psutil.pid_exists(self.pid)
        return gone or now - self.at > SILENT_SECONDS


def _host() -> str:
    """This machine since its start, and the process numbers of this container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


class LiveRun:
    """Feeds a run's page in its store from a thread, so that a store that is slow or away never keeps training waiting.

    Args:
        record: The run's, as far as it is known when training begins.
        uri: The store.
        experiment: Where the run belongs.
        steps: How many there will be.
    """

    def __init__(self, record: RunRecord, uri: str, experiment: str, steps: int) -> None:
        _mlflow()  # here and not in the thread: the import takes seconds, which training would share
        self.record = replace(record, status=entries.RUNNING)
        self.store, self.experiment, self.steps = parse(uri), experiment, steps
        self.started = milliseconds(record.started_at, Path())
        self.run_id: str | None = None
        self.stop_asked = False
        # Lines that the store has, and the processor time that they took.
        self.sent, self.seconds = 0, 0.0
        self._lines: list[tuple[int, dict[str, Any]]] = []
        self._warned = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="live run", daemon=True)
        self._thread.start()

    def line(self, line: dict[str, Any]) -> None:
        """Take a line of `steps.jsonl`, to be sent with the next beat."""
        self._lines.append((round(1000 * time.time()), line))

    def close(self) -> None:
        """End the thread; what it has not sent goes with the rest when the run is sent."""
        self._closing.set()
        self._thread.join(CLOSING_SECONDS)

    def _feed(self) -> None:
        pause = FIRST_BEAT_SECONDS
        while not self._closing.wait(pause):
            began, computed = time.monotonic(), time.thread_time()
            beginning = self.run_id is None
            try:
                self._beat()
                self._warned = False
            except (ConnectionError, ConfigError) as error:
                if not self._warned:
                    log.warning("the run can't be watched for now, and goes on: %s", error)
                self._warned = True
            except Exception:
                log.warning("the run can't be watched any more, and goes on", exc_info=True)
                return
            computed = time.thread_time() - computed
            self.seconds += computed
            pause = max(BEAT_SECONDS, (time.monotonic() - began) / STORE_SHARE, 0 if beginning else computed / SHARE)
            pause = min(pause, LONGEST_PAUSE)

    def _beat(self) -> None:
        """Send what is new, and see whether someone asked the run to stop."""
        if self.run_id is None:
            with _lock(self.store):
                _create(self.store)
                with _client(self.store) as client:
                    self.run_id = self._begin(client)
        # A server has its own order of writers; a file has one at a time.
        with _lock(self.store) if self.store.path else nullcontext(), _client(self.store) as client:
            self._send(client, self.run_id)
            run = client.get_run(self.run_id)
            # Someone took this process for dead; or the run has ended and was sent, while this beat waited for the
            # store longer than `close` waits.
            if run.info.status != RUNNING and not self._closing.is_set():
                client.update_run(self.run_id, status=RUNNING)
            self.stop_asked = STOP_TAG in run.data.tags

    def _begin(self, client: Any) -> str:
        """The MLflow run, made by this beat or by an earlier one that failed half-way."""
        experiment_id = _experiment_id(client, self.store, self.experiment)
        _end_killed(client, experiment_id)
        begun = find_live(client, experiment_id, self.record.run_id)
        run_id = str(begun[0].info.run_id) if begun else self._create_run(client, experiment_id)
        log_params(client, self.store, run_id, self.record, begun[0].data.params if begun else ())
        return run_id

    def _create_run(self, client: Any, experiment_id: str) -> str:
        tags = tags_in(client, self.store, experiment_id, self.record, self.started, self.started)
        tags |= {LIVE_TAG: self.record.run_id, HEARTBEAT_TAG: self._heartbeat()}
        run = client.create_run(experiment_id, start_time=self.started, tags=tags, run_name=run_name(self.record))
        return str(run.info.run_id)

    def _send(self, client: Any, run_id: str) -> None:
        from mlflow.entities import Metric, RunTag

        new = self._lines[self.sent :]
        metrics = []
        for moment, line in new:
            step, numbers = step_numbers(line)
            at = when(self.started, numbers, moment)
            metrics += [Metric(key, value, at, step) for key, value in numbers.items()]
        log_metrics(client, run_id, metrics)
        # After what it speaks of: a kill between the two costs a line that is sent twice, never one that is missing.
        self.sent += len(new)
        client.log_batch(run_id, tags=[RunTag(HEARTBEAT_TAG, self._heartbeat())])

    def _heartbeat(self) -> str:
        step = int(self._lines[self.sent - 1][1].get("step", 0)) if self.sent else 0
        return Heartbeat(time.time(), _host(), os.getpid(), self.sent, step, self.steps).text()


def tags_in(
    client: Any, store: Store, experiment_id: str, record: RunRecord, started: int, ended: int
) -> dict[str, str]:
    """The tags of a run as a store takes them, below its sweep, which has a run and a view from then on."""
    tags = run_tags(record)
    if name := record.sweep.get("name"):
        tags["mlflow.parentRunId"] = _sweep_parent(client, experiment_id, name, started, ended)
        ensure_view(client, experiment_id, name, record, ended)
    return {key: store.scrub(value)[:TAG_LENGTH] for key, value in tags.items()}


def log_params(client: Any, store: Store, run_id: str, record: RunRecord, known: Collection[str] = ()) -> None:
    """Log the parameters of a run, but for those that it has: the process that trains knows them best.

    The record of one that was killed is another process's, which spells some otherwise (16 for 16.0), and a store takes
    no second value.
    """
    from mlflow.entities import Param

    named = run_params(record.config) | run_provenance(record)
    params = [Param(key, store.scrub(value)[:VALUE_LENGTH]) for key, value in named.items() if key not in known]
    for first in range(0, len(params), PARAMS_A_BATCH):
        client.log_batch(run_id, params=params[first : first + PARAMS_A_BATCH])


def log_metrics(client: Any, run_id: str, metrics: list[Any]) -> None:
    """Log metrics, as many at a time as MLflow takes."""
    for first in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + METRICS_A_BATCH])


def when(started: int, numbers: dict[str, float], latest: int) -> int:
    """The moment of a line by step, in milliseconds: by the training's own clock, but never later than it was known."""
    return min(started + round(1000 * numbers.get("train.train_seconds", 0)), latest - 1)


def find_live(client: Any, experiment_id: str, run_id: str) -> list[Any]:
    """The MLflow runs that were begun for a run of ours, the one to be completed first.

    There are more where a request was repeated that a server had not answered in time.
    """
    found = client.search_runs([experiment_id], f"tags.`{LIVE_TAG}` = {_quoted(run_id)}")
    return sorted(found, key=lambda run: (-lines_of(run), run.info.run_id))


def lines_of(run: Any) -> int:
    """How many lines of `steps.jsonl` a live run has."""
    beat = Heartbeat.read(run.data.tags.get(HEARTBEAT_TAG))
    return beat.lines if beat else 0


def end_killed(uri: str, experiment: str) -> int:
    """End live runs whose process is gone as KILLED; returns how many there were.

    Raises:
        ConfigError: The URI names no store.
        ConnectionError: The store failed.
    """
    store = parse(uri)
    if store.path is not None:
        now = time.time()
        beats = [Heartbeat.read(run["tags"].get(HEARTBEAT_TAG)) for run in running(uri)]
        if not any(beat is None or beat.is_over(now) for beat in beats):
            return 0  # the usual case, and mlflow takes seconds to import
    with _lock(store), _client(store) as client:
        found = client.get_experiment_by_name(experiment)
        return 0 if found is None else _end_killed(client, found.experiment_id)


def _end_killed(client: Any, experiment_id: str) -> int:
    from mlflow.entities import RunTag

    now, ended = time.time(), 0
    for run in client.search_runs([experiment_id], f"attributes.status = '{RUNNING}' AND tags.`{LIVE_TAG}` != ''"):
        beat = Heartbeat.read(run.data.tags.get(HEARTBEAT_TAG))
        if beat is not None and not beat.is_over(now):
            continue
        at = now if beat is None else beat.at
        client.set_terminated(run.info.run_id, "KILLED", round(1000 * at))
        moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
        tags = [RunTag("status", "interrupted"), RunTag("error", f"it was killed; the last that was heard: {moment}")]
        client.log_batch(run.info.run_id, tags=tags)
        ended += 1
    return ended


def running(uri: str, sweep: str | None = None) -> list[dict[str, Any]]:
    """Return the live runs of a store, or of one sweep, oldest first, as `read_runs` gives those that ended.

    Raises:
        ConfigError: The URI names no store.
        ConnectionError: The store cannot be read.
    """
    store = parse(uri)
    if store.path is not None:
        if not store.path.exists() or not store.path.stat().st_size:
            return []
        wanted = {} if sweep is None else {"sweep": [sweep]}
        runs = read_sqlite(store, wanted, ("tags", "params", "latest_metrics"), identified_by=LIVE_TAG, status=RUNNING)
        return sorted(runs, key=lambda run: (run["started_at"], run["run_id"]))
    with _client(store) as client:
        text = f"attributes.status = '{RUNNING}' AND tags.`{LIVE_TAG}` != ''"
        text += "" if sweep is None else f" AND tags.sweep = {_quoted(sweep)}"
        places = [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.search_runs(places, text, order_by=["attributes.start_time ASC"]) if places else []
        return [plain_run(run, LIVE_TAG) for run in found]


def ask_to_stop(uri: str, run: str, say: Callable[[str], object] = print) -> None:
    """Ask a live run to stop after the step it is at.

    Args:
        uri: The store.
        run: The beginning of its id, ours or MLflow's.
        say: Takes the sentence that says what was done.

    Raises:
        ConfigError: No live run, or more than one, has such an id.
        ConnectionError: The store failed.
    """
    store, live = parse(uri), running(uri)
    found = [one for one in live if one["run_id"].startswith(run) or one["mlflow_run_id"].startswith(run)]
    if len(found) != 1:
        known = "; ".join(f"{one['mlflow_run_id'][:8]} {one['name']}" for one in live) or "none"
        problem = "no run of that id is running" if not found else f"{len(found)} running runs begin so"
        raise ConfigError(f"stop={run}: {problem}; running: {known}")
    with _client(store) as client:
        client.set_tag(found[0]["mlflow_run_id"], STOP_TAG, "true")
    say(f"{found[0]['name']} was asked to stop: it ends after its step, and keeps a checkpoint")
