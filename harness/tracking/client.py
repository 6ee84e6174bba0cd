"""Runs in an MLflow store: sent whole after they ended, read back in bulk.

Only this room imports mlflow, and only inside functions. A run directory (see `harness.tracking.record`) is all that is
read, so a run can be sent when it ends, or any time later. While it trains it has a page of its own (see
`harness.tracking.live`), which `send` completes. A kill in the middle of sending leaves a run without the tag
`harness.run_id`; readers skip it, and the next `send` completes or replaces it.

Names in the store:

    params     the resolved configuration, dotted (`method.rank`, `train.learning_rate`, `seed`); nulls are left out;
               `provenance.*`: commit, versions, and what lay outside of what was tested
    metrics    `validation.*`, `development.*`, `majority.*`, `base.*`, `forgetting.*` (final scores), `cost.*` (the
               names of `record.COST_FIELDS`, nested ones dotted), `train.*` (by step: loss, learning_rate, ...)
    tags       `method`, `task`, `model`, `backbone`, `status`, `error`, `identity`, `sweep`, `stage`,
               `primary_metric`, `harness.sent_on` (a day, UTC), `harness.run_id`; while it trains `harness.live`
               and `harness.heartbeat` in place of these two, and `harness.stop` where someone asked it to stop; on
               the parent of a sweep `harness.sweep`
    artifacts  `result.json`, `config.yaml`, `run.log`, `steps.jsonl`, `predictions.parquet`, `development.parquet`,
               `soft_prompt.csv`, `adapter/`, and the tables `soft_prompt.json` and `answers.json`, the first
               predictions; on the parent of a sweep `report/`, which `attach` puts there
    inputs     the task's rows, with their revision as digest
"""

import hashlib
import logging
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.tracking.uri import ARTIFACT_FOLDER, Store, _quoted, check, parse

log = logging.getLogger(__name__)

PENDING_TAG, NOT_PENDING, NOTE_TAG = "harness.pending", "no", "mlflow.note.content"
# MLflow's own limit on the value of a tag.
TAG_LENGTH = 8000
SWEEP_PARENT_TAG = "harness.sweep"
# A day, UTC: by it a copy of a server's runs is brought up to date.
SENT_ON_TAG = "harness.sent_on"
EXPERIMENT_NOTE = (
    "Fine-tuning methods compared by peft-harness. A run is one fine-tuning: `validation.*` are its final scores, "
    "`development.*` chose its checkpoint, `cost.*` is what it took, `train.*` was logged by step. The runs of a sweep "
    "lie below a parent run, whose artifacts hold the sweep's report: `report/report.html`."
)

LOCK_SECONDS = 600
# What a store says when it has too much to do, in errors that MLflow's client takes for final.
_BUSY = re.compile(
    r"QueuePool limit|too many clients|remaining connection slots|database is locked|read timed out", re.I
)

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


_one_thread = threading.RLock()


class StoreBusyError(ConnectionError):
    """The store has more to do than it can; later it may take what it refused now."""


def _mlflow() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow

    # For good, not for a while: to set the filters back is no thread's business.
    warnings.filterwarnings("ignore", module=r"(mlflow|alembic)\.")
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
    mlflow = _mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        # One thread of this process at a time: credentials lie in its environment.
        with _one_thread, _credentials(store):
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
        log.warning(
            "the experiment %s was deleted in the MLflow UI, and is there again with its runs: tracking.experiment=%s "
            "writes to it; name another to leave it deleted",
            name,
            name,
        )
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


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


def plain_run(run: Any, identified_by: str) -> dict[str, Any]:
    """A run as MLflow's client gives it, as plain values; `identified_by` is the tag that holds our id of it."""
    return {
        "mlflow_run_id": run.info.run_id,
        "run_id": run.data.tags[identified_by],
        "experiment_id": run.info.experiment_id,
        "name": run.info.run_name,
        "started_at": run.info.start_time,
        "ended_at": run.info.end_time,
        "artifact_uri": run.info.artifact_uri,
        "params": dict(run.data.params),
        "tags": dict(run.data.tags),
        "metrics": dict(run.data.metrics),
    }
