"""Workers of `hydra/launcher=ray` and `hydra/launcher=submitit_slurm`: points on the nodes of a cluster.

Each follows one point after the other on the cluster, where `node` runs it.
"""

import math
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from harness import tracking
from harness.config.compose import hydra_config
from harness.config.errors import ConfigError
from harness.config.mistakes import MISTAKES, explain
from harness.sweep import outcome
from harness.sweep.launchers.local import check_numbers
from harness.sweep.launchers.protocol import Task
from harness.sweep.locks import PointLock
from harness.sweep.outcome import NOT_RUN, Ended, Outcome
from harness.sweep.points import Point

# How long an interrupted point has to come to its end: a worker has 15 s of it.
STOP_SECONDS = 45


class NodeLost(Exception):
    """The node that worked on a point is gone, and the point may be done elsewhere."""


class ClusterLost(Exception):
    """Nothing can be done any more."""


@dataclass(frozen=True)
class Resources:
    """Resources that a point asks of a node.

    Attributes:
        threads: CPU cores, one a thread.
        gpus: GPUs; a part of one on Ray only.
        others: Ray's custom resources.
    """

    threads: int
    gpus: float
    others: Mapping[str, float]


class ClusterWorker(ABC):
    """Follows one point at a time on the cluster, as `workers.WorkerProcess` does in a process of this machine."""

    def __init__(self, workers: "ClusterWorkers") -> None:
        self.workers = workers
        self.thread: threading.Thread | None = None
        self.stopping = False

    def start(
        self, task: Task, config: DictConfig, context: HydraContext, seconds: float | None, lock: PointLock | None
    ) -> Future[Any]:
        """Hand a point to the cluster; the future has its end and never raises."""
        from harness.sweep.launchers.node import Assignment

        future: Future[Any] = Future()
        if self.workers.gone:
            future.set_result(Ended(Outcome(NOT_RUN, self.workers.gone)))
            return future
        try:
            asked = self.workers.resources(config)
        except MISTAKES as error:
            future.set_result(failed(explain(error)))
            return future
        run_dir = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
        assignment = Assignment(
            task,
            config,
            context,
            seconds,
            lock,
            folder=Path.cwd(),
            run_dir=run_dir,
            sign=self.workers.sign,
            threads=asked.threads,
            gpus=asked.gpus,
            environment=self.workers.environment(),
        )
        # A daemon: a cluster that does not answer must not keep the sweep from ending.
        self.thread = threading.Thread(target=self.follow, args=(assignment, asked, future), daemon=True)
        self.thread.start()
        return future

    def follow(self, assignment: Any, asked: Resources, future: Future[Any]) -> None:
        """Have the point run, again where its node was lost, and give the future its end."""
        for attempt in range(1 + self.workers.retries):
            try:
                ended = self.attempt(assignment, asked)
                break
            except NodeLost as error:
                times = f" (attempt {attempt + 1})" if attempt else ""
                ended = failed(f"what worked on it was lost{times}: {error}")
                if self.stopping:
                    break
            except ClusterLost as error:
                self.workers.gone = str(error)
                ended = failed(str(error))
                break
            except Exception as error:
                ended = failed(f"the cluster could not run it: {sentence(error)}")
                break
        future.set_result(ended)

    @abstractmethod
    def attempt(self, assignment: Any, asked: Resources) -> Ended:
        """Have the point run once.

        Raises:
            NodeLost: Try again.
            ClusterLost: Do not try anything again.
        """

    @abstractmethod
    def cancel(self, force: bool) -> None:
        """Have the cluster end the point, at once where forced."""

    def stop(self) -> None:
        """Have the point come to its end, with a checkpoint and a record of its own if there is time."""
        self.stopping = True
        for force in (False, True):
            if self.thread is not None and self.thread.is_alive() and not self.workers.gone:
                self.cancel(force)
                self.thread.join(STOP_SECONDS)


