"""`hydra/launcher=local`: the points of a sweep on worker processes of this machine."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from harness.config.errors import ConfigError
from harness.models import device_type
from harness.sweep.launchers.launcher import SweepLauncher
from harness.sweep.launchers.slots import free_memory, slots, visible_gpus
from harness.sweep.outcome import failed
from harness.sweep.points import Point

if TYPE_CHECKING:
    from harness.sweep.launchers.workers import WorkerProcess


class LocalWorkers:
    """Processes of this machine; see `LocalLauncher`."""

    packs = True

    def __init__(self, workers: int | None, threads: int, imports: Sequence[str]) -> None:
        self.wanted, self.threads, self.imports = workers, threads, imports
        self.processes: list[WorkerProcess] = []
        self.slots_per_gpu = 1
        self.free: dict[str, int | None] = {}

    def begin(self, config: DictConfig) -> None:
        check_numbers(self.wanted, self.threads)
        listed = isinstance(self.imports, Sequence) and not isinstance(self.imports, str)
        if not listed or not all(isinstance(name, str) for name in self.imports):
            raise ConfigError(f"hydra.launcher.imports={self.imports}: a list of module names is needed")
        self.slots_per_gpu = config.sweep.slots_per_gpu

    @cached_property
    def automatic(self) -> str:
        """What train.device=auto comes to; torch, which may be built for CPUs alone, is asked if there is a GPU."""
        return device_type("auto") if visible_gpus() else "cpu"

    def device(self, asked: str) -> str:
        return asked if asked != "auto" else self.automatic

    def prepare(self, points: list[Point]) -> list[str | None]:
        waiting = [point for point in points if not point.outcome]
        devices = [point.device for point in waiting]
        gpus = visible_gpus() if {"auto", "cuda"}.intersection(filter(None, devices)) else []
        for point, device in zip(waiting, devices, strict=True):
            if device == "cuda" and not gpus:
                reason = "train.device=cuda: there is no GPU here; train.device=auto takes what there is"
                point.settle(failed(reason))
        return slots(len(points), gpus, self.slots_per_gpu, self.wanted, self.threads)

    def memory(self, places: Sequence[str | None]) -> int | None:
        sharing = Counter(gpu for gpu in places if gpu is not None)
        for gpu in sharing:
            if gpu not in self.free:  # asked once: workers live on between batches, and hold memory
                self.free[gpu] = free_memory(gpu)
        shares = [free // workers for gpu, workers in sharing.items() if (free := self.free[gpu]) is not None]
        return min(shares) if shares and len(shares) == len(sharing) else None

    def hire(self, places: Sequence[str | None]) -> "list[WorkerProcess]":
        from harness.sweep.launchers.workers import WorkerProcess

        for number, gpu in enumerate(places):
            if number == len(self.processes):
                self.processes.append(WorkerProcess(self.threads, gpu, self.imports))
            elif self.processes[number].gpu != gpu:
                self.processes[number].stop()
                self.processes[number] = WorkerProcess(self.threads, gpu, self.imports)
            self.processes[number].begin()
        return self.processes[: len(places)]

    def stop(self) -> None:
        """Stop the processes, all at once: one that is stuck takes three seconds to be killed."""
        with ThreadPoolExecutor(max(1, len(self.processes))) as threads:
            list(threads.map(lambda process: process.stop(), self.processes))
        self.processes.clear()


class LocalLauncher(SweepLauncher):
    """Runs points in worker processes.

    Args:
        workers: Processes; null for the number of cores divided by `threads`, or for the slots of the GPUs.
        threads: CPU threads of each.
        imports: Modules that a worker imports when it starts.
    """

    def __init__(self, workers: int | None = None, threads: int = 1, imports: Sequence[str] = ()) -> None:
        super().__init__(LocalWorkers(workers, threads, imports))


def check_numbers(workers: int | None, threads: int) -> None:
    """Refuse numbers that make no sense.

    Raises:
        ConfigError: One is not a positive whole number.
    """
    for key, value in (("workers", workers), ("threads", threads)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"hydra.launcher.{key}={value}: a positive whole number is needed")
