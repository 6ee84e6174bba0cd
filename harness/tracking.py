"""Runs in an MLflow store: sent whole after they ended, read back in bulk.

The only file that imports mlflow, and only inside functions. A run directory (see `harness.record`) is all that is
read, so a run can be sent when it ends, or any time later. An MLflow run appears only after ours has ended: a kill
while training leaves nothing in the store, and never a run that is "running" for ever. A kill in the middle of
sending leaves a run without the tag `harness.run_id`; readers skip it and the next `send` replaces it.

Names in the store:

    params     the resolved configuration, dotted (`method.rank`, `train.learning_rate`, `seed`); nulls are left out
    metrics    `validation.*`, `development.*`, `majority.*`, `base.*`, `forgetting.*` (final scores), `cost.*` (the
               names of `harness.record.COST_FIELDS`, nested ones dotted), `train.*` (by step: loss, learning_rate, ...)
    tags       `method`, `task`, `model`, `status`, `error`, `identity`, `sweep`, `stage`, `primary_metric`,
               `git_commit`, `git_dirty`, `harness.version`, `harness.sent_on` (a day, UTC), `harness.run_id`; on the
               parent of a sweep `harness.sweep`
    artifacts  `result.json`, `config.yaml`, `run.log`, `steps.jsonl`, `predictions.parquet`, `soft_prompt.csv`,
               `adapter/`, and the tables `soft_prompt.json` and `answers.json`, the first predictions; on the parent of
               a sweep `report/`, which `attach` puts there
    inputs     the task's rows, with their revision as digest
"""

import hashlib
import json
import logging
import os
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from harness import server_copy
from harness.config.errors import ConfigError
from harness.entries import final_metrics, milliseconds, run_name, run_params, run_tags, step_metrics
from harness.record import (
    ADAPTER_FOLDER,
    CONFIG_FILE,
    LOG_FILE,
    PREDICTIONS_FILE,
    RESULT_FILE,
    SOFT_PROMPT_FILE,
    STEPS_FILE,
    TRACKED_FILE,
    RunRecord,
    write_atomically,
)
from harness.store import RUN_ID_TAG, Store, check, parse, read_history, read_sqlite, redact

__all__ = [
    "SyncOutcome",
    "check",
    "create",
    "durations",
    "finished",
    "read_curves",
    "read_runs",
    "redact",
    "send",
    "sweeps",
    "sync",
]

VIEW_TAG = "mlflow.sharedViewState."
PENDING_TAG, NOT_PENDING, NOTE_TAG = "harness.pending", "no", "mlflow.note.content"
SWEEP_PARENT_TAG = "harness.sweep"
# A day, UTC: by it a copy of a server's runs is brought up to date.
SENT_ON_TAG = "harness.sent_on"
ARTIFACT_FOLDER = "mlartifacts"
REPORT_FOLDER = "report"
EXPERIMENT_NOTE = (
    "Fine-tuning methods compared by peft-harness. A run is one fine-tuning: `validation.*` are its final scores, "
    "`development.*` chose its checkpoint, `cost.*` is what it took, `train.*` was logged by step. The runs of a sweep "
    "lie below a parent run, whose artifacts hold the sweep's report: `report/report.html`."
)
CURVES = "development."
MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED"}  # every other status is FAILED

LOCK_SECONDS = 600
# Longer than a crowd of writers takes; the run itself is safe in its directory meanwhile.
BUSY_SECONDS, FIRST_WAIT, LONGEST_WAIT = 600, 1.0, 30.0
# What a store says when it has too much to do, in errors that MLflow's client takes for final.
_BUSY = re.compile(
    r"QueuePool limit|too many clients|remaining connection slots|database is locked|read timed out", re.I
)
ANSWERS, ANSWERS_SHOWN = "answers.json", 50
# MLflow's own limits (mlflow.utils.validation): longer values and larger batches are refused.
VALUE_LENGTH, TAG_LENGTH, DIGEST_LENGTH, PARAMS_A_BATCH, METRICS_A_BATCH = 6000, 8000, 36, 100, 1000

