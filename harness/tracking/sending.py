"""Sending of a run's record to a store."""

import json
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.config.errors import ConfigError
from harness.tracking.client import (
    ARTIFACT_FOLDER,
    NOT_PENDING,
    PENDING_TAG,
    SENT_ON_TAG,
    StoreBusyError,
    _client,
    _create,
    _experiment_id,
    _lock,
)
from harness.tracking.entries import final_metrics, milliseconds, run_name, run_tags, step_metrics
from harness.tracking.live import (
    HEARTBEAT_TAG,
    LIVE_TAG,
    end_killed,
    find_live,
    lines_of,
    log_metrics,
    log_params,
    tags_in,
    when,
)
from harness.tracking.reading import _fetch
from harness.tracking.record import (
    ADAPTER_FOLDER,
    CONFIG_FILE,
    DEVELOPMENT_FILE,
    LOG_FILE,
    PREDICTIONS_FILE,
    RESULT_FILE,
    SOFT_PROMPT_FILE,
    STEPS_FILE,
    TRACKED_FILE,
    RunRecord,
    write_atomically,
)
from harness.tracking.uri import RUN_ID_TAG, Store, _quoted, check, parse, redact

MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED"}  # every other status is FAILED
# Longer than a crowd of writers takes; the run itself is safe in its directory meanwhile.
BUSY_SECONDS, FIRST_WAIT, LONGEST_WAIT = 600, 1.0, 30.0
ANSWERS, ANSWERS_SHOWN = "answers.json", 50
# MLflow's own limit (mlflow.utils.validation).
DIGEST_LENGTH = 36
# Metrics that are a model's on the task's rows, and what a model is searched for by.
SCORED = ("validation.", "development.")
MODEL_TAGS = ("method", "task", "model", "sweep", "stage", "identity")


@dataclass
class SyncOutcome:
    """Outcome of `sync` for each run directory; `damaged` maps a directory to the reason."""

    sent: list[Path] = field(default_factory=list)
    present: list[Path] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)


def send(run_dir: Path, uri: str, experiment: str) -> str:
    """Send one run directory, unless the store has it; return the MLflow run's id.

    A store that is busy is asked again for some minutes. Only `result.json` must exist; `config.yaml`, `steps.jsonl`,
    `predictions.parquet`, `development.parquet`, `adapter/` and `run.log` go along where they do. `tracked.json` in the
    run directory then says where the run went.

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
    tags = tags_in(client, store, experiment_id, record, started, ended)
    tags[SENT_ON_TAG] = datetime.now(UTC).date().isoformat()
    begun = find_live(client, experiment_id, record.run_id)
    if not begun:
        tags[PENDING_TAG] = record.run_id
        run = client.create_run(experiment_id, start_time=started, tags=tags, run_name=run_name(record))
        run_id = str(run.info.run_id)
    else:
        run_id = str(begun[0].info.run_id)
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if "error" in begun[0].data.tags and "error" not in tags:
            client.delete_tag(run_id, "error")  # someone took its process for dead
    log_params(client, store, run_id, record, begun[0].data.params if begun else ())
    client.set_terminated(run_id, MLFLOW_STATUS.get(record.status, "FAILED"), ended)
    _log(client, store, run_id, run_dir, record, started, ended, lines_of(begun[0]) if begun else 0)
    # Of all costs the only one that the record can't have: it was written before anything was sent.
    client.log_metric(run_id, "cost.track_seconds", time.perf_counter() - start, timestamp=ended)
    # What a kill left, and what a server made twice because a request was repeated that it had not answered in time: it
    # may have come to that since.
    pending = client.search_runs([experiment_id], f"tags.`{PENDING_TAG}` = {_quoted(record.run_id)}")
    for rest in (*pending, *(find_live(client, experiment_id, record.run_id) if begun else ())):
        if rest.info.run_id != run_id:
            for model in client.search_logged_models([experiment_id], f"source_run_id = '{rest.info.run_id}'"):
                client.delete_logged_model(model.model_id)
            client.delete_run(rest.info.run_id)
    # Both in one transaction: whenever a kill comes, the run is whole and known, or something to be cleared away.
    client.log_batch(run_id, tags=[RunTag(RUN_ID_TAG, record.run_id), RunTag(PENDING_TAG, NOT_PENDING)])
    for tag in (PENDING_TAG, *((LIVE_TAG, HEARTBEAT_TAG) if begun else ())):
        client.delete_tag(run_id, tag)
    return run_id


def _log(
    client: Any, store: Store, run_id: str, run_dir: Path, record: RunRecord, started: int, ended: int, lines: int
) -> None:
    """Log what a record and its files hold, but for the first lines by step, which are there."""
    from mlflow.entities import DatasetInput, InputTag, Metric

    steps = list(step_metrics(run_dir / STEPS_FILE))
    # A final score must be newer than the last one by step, or MLflow shows that one as the run's.
    last = max((step for step, _ in steps), default=0)
    metrics = [
        Metric(key, value, when(started, numbers, ended), step)
        for step, numbers in steps[lines:]
        for key, value in numbers.items()
    ]
    data = _dataset(record)
    model = _log_model(client, run_id, run_dir, record)
    for key, value in final_metrics(record).items():
        scored = model is not None and data is not None and key.startswith(SCORED)
        of = {"model_id": model, "dataset_name": data.name, "dataset_digest": data.digest} if scored else {}
        metrics.append(Metric(key, value, ended, last, **of))
    log_metrics(client, run_id, metrics)
    if data is not None:
        client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training and evaluation")])])
    _log_artifacts(client, store, run_id, run_dir)


def _dataset(record: RunRecord) -> Any:
    """The task's rows under their revision, the hash of their files or a version; null where a record names none."""
    from mlflow.entities import Dataset

    revision = (record.provenance.get("revisions") or {}).get("data")
    task = record.config.get("task")
    if not revision or not isinstance(task, dict) or not task.get("name"):
        return None
    source = {"task": task["name"], "revision": str(revision), "version": task.get("version")}
    rows = (record.provenance.get("data") or {}).get("rows")
    return Dataset(
        task["name"],
        str(revision)[:DIGEST_LENGTH],
        "harness",
        json.dumps({key: value for key, value in source.items() if value is not None}),
        profile=None if rows is None else json.dumps({"rows": rows}),
    )


