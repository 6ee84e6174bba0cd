"""The points of a sweep: what each was told, what became of it, and the record of one that could not write its own."""

import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict

from harness.config import ConfigError
from harness.mistakes import key_of
from harness.progress import score_text, spell, table
from harness.record import RunRecord

# Statuses beside those of a record: a single run that was not started for a user's mistake, a point never reached.
REFUSED, NOT_RUN = "refused", "not run"
CONSOLE_FILE = "console.log"

# What became of every run and point of this process: Hydra's main returns nothing, the exit status needs it.
outcomes: list[dict[str, Any]] = []


@dataclass
class Point:
    """One point of a sweep: what it was told, where it writes, and in the end its outcome."""

    number: int
    overrides: list[str]
    folder: Path
    config: DictConfig | None = None
    identity: str = ""
    outcome: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    ended: float | None = None
    # Overrides that every point of the sweep has, and an earlier point that is the same as this one.
    shared: frozenset[str] = frozenset()
    twin: "Point | None" = None

    @property
    def name(self) -> str:
        """What sets it apart from the others of the sweep."""
        return " ".join(o for o in told(self.overrides) if o not in self.shared) or "the default"

    @property
    def stage(self) -> str:
        return str(self.config.sweep.stage) if self.config is not None else "run"

    @property
    def seconds(self) -> float:
        return (self.ended or time.time()) - self.began

    def stamp(self, _: object) -> None:
        """Note the end: sending another point's record may keep the launcher busy meanwhile."""
        self.ended = time.time()

    def settle(self, outcome: dict[str, Any]) -> None:
        known: dict[str, Any] = {
            "identity": self.identity,
            "run_dir": str(self.folder),
            "stage": self.stage,
            "scores": {},
            "error": None,
        }
        self.outcome = {**known, **outcome, "point": self.number}


def told(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what a point is, without those that say how the sweep goes about it."""
    own = ("sweep.", "evaluate.", "tracking")
    return [override for override in filter_overrides(overrides) if not key_of(override).startswith(own)]


def counts_as_failure(outcome: dict[str, Any]) -> bool:
    """A trial that diverged is a finding about its learning rate; any other point that did not finish is a failure."""
    if outcome["status"] == "diverged":
        return outcome.get("stage") != "tune"
    return outcome["status"] not in ("finished", "stopped")


def store_and_sweep(point: Point) -> tuple[str, str] | None:
    """Where a point's result would be found; null without a store.

    Only under the same sweep name: a report reads one sweep, and a point that was skipped because another sweep has
    it would be missing there.
    """
    assert point.config is not None
    uri = point.config.tracking.uri
    return (str(uri), str(point.config.sweep.name)) if uri and point.config.tracking.kind != "none" else None


def write_record(point: Point) -> None:
    """Write and send the record of a point that could not do so itself."""
    now = datetime.now(UTC)
    config: Any = {"overrides": point.overrides}
    name = None
    if point.config is not None:
        config = OmegaConf.to_container(without_hydra(point.config), resolve=True, enum_to_str=True)
        name = config["sweep"]["name"]
    record = RunRecord(
        run_id=uuid.uuid4().hex,
        status=point.outcome["status"],
        error=point.outcome["error"],
        identity=point.identity,
        sweep={"name": name, "stage": point.stage},
        config=without_secrets(config),
        started_at=datetime.fromtimestamp(point.began or now.timestamp(), UTC).isoformat(),
        ended_at=now.isoformat(),
    )
    point.outcome["run_id"] = record.run_id
    point.folder.mkdir(parents=True, exist_ok=True)
    record.write(point.folder)
    send(point)


def without_hydra(config: DictConfig) -> DictConfig:
    task_config = config.copy()
    with open_dict(task_config):
        del task_config["hydra"]
    return task_config


def without_secrets(config: dict[str, Any]) -> dict[str, Any]:
    from harness.tracking import redact

    if uri := (config.get("tracking") or {}).get("uri"):
        config["tracking"]["uri"] = redact(uri)
    return config


def send(point: Point) -> None:
    """Send a record; a store that fails meanwhile stops nothing, the record can be sent later."""
    from harness import tracking

    if point.config is None or store_and_sweep(point) is None:
        return
    try:
        tracking.send(point.folder, point.config.tracking.uri, point.config.tracking.experiment)
    except (ConfigError, ConnectionError, OSError) as error:
        print(f"warning: {point.folder} was not sent: {error}", file=sys.stderr)


def summary(points: list[Point]) -> str:
    """The table of what happened to every point, with the log of each failure."""
    rows, logs = [], []
    shared = " ".join(override for override in told(points[0].overrides) if override in points[0].shared)
    for point in points:
        outcome = point.outcome
        status = f"{outcome['status']} (skipped)" if outcome.get("skipped") else outcome["status"]
        reason = " ".join(str(outcome.get("error") or "").split())
        rows.append([str(point.number), point.name, status, score_text(outcome), spell(outcome.get("seconds")), reason])
        if counts_as_failure(outcome) and not outcome.get("skipped") and outcome["status"] != NOT_RUN:
            log = point.folder / CONSOLE_FILE
            logs.append(f"log of point {point.number}: {log if log.exists() else point.folder}")
    counts = Counter("skipped" if p.outcome.get("skipped") else str(p.outcome["status"]) for p in points)
    total = f"{len(points)} points: {', '.join(f'{number} {status}' for status, number in sorted(counts.items()))}"
    heading = [f"every point with {shared}"] if shared else []
    return "\n".join([*heading, table(["point", "overrides", "status", "score", "time", "reason"], rows), *logs, total])
