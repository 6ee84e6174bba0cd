"""Reading of what a store holds: runs, curves, files."""

import tempfile
from collections.abc import Collection, Iterable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from harness.tracking import server_cache
from harness.tracking.client import SENT_ON_TAG, _client, plain_run
from harness.tracking.entries import as_read
from harness.tracking.sqlite import read_history, read_sqlite
from harness.tracking.uri import RUN_ID_TAG, Store, _quoted, parse

CURVES = "development."


def finished(
    uri: str, identities: Collection[str] | None = None, sweep: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return identity -> the newest run of that point in the store, however it ended; one query for all of them.

    Each value has `run_id`, `mlflow_run_id`, `artifact_uri`, `status`, `error`, `sweep`, `stage`, `task`, `ended_at`
    (milliseconds UTC), `primary_metric` and `scores` {`validation` {...}, `development` {...}}. A store that does not
    exist yet is empty.

    Raises:
        ConfigError: The URI names no store.
        ConnectionError: The store cannot be read.
    """
    points: dict[str, dict[str, Any]] = {}
    chosen_tags = ("status", "error", "sweep", "stage", "primary_metric", "task")
    names = (*chosen_tags, "identity", "validation.*", "development.*")
    for run in _fetch(parse(uri), sweep, identities, tables=("tags", "latest_metrics"), names=names):
        tags = run["tags"]
        scores: dict[str, dict[str, float]] = {"validation": {}, "development": {}}
        for key, value in run["metrics"].items():
            split, _, metric = key.partition(".")
            if split in scores:
                scores[split][metric] = value
        chosen = {key: tags.get(key) for key in chosen_tags}
        chosen |= {key: run[key] for key in ("run_id", "mlflow_run_id", "artifact_uri", "ended_at")} | {
            "scores": scores
        }
        points[tags.get("identity", "")] = chosen  # oldest first, so the newest stays
    return points


def durations(uri: str) -> dict[tuple[str, ...], list[float]]:
    """Return the names of method, task and model -> the seconds that each finished run of them took.

    A server is not asked: paging through all of its runs could take longer than the estimate is worth.

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

    A server is asked once per run and metric, and never again.

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
    copy = server_cache.load(store)
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


def files(uri: str, mlflow_run_id: str) -> set[str]:
    """Return the names of the files and folders that a server has of a run.

    Raises:
        ConnectionError: The server failed, or has no such run.
    """
    with _client(parse(uri)) as client:
        return {entry.path for entry in client.list_artifacts(mlflow_run_id)}


def download(uri: str, mlflow_run_id: str, name: str) -> Path:
    """Return a file or folder of a server's run, kept on this machine once it was asked for.

    Raises:
        ConnectionError: The server failed, or has no such file.
    """
    store = parse(uri)
    path = server_cache.load(store).file(mlflow_run_id, name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as partial, _client(store) as client:
            got = Path(client.download_artifacts(mlflow_run_id, name, partial))
            with suppress(OSError) if path.exists() else nullcontext():  # another process may have been faster
                got.replace(path)
    return path


def artifact(artifact_uri: str | None, mlflow_run_id: str | None, server: str | None, name: str) -> Path | None:
    """A file that a run sent to its store; one that only a server has is fetched. Null where it can't be had.

    Args:
        artifact_uri: As the store says.
        mlflow_run_id: The run's id there.
        server: URI of a store that is a server; null for any other.
        name: Name of the file.
    """
    parts = urlsplit(artifact_uri or "")
    if artifact_uri and parts.scheme in ("", "file"):
        file = Path(unquote(parts.path) if parts.scheme else artifact_uri) / name
        if file.is_file():
            return file
    if server is None or not mlflow_run_id:
        return None
    try:
        return download(server, mlflow_run_id, name)
    except (ConnectionError, OSError, ValueError):
        return None


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
    return sorted(map(as_read, runs), key=lambda run: (run["ended_at"] or 0, run["run_id"]))


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

    copy, today = server_cache.load(store), datetime.now(UTC).date()
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
        runs += [plain_run(run, RUN_ID_TAG) for run in page]
        token = page.token or None
    return runs