# No usage statistics to the network, no four minutes of retries, no progress bars and links amid our own output.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


class StoreBusyError(ConnectionError):
    """The store has more to do than it can; later it may take what it refused now."""


@dataclass
class SyncOutcome:
    """What `sync` did with each run directory; `damaged` maps a directory to the reason."""

    sent: list[Path] = field(default_factory=list)
    present: list[Path] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)


# --- Opening a store ------------------------------------------------------------------------------------------------


def _mlflow() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return mlflow


@contextmanager
def _credentials(store: Store) -> Iterator[None]:
    """Hand secrets to mlflow through its environment variables, so that no URI, log or error of it holds them."""
    given = {"USERNAME": store.username, "PASSWORD": store.password, "TOKEN": store.token}
    given = {f"MLFLOW_TRACKING_{name}": value for name, value in given.items()} if any(given.values()) else {}
    before = {name: os.environ.get(name) for name in given}
    try:
        _set_environment(given)
        yield
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@contextmanager
def _client(store: Store) -> Iterator[Any]:
    """Yield an MlflowClient; whatever mlflow raises becomes a ConnectionError of one sentence without secrets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow uses parts of SQLAlchemy 2.1 that are deprecated
        mlflow = _mlflow()
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with _credentials(store):
                yield mlflow.MlflowClient(tracking_uri=store.uri)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = store.scrub(" ".join(str(error).split()))[:500]
            kind = StoreBusyError if _BUSY.search(reason) else ConnectionError
            raise kind(f"the tracking store {store.uri} failed: {reason}") from None


@contextmanager
def _lock(store: Store) -> Iterator[None]:
    """Let one process of this machine at a time create a store or write a run into it."""
    from filelock import FileLock, Timeout

    if store.path:
        path = store.path.with_name(store.path.name + ".lock")
    else:
        path = (
            Path(tempfile.gettempdir())
            / f"harness-{os.getuid()}-{hashlib.sha256(store.uri.encode()).hexdigest()[:16]}.lock"
        )
    try:
        with FileLock(path, timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise ConnectionError(f"the tracking store {store.uri} stayed locked for {LOCK_SECONDS} s ({path})") from None


def create(uri: str, experiment: str | None = None, sweep: str | None = None) -> None:
    """Create an SQLite store where there is none yet, safe with any number of processes at once; `send` does it too.

    Args:
        uri: The store.
        experiment: Also create this experiment, and
        sweep: the run that the runs of this sweep are nested under: before many machines send to a server at once,
            each of which would find none and create one.

    Raises:
        ConfigError: The store cannot be used (see `check`).
        ConnectionError: It could not be created.
    """
    check(uri)
    store = parse(uri)
    with _lock(store):
        _create(store)
        if experiment is not None:
            with _client(store) as client:
                experiment_id, now = _experiment_id(client, store, experiment), round(1000 * time.time())
                if sweep is not None:
                    _sweep_parent(client, experiment_id, sweep, now, now)


def _create(store: Store) -> None:
    """Make the file under another name first, so that a kill leaves no half of a store."""
    if store.path is None or (store.path.exists() and store.path.stat().st_size):
        return
    partial = store.path.with_name(f"{store.path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    try:
        with _client(Store(f"sqlite:///{partial}", partial)):
            pass
        partial.replace(store.path)
    finally:
        partial.unlink(missing_ok=True)


def _experiment_id(client: Any, store: Store, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if store.path:
            location = str(store.path.parent / ARTIFACT_FOLDER / re.sub(r"[^\w.-]+", "_", name))
        # Else the MLflow UI takes it for one about prompts and agents, and hides the metrics.
        tags = {"mlflow.experimentKind": "custom_model_development", NOTE_TAG: EXPERIMENT_NOTE}
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except Exception:
            found = client.get_experiment_by_name(name)  # another machine was faster
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


# --- Sending --------------------------------------------------------------------------------------------------------


def send(run_dir: Path, uri: str, experiment: str) -> str:
    """Send one run directory, unless the store has it; return the MLflow run's id.

    A store that is busy is asked again for some minutes. Only `result.json` must exist; `config.yaml`, `steps.jsonl`,
    `predictions.parquet`, `adapter/` and `run.log` go along where they do. `tracked.json` in the run directory then
    says where the run went.

    Raises:
        ConfigError: The store cannot be used (see `check`).
        ConnectionError: The store failed on the way; nothing is lost, send again.
        ValueError: `result.json` is damaged.
        FileNotFoundError: There is no `result.json`.
    """
    run_dir = Path(run_dir)
    record = RunRecord.read(run_dir)
    check(uri)
    store = parse(uri)
    sent = _patiently(lambda: _send_once(store, run_dir, record, experiment))
    note = {"uri": redact(store.uri), "experiment": experiment, "mlflow_run_id": sent}
    with suppress(OSError):  # a read-only archive can be sent too; the store itself knows what it has
        write_atomically(run_dir / TRACKED_FILE, json.dumps(note, indent=2) + "\n")
    return sent


def _patiently(act: Callable[[], str]) -> str:
    """Do what is safe to do again, until the store is not busy or `BUSY_SECONDS` are over."""
    deadline, wait = time.monotonic() + BUSY_SECONDS, FIRST_WAIT
    # Writers that met once would meet again, were they to wait alike; the seeds of a run stay untouched.
    lots = random.SystemRandom()
    while True:
        try:
            return act()
        except StoreBusyError:
            pause = wait * lots.uniform(0.5, 1.5)
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)


def _send_once(store: Store, run_dir: Path, record: RunRecord, experiment: str) -> str:
    with _lock(store):
        _create(store)
        known = _fetch(store, run_ids=[record.run_id])
        if known:
            return str(known[0]["mlflow_run_id"])
        with _client(store) as client:
            return _send(client, store, run_dir, record, experiment)


def _send(client: Any, store: Store, run_dir: Path, record: RunRecord, experiment: str) -> str:
    from mlflow.entities import RunTag

    start = time.perf_counter()
    experiment_id = _experiment_id(client, store, experiment)
    started, ended = milliseconds(record.started_at, run_dir), milliseconds(record.ended_at, run_dir)
    tags = run_tags(record) | {PENDING_TAG: record.run_id, SENT_ON_TAG: datetime.now(UTC).date().isoformat()}
    if record.sweep.get("name"):
        tags["mlflow.parentRunId"] = _sweep_parent(client, experiment_id, record.sweep["name"], started, ended)
    tags = {name: store.scrub(value)[:TAG_LENGTH] for name, value in tags.items()}
    run = client.create_run(experiment_id, start_time=started, tags=tags, run_name=run_name(record))
    run_id = str(run.info.run_id)
    client.set_terminated(run_id, MLFLOW_STATUS.get(record.status, "FAILED"), ended)
    _log(client, store, run_id, run_dir, record, started, ended)
    # Of all costs the only one that the record can't have: it was written before anything was sent.
    client.log_metric(run_id, "cost.track_seconds", time.perf_counter() - start, timestamp=ended)
    # What a kill left, and what a server made twice because a request was repeated that it had not answered in time.
    for rest in client.search_runs([experiment_id], f"tags.`{PENDING_TAG}` = {_quoted(record.run_id)}"):
        if rest.info.run_id != run_id:
            client.delete_run(rest.info.run_id)
    # Both in one transaction: whenever a kill comes, the run is whole and known, or something to be cleared away.
    client.log_batch(run_id, tags=[RunTag(RUN_ID_TAG, record.run_id), RunTag(PENDING_TAG, NOT_PENDING)])
    client.delete_tag(run_id, PENDING_TAG)
    return run_id


def _sweep_parent(client: Any, experiment_id: str, name: str, started: int, ended: int) -> str:
    """Find or create the run that a sweep's runs are nested under; it lasts from its first run to its last."""
    parents = client.search_runs([experiment_id], f"tags.`{SWEEP_PARENT_TAG}` = {_quoted(name)}", max_results=1)
    if parents:
        parent, ended = parents[0].info, max(ended, parents[0].info.end_time or 0)
    else:
        tags = {SWEEP_PARENT_TAG: name, NOTE_TAG: f"The runs of the sweep {name}."}
        parent = client.create_run(experiment_id, start_time=started, tags=tags, run_name=f"sweep {name}").info
    client.set_terminated(parent.run_id, "FINISHED", ended)
    return str(parent.run_id)


