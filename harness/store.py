"""Where runs are kept: tracking URIs without their secrets, checks in seconds, and SQLite stores read with SQL.

Nothing here needs mlflow.
"""

import json
import math
import os
import re
import socket
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from harness.config.errors import ConfigError

RUN_ID_TAG = "harness.run_id"
ALLOWED = "sqlite:///FILE, http://HOST:PORT or https://HOST"
CONNECT_SECONDS = 3


@dataclass(frozen=True)
class Store:
    """A tracking URI taken apart: `uri` carries no secret, `path` is the file of an SQLite store."""

    uri: str
    path: Path | None = None
    username: str | None = None
    password: str | None = None
    token: str | None = None

    def scrub(self, text: str) -> str:
        """Remove this store's secrets from a text, plain or percent-encoded."""
        text = redact(f"{text} ")[:-1]  # with a space: a text, of which only the URIs are redacted
        for secret in (self.password, self.token):
            for form in {secret, quote(secret or "", safe="")} - {None, ""}:
                text = text.replace(str(form), "***")
        return text


def redact(uri: str) -> str:
    """Replace user, password, token and query of a URI, or of every URI in a text, by `***`.

    The file name of an SQLite store stays. Everything up to the last `@` goes, so that a password with a `/` goes too.
    """
    if re.search(r"\s", uri):
        return re.sub(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+", lambda found: redact(found.group()), uri)
    base, question, query = uri.partition("?")
    if "@" in query:
        base, question = uri, ""
    if not base.lower().startswith(("sqlite:///", "file:///")):
        base = re.sub(r"^([A-Za-z][\w+.-]*://)?.*@", r"\1***@", base)
    return base + ("?***" if question else "")


def parse(uri: str) -> Store:
    """Take a tracking URI apart.

    Raises:
        ConfigError: The URI is not one of an SQLite file or a server.
    """
    given = f"tracking.uri={redact(str(uri))}"
    if not isinstance(uri, str) or "://" not in uri:
        raise ConfigError(f"{given} is not a tracking store; give {ALLOWED}")
    scheme, _, rest = uri.partition("://")
    if scheme.lower() == "sqlite":
        name = rest[1:]
        if not rest.startswith("/") or not name or name == ":memory:" or "?" in name or name.endswith("/"):
            raise ConfigError(
                f"{given} does not name an SQLite file; give sqlite:///mlflow.db or sqlite:////folder/file.db"
            )
        path = Path(os.path.abspath(name))
        if re.search(r"%[0-9A-Fa-f]{2}", str(path)):  # SQLAlchemy 2.1 decodes it, MLflow does not
            raise ConfigError(
                f"{given}: a path with a percent-encoded character can't be opened by MLflow; name another file"
            )
        return Store(f"sqlite:///{path}", path)
    if scheme.lower() not in ("http", "https"):
        raise ConfigError(f"{given} has an unknown scheme; give {ALLOWED}")
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or ("@" in rest and "@" not in parts.netloc):
        raise ConfigError(f"{given} is not a server's address; give {ALLOWED}, with special characters percent-encoded")
    address = f"[{host}]" if ":" in host else host
    clean = f"{parts.scheme}://{address}{f':{port}' if port else ''}{parts.path}".rstrip("/")
    user, password = unquote(parts.username or "") or None, unquote(parts.password or "") or None
    if password is None:
        return Store(clean, token=user)
    return Store(clean, username=user, password=password, token=None if user else password)


def check(uri: str) -> None:
    """Make sure, in seconds and without mlflow, that a store can be used.

    Raises:
        ConfigError: The scheme is unknown, the server cannot be reached, the folder of an SQLite store is missing or
            cannot be written, or its file is not a database.
    """
    store = parse(uri)
    given = f"tracking.uri={redact(uri)}"
    if store.path is None:
        return _check_server(store.uri, given)
    folder = store.path.parent
    if not folder.is_dir():
        raise ConfigError(f"{given}: the folder {folder} does not exist; create it or name another file")
    if store.path.is_dir():
        raise ConfigError(f"{given} is a folder; name a file in it")
    try:
        with tempfile.TemporaryFile(dir=folder):  # the permissions alone do not tell, of root or of a special folder
            pass
    except OSError as error:
        raise ConfigError(f"{given}: the folder {folder} cannot be written ({error.strerror}); name another") from None
    if store.path.exists():
        if not os.access(store.path, os.R_OK | os.W_OK):
            raise ConfigError(f"{given}: the file cannot be written; change its permissions or name another")
        with store.path.open("rb") as file:
            start = file.read(16)
        if start and start != b"SQLite format 3\0":
            raise ConfigError(f"{given} is not an SQLite database; name another file")


def _check_server(uri: str, given: str) -> None:
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(uri)
    host = parts.hostname or ""
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return  # only the proxy knows whether the server answers
    try:
        socket.create_connection(
            (host, parts.port or (443 if parts.scheme == "https" else 80)), CONNECT_SECONDS
        ).close()
    except OSError as error:
        raise ConfigError(
            f"{given}: the server cannot be reached ({error}); start it (mlflow server --host {host} --port "
            f"{parts.port or 5000}), or use tracking=local, or tracking=none and send the runs later"
        ) from None


def read_sqlite(
    store: Store, wanted: dict[str, list[str]], tables: tuple[str, ...], names: tuple[str, ...] = ("*",)
) -> list[dict[str, Any]]:
    """Read with SQL: paging through `search_runs` takes half a minute for ten thousand runs, this takes a second.

    Args:
        wanted: Tag -> the values allowed.
        tables: What is read of a run: tags, params, latest_metrics.
        names: Patterns of SQLite's GLOB for the names in those tables.
    """
    conditions = "".join(
        " AND r.run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND value IN (SELECT value FROM json_each(?)))"
        for _ in wanted
    )
    values = [item for key, allowed in wanted.items() for item in (key, json.dumps(allowed))]
    select = f"""CREATE TEMP TABLE wanted AS
        SELECT r.run_uuid, t.value AS run_id, r.name, r.start_time, r.end_time, r.artifact_uri
        FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = '{RUN_ID_TAG}'
        JOIN experiments e ON e.experiment_id = r.experiment_id
        WHERE r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active'{conditions}"""
    columns = ("mlflow_run_id", "run_id", "name", "started_at", "ended_at", "artifact_uri")
    named = " OR ".join("key GLOB ?" for _ in names)
    try:
        with closing(sqlite3.connect(f"file:{quote(str(store.path))}?mode=ro", timeout=20, uri=True)) as connection:
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
    except sqlite3.Error as error:
        raise ConnectionError(f"the tracking store {store.uri} cannot be read: {error}") from None
    return list(runs.values())


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
    try:
        with closing(sqlite3.connect(f"file:{quote(str(store.path))}?mode=ro", timeout=20, uri=True)) as connection:
            wanted = None if sweeps is None else json.dumps(sweeps)
            return connection.execute(query, (len(prefix), prefix, wanted, wanted)).fetchall()
    except sqlite3.Error as error:
        raise ConnectionError(f"the tracking store {store.uri} cannot be read: {error}") from None
