"""Runs as a frame, from a tracking store or from a folder of run directories, with filters."""

import json
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from harness import tracking
from harness.config.errors import ConfigError, near_misses
from harness.report import others as foreign
from harness.report import same_files, scores
from harness.tracking import client
from harness.tracking import uri as stores
from harness.tracking.entries import (
    as_read,
    final_metrics,
    milliseconds,
    run_name,
    run_params,
    run_provenance,
    run_tags,
)
from harness.tracking.record import RESULT_FILE, SCHEMA_VERSION, RunRecord
from harness.tracking.uri import RUN_ID_TAG

# Below it a store keeps copies of what it was sent.
COPIES = client.ARTIFACT_FOLDER
DEFAULT_STORE = "sqlite:///mlflow.db"
FILTERS = ("sweep", "task", "model", "method", "status", "since")
# What a record has no default for, where a file of another version lacks it.
EMPTY: dict[str, Any] = {"run_id": "", "status": "unknown", "error": None, "identity": "", "sweep": {}, "config": {}}
SHOWN = 12


@dataclass(frozen=True)
class Runs:
    """Runs that were found.

    Attributes:
        frame: One row per run, as `harness.report.scores.load` describes it; empty where there is none.
        damaged: One sentence per `result.json` that cannot be read.
        there: Where the frame is empty, how many runs each sweep, task, ... has in the store.
    """

    frame: pd.DataFrame
    damaged: tuple[str, ...]
    there: dict[str, dict[str, int]]


def load_runs(
    store: str | Path | None = DEFAULT_STORE,
    *,
    sweep: str | Collection[str] | None = None,
    task: str | Collection[str] | None = None,
    model: str | Collection[str] | None = None,
    method: str | Collection[str] | None = None,
    status: str | Collection[str] | None = None,
    since: str | datetime | None = None,
    others: Collection[str] = (),
) -> pd.DataFrame:
    """Read runs into a pandas frame, one row per run, oldest first; an empty frame where there are none.

    The columns are those of `harness.report.scores.load`: `task`, `method`, `model`, `seed`, `status`, `validation`,
    `development`, `newest`, and `param.*`, `validation.*`, `cost.*`, ... under their names in the store.

        runs = harness.load_runs("sqlite:///mlflow.db", sweep="ranks", status="finished")
        runs[runs["newest"]].groupby("param.method.rank")["validation"].mean()

    Args:
        store: `sqlite:///FILE`, `http://HOST:PORT`, or a folder with run directories anywhere below it. A
            `result.json` there that cannot be read is skipped with a warning. None where only `others` are wanted.
        sweep: Only the runs of this sweep, or of one of these; "" for those of none.
        task: Only those of this task, or of one of these.
        model: As for tasks.
        method: As for tasks.
        status: `finished`, `diverged`, `failed`, `out_of_memory`, `interrupted`, or several.
        since: Only runs that ended at this moment or later: a date, or a date and a time, ISO 8601, UTC unless it says
            otherwise.
        others: Files or folders of results that others published (`harness.report.others`), which become rows too.

    Raises:
        ConfigError: There is no such store or folder, or `since` is no date.
        ConnectionError: The store cannot be read.
    """
    found = read(store, {"task": task, "model": model, "method": method, "status": status}, sweep, since, others)
    for reason in found.damaged:
        warnings.warn(reason, stacklevel=2)
    return found.frame


def read(
    store: str | Path | None,
    wanted: Mapping[str, str | Collection[str] | None],
    sweep: str | Collection[str] | None = None,
    since: str | datetime | None = None,
    others: Collection[str] = (),
) -> Runs:
    """Read a store, or a folder, and keep what is wanted: column -> one value or several; None wants all.

    What others published is of no sweep, and is there whichever sweep is wanted.

    Raises:
        ConfigError: There is no such store or folder, or `since` is no date.
        ConnectionError: The store cannot be read.
    """
    moment = None if since is None else _moment(since)
    sweeps = None if sweep is None else {sweep} if isinstance(sweep, str) else set(sweep)
    damaged: list[str] = []
    everything: list[dict[str, Any]] | None = []
    if store is None:
        runs = []
    elif "://" in str(store):
        given = f"tracking.uri={stores.redact(str(store))}"
        place = stores.parse(str(store))
        if place.path and not place.path.exists():
            raise ConfigError(f"{given}: there is no such store; run harness first, or harness-report --sync runs")
        tracking.check(str(store))
        everything = None
        # Of a point that another sweep ran again later, this sweep's run is the newest.
        runs = tracking.read_runs(str(store), None if sweeps is None or "" in sweeps else sweeps)
    else:
        everything, damaged = read_folder(Path(store))
        runs = everything
    if sweeps is not None:
        runs = [run for run in runs if run["tags"].get("sweep", "") in sweeps]
    if others:
        published, unread = foreign.read(list(others))
        runs, damaged = [*runs, *published], [*damaged, *unread]
    frame = scores.tidy(runs)
    for column in ("task", "model", "method", "status"):
        values = wanted.get(column)
        if values is not None and len(frame):
            frame = frame[frame[column].isin([values] if isinstance(values, str) else list(values))]
    if moment is not None and len(frame):
        frame = frame[frame["ended_at"] >= moment]
    frame = same_files.backbones(frame, {run["run_id"]: run["tags"].get("backbone", "") for run in runs})
    frame = same_files.data(frame)
    there = {}
    if frame.empty:
        there = _counted(tracking.read_runs(str(store)) if everything is None else everything)
    return Runs(frame.reset_index(drop=True), tuple(damaged), there)