def _log_model(client: Any, run_id: str, run_dir: Path, record: RunRecord) -> str | None:
    """Log the adapter as a model, so that MLflow's pages rank it by its scores; null where none was kept.

    Its files stay with the run, and the model says where: they are stored once.
    """
    if not (run_dir / ADAPTER_FOLDER).is_dir():
        return None
    experiment_id = client.get_run(run_id).info.experiment_id
    known = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", max_results=1)
    if known:
        return str(known[0].model_id)
    tags = {key: value for key, value in run_tags(record).items() if key in MODEL_TAGS}
    model = client.create_logged_model(
        experiment_id,
        # What MLflow does not allow in a name.
        re.sub(r"[/:.%\"']+", "-", run_name(record)),
        run_id,
        tags | {"adapter": f"runs:/{run_id}/{ADAPTER_FOLDER}"},
        model_type="adapter",
    )
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _log_artifacts(client: Any, store: Store, run_id: str, run_dir: Path) -> None:
    tables = (PREDICTIONS_FILE, DEVELOPMENT_FILE)
    for name in (RESULT_FILE, CONFIG_FILE, LOG_FILE, STEPS_FILE, *tables, SOFT_PROMPT_FILE):
        path = run_dir / name
        if not path.is_file():
            continue
        if name not in tables and (store.password or store.token):
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
    """Show the first predictions as a table, where they are texts that were generated or chosen."""
    import pandas as pd

    frame = pd.read_parquet(path)
    if not {"split", "prediction"} <= set(frame) or not pd.api.types.is_string_dtype(frame["prediction"].dropna()):
        return
    shown = frame[frame["split"] != "development"] if set(frame["split"]) - {"development"} else frame
    shown = shown.head(ANSWERS_SHOWN).dropna(axis="columns", how="all")
    client.log_table(run_id, shown.map(lambda value: store.scrub(value) if isinstance(value, str) else value), ANSWERS)


def sync(folder: Path, uri: str, experiment: str) -> SyncOutcome:
    """Send every run directory below a folder that the store lacks; a damaged `result.json` stops none of the others.

    Live runs of the store whose process is gone are ended as KILLED.

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
    end_killed(uri, experiment)
    return outcome
