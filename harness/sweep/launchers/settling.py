"""Settlement of points: the outcome of each from the store, its worker or its record, and the record where none is."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import tracking
from harness.sweep.locks import outcome_of_stored
from harness.sweep.outcome import LOST, NOT_RUN, TAKEN, Ended, Outcome
from harness.sweep.points import Point, send_once, unsent, write_record
from harness.tracking.record import RunRecord, written_since

# How often a point is looked at again that another sweep works on.
TAKEN_SECONDS = 1.0
# How many workers may die before a point begins: as many as can't be chance.
LOSSES_ALLOWED = 3


def settle_known(points: list[Point], folders: Sequence[Path]) -> None:
    """Give points that the store holds their outcome from there, and a point that comes twice only one run.

    Args:
        points: All of a batch.
        folders: Each holds one folder per start of the sweep, whose records may wait to be sent.
    """
    wanted: dict[tuple[str, str], list[Point]] = {}
    firsts: dict[Any, Point] = {}
    for point in points:
        if not point.outcome:
            lock = point.lock
            place = (lock.uri, lock.sweep) if lock else None
            first = firsts.setdefault((place, point.identity), point)
            point.twin = first if first is not point else None
            if place:
                wanted.setdefault(place, []).append(point)
    for (uri, sweep), asking in wanted.items():
        tracking.check(uri)
        for experiment in {str(point.settings["tracking"]["experiment"]) for point in asking if point.settings}:
            tracking.end_killed(uri, experiment)
        stored = tracking.finished(uri, sweep=sweep, identities=[point.identity for point in asking])
        for point in asking:
            known = stored.get(point.identity)
            if known and point.lock and known["status"] in point.lock.done:
                point.settle(outcome_of_stored(known))
    for folder in dict.fromkeys(folders):
        _send_unsent(points, folder)
    skipped = sum(point.skipped for point in points)
    if skipped:
        print(
            f"{skipped} of {len(points)} points have their result in the store and are skipped"
            " (sweep.rerun=all runs them again)",
            file=sys.stderr,
        )


def _send_unsent(points: list[Point], folder: Path) -> None:
    """Send what earlier starts of this sweep recorded and could not send; a point that is done so is skipped."""
    missing = {p.identity: p for p in points if not p.outcome and not p.twin and p.lock and p.lock.done}
    sweeps = {point.lock.sweep for point in missing.values() if point.lock}
    if not missing:
        return
    for place, record in unsent(folder, sweeps, missing):
        point = missing[record.identity]
        if not point.outcome and point.lock and send_once(point, place) and record.status in point.lock.done:
            point.settle(replace(_recorded(record), run_dir=str(place), skipped=True))


def settle(point: Point, ended: Ended) -> bool:
    """Settle a point whose worker is done with it; false when it must be tried again.

    That is one that another sweep works on, and one whose worker died before it began.
    """
    outcome = ended.outcome
    if outcome.status == LOST:
        point.losses += 1
        if point.losses < LOSSES_ALLOWED:
            return False
        outcome.status, outcome.error = "failed", f"{outcome.error}, {point.losses} times in a row"
    if outcome.status == TAKEN:
        point.not_before = time.monotonic() + TAKEN_SECONDS
        return False
    if outcome.skipped or outcome.status == NOT_RUN:
        point.settle(outcome)
    else:
        settle_run(point, ended)
    return True


def settle_run(point: Point, ended: Ended) -> None:
    """Settle a point that ran; where its worker could not record it, or died after doing so, see to the record.

    What came back from a node with files of its own becomes the run directory here, and is still to be sent.
    """
    if ended.files:
        point.folder.mkdir(parents=True, exist_ok=True)
    for name, content in ended.files.items():
        (point.folder / Path(name).name).write_bytes(content)
    written = written_since(point.folder, point.began)
    if (ended.lost or ended.files) and written:
        point.settle(replace(_recorded(RunRecord.read(point.folder)), seconds=point.seconds))
        send_once(point)
        return
    seconds = ended.outcome.seconds
    if seconds is None and not ended.outcome.packed:
        seconds = point.seconds
    point.settle(replace(ended.outcome, seconds=seconds))
    if not written:
        write_record(point)


def settle_rest(points: Iterable[Point], running: Iterable[Point], reason: str | None) -> None:
    """Settle what has no outcome once nothing runs any more: for a reason, or as the point that is the same as it."""
    if reason:
        for point in running:
            settle_run(point, Ended(Outcome("interrupted", reason), lost=True))
    for point in points:
        if not point.outcome and not point.twin:
            point.settle(Outcome(NOT_RUN, reason))
    for point in points:
        if point.twin and not point.outcome:
            point.settle(replace(point.twin.result, skipped=True))


def _recorded(record: RunRecord) -> Outcome:
    return Outcome(str(record.status), record.error, record.scores, run_id=record.run_id)