def _moment(since: str | datetime) -> datetime:
    try:
        moment = since if isinstance(since, datetime) else datetime.fromisoformat(since)
    except ValueError:
        raise ConfigError(f"since={since} is no date; write it as 2026-01-31 or 2026-01-31T18:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def read_folder(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read every `result.json` below a folder as a store would give it back, oldest first; and say what is damaged.

    A record of another version is read as far as it goes.

    Raises:
        ConfigError: There is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"store={folder} is not a folder; give the one that holds the runs, such as runs, or a store")
    runs: dict[str, dict[str, Any]] = {}
    damaged = []
    for path in sorted(folder.rglob(RESULT_FILE)):
        if COPIES in path.relative_to(folder).parts:
            continue
        try:
            run = read_record(path)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            damaged.append(f"skipped: {path} is damaged: {scores.plain(error)}")
            continue
        runs.setdefault(run["run_id"], run)
    return sorted(runs.values(), key=lambda run: (run["ended_at"], run["run_id"])), damaged


def read_record(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a record")
    known = {f.name for f in fields(RunRecord)}
    required = [f.name for f in fields(RunRecord) if f.default is MISSING and f.default_factory is MISSING]
    record = RunRecord(**(EMPTY | {key: value for key, value in content.items() if key in known}))
    marks = [] if record.schema_version == SCHEMA_VERSION else [f"record of version {record.schema_version}"]
    lacking = [name for name in required if name not in content]
    run = {
        "run_id": str(record.run_id or path.parent),
        "mlflow_run_id": "",
        "name": run_name(record),
        "artifact_uri": str(path.parent.absolute()),
        "started_at": milliseconds(record.started_at, path.parent),
        "ended_at": milliseconds(record.ended_at, path.parent),
        "tags": run_tags(record) | {RUN_ID_TAG: str(record.run_id)},
        "params": run_params(record.config) | run_provenance(record),
        "metrics": final_metrics(record),
        "marks": marks + [f"without {', '.join(lacking)}"] * bool(lacking),
    }
    return as_read(run)


def _counted(runs: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {name: {} for name in FILTERS[:-1]}
    for run in runs:
        for name, counted in counts.items():
            value = scores.plain(run["tags"].get(name, ""))
            counted[value] = counted.get(value, 0) + 1
    return {name: dict(sorted(counted.items())) for name, counted in counts.items()}


def nothing_found(found: Runs, wanted: dict[str, Any], place: str) -> ConfigError:
    """Say what there is where nothing is of what was asked for.

    Args:
        found: Of `read`, its frame empty.
        wanted: What was asked for: name of a filter -> value.
        place: The store as the user gave it, without secrets.
    """
    asked = {name: value for name, value in wanted.items() if value is not None}
    if not any(found.there.values()):
        broken = f"; {len(found.damaged)} damaged, {found.damaged[0]}" if found.damaged else ""
        return ConfigError(f"{place}: no runs found in it; run harness first, or harness-report --sync runs{broken}")
    parts = []
    for name, value in asked.items():
        if name in found.there:
            there = {key or f"(no {name})": count for key, count in found.there[name].items()}
            missing = [item for item in ([value] if isinstance(value, str) else value) if item not in there]
            close = near_misses(missing[0], there).partition("Valid:")[0] if missing else ""
            counted = [f"{key} ({count} run{'' if count == 1 else 's'})" for key, count in there.items()]
            shown = ", ".join(counted[:SHOWN]) + (f", and {len(counted) - SHOWN} more" if len(counted) > SHOWN else "")
            parts.append(f"{close}There are: {shown}")
    given = " ".join(f"{name}={v if isinstance(v, str) else ','.join(v)}" for name, v in asked.items())
    return ConfigError(f"{given}: no runs found in {place}; " + "; ".join(parts or ["all of them are older"]))