def _log(client: Any, store: Store, run_id: str, run_dir: Path, record: RunRecord, started: int, ended: int) -> None:
    from mlflow.entities import Metric, Param

    params = [Param(key, store.scrub(value)[:VALUE_LENGTH]) for key, value in run_params(record.config).items()]
    steps = list(step_metrics(run_dir / STEPS_FILE))
    # A final score must be newer than the last one by step, or MLflow shows that one as the run's.
    last = max((step for step, _ in steps), default=0)
    metrics = [
        Metric(key, value, min(started + round(1000 * values.get("train.seconds", 0)), ended - 1), step)
        for step, values in steps
        for key, value in values.items()
    ]
    metrics += [Metric(key, value, ended, last) for key, value in final_metrics(record).items()]
    for start in range(0, len(params), PARAMS_A_BATCH):
        client.log_batch(run_id, params=params[start : start + PARAMS_A_BATCH])
    for start in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_BATCH])
    _log_data(client, run_id, record)
    _log_artifacts(client, store, run_id, run_dir)


def _log_data(client: Any, run_id: str, record: RunRecord) -> None:
    """Log the task's rows as an input, under their revision: the hash of their files, or a version."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    revision = (record.provenance.get("revisions") or {}).get("data")
    task = record.config.get("task")
    if not revision or not isinstance(task, dict) or not task.get("name"):
        return
    source = {"task": task["name"], "revision": str(revision), "version": task.get("version")}
    rows = (record.provenance.get("data") or {}).get("rows")
    data = Dataset(
        task["name"],
        str(revision)[:DIGEST_LENGTH],
        "harness",
        json.dumps({key: value for key, value in source.items() if value is not None}),
        profile=None if rows is None else json.dumps({"rows": rows}),
    )
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training and evaluation")])])


def _log_artifacts(client: Any, store: Store, run_id: str, run_dir: Path) -> None:
    for name in (RESULT_FILE, CONFIG_FILE, LOG_FILE, STEPS_FILE, PREDICTIONS_FILE, SOFT_PROMPT_FILE):
        path = run_dir / name
        if not path.is_file():
            continue
        if name != PREDICTIONS_FILE and (store.password or store.token):
            text = path.read_text(encoding="utf-8", errors="replace")
            if store.scrub(text) != text:
                client.log_text(run_id, store.scrub(text), name)
                continue
        client.log_artifact(run_id, str(path))
    if (run_dir / ADAPTER_FOLDER).is_dir():
        client.log_artifacts(run_id, str(run_dir / ADAPTER_FOLDER), ADAPTER_FOLDER)
    if (run_dir / PREDICTIONS_FILE).is_file():
        _log_answers(client, store, run_id, run_dir / PREDICTIONS_FILE)
    if (run_dir / SOFT_PROMPT_FILE).is_file():
        import pandas as pd

        client.log_table(run_id, pd.read_csv(run_dir / SOFT_PROMPT_FILE), SOFT_PROMPT_FILE.replace(".csv", ".json"))


def _log_answers(client: Any, store: Store, run_id: str, path: Path) -> None:
    """Show the first predictions as a table: texts that were generated or chosen, or labels."""
    import pandas as pd

    frame = pd.read_parquet(path)
    if not {"split", "prediction"} <= set(frame):
        return
    shown = frame[frame["split"] != "development"] if set(frame["split"]) - {"development"} else frame
    shown = shown.head(ANSWERS_SHOWN).dropna(axis="columns", how="all")
    client.log_table(run_id, shown.map(lambda value: store.scrub(value) if isinstance(value, str) else value), ANSWERS)


def sync(folder: Path, uri: str, experiment: str) -> SyncOutcome:
    """Send every run directory below a folder that the store lacks; a damaged `result.json` stops none of the others.

    Raises:
        ConfigError: The folder does not exist, or the store cannot be used.
        ConnectionError: The store failed on the way; what was sent is not sent again.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"sync={folder} is not a folder; give the one that holds the runs, such as runs")
    check(uri)
    store, outcome = parse(uri), SyncOutcome()
    known = {run["run_id"] for run in _fetch(store)}
    for path in sorted(folder.rglob(RESULT_FILE)):
        if ARTIFACT_FOLDER in path.relative_to(folder).parts:
            continue  # the copies that a store keeps
        try:
            record = RunRecord.read(path.parent)
            if record.run_id not in known:
                send(path.parent, uri, experiment)
            (outcome.present if record.run_id in known else outcome.sent).append(path.parent)
            known.add(record.run_id)
        except (ConfigError, ConnectionError):
            raise
        except (ValueError, OSError) as error:
            outcome.damaged[path.parent] = str(error)
    return outcome