class ClusterWorkers(ABC):
    """Workers that follow points on a cluster; what a kind of cluster does in its own way is abstract.

    Args:
        workers: Points handed to the cluster at a time; null for as many as the cluster has room for.
        threads: CPU threads of a point, each with a core of its own.
        gpus: GPUs of a point; null: none where train.device=cpu, one where it is cuda, and where it is auto one if the
            cluster has any.
        retries: How many times a point is handed over again whose node was lost.
    """

    # The workers of this kind of cluster.
    worker: type[ClusterWorker]
    packs = False

    def __init__(self, workers: int | None, threads: int, gpus: float | None, retries: int) -> None:
        self.wanted, self.threads, self.gpus, self.retries = workers, threads, gpus, retries
        self.hired: list[ClusterWorker] = []
        self.gone: str | None = None
        self.connected = False

    @abstractmethod
    def connect(self) -> None:
        """Find the cluster.

        Raises:
            ConfigError: It can't be used.
        """

    @abstractmethod
    def disconnect(self) -> None:
        """Leave the cluster."""

    @abstractmethod
    def has_gpus(self) -> bool:
        """Whether any node has a GPU."""

    @abstractmethod
    def capacity(self) -> int:
        """Number of points to hand over at a time where the user names none."""

    def environment(self) -> dict[str, str]:
        """Variables of this machine that go with a point to its node."""
        return {}

    def resources(self, config: DictConfig) -> Resources:
        """Resources of a point, by its own configuration: the keys of the launcher may depend on other choices.

        Raises:
            ConfigError: A value is not allowed, or no node has as much.
        """
        with hydra_config(config):
            launcher: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        threads, gpus = launcher["threads"], launcher["gpus"]
        if gpus is None:
            gpus = self.gpus_for(str(config.train.device), config.sweep.slots_per_gpu)
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
            raise ConfigError(f"hydra.launcher.threads={threads}: a positive whole number is needed")
        if not isinstance(gpus, int | float) or isinstance(gpus, bool) or not 0 <= gpus < math.inf:
            raise ConfigError(f"hydra.launcher.gpus={gpus}: a number from 0 is needed")
        return Resources(threads, gpus, launcher.get("resources") or {})

    def gpus_for(self, device: str, slots: int) -> float:
        """GPUs of a point whose configuration names no number: none or one."""
        wanted = device == "cuda" or (device != "cpu" and self.has_gpus())
        return 1 if wanted else 0

    def begin(self, config: DictConfig) -> None:
        check_numbers(self.wanted, self.threads)
        if not isinstance(self.retries, int) or isinstance(self.retries, bool) or self.retries < 0:
            raise ConfigError(f"hydra.launcher.retries={self.retries}: a whole number from 0 is needed")
        self.folder = Path(config.hydra.sweep.dir).absolute()
        if not self.connected:
            self.connect()
            self.gone, self.connected = None, True
            self.folder.mkdir(parents=True, exist_ok=True)
            self.sign = self.folder / f".{uuid.uuid4().hex}"
            self.sign.touch()

    def device(self, asked: str) -> str:
        if asked != "auto":
            return asked
        return "cuda" if (self.has_gpus() if self.gpus is None else self.gpus) else "cpu"

    def prepare(self, points: list[Point]) -> list[str | None]:
        waiting = [point for point in points if not point.outcome]
        _make_stores(waiting)
        for point in waiting:
            if point.device == "cuda" and not self.has_gpus():
                reason = "train.device=cuda: the cluster has no GPU; train.device=auto takes what there is"
                point.settle(outcome.failed(reason))
        return [None] * min(self.wanted or self.capacity(), len(points))

    def memory(self, places: Sequence[str | None]) -> int | None:
        return None  # the GPUs are those of nodes

    def hire(self, places: Sequence[str | None]) -> list[ClusterWorker]:
        self.hired += [self.worker(self) for _ in places[len(self.hired) :]]
        return self.hired[: len(places)]

    def stop(self) -> None:
        """Have what is under way end, and leave the cluster."""
        with ThreadPoolExecutor(max(1, len(self.hired))) as threads:
            list(threads.map(lambda worker: worker.stop(), self.hired))
        self.hired.clear()
        if self.connected:
            self.connected = False
            self.sign.unlink(missing_ok=True)
            self.disconnect()


def _make_stores(points: list[Point]) -> None:
    """Make what the points' runs will lie in, which many nodes would else make at the same moment."""
    known = [(point.lock, point.settings) for point in points]
    for uri, experiment, sweep in {
        (lock.uri, str(settings["tracking"]["experiment"]), lock.sweep) for lock, settings in known if lock and settings
    }:
        tracking.create(uri, experiment, sweep)


def failed(error: str, status: str = "failed") -> Ended:
    """The end of a point that the node recorded nothing of, as far as is known here."""
    return Ended(outcome.failed(error, status), lost=True)


def sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
