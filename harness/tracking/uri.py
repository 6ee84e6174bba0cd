"""Tracking stores: URIs without their secrets, checks in seconds, and SQLite stores read with SQL.

Nothing here needs mlflow.
"""

import os
import re
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from harness.config.errors import ConfigError

RUN_ID_TAG = "harness.run_id"
# Beside an SQLite store.
ARTIFACT_FOLDER = "mlartifacts"
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
                f"{given}: {path} has a percent-encoded character in it, and MLflow can't open it; name a file "
                "elsewhere, or take tracking=none"
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
    # Imported here: it brings an HTTP client, for which the command line's help would wait.
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


def _quoted(value: str) -> str:
    """Quote a value for MLflow's filter language, which has no escapes.

    Raises:
        ConfigError: The value holds both kinds of quotation marks.
    """
    if "'" in value and '"' in value:
        raise ConfigError(f"sweep.name={value} holds both ' and \"; use one kind of quotation mark at most")
    return f'"{value}"' if "'" in value else f"'{value}'"