# --- Reports --------------------------------------------------------------------------------------------------------


def attach(
    files: Iterable[Path],
    uri: str,
    sweep: str,
    text: str,
    columns: Sequence[str] = (),
    lowest_first: bool = False,
    anywhere: bool = True,
) -> str | None:
    """Put the files of a report on the parent run of its sweep, and its first sentences into that run's description.

    They lie under `report/` there, in place of those of an earlier report. MLflow's pages get a view of the sweep's
    runs, with columns of their own.

    Args:
        files: The report's.
        uri: The store.
        sweep: The sweep that the report is about.
        text: Markdown.
        columns: Metrics that the view shows; its runs are sorted by the first.
        lowest_first: How they are sorted.
        anywhere: Whether it may also go into a store that is not whole: a copy of a file, whose artifacts lie with
            the original.

    Returns:
        Id of the parent run; null where the store is not whole and `anywhere` is false.

    Raises:
        ConfigError: The store cannot be used, or has no runs of the sweep.
        ConnectionError: The store failed.
    """
    check(uri)
    store = parse(uri)
    runs = _fetch(store, sweep=sweep, tables=("tags",))
    if not runs:
        raise ConfigError(f"sweep={sweep}: there is nothing to attach a report to in {store.uri}")
    with _lock(store), _client(store) as client:
        experiment = client.get_experiment(client.get_run(runs[-1]["mlflow_run_id"]).info.experiment_id)
        whole = store.path is None or Path(experiment.artifact_location).is_relative_to(
            store.path.parent / ARTIFACT_FOLDER
        )
        if not whole and not anywhere:
            return None
        started, ended = min(run["started_at"] for run in runs), max(run["ended_at"] for run in runs)
        parent = _sweep_parent(client, experiment.experiment_id, sweep, started, ended)
        for run in runs:
            if run["tags"].get("mlflow.parentRunId", parent) != parent:
                client.set_tag(run["mlflow_run_id"], "mlflow.parentRunId", parent)
        _replace_report(client, store, parent, list(files))
        client.set_tag(parent, NOTE_TAG, store.scrub(text)[:TAG_LENGTH])
        if NOTE_TAG not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, NOTE_TAG, EXPERIMENT_NOTE)
        if columns:
            view = _view(sweep, columns, lowest_first, ended)
            client.set_experiment_tag(experiment.experiment_id, VIEW_TAG + _view_key(sweep), view)
    return parent


