"""Outcome of a point of a sweep, or of a single run: how it ended, with what scores, and where its record lies."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any, Self

# Statuses beside those of a record: a single run that was not started for a user's mistake, a point never reached,
# one that another sweep is working on, and one whose worker died before it began.
REFUSED, NOT_RUN, TAKEN, LOST = "refused", "not run", "taken", "lost"


@dataclass
class Outcome:
    """Outcome of a point.

    Attributes:
        status: A record's, or one of those above.
        error: Why it did not finish.
        scores: By split, with the name of the primary metric.
        seconds: How long it took; null where that is not known.
        tracked: Whether the store has it; null where no store is wanted.
        checkpoint: Of a run that was stopped on its way.
        stopped_alone: Whether it was asked to stop where it is watched, so that its sweep goes on.
        skipped: Whether it was there already.
        point: Its number in the sweep, or what has none since nothing could be chosen for it; null for a single run.
        packed: How many points it trained in one pack with, itself among them: its time is theirs.
        further: What else a task said of it.
    """

    status: str
    error: str | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    identity: str | None = None
    run_id: str | None = None
    run_dir: str | None = None
    stage: str | None = None
    seconds: float | None = None
    tracked: bool | None = None
    checkpoint: str | None = None
    stopped_alone: bool = False
    skipped: bool = False
    point: int | str | None = None
    packed: int | None = None
    further: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """Outcome from what a task, a worker or the store said, which may be more than is asked."""
        names = {one.name for one in fields(cls)} - {"further"}
        further = {key: value for key, value in said.items() if key not in names}
        known = {key: value for key, value in said.items() if key in names}
        return cls(**{**known, "scores": known.get("scores") or {}}, further=further)

    def plain(self) -> dict[str, Any]:
        """As Hydra's sweepers get it: plain values, what is not known left out but for the reason."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "further"}
        kept = {key: value for key, value in own.items() if value is not None or key == "error"}
        return {**self.further, **kept}

    @property
    def counts_as_failure(self) -> bool:
        """A trial that diverged is a finding about its learning rate; other points that did not finish are failures."""
        if self.status == "diverged":
            return self.stage != "tune"
        return self.status not in ("finished", "stopped")


@dataclass
class Ended:
    """End of a point as its worker tells it.

    Attributes:
        lost: Whether the worker could record nothing.
        files: Of the run directory, name -> content, where that is not seen from here.
    """

    outcome: Outcome
    lost: bool = False
    files: dict[str, bytes] = field(default_factory=dict)


def failed(error: str, status: str = "failed") -> Outcome:
    """The outcome of a point that could not be carried out."""
    return Outcome(status, error)


_gathered: ContextVar[list[Outcome] | None] = ContextVar("outcomes", default=None)


@contextmanager
def gathering() -> Iterator[list[Outcome]]:
    """Gather every outcome of the runs and sweeps within: Hydra's main returns nothing, and exit statuses need them."""
    outcomes: list[Outcome] = []
    before = _gathered.set(outcomes)
    try:
        yield outcomes
    finally:
        _gathered.reset(before)


def gather(outcomes: Iterable[Outcome]) -> None:
    """Add outcomes to those that are gathered; where nobody gathers, they are not needed."""
    if (gathered := _gathered.get()) is not None:
        gathered.extend(outcomes)
