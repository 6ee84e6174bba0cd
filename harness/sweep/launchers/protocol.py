"""Protocol between a launcher and its workers: all that the launchers of this package differ in."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from hydra.types import HydraContext
from omegaconf import DictConfig

from harness.sweep.locks import PointLock
from harness.sweep.points import Point

Task = Callable[[DictConfig], Any]


class Worker(Protocol):
    """Carries out one point at a time."""

    def start(
        self, task: Task, config: DictConfig, context: HydraContext, seconds: float | None, lock: PointLock | None
    ) -> Future[Any]:
        """Begin a point.

        Args:
            task: Runs a configuration.
            config: The point's, with its Hydra node.
            context: Hydra's.
            seconds: How long it may take; null: no limit.
            lock: Keeps other processes from the point; null where there is no store to share.

        Returns:
            The future `Ended` of the point; one that raises tells of a lost worker.
        """
        ...


class PackingWorker(Worker, Protocol):
    """Can also carry out points that train in one pack (`sweep.pack`)."""

    def start_pack(
        self,
        configs: Sequence[DictConfig],
        context: HydraContext,
        seconds: float | None,
        locks: Sequence[PointLock | None],
    ) -> Future[Any]:
        """Begin them.

        Returns:
            The future list of each one's `Ended`; one that raises tells of a lost worker.
        """
        ...


class Workers(Protocol):
    """Carry out the points of a sweep, batch after batch.

    Attributes:
        packs: Whether they are `PackingWorker`s.
    """

    packs: bool

    def begin(self, config: DictConfig) -> None:
        """Check the settings and find what the points are to run on, before each batch.

        Raises:
            ConfigError: A setting is wrong, or there is nothing to run on.
        """
        ...

    def device(self, asked: str) -> str:
        """What a `train.device` comes to where the points run, cpu or cuda."""
        ...

    def prepare(self, points: list[Point]) -> list[str | None]:
        """Make ready for a batch; a point that asks for what there is not has failed.

        Returns:
            The GPU of each worker, null for one that is given none; as many as points can run at a time.
        """
        ...

    def memory(self, places: Sequence[str | None]) -> int | None:
        """Bytes of its GPU that each worker has for itself before the first of them begins; null where not known.

        Of several GPUs it is those of the fullest.

        Args:
            places: As of `prepare`.
        """
        ...

    def hire(self, places: Sequence[str | None]) -> Sequence[Worker]:
        """One worker per place, on its way; those of an earlier batch that fit live on."""
        ...

    def stop(self) -> None:
        """Have what is under way come to its end, with a record of its own if there is time, and let the workers go."""
        ...