def _view_key(sweep: str) -> str:
    return hashlib.sha256(sweep.encode()).hexdigest()[:16]


def _view(sweep: str, columns: Sequence[str], lowest_first: bool, moment: int) -> str:
    """Describe a view as MLflow's pages keep those that their users save."""
    metrics = [f"metrics.`{name}`" for name in columns]
    state = {
        "searchFilter": f"tags.sweep = {_quoted(sweep)}",
        "orderByKey": metrics[0],
        "orderByAsc": lowest_first,
        "selectedColumns": metrics,
    }
    named = {"name": f"sweep {sweep}", "createdAt": moment, "updatedAt": moment, "state": json.dumps(state)}
    return json.dumps(named)


def views(uri: str) -> dict[str, str]:
    """Return the views of a store in a file: their name -> path on the server that shows the store."""
    query = "SELECT key, value, experiment_id FROM experiment_tags WHERE substr(key, 1, ?) = ? ORDER BY value"
    store = parse(uri)
    found: dict[str, str] = {}
    try:
        with closing(sqlite3.connect(f"file:{quote(str(store.path))}?mode=ro", uri=True)) as connection:
            for key, value, experiment in connection.execute(query, (len(VIEW_TAG), VIEW_TAG)):
                share = urlencode({"viewStateShareKey": key.removeprefix(VIEW_TAG)})
                found[json.loads(value)["name"]] = f"/#/experiments/{experiment}/runs?{share}"
    except (sqlite3.Error, ValueError, KeyError, TypeError):
        return found
    return found


