"""Common part of `hydra/launcher=ray` and `hydra/launcher=submitit_slurm`: points on the nodes of a cluster.

They are the local launcher with other workers: each follows one point after the other on the cluster, where
`node` runs it.
"""

import math
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from harness import tracking
from harness.config.errors import ConfigError
from harness.config.mistakes import MISTAKES, explain
from harness.sweep import outcome
from harness.sweep.launchers.local import LocalLauncher, hydra_config
from harness.sweep.locks import Claim
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


class ClusterWorker:
    """Follows one point at a time on the cluster, as `workers.Worker` does in a process of this machine."""

    def __init__(self, launcher: Any) -> None:
        self.launcher = launcher
        self.thread: threading.Thread | None = None
        self.stopping = False

    def start(
        self, task: Any, config: DictConfig, context: HydraContext, seconds: float | None, claim: Claim | None
    ) -> Future[Any]:
        """Hand a point to the cluster; the future has its outcome and never raises."""
        from harness.sweep.launchers.node import Assignment

        future: Future[Any] = Future()
        if self.launcher.gone:
            future.set_result(Ended(Outcome(NOT_RUN, self.launcher.gone)))
            return future
        try:
            asked = self.launcher.resources(config)
        except MISTAKES as error:
            future.set_result(failed(explain(error)))
            return future
        run_dir = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
        assignment = Assignment(
            task,
            config,
            context,
            seconds,
            claim,
            folder=Path.cwd(),
            run_dir=run_dir,
            sign=self.launcher.sign,
            threads=asked.threads,
            gpus=asked.gpus,
            environment=self.launcher.environment(),
        )
        # A daemon: a cluster that does not answer must not keep the sweep from ending.
        self.thread = threading.Thread(target=self._follow, args=(assignment, asked, future), daemon=True)
        self.thread.start()
        return future

    def _follow(self, assignment: Any, asked: Resources, future: Future[Any]) -> None:
        for attempt in range(1 + self.launcher.retries):
            try:
                ended = self._attempt(assignment, asked)
                break
            except NodeLost as error:
                times = f" (attempt {attempt + 1})" if attempt else ""
                ended = failed(f"what worked on it was lost{times}: {error}")
                if self.stopping:
                    break
            except ClusterLost as error:
                self.launcher.gone = str(error)
                ended = failed(str(error))
                break
            except Exception as error:
                ended = failed(f"the cluster could not run it: {sentence(error)}")
                break
        future.set_result(ended)

    def _attempt(self, assignment: Any, asked: Resources) -> Ended:
        """Have the point run once.

        Raises:
            NodeLost: Try again.
            ClusterLost: Do not try anything again.
        """
        raise NotImplementedError

    def _cancel(self, force: bool) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """Have the point come to its end, with a checkpoint and a record of its own if there is time."""
        self.stopping = True
        for force in (False, True):
            if self.thread is not None and self.thread.is_alive() and not self.launcher.gone:
                self._cancel(force)
                self.thread.join(STOP_SECONDS)


class ClusterLauncher(LocalLauncher):
    """Common part of the launchers of clusters.

    Args:
        workers: Points handed to the cluster at a time; null for as many as the launcher thinks right.
        threads: CPU threads of a point, each with a core of its own.
        gpus: GPUs of a point; null: none where train.device=cpu, one where it is cuda, and where it is auto one if the
            cluster has any.
        retries: How many times a point is handed over again whose node was lost.
    """

    worker_class: type[ClusterWorker]

    def __init__(self, workers: int | None, threads: int, gpus: float | None, retries: int) -> None:
        super().__init__(workers, threads)
        self.gpus, self.retries = gpus, retries
        self.gone: str | None = None
        self.connected = False

    def connect(self) -> None:
        """Find the cluster.

        Raises:
            ConfigError: It can't be used.
        """
        raise NotImplementedError

    def disconnect(self) -> None:
        """Leave the cluster."""

    def has_gpus(self) -> bool:
        raise NotImplementedError

    def capacity(self) -> int:
        """How many points to hand over at a time, unless told."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def resources(self, config: DictConfig) -> Resources:
        """Resources of a point, by its own configuration: the keys of the launcher may depend on other choices.

        Raises:
            ConfigError: A value is not allowed, or no node has as much.
        """
        with hydra_config(config):
            told: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        threads, gpus = told["threads"], told["gpus"]
        if gpus is None:
            gpus = self._gpus(str(config.train.device), config.sweep.slots_per_gpu)
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
            raise ConfigError(f"hydra.launcher.threads={threads}: a positive whole number is needed")
        if not isinstance(gpus, int | float) or isinstance(gpus, bool) or not 0 <= gpus < math.inf:
            raise ConfigError(f"hydra.launcher.gpus={gpus}: a number from 0 is needed")
        return Resources(threads, gpus, told.get("resources") or {})

    def _gpus(self, device: str, slots: int) -> float:
        wanted = device == "cuda" or (device != "cpu" and self.has_gpus())
        return 1 if wanted else 0

    def stop(self) -> None:
        """Have what is under way end, and leave the cluster."""
        with ThreadPoolExecutor(max(1, len(self.processes))) as threads:
            list(threads.map(ClusterWorker.stop, self.processes))
        self.processes.clear()
        if self.connected:
            self.connected = False
            self.sign.unlink(missing_ok=True)
            self.disconnect()

    def _check(self, points: int) -> None:
        super()._check(points)
        if not isinstance(self.retries, int) or isinstance(self.retries, bool) or self.retries < 0:
            raise ConfigError(f"hydra.launcher.retries={self.retries}: a whole number from 0 is needed")
        if not self.connected:
            self.connect()
            self.gone, self.connected = None, True
            folder = Path(self.config.hydra.sweep.dir).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            self.sign = folder / f".{uuid.uuid4().hex}"
            self.sign.touch()

    def _slots(self, points: list[Point]) -> list[str | None]:
        for point in points:
            device = ((point.settings or {}).get("train") or {}).get("device")
            if device == "cuda" and not point.outcome and not self.has_gpus():
                reason = "train.device=cuda: the cluster has no GPU; train.device=auto takes what there is"
                point.settle(outcome.failed(reason))
        return [None] * min(self.workers or self.capacity(), len(points))

    def _skip(self, points: list[Point]) -> None:
        super()._skip(points)
        self._open_stores(points)

    def _open_stores(self, points: list[Point]) -> None:
        """Make what the points' runs will lie in, which many nodes would else make at the same moment."""
        waiting = [(point.claim, point.settings) for point in points if not point.outcome]
        for uri, experiment, sweep in {
            (claim.uri, str(settings["tracking"]["experiment"]), claim.sweep)
            for claim, settings in waiting
            if claim and settings
        }:
            tracking.create(uri, experiment, sweep)

    def _staff(self, slots: list[str | None]) -> Any:
        self.processes += [self.worker_class(self) for _ in slots[len(self.processes) :]]  # type: ignore[misc]
        return self.processes[: len(slots)]

    def _end(self, point: Point, ended: Ended) -> None:
        """Settle a point that ran; what came back from a node with files of its own becomes its run directory here."""
        if ended.outcome.status == NOT_RUN:
            point.settle(ended.outcome)
            return
        point.folder.mkdir(parents=True, exist_ok=True)
        for name, content in ended.files.items():
            (point.folder / Path(name).name).write_bytes(content)
        super()._end(point, Ended(ended.outcome, lost=ended.lost or bool(ended.files)))


def failed(error: str, status: str = "failed") -> Ended:
    """The end of a point that the node recorded nothing of, as far as is known here."""
    return Ended(outcome.failed(error, status), lost=True)


def sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
