"""`hydra/launcher=local`: the points of a sweep on worker processes of this machine; no point can harm another."""

import importlib
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.plugin import Plugin
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from harness.config import ConfigError, Rerun, near_misses
from harness.mistakes import MISTAKES, explain
from harness.points import (
    NOT_RUN,
    Point,
    counts_as_failure,
    outcomes,
    send,
    store_and_sweep,
    summary,
    told,
    without_hydra,
    write_record,
)
from harness.progress import Progress
from harness.record import RESULT_FILE, RunRecord

if TYPE_CHECKING:
    from harness.workers import Worker

PLUGIN_MODULE = "hydra_plugins.harness"
SWEEP_WITHOUT_FILE = "multirun"
EMPTY = "the sweep is empty: one of its lists of values has nothing in it"
# What each sweep.rerun leaves alone. A point that failed, ran out of memory or was cut off is always tried again: its
# cause may be gone, and starting the same command again is how one goes on. A diverged one would diverge again.
LEFT_ALONE: dict[str, tuple[str, ...]] = {
    "none": ("finished", "stopped", "diverged"),
    "failed": ("finished", "stopped"),
    "all": (),
}


class LocalLauncher(Launcher):
    """Runs points in worker processes.

    Args:
        workers: Processes; null for the number of cores divided by `threads`.
        threads: CPU threads of each.
    """

    def __init__(self, workers: int | None = None, threads: int = 1) -> None:
        self.workers, self.threads = workers, threads
        self.processes: list[Worker] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run every point that has no result yet; each JobReturn's `return_value` is an outcome, also of a failure.

        Raises:
            ConfigError: There is nothing to run, no point at all can be composed, or the store cannot be used.
            KeyboardInterrupt: The sweep was interrupted; what was done is recorded and shown.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        count = self._worker_count(len(job_overrides))
        shared = frozenset.intersection(*(frozenset(told(overrides)) for overrides in job_overrides))
        shared = shared if len(job_overrides) > 1 else frozenset()
        points = [self._compose(initial_job_idx + i, list(o), shared) for i, o in enumerate(job_overrides)]
        if all(point.outcome for point in points):
            raise ConfigError("\n".join(dict.fromkeys(str(point.outcome["error"]) for point in points)))
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        self._skip(points)
        interrupted = self._work(points, count)
        outcomes.extend(point.outcome for point in points)
        print(summary(points), flush=True)
        if interrupted:
            raise KeyboardInterrupt
        return [self._returned(point) for point in points]

    def _worker_count(self, points: int) -> int:
        for key, value in (("workers", self.workers), ("threads", self.threads)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"hydra.launcher.{key}={value}: a positive whole number is needed")
        if not points:
            raise ConfigError(EMPTY)
        cores = available_cores()
        if self.workers and self.workers * self.threads > cores:
            print(
                f"warning: hydra.launcher.workers={self.workers} with threads={self.threads} is more than the"
                f" {cores} cores of this machine: points slow each other down",
                file=sys.stderr,
            )
        return min(self.workers or max(1, cores // self.threads), points)

    def _compose(self, number: int, overrides: list[str], shared: frozenset[str]) -> Point:
        """Compose and check a point; one that is wrong has its sentence as outcome."""
        master = self.config
        if master.sweep.name is None:
            name = master.hydra.job.config_name
            overrides = [f"sweep.name='{SWEEP_WITHOUT_FILE if name == 'config' else name}'", *overrides]
        point = Point(number, overrides, Path(master.hydra.sweep.dir) / str(number), shared=shared)
        loader = self.context.config_loader
        try:
            config = loader.load_sweep_config(master, overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
            with hydra_config(config):
                point.folder = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
                rerun_of(config)
                point.identity = identify(without_hydra(config))
            point.config = config
        except MISTAKES as error:
            sentence = explain(
                error, overrides, lambda o: loader.load_configuration(master.hydra.job.config_name, o, RunMode.RUN)
            )
            point.settle({"status": "failed", "error": sentence})
        return point

    def _skip(self, points: list[Point]) -> None:
        """Give points that the store holds their outcome from there, and a point that comes twice only one run."""
        from harness import tracking

        stored: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        places = {store_and_sweep(point) for point in points if point.config is not None}
        for uri, sweep in places - {None}:  # type: ignore[misc]
            tracking.check(uri)
            wanted = [p.identity for p in points if p.config is not None and store_and_sweep(p) == (uri, sweep)]
            stored[uri, sweep] = tracking.finished(uri, sweep=sweep, identities=wanted)
        firsts: dict[Any, Point] = {}
        skipped = 0
        for point in points:
            if point.config is None:
                continue
            first = firsts.setdefault((store_and_sweep(point), point.identity), point)
            point.twin = first if first is not point else None
            known = stored.get(store_and_sweep(point) or ("", ""), {}).get(point.identity)
            if known and known["status"] in LEFT_ALONE[rerun_of(point.config)]:
                scores = {"primary_metric": known.get("primary_metric"), **(known.get("scores") or {})}
                point.settle({**known, "scores": scores, "skipped": True})
                skipped += 1
        if skipped:
            print(
                f"{skipped} of {len(points)} points have their result in the store and are skipped"
                " (sweep.rerun=all runs them again)",
                file=sys.stderr,
            )

    def _work(self, points: list[Point], count: int) -> bool:
        """Run the points without an outcome; true when interrupted."""
        from harness.workers import Worker, outcome_of, seconds_allowed

        progress = Progress(len(points), count)
        for point in points:
            if point.outcome:
                if not point.outcome.get("skipped"):
                    write_record(point)
                progress.ended(point.name, point.outcome)
        waiting = deque(point for point in points if not point.outcome and not point.twin)
        self.processes += [Worker(self.threads) for _ in range(min(count, len(waiting)) - len(self.processes))]
        free = self.processes[:count]
        running: dict[Future[Any], tuple[Worker, Point]] = {}
        stopped = interrupted = False
        try:
            while running or (waiting and not stopped):
                while free and waiting and not stopped:
                    worker, point = free.pop(), waiting.popleft()
                    assert point.config is not None
                    point.began = time.time()
                    started = worker.start(self.task, point.config, self.context)
                    started.add_done_callback(point.stamp)
                    running[started] = worker, point
                progress.running(len(running))
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    worker, point = running[future]
                    self._end(point, *outcome_of(future, seconds_allowed(point.config), point.seconds))
                    free.append(worker)
                    del running[future]
                    progress.ended(point.name, point.outcome)
                    if self.config.sweep.fail_fast and counts_as_failure(point.outcome):
                        stopped = True
                if stopped:
                    break
        except KeyboardInterrupt:
            interrupted = True
        finally:
            progress.close()
            if running:
                self.stop()
        reason = "the sweep was interrupted" if interrupted else "stopped by sweep.fail_fast"
        for _, point in running.values():
            self._end(point, {"status": "interrupted", "error": reason}, lost=True)
        for point in waiting:
            point.settle({"status": NOT_RUN, "error": reason})
        for point in points:
            if point.twin and not point.outcome:
                point.settle({**point.twin.outcome, "skipped": True})
        return interrupted

    def stop(self) -> None:
        """Stop the workers; until then they serve further batches, an import of torch can take a minute."""
        from harness.workers import stop_all

        stop_all(self.processes)
        self.processes.clear()

    def _end(self, point: Point, outcome: dict[str, Any], lost: bool) -> None:
        """Settle a point that ran; where its worker could not record it, or died after doing so, see to the record."""
        result = point.folder / RESULT_FILE
        if lost and result.exists() and result.stat().st_mtime >= point.began:
            record = RunRecord.read(point.folder)
            outcome = {"status": str(record.status), "error": record.error, "scores": record.scores}
            point.settle({**outcome, "seconds": point.seconds})
            send(point)
            return
        point.settle({"seconds": point.seconds, **outcome})
        if not result.exists() or result.stat().st_mtime < point.began:
            write_record(point)

    def _returned(self, point: Point) -> JobReturn:
        returned = JobReturn(overrides=point.overrides, working_dir=os.getcwd(), task_name=self.config.hydra.job.name)
        if point.config is not None:
            returned.cfg = without_hydra(point.config)
            returned.hydra_cfg = OmegaConf.create({"hydra": point.config.hydra})
        # COMPLETED also for a failure: sweepers read return_value, which raises for FAILED and would hide the others.
        returned.status, returned.return_value = JobStatus.COMPLETED, point.outcome
        return returned


def register(*plugins: type[Plugin]) -> None:
    """Make plugins known to Hydra as `hydra_plugins.harness.NAME`.

    Hydra instantiates none that lie elsewhere, and imports them by that name. A package in that namespace would be a
    second top-level one to ship, and Hydra would import it whenever any Hydra application starts; a module made here
    exists only in our own process.
    """
    known: Plugins = Plugins.instance()
    try:
        namespace = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:
        namespace = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    module = sys.modules.setdefault(PLUGIN_MODULE, ModuleType(PLUGIN_MODULE))
    namespace.harness = module  # type: ignore[attr-defined]
    for plugin in plugins:
        plugin.__module__ = PLUGIN_MODULE
        setattr(module, plugin.__name__, plugin)
        known.register(plugin)


def identify(config: DictConfig) -> str:
    from harness.run import identify as identity_of

    return identity_of(config)


def rerun_of(config: DictConfig) -> str:
    value = str(config.sweep.rerun)
    if value not in LEFT_ALONE:
        raise ConfigError(
            f"sweep.rerun={value}: there is no such choice; {near_misses(value, [r.name for r in Rerun])}"
        )
    return value


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def hydra_config(config: DictConfig) -> Any:
    """Let `${hydra:...}` in a point's configuration mean that point's."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
