"""Launcher of a sweep's points, whatever carries them out; no point can harm another."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from harness import tracking
from harness.config.build import pack_size
from harness.config.compose import without_hydra
from harness.config.errors import ConfigError
from harness.sweep.launchers.composing import Composer
from harness.sweep.launchers.packs import Packs
from harness.sweep.launchers.protocol import PackingWorker, Worker, Workers
from harness.sweep.launchers.schedule import INTERRUPTED, Schedule
from harness.sweep.launchers.settling import settle_known, settle_rest
from harness.sweep.outcome import gather
from harness.sweep.points import Point, next_command, summary, write_record
from harness.sweep.progress import Durations, Progress

EMPTY = "the sweep is empty: one of its lists of values has nothing in it"


class SweepLauncher(Launcher):
    """Runs points on workers; Hydra makes it through the launchers that say which.

    Args:
        workers: Carry out the points, until `stop` also those of further batches: an import of torch can take a minute.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.durations = Durations()
        self.said: set[str] = set()

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
        if not job_overrides:
            raise ConfigError(EMPTY)
        size = self._pack_size()
        self.workers.begin(self.config)
        composer = Composer(self.context, self.config, self.workers.device)
        points = composer.points(job_overrides, initial_job_idx)
        _refuse_if_all_are_wrong(points)
        folder = Path(self.config.hydra.sweep.dir)
        # Starts before sweep.name named the folder lie below the name of the sweep's file.
        settle_known(points, [folder.parent, folder.parent.parent / self.config.hydra.job.config_name])
        places = self.workers.prepare(points)
        _refuse_if_all_are_wrong(points)
        composer.make_folder(points)
        memory = self.workers.memory(places) if size is None else None
        packs = Packs(size, composer, self.workers, memory, self.said)
        reason = self._run(points, places, composer, packs)
        gather(point.result for point in points)
        print(summary(points), flush=True)
        if told := next_command(points, folder):
            print(told, flush=True)
        if reason == INTERRUPTED:
            raise KeyboardInterrupt
        return [self._returned(point) for point in points]

    def stop(self) -> None:
        """Stop the workers."""
        self.workers.stop()

    def _pack_size(self) -> int | None:
        """Points of a pack at most; null for as many as fit."""
        given = OmegaConf.select(self.config, "sweep.pack", default=1)
        size = pack_size(given)
        if size != 1 and not self.workers.packs:
            raise ConfigError(
                f"sweep.pack={given}: only hydra/launcher=local trains several points at a time; leave it 1"
            )
        return size

    def _run(self, points: list[Point], places: list[str | None], composer: Composer, packs: Packs) -> str | None:
        """Run the points without an outcome; returns why this ended early, null when it did not."""
        progress = Progress(len(points), len(places), self.durations)
        for point in points:
            if point.outcome:
                if not point.skipped:
                    write_record(point)
                progress.ended(point)
        waiting = [point for point in points if not point.outcome and not point.twin]
        hired = self.workers.hire(places[: len(waiting)])
        self._learn_durations(waiting)
        schedule = Schedule(waiting, hired, progress, composer.compose, self._start, packs.mates)
        try:
            reason = schedule.run(self.config.sweep.fail_fast)
        finally:
            progress.close()
            if schedule.running:
                self.workers.stop()
        settle_rest(points, schedule.under_way, reason)
        return reason

    def _learn_durations(self, waiting: list[Point]) -> None:
        """Ask the store how long earlier runs took; guesses are worth no failure."""
        uris = {point.lock.uri for point in waiting if point.lock}
        if len(waiting) > 1 and len(uris) == 1:
            with suppress(ConnectionError):
                self.durations.earlier = tracking.durations(uris.pop())

    def _start(self, worker: Worker, points: list[Point]) -> Future[Any]:
        for point in points:
            point.began, point.ended = time.time(), None
        first, *others = points
        assert first.config is not None
        if others:
            configs = [point.config for point in points if point.config is not None]
            allowed = first.seconds_allowed and first.seconds_allowed * len(points)
            packing = cast(PackingWorker, worker)
            started = packing.start_pack(configs, self.context, allowed, [point.lock for point in points])
        else:
            started = worker.start(self.task, first.config, self.context, first.seconds_allowed, first.lock)
        for point in points:
            started.add_done_callback(point.stamp)
        return started

    def _returned(self, point: Point) -> JobReturn:
        returned = JobReturn(overrides=point.overrides, working_dir=os.getcwd(), task_name=self.config.hydra.job.name)
        if point.config is not None:
            returned.cfg = without_hydra(point.config)
            returned.hydra_cfg = OmegaConf.create({"hydra": point.config.hydra})
        # COMPLETED also for a failure: sweepers read return_value, which raises for FAILED and would hide the others.
        returned.status, returned.return_value = JobStatus.COMPLETED, point.result.plain()
        return returned


def _refuse_if_all_are_wrong(points: list[Point]) -> None:
    wrong = [point.outcome for point in points if point.outcome and not point.skipped]
    if len(wrong) == len(points):
        raise ConfigError("\n".join(dict.fromkeys(str(outcome.error) for outcome in wrong)))
