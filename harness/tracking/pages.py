"""The MLflow UI's pages of a sweep: its views, and the report that is attached to it."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from harness.config.errors import ConfigError
from harness.tracking.client import (
    _ENVIRONMENT,
    ARTIFACT_FOLDER,
    EXPERIMENT_NOTE,
    NOTE_TAG,
    TAG_LENGTH,
    _client,
    _lock,
    _sweep_parent,
)
from harness.tracking.reading import _fetch
from harness.tracking.sqlite import reading
from harness.tracking.sweep_view import VIEW_TAG, _view, _view_key, address
from harness.tracking.uri import Store, check, parse, redact

# How long a server has to end before it is killed.
GRACE_SECONDS = 5
REPORT_FOLDER = "report"


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
    names = ("mlflow.parentRunId", "cost.*")
    runs = _fetch(store, sweep=sweep, tables=("tags", "latest_metrics"), names=names)
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
            costs = sorted({name for run in runs for name in run["metrics"] if name.startswith("cost.")})
            view = _view(sweep, columns, lowest_first, ended, costs)
            client.set_experiment_tag(experiment.experiment_id, VIEW_TAG + _view_key(sweep), view)
    return parent


def views(uri: str) -> dict[str, str]:
    """Return the pages of a store in a file: each experiment's and view's name -> path on the server that shows it."""
    experiments = "SELECT name, experiment_id FROM experiments WHERE lifecycle_stage = 'active' AND name != 'Default'"
    query = "SELECT key, value, experiment_id FROM experiment_tags WHERE substr(key, 1, ?) = ? ORDER BY value"
    store = parse(uri)
    found: dict[str, str] = {}
    try:
        for name, experiment in reading(store, lambda connection: connection.execute(experiments).fetchall()):
            found[str(name)] = address(experiment)
        kept = (len(VIEW_TAG), VIEW_TAG)
        for key, value, experiment in reading(store, lambda connection: connection.execute(query, kept).fetchall()):
            found[json.loads(value)["name"]] = address(experiment, key.removeprefix(VIEW_TAG))
    except (ConnectionError, ValueError, KeyError, TypeError):
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


def browse(uri: str, port: int, say: Callable[[str], object] = print) -> int:
    """Run MLflow's own pages on a store, on this machine alone, until they are stopped; return their exit status.

    Args:
        uri: The store, in a file.
        port: Of 127.0.0.1.
        say: Takes the addresses, once the server answers.

    Raises:
        ConfigError: The store is a server's, which has pages of its own, or there is none, or the port is taken.
    """
    store = parse(uri)
    if store.path is None:
        raise ConfigError(f"ui=true: {store.uri} has pages of its own; open it in a browser")
    if not store.path.exists():
        raise ConfigError(f"tracking.uri={redact(uri)}: there is no such store; run harness first")
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"port={port}: {reason}; choose another, such as port=5001") from None
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store.uri]
    command += ["--default-artifact-root", str(store.path.parent / ARTIFACT_FOLDER)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Eight processes for jobs that judge answers, of which there are none here.
    environment = {**_ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise:
        # A session of its own: Ctrl-C reaches the server and its workers once, from here.
        server = subprocess.Popen(command, env=environment, stdout=noise, stderr=noise, start_new_session=True)
        try:
            here = f"http://127.0.0.1:{port}"
            if _answers(server, f"{here}/health"):
                say(f"MLflow on {here}, Ctrl-C ends it")
                for name, path in views(uri).items():
                    say(f"{name}: {here}{path}")
            status = server.wait()
            noise.seek(0)
            print(noise.read(), file=sys.stderr)
            return status
        except KeyboardInterrupt:
            return 0
        finally:
            _end(server)


def _answers(server: "subprocess.Popen[bytes]", url: str) -> bool:
    """Whether a server answers before it ends."""
    while server.poll() is None:
        try:
            with urlopen(url, timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End a server with its workers."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_SECONDS)
            return