def _replace_report(client: Any, store: Store, parent: str, files: list[Path]) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    new = {f"{REPORT_FOLDER}/{path.name}" for path in files}
    repository = get_artifact_repository(client.get_run(parent).info.artifact_uri, tracking_uri=store.uri)
    for old in client.list_artifacts(parent, REPORT_FOLDER):
        if old.path not in new:
            repository.delete_artifacts(old.path)
    for path in files:
        client.log_artifact(parent, str(path), REPORT_FOLDER)


def browse(uri: str, port: int) -> int:
    """Run MLflow's own pages on a store, on this machine alone, until they are stopped; return their exit status.

    Raises:
        ConfigError: The store is a server's, which has pages of its own, or there is none.
    """
    store = parse(uri)
    if store.path is None:
        raise ConfigError(f"ui=true: {store.uri} has pages of its own; open it in a browser")
    if not store.path.exists():
        raise ConfigError(f"tracking.uri={redact(uri)}: there is no such store; run harness first")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store.uri]
    command += ["--default-artifact-root", str(store.path.parent / ARTIFACT_FOLDER)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Eight processes for jobs that judge answers, of which there are none here.
    environment = {**_ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0


# --- Reading --------------------------------------------------------------------------------------------------------


def finished(
    uri: str, identities: Collection[str] | None = None, sweep: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return identity -> the newest run of that point in the store, however it ended; one query for all of them.

    Each value has `run_id`, `mlflow_run_id`, `status`, `error`, `sweep`, `stage`, `ended_at` (milliseconds UTC),
    `primary_metric` and `scores` {`validation` {...}, `development` {...}}. A store that does not exist yet is empty.

    Raises:
        ConfigError: The URI names no store.
        ConnectionError: The store cannot be read.
    """
    points: dict[str, dict[str, Any]] = {}
    chosen_tags = ("status", "error", "sweep", "stage", "primary_metric")
    names = (*chosen_tags, "identity", "validation.*", "development.*")
    for run in _fetch(parse(uri), sweep, identities, tables=("tags", "latest_metrics"), names=names):
        tags = run["tags"]
        scores: dict[str, dict[str, float]] = {"validation": {}, "development": {}}
        for key, value in run["metrics"].items():
            split, _, metric = key.partition(".")
            if split in scores:
                scores[split][metric] = value
        chosen = {key: tags.get(key) for key in chosen_tags}
        chosen |= {key: run[key] for key in ("run_id", "mlflow_run_id", "ended_at")} | {"scores": scores}
        points[tags.get("identity", "")] = chosen  # oldest first, so the newest stays
    return points


def durations(uri: str) -> dict[tuple[str, ...], list[float]]:
    """Return the names of method, task and model -> the seconds that each finished run of them took.

    A server is not asked: paging through all of its runs could take longer than what is known by it saves.

    Raises:
        ConfigError: The URI names no store.
        ConnectionError: The store cannot be read.
    """
    store = parse(uri)
    found: dict[tuple[str, ...], list[float]] = {}
    if store.path is None:
        return found
    kind = ("method", "task", "model")
    for run in _fetch(store, tables=("tags", "latest_metrics"), names=(*kind, "status", "cost.total_seconds")):
        if run["tags"].get("status") == "finished" and "cost.total_seconds" in run["metrics"]:
            place = tuple(run["tags"].get(name, "") for name in kind)
            found.setdefault(place, []).append(run["metrics"]["cost.total_seconds"])
    return found


def read_runs(uri: str, sweep: str | Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return every run of the store, or of one sweep or some, oldest first; a store that is not there yet has none.

    Each has `run_id`, `mlflow_run_id`, `name`, `started_at`, `ended_at` (milliseconds UTC), `artifact_uri`, and
    `params`, `tags`, `metrics` (name -> value), with the names that this module's docstring lists.

    Raises:
        ConfigError: The URI names no store.
        ConnectionError: The store cannot be read.
    """
    return _fetch(parse(uri), sweep=sweep, tables=("tags", "params", "latest_metrics"))


def read_curves(uri: str, sweep: str | Collection[str] | None = None) -> list[tuple[str, str, int, float]]:
    """Return each evaluation on the development split while training: run id, metric, step, value.

    A server is asked once a run and metric, and never again.

    Raises:
        ConfigError: The URI names no store.
        ConnectionError: The store cannot be read.
    """
    store = parse(uri)
    if store.path and not store.path.exists():
        return []
    sweeps = _several(sweep)
    rows = read_history(store, CURVES, sweeps) if store.path is not None else _server_history(store, sweeps)
    first: dict[tuple[str, str, int], float] = {}
    for run_id, key, step, value in rows:
        # The final score stands at the last step too, logged later: it is that of the checkpoint that was kept.
        first.setdefault((run_id, key.removeprefix(CURVES), step), value)
    return [(*place, value) for place, value in first.items()]


def _server_history(store: Store, sweep: list[str] | None) -> list[tuple[str, str, int, float]]:
    runs = _fetch(store, sweep=sweep)
    copy = server_copy.load(store)
    unread = [run for run in runs if run["mlflow_run_id"] not in copy.curves]
    if unread:
        with _client(store) as client:
            for run in unread:
                names = sorted(key for key in run["metrics"] if key.startswith(CURVES))
                points = [
                    (key, item.step, item.value, item.timestamp)
                    for key in names
                    for item in client.get_metric_history(run["mlflow_run_id"], key)
                ]
                ordered = sorted(points, key=lambda point: (point[0], point[1], point[3]))
                copy.curves[run["mlflow_run_id"]] = [point[:3] for point in ordered]
        copy.save(copy.day or datetime.now(UTC).date())
    return [(run["run_id"], *point) for run in runs for point in copy.curves[run["mlflow_run_id"]]]


def download(uri: str, mlflow_run_id: str, name: str) -> Path:
    """Return a file of a server's run, kept on this machine once it was asked for.

    Raises:
        ConnectionError: The server failed, or has no such file.
    """
    store = parse(uri)
    path = server_copy.load(store).file(mlflow_run_id, name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as partial, _client(store) as client:
            Path(client.download_artifacts(mlflow_run_id, name, partial)).replace(path)
    return path


def sweeps(uri: str) -> dict[str, int]:
    """Return the name of every sweep in the store -> its number of runs; runs outside a sweep count under `""`."""
    counts: dict[str, int] = {}
    for run in _fetch(parse(uri), tables=("tags",)):
        name = run["tags"].get("sweep", "")
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _fetch(
    store: Store,
    sweep: str | Collection[str] | None = None,
    identities: Iterable[str] | None = None,
    run_ids: Iterable[str] | None = None,
    tables: tuple[str, ...] = (),
    names: tuple[str, ...] = ("*",),
) -> list[dict[str, Any]]:
    limits = {"sweep": _several(sweep), "identity": identities, RUN_ID_TAG: run_ids}
    wanted = {key: sorted(values) for key, values in limits.items() if values is not None}
    if store.path is None:
        runs = _read_server(store, wanted)
    elif not store.path.exists() or not store.path.stat().st_size:
        runs = []
    else:
        runs = read_sqlite(store, wanted, tables, names)
    return sorted(runs, key=lambda run: (run["ended_at"] or 0, run["run_id"]))


def _several(values: str | Collection[str] | None) -> list[str] | None:
    return None if values is None else [values] if isinstance(values, str) else sorted(values)


def _read_server(store: Store, wanted: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Ask for single runs and points; for anything else bring the copy on this machine up to date."""
    sets = {key: set(allowed) for key, allowed in wanted.items()}
    few = {key: allowed for key, allowed in wanted.items() if len(allowed) == 1 and key != "sweep"}
    with _client(store) as client:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        if few:
            runs = _pages(client, experiments, {key: allowed[0] for key, allowed in few.items()})
        else:
            runs = _refreshed(client, store, experiments)
    return [run for run in runs if all(run["tags"].get(key) in allowed for key, allowed in sets.items())]


def _refreshed(client: Any, store: Store, experiments: list[str]) -> list[dict[str, Any]]:
    """Ask for the runs that were sent since the copy was made, and leave out those that were deleted since.

    The order in which runs came is not among the things that a server can be asked for; the day, a tag, is.
    """
    from mlflow.entities import ViewType

    copy, today = server_copy.load(store), datetime.now(UTC).date()
    days = copy.days(today)
    if days is None:
        copy.runs = {}
    for text in [{}] if days is None else [{SENT_ON_TAG: day} for day in days]:
        copy.runs |= {run["mlflow_run_id"]: run for run in _pages(client, experiments, text)}
    gone = {run["mlflow_run_id"] for run in _pages(client, experiments, {}, ViewType.DELETED_ONLY)} if days else set()
    copy.runs = {key: run for key, run in copy.runs.items() if key not in gone and run["experiment_id"] in experiments}
    copy.curves = {key: points for key, points in copy.curves.items() if key in copy.runs}
    copy.save(today)
    return list(copy.runs.values())


def _pages(
    client: Any, experiments: list[str], wanted: dict[str, str], view: int | None = None
) -> list[dict[str, Any]]:
    """Page through the runs whose tags have these values."""
    text = f"tags.`{RUN_ID_TAG}` != ''"
    text += "".join(f" AND tags.`{key}` = {_quoted(value)}" for key, value in wanted.items())
    runs: list[dict[str, Any]] = []
    token: str | None = ""
    while experiments and token is not None:
        views = {} if view is None else {"run_view_type": view}
        page = client.search_runs(experiments, text, max_results=1000, page_token=token or None, **views)
        runs += [
            {
                "mlflow_run_id": run.info.run_id,
                "run_id": run.data.tags[RUN_ID_TAG],
                "experiment_id": run.info.experiment_id,
                "name": run.info.run_name,
                "started_at": run.info.start_time,
                "ended_at": run.info.end_time,
                "artifact_uri": run.info.artifact_uri,
                "params": dict(run.data.params),
                "tags": dict(run.data.tags),
                "metrics": dict(run.data.metrics),
            }
            for run in page
        ]
        token = page.token or None
    return runs


def _quoted(value: str) -> str:
    """Quote a value for MLflow's filter language, which has no escapes.

    Raises:
        ConfigError: The value holds both kinds of quotation marks.
    """
    if "'" in value and '"' in value:
        raise ConfigError(f"sweep.name={value} holds both ' and \"; use one kind of quotation mark at most")
    return f'"{value}"' if "'" in value else f"'{value}'"
