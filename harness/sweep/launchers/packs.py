"""Packs of a sweep: which waiting points train together with one that is about to begin, and how many."""

import math
import sys

from harness.sweep.launchers.composing import Composer
from harness.sweep.launchers.protocol import Workers
from harness.sweep.points import Point


class Packs:
    """Chooses the points of each pack.

    Args:
        size: Points of a pack at most; null for as many as fit in a GPU by their plans.
        composer: Tells points' keys and plans.
        workers: Carry the points out.
        memory: Bytes of a GPU that each worker has for itself; null where they are not known.
        said: What the console was told of already, by topic: nothing is said twice.
    """

    def __init__(
        self, size: int | None, composer: Composer, workers: Workers, memory: int | None, said: set[str]
    ) -> None:
        self.size, self.composer, self.workers, self.memory, self.said = size, composer, workers, memory, said
        self.keys: dict[int, str | None] = {}

    def mates(self, point: Point, waiting: list[Point], idle: int) -> list[Point]:
        """Waiting points that train in one pack with a point.

        Args:
            idle: Workers that have nothing to do, the point's own among them.
        """
        if self.size == 1 or (key := self._key(point)) is None:
            return []
        found = [one for one in waiting if self._key(one) == key]
        if self.size is not None:
            return found[: self.size - 1]
        # Points beside each other on idle GPUs are done before those of one pack.
        share = math.ceil((1 + len(waiting)) / idle)
        together = [point, *found][:share]
        return together[1 : self._fitting(together)]

    def _fitting(self, points: list[Point]) -> int:
        """How many of the points, from the first on, train in one pack where no number was given."""
        from harness.run.pack_size import MOST, how_many

        if len(points) == 1:
            return 1
        if self.workers.device(str(points[0].device)) == "cpu":
            return self._alone("a CPU gains little from a pack; sweep.pack=4 makes packs of 4 there too")
        if self.memory is None:
            return self._alone("the free memory of its GPUs is not known; sweep.pack=4 makes packs of 4")
        try:
            fitting = how_many(self.memory, [self.composer.footprint(one) for one in points[:MOST]])
        except Exception as error:  # what is wrong with a point it will say itself
            reason = str(error).split("\n")[0] or type(error).__name__
            return self._alone(f"their step can't be planned: {reason}")
        room = f"{self.memory / 1e9:.1f} GB of GPU memory that are free"
        if fitting == 1:
            return self._alone(f"by their plan two do not fit in the {room}")
        self._say("packs", f"the first pack has {fitting} points, by their plan in the {room}")
        return fitting

    def _key(self, point: Point) -> str | None:
        if point.number not in self.keys:
            self.keys[point.number] = self.composer.pack_key(point)
        return self.keys[point.number]

    def _alone(self, reason: str) -> int:
        self._say(reason, f"points train one at a time: {reason}")
        return 1

    def _say(self, topic: str, text: str) -> None:
        if topic not in self.said:
            self.said.add(topic)
            print(f"sweep.pack=auto: {text}", file=sys.stderr)
