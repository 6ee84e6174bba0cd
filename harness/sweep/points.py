"""The points of a sweep: what each was told, what became of it, and the record of one that could not write its own."""

import copy
import json
import shlex
import sys
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.utils import filter_overrides
from omegaconf import DictConfig

from harness import tracking
from harness.config.build import assemble
from harness.config.errors import ConfigError, near_misses
from harness.config.mistakes import key_of
from harness.config.schema import Rerun
from harness.sweep.locks import PointLock
from harness.sweep.outcome import NOT_RUN, Outcome
from harness.sweep.progress import Combination, score_text, table
from harness.tracking.record import LIVE_FILE, RESULT_FILE, TRACKED_FILE, RunRecord, Status, of_same_run
from harness.tracking.uri import redact
from harness.training.watch import spell

CONSOLE_FILE = "console.log"

# What each sweep.rerun leaves alone. A point that failed, ran out of memory or was cut off is always tried again: its
# cause may be gone, and starting the same command again is how one goes on. A diverged one would diverge again.
LEFT_ALONE: dict[str, tuple[str, ...]] = {
    "none": ("finished", "stopped", "diverged"),
    "failed": ("finished", "stopped"),
    "all": (),
}


@dataclass
class Point:
    """One point of a sweep: what it was told, where it writes, and in the end its outcome."""

    number: int
    overrides: list[str]
    folder: Path
    # Its resolved sections as plain values, to be read only; null where they can't be told.
    settings: dict[str, Any] | None = None
    # The same as Hydra composed it, made when its turn comes.
    config: DictConfig | None = None
    identity: str = ""
    outcome: Outcome | None = None
    began: float = 0.0
    ended: float | None = None
    # When to try again one that another sweep works on, and how often its worker died before it began.
    not_before: float = 0.0
    losses: int = 0
    # Overrides that every point of the sweep has, and an earlier point that is the same as this one.
    shared: frozenset[str] = frozenset()
    twin: "Point | None" = None

    @property
    def name(self) -> str:
        """The overrides that distinguish it from the other points of the sweep."""
        return " ".join(o for o in defining_overrides(self.overrides) if o not in self.shared) or "the default"

    @property
    def stage(self) -> str:
        return str(self.settings["sweep"]["stage"]) if self.settings else "run"

    @property
    def combination(self) -> Combination:
        """The names of its method, task and model."""
        settings = self.settings or {}
        return tuple(str((settings.get(group) or {}).get("name")) for group in ("method", "task", "model"))

    @property
    def device(self) -> str | None:
        """What `train.device` says; null where it is not known."""
        return ((self.settings or {}).get("train") or {}).get("device")

    @property
    def lock(self) -> PointLock | None:
        """Lock that lets one process at a time work on it, and finds its result; null without a store.

        A result counts only under the same sweep name: a report reads one sweep, and a point that was skipped because
        another sweep has it would be missing there.
        """
        if not self.settings:
            return None
        store, sweep = self.settings["tracking"], self.settings["sweep"]
        if not store["uri"] or store["kind"] == "none":
            return None
        return PointLock(str(store["uri"]), str(sweep["name"]), self.identity, LEFT_ALONE[str(sweep["rerun"])])

    @property
    def seconds_allowed(self) -> float | None:
        minutes = self.settings["sweep"]["timeout_minutes"] if self.settings else None
        return None if minutes is None else 60 * minutes

    @property
    def seconds(self) -> float:
        return (self.ended or time.time()) - self.began

    def stamp(self, _: object) -> None:
        """Note the end: sending another point's record may keep the launcher busy meanwhile."""
        self.ended = time.time()

    def settle(self, outcome: Outcome) -> None:
        self.outcome = replace(
            outcome,
            identity=outcome.identity or self.identity,
            run_dir=outcome.run_dir or str(self.folder),
            stage=outcome.stage or self.stage,
            point=self.number,
        )

    @property
    def skipped(self) -> bool:
        """Whether its result was there already."""
        return self.outcome is not None and self.outcome.skipped

    @property
    def result(self) -> Outcome:
        """Its outcome, once it has one."""
        assert self.outcome is not None
        return self.outcome


