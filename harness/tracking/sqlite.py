"""Runs and histories read from an SQLite store without mlflow."""

import json
import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from harness.tracking.uri import ARTIFACT_FOLDER, RUN_ID_TAG, Store

Found = TypeVar("Found")

# What SQLite answers to one who may only read, where a writer was killed and left half of its work to be undone.
HALF_WRITTEN = {sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_READONLY_RECOVERY}
BUSY_SECONDS = 20


def reading(store: Store, read: Callable[[sqlite3.Connection], Found]) -> Found:
    """What `read` finds in a store in a file: nothing is written, but for what a killed writer left to be undone.

    Raises:
        ConnectionError: The store cannot be read.
    """
    address = f"file:{quote(str(store.path))}"
    try:
        try:
            with closing(sqlite3.connect(f"{address}?mode=ro", timeout=BUSY_SECONDS, uri=True)) as connection:
                return read(connection)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) not in HALF_WRITTEN:
                raise
        # SQLite undoes it for the first who may write.
        with closing(sqlite3.connect(f"{address}?mode=rw", timeout=BUSY_SECONDS, uri=True)) as connection:
            return read(connection)
    except sqlite3.Error as error:
        raise ConnectionError(f"the tracking store {store.uri} cannot be read: {error}") from None


def read_sqlite(
    store: Store,
    wanted: dict[str, list[str]],
    tables: tuple[str, ...],
    names: tuple[str, ...] = ("*",),
    identified_by: str = RUN_ID_TAG,
    status: str | None = None,
) -> list[dict[str, Any]]:
    """Read with SQL: paging through `search_runs` takes half a minute for ten thousand runs, this takes a second.

    Args:
        wanted: Tag -> the values allowed.
        tables: What is read of a run: tags, params, latest_metrics.
        names: Patterns of SQLite's GLOB for the names in those tables.
        identified_by: The tag that holds a run's id: only those of runs that ended have the usual one.
        status: MLflow's; null: any.
    """
    conditions = "".join(
        " AND r.run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND value IN (SELECT value FROM json_each(?)))"
        for _ in wanted
    )
    values = [identified_by, status, status]
    values += [item for key, allowed in wanted.items() for item in (key, json.dumps(allowed))]
    select = f"""CREATE TEMP TABLE wanted AS
        SELECT r.run_uuid, t.value AS run_id, r.name, r.start_time, r.end_time, r.artifact_uri
        FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = ?
        JOIN experiments e ON e.experiment_id = r.experiment_id
        WHERE r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active' AND (? IS NULL OR r.status = ?)
        {conditions}"""
    columns = ("mlflow_run_id", "run_id", "name", "started_at", "ended_at", "artifact_uri")
    named = " OR ".join("key GLOB ?" for _ in names)

    def read(connection: sqlite3.Connection) -> dict[str, dict[str, Any]]:
        connection.execute(select, values)
        runs = {
            row[0]: dict(zip(columns, row, strict=True)) | {"params": {}, "tags": {}, "metrics": {}}
            for row in connection.execute("SELECT * FROM wanted")
        }
        for table in tables:
            value = "CASE WHEN is_nan THEN NULL ELSE value END" if table == "latest_metrics" else "value"
            content = table.removeprefix("latest_")
            of_wanted = "run_uuid IN (SELECT run_uuid FROM wanted)"
            query = f"SELECT run_uuid, key, {value} FROM {table} WHERE {of_wanted} AND ({named})"
            for run_id, key, item in connection.execute(query, names):
                runs[run_id][content][key] = math.nan if item is None else item
        return runs

    runs = reading(store, read)
    for run in runs.values():
        run["artifact_uri"] = beside(store, run["artifact_uri"])
    return list(runs.values())


def beside(store: Store, artifact_uri: str) -> str:
    """Where a run's files are: where the store says, or beside the store where it was moved or copied with them."""
    _, folder, rest = artifact_uri.rpartition(f"/{ARTIFACT_FOLDER}/")
    if store.path is None or not folder:
        return artifact_uri
    parts = urlsplit(artifact_uri)
    if parts.scheme not in ("", "file") or Path(unquote(parts.path)).exists():
        return artifact_uri
    here = store.path.parent / ARTIFACT_FOLDER / unquote(rest)
    return str(here) if here.exists() else artifact_uri


def read_history(store: Store, prefix: str, sweeps: list[str] | None) -> list[tuple[str, str, int, float]]:
    """Read every metric by step whose name starts with a prefix: run id, name, step, value; first logged, first read.

    Raises:
        ConnectionError: The store cannot be read.
    """
    query = f"""SELECT t.value, m.key, m.step, m.value FROM metrics m
        JOIN runs r ON r.run_uuid = m.run_uuid AND r.lifecycle_stage = 'active'
        JOIN experiments e ON e.experiment_id = r.experiment_id AND e.lifecycle_stage = 'active'
        JOIN tags t ON t.run_uuid = m.run_uuid AND t.key = '{RUN_ID_TAG}'
        LEFT JOIN tags s ON s.run_uuid = m.run_uuid AND s.key = 'sweep'
        WHERE substr(m.key, 1, ?) = ? AND NOT m.is_nan
        AND (? IS NULL OR s.value IN (SELECT value FROM json_each(?)))
        ORDER BY t.value, m.key, m.step, m.timestamp"""
    wanted = None if sweeps is None else json.dumps(sweeps)
    return reading(
        store, lambda connection: connection.execute(query, (len(prefix), prefix, wanted, wanted)).fetchall()
    )
