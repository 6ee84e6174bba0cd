"""Schedule of a batch of points: the longest first, each on the next free worker, until none is left."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from harness.sweep.launchers.protocol import Worker
from harness.sweep.launchers.settling import TAKEN_SECONDS, settle
from harness.sweep.points import Point, write_record
from harness.sweep.progress import Progress

INTERRUPTED = "the sweep was interrupted"
STOPPED = "stopped by sweep.fail_fast"


class Schedule:
    """Hands points to workers and takes their ends.

    Args:
        points: Those without an outcome.
        workers: As many as points can run at a time.
        progress: Display; it knows how long points take.
        compose: Composes a point; a wrong one has its outcome then.
        start: Begins composed points on a worker, several of them in one pack.
        mates: Gives the waiting points that train in one pack with a point, itself not among them; takes the point, the
            others that wait, and the number of workers that have nothing to do.
    """

    def __init__(
        self,
        points: Sequence[Point],
        workers: Sequence[Worker],
        progress: Progress,
        compose: Callable[[Point], None],
        start: Callable[[Worker, list[Point]], Future[Any]],
        mates: Callable[[Point, list[Point], int], list[Point]],
    ) -> None:
        self.waiting, self.free = list(points), list(workers)
        self.progress, self.compose, self.start, self.mates = progress, compose, start, mates
        self.running: dict[Future[Any], tuple[Worker, list[Point]]] = {}

    @property
    def under_way(self) -> list[Point]:
        """The points that workers are at."""
        return [point for _, points in self.running.values() for point in points]

    def run(self, fail_fast: bool) -> str | None:
        """Run the points, all of them or until the first failure.

        Returns:
            Why it ended early, null when it did not; `running` and `waiting` hold what was left then.
        """
        try:
            while self.running or self.waiting:
                self._hand_over()
                self.progress.refresh(self.under_way, self.waiting)
                if self._take_ends() and fail_fast:
                    return STOPPED
        except KeyboardInterrupt:
            return INTERRUPTED
        return None

    def _hand_over(self) -> None:
        while self.free and (point := self._next()):
            worker = self.free.pop()
            together = [point, *self._with(point)]
            self.running[self.start(worker, together)] = worker, together
            for one in together:
                self.waiting.remove(one)
        self._next()  # composed while the workers are busy

    def _with(self, point: Point) -> list[Point]:
        """The points that train in one pack with a point, composed."""
        now = time.monotonic()
        ready = [one for one in self.waiting if one is not point and one.not_before <= now]
        found = self.mates(point, ready, 1 + len(self.free))
        for mate in found:
            if mate.config is None:
                self.compose(mate)
        return [mate for mate in found if mate.config is not None]

    def _next(self) -> Point | None:
        """The longest of the waiting points, composed; those that no one can tell the length of come before."""
        durations, now = self.progress.durations, time.monotonic()
        while ready := [point for point in self.waiting if point.not_before <= now]:
            seconds = {one: durations.of(one) for one in {point.combination for point in ready}}
            point = max(ready, key=lambda point: math.inf if (s := seconds[point.combination]) is None else s)
            if point.config is None:
                self.compose(point)
            if point.config is not None:
                return point
            self.waiting.remove(point)
            write_record(point)
            self.progress.ended(point)
        return None

    def _take_ends(self) -> bool:
        """Settle what has ended, or let it wait to be tried again; true when there is a failure among it."""
        from harness.sweep.launchers.workers import outcomes_of

        failure = False
        for future in self._ended():
            worker, points = self.running[future]
            ends = outcomes_of(future, points[0].seconds_allowed, points[0].seconds, len(points))
            for point, ended in zip(points, ends, strict=True):
                if settle(point, ended):
                    self.progress.ended(point)
                    failure = failure or point.result.counts_as_failure
                else:
                    self.waiting.append(point)
            del self.running[future]
            self.free.append(worker)
        return failure

    def _ended(self) -> set[Future[Any]]:
        """The points that ended, as soon as there is one, or none after a second."""
        if not self.running:
            time.sleep(TAKEN_SECONDS / 4)  # another sweep has all that is left
        return wait(self.running, timeout=1, return_when=FIRST_COMPLETED).done