def defining_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what a point is, without those that say how the sweep goes about it."""
    own = ("sweep.", "evaluate.", "tracking")
    return [override for override in filter_overrides(overrides) if not key_of(override).startswith(own)]


def check_rerun(settings: dict[str, Any]) -> None:
    """Refuse what `sweep.rerun` can't be.

    Raises:
        ConfigError: There is no such choice.
    """
    value = str(settings["sweep"]["rerun"])
    if value not in LEFT_ALONE:
        raise ConfigError(
            f"sweep.rerun={value}: there is no such choice; {near_misses(value, [r.name for r in Rerun])}"
        )


def check_folders(points: list[Point], subdir: str) -> None:
    """Let no point write where another does, or where another run has its record.

    Args:
        subdir: hydra.sweep.subdir as it was given.

    Raises:
        ConfigError: One would.
    """
    writers: dict[Path, Point] = {}
    for point in points:
        folder = point.folder.absolute()
        other = writers.setdefault(folder, point)
        if other is not point:
            raise ConfigError(
                f"hydra.sweep.subdir={subdir}: points {other.number} and {point.number} would both write {folder}; "
                "left out, each has its own folder"
            )
        sweep = ((point.settings or {}).get("sweep") or {}).get("name")
        if point.identity and not of_same_run(folder, point.identity, sweep):
            raise ConfigError(
                f"hydra.sweep.dir={folder.parent}: {folder.name}/{RESULT_FILE} there is of another run and is not "
                "overwritten; choose another folder"
            )


def write_record(point: Point) -> None:
    """Write and send the record of a point that could not do so itself."""
    now = datetime.now(UTC)
    config = _settings(point)
    record = RunRecord(
        run_id=_begun(point) or uuid.uuid4().hex,
        status=point.result.status,
        error=point.result.error,
        identity=point.identity,
        sweep={"name": (config.get("sweep") or {}).get("name"), "stage": point.stage},
        config=without_secrets(config),
        started_at=datetime.fromtimestamp(point.began or now.timestamp(), UTC).isoformat(),
        ended_at=now.isoformat(),
    )
    point.result.run_id = record.run_id
    if not record.may_replace(point.folder):
        # Another sweep was faster in the same folder: its record stays.
        point.folder = point.folder.with_name(f"{point.folder.name}-{record.run_id[:8]}")
        point.result.run_dir = str(point.folder)
    try:
        point.folder.mkdir(parents=True, exist_ok=True)
        record.write(point.folder)
    except OSError as error:
        told = point.result.error or ""
        if RESULT_FILE not in told:
            sentence = f"{point.folder / RESULT_FILE} can't be written: {error.strerror}"
            point.result.error = f"{told}; {sentence}" if told else sentence
        point.result.status = Status.failed.value
        return
    send(point)


def _settings(point: Point) -> dict[str, Any]:
    """What the point was told as its own record would have it, each value of its type; what is wrong as it was told."""
    if point.settings is None:
        return {"overrides": point.overrides}
    settings = copy.deepcopy(point.settings)
    with suppress(ConfigError):
        return assemble(settings).resolved
    return settings


def _begun(point: Point) -> str | None:
    """The id of the run that this start of a point began, so that its page in the store becomes this record's."""
    path = point.folder / LIVE_FILE
    try:
        if path.stat().st_mtime < point.began:
            return None
        return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def without_secrets(config: dict[str, Any]) -> dict[str, Any]:
    if uri := (config.get("tracking") or {}).get("uri"):
        config["tracking"]["uri"] = redact(uri)
    return config


def send(point: Point, folder: Path | None = None) -> bool:
    """Send a record; a store that fails meanwhile stops nothing, the record can be sent later.

    Args:
        folder: Where the record is, if not where the point writes.
    """
    if point.lock is None:
        return True
    assert point.settings is not None
    try:
        tracking.send(folder or point.folder, point.lock.uri, str(point.settings["tracking"]["experiment"]))
    except (ConfigError, ConnectionError, OSError) as error:
        print(f"warning: {folder or point.folder} was not sent: {error}", file=sys.stderr)
        if point.outcome is not None:
            point.outcome.tracked = False
        return False
    return True


def send_once(point: Point, folder: Path | None = None) -> bool:
    """Send a record that its run could not, unless another sweep has done the point by now, or is doing it.

    Returns:
        Whether it was sent.
    """
    if point.lock is None:
        return False
    with point.lock.hold() as held:
        return held and point.lock.result() is None and send(point, folder)


def unsent(folder: Path, sweeps: Collection[str], identities: Collection[str]) -> Iterator[tuple[Path, RunRecord]]:
    """The records of these points in earlier starts of these sweeps that were sent to no store.

    Args:
        folder: Holds one folder per start, with one folder per point.
    """
    for path in sorted(folder.glob(f"*/*/{RESULT_FILE}")):
        if (path.parent / TRACKED_FILE).exists():
            continue
        try:
            record = RunRecord.read(path.parent)
        except (ValueError, OSError):
            continue
        if record.identity in identities and record.sweep.get("name") in sweeps:
            yield path.parent, record


def next_command(points: list[Point], folder: Path) -> str:
    """The command that shows what a sweep found; nothing after trials, or where no point finished."""
    done = [p for p in points if p.settings and p.stage != "tune" and p.result.status == Status.finished]
    names = {str(point.settings["sweep"]["name"]) for point in done if point.settings}
    if len(names) != 1:
        return ""
    untracked = any(point.result.tracked is None and not point.result.skipped for point in done)
    place = [f"store={shlex.quote(str(folder))}"] * untracked
    return " ".join(["Next: harness-report", *place, f"sweep={shlex.quote(names.pop())}"])


def _time(outcome: Outcome) -> str:
    return f"packed, K={outcome.packed}" if outcome.packed else spell(outcome.seconds)


def summary(points: list[Point]) -> str:
    """The table of what happened to every point, with the log of each failure."""
    rows, logs = [], []
    shared = " ".join(override for override in defining_overrides(points[0].overrides) if override in points[0].shared)
    for point in points:
        outcome = point.result
        status = f"{outcome.status} (skipped)" if outcome.skipped else outcome.status
        reason = " ".join(str(outcome.error or "").split())
        rows.append([str(point.number), point.name, status, score_text(outcome), _time(outcome), reason])
        if outcome.counts_as_failure and not outcome.skipped and outcome.status != NOT_RUN:
            log = point.folder / CONSOLE_FILE
            logs.append(f"log of point {point.number}: {log if log.exists() else point.folder}")
    kept = [point.folder for point in points if point.result.tracked is False]
    if kept:
        logs.append(
            f"{len(kept)} runs could not be sent to the store and are kept: harness-report --sync {kept[0].parent}"
            " sends them, and so does the same sweep started again"
        )
    counts = Counter("skipped" if p.skipped else str(p.result.status) for p in points)
    total = f"{len(points)} points: {', '.join(f'{number} {status}' for status, number in sorted(counts.items()))}"
    heading = [f"every point with {shared}"] if shared else []
    return "\n".join([*heading, table(["point", "overrides", "status", "score", "time", "reason"], rows), *logs, total])
