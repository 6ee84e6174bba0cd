"""`hydra/launcher=local`: the points of a sweep on worker processes of this machine; no point can harm another."""

import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from harness import tracking
from harness.config.build import resolved
from harness.config.errors import ConfigError
from harness.config.mistakes import MISTAKES, explain, key_of, not_made
from harness.sweep.launchers.slots import slots, visible_gpus
from harness.sweep.locks import outcome_of_stored
from harness.sweep.outcome import LOST, NOT_RUN, TAKEN, Ended, Outcome, failed
from harness.sweep.points import (
    Point,
    check_folders,
    check_rerun,
    outcomes,
    send_once,
    summary,
    told,
    unsent,
    without_hydra,
    write_record,
)
from harness.sweep.progress import Durations, Progress
from harness.sweep.resolve import Inseparable, Resolution
from harness.tracking.record import RunRecord, written_since

if TYPE_CHECKING:
    from harness.sweep.launchers.workers import Worker

# hydra.sweep.subdir of conf/config.yaml, which every point can be told without composing it.
OWN_FOLDER = "${hydra.job.num}"
SWEEP_WITHOUT_FILE = "multirun"
EMPTY = "the sweep is empty: one of its lists of values has nothing in it"
# How often a point is looked at again that another sweep works on.
TAKEN_SECONDS = 1.0
# How many workers may die before a point begins: as many as can't be chance.
LOSSES_ALLOWED = 3


class LocalLauncher(Launcher):
    """Runs points in worker processes.

    Args:
        workers: Processes; null for the number of cores divided by `threads`, or for the slots of the GPUs.
        threads: CPU threads of each.
        imports: Modules that a worker imports when it starts.
    """

    def __init__(self, workers: int | None = None, threads: int = 1, imports: Sequence[str] = ()) -> None:
        self.workers, self.threads, self.imports = workers, threads, imports
        self.processes: list[Worker] = []
        self.durations = Durations()

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
        self._check(len(job_overrides))
        self.identify = identities()
        points = self._points(job_overrides, initial_job_idx)
        _refuse_if_all_are_wrong(points)
        self._skip(points)
        places = self._slots(points)
        _refuse_if_all_are_wrong(points)
        self._make_folder(points)
        interrupted = self._work(points, places)
        outcomes.extend(point.result for point in points)
        print(summary(points), flush=True)
        if interrupted:
            raise KeyboardInterrupt
        return [self._returned(point) for point in points]

    def _check(self, points: int) -> None:
        for key, value in (("workers", self.workers), ("threads", self.threads)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"hydra.launcher.{key}={value}: a positive whole number is needed")
        listed = isinstance(self.imports, Sequence) and not isinstance(self.imports, str)
        if not listed or not all(isinstance(name, str) for name in self.imports):
            raise ConfigError(f"hydra.launcher.imports={self.imports}: a list of module names is needed")
        if not points:
            raise ConfigError(EMPTY)

    def _make_folder(self, points: list[Point]) -> None:
        """Make the sweep's folder, in which no point may write where another, or an earlier run, does."""
        told: Any = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)
        waiting = [point for point in points if not point.outcome and not point.twin]
        if told["subdir"] != OWN_FOLDER or re.search(r"\$\{(?!now:|hydra)", told["dir"]):
            for point in waiting:
                self._compose(point)  # only the whole configuration tells where it writes
        check_folders(waiting, str(told["subdir"]))
        try:
            Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(not_made("hydra.sweep.dir", self.config.hydra.sweep.dir, error)) from None

    def _slots(self, points: list[Point]) -> list[str | None]:
        """The GPU of each worker, null for the CPU; a point that asks for a GPU where there is none has failed."""
        waiting = [point for point in points if not point.outcome]
        devices = [((point.settings or {}).get("train") or {}).get("device") for point in waiting]
        gpus = visible_gpus() if {"auto", "cuda"}.intersection(devices) else []
        for point, device in zip(waiting, devices, strict=True):
            if device == "cuda" and not gpus:
                reason = "train.device=cuda: there is no GPU here; train.device=auto takes what there is"
                point.settle(failed(reason))
        return slots(len(points), gpus, self.config.sweep.slots_per_gpu, self.workers, self.threads)

    def _points(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Point]:
        """The points with their identities; one that is wrong has its sentence as outcome."""
        shared = frozenset.intersection(*(frozenset(told(overrides)) for overrides in job_overrides))
        shared = shared if len(job_overrides) > 1 else frozenset()
        name = self.config.hydra.job.config_name
        named = [] if self.config.sweep.name else [f"sweep.name='{SWEEP_WITHOUT_FILE if name == 'config' else name}'"]
        folder = Path(self.config.hydra.sweep.dir)
        resolution = Resolution(self.context.config_loader, self.config)
        points = []
        for number, overrides in enumerate(job_overrides, start=first):
            point = Point(number, [*named, *overrides], folder / str(number), shared=shared)
            try:
                settings = resolution.plain(point.overrides)
                check_rerun(settings)
                point.settings, point.identity = settings, self.identify(settings)
            except (Inseparable, *MISTAKES):
                self._compose(point)  # which also finds the words for a mistake
            points.append(point)
        return points

    def _compose(self, point: Point) -> None:
        """Compose a point with Hydra, as it is going to run; one that is wrong has its sentence as outcome."""
        master, overrides = self.config, point.overrides
        loader = self.context.config_loader
        try:
            config = loader.load_sweep_config(master, overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = point.number
            with hydra_config(config):
                point.folder = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
                settings = resolved(without_hydra(config))
            if settings != point.settings:
                check_rerun(settings)
                point.identity = self.identify(settings)
                point.settings = settings
            if _goes_on(config, overrides):
                config.train.resume = True
            point.config = config
        except MISTAKES as error:
            sentence = explain(
                error, overrides, lambda o: loader.load_configuration(master.hydra.job.config_name, o, RunMode.RUN)
            )
            point.settle(failed(sentence))

    def _skip(self, points: list[Point]) -> None:
        """Give points that the store holds their outcome from there, and a point that comes twice only one run."""
        wanted: dict[tuple[str, str], list[Point]] = {}
        firsts: dict[Any, Point] = {}
        for point in points:
            if not point.outcome:
                claim = point.claim
                place = (claim.uri, claim.sweep) if claim else None
                first = firsts.setdefault((place, point.identity), point)
                point.twin = first if first is not point else None
                if place:
                    wanted.setdefault(place, []).append(point)
        for (uri, sweep), asking in wanted.items():
            tracking.check(uri)
            stored = tracking.finished(uri, sweep=sweep, identities=[point.identity for point in asking])
            for point in asking:
                known = stored.get(point.identity)
                if known and point.claim and known["status"] in point.claim.done:
                    point.settle(outcome_of_stored(known))
        self._send_kept(points)
        skipped = sum(point.skipped for point in points)
        if skipped:
            print(
                f"{skipped} of {len(points)} points have their result in the store and are skipped"
                " (sweep.rerun=all runs them again)",
                file=sys.stderr,
            )

    def _send_kept(self, points: list[Point]) -> None:
        """Send what earlier starts of this sweep recorded and could not send; a point that is done so is skipped."""
        missing = {p.identity: p for p in points if not p.outcome and not p.twin and p.claim and p.claim.done}
        sweeps = {point.claim.sweep for point in missing.values() if point.claim}
        if not missing:
            return
        for folder, record in unsent(Path(self.config.hydra.sweep.dir).parent, sweeps, missing):
            point = missing[record.identity]
            if not point.outcome and point.claim and send_once(point, folder) and record.status in point.claim.done:
                point.settle(replace(_outcome(record), run_dir=str(folder), skipped=True))

    def _work(self, points: list[Point], places: list[str | None]) -> bool:
        """Run the points without an outcome; true when interrupted."""
        progress = Progress(len(points), len(places), self.durations)
        for point in points:
            if point.outcome:
                if not point.skipped:
                    write_record(point)
                progress.ended(point)
        waiting = [point for point in points if not point.outcome and not point.twin]
        free = self._staff(places[: len(waiting)])
        self._learn_durations(waiting)
        running: dict[Future[Any], tuple[Worker, Point]] = {}
        stopped = interrupted = False
        try:
            while running or (waiting and not stopped):
                while free and (next_one := self._next(waiting, progress)):
                    worker = free.pop()
                    running[self._start(worker, next_one)] = worker, next_one
                    waiting.remove(next_one)
                self._next(waiting, progress)  # composed while the workers are busy
                progress.refresh([point for _, point in running.values()], waiting)
                for future in _ended(running):
                    worker, point = running[future]
                    if self._settle(point, future):
                        progress.ended(point)
                    else:
                        waiting.append(point)
                    del running[future]
                    free.append(worker)
                    if self.config.sweep.fail_fast and point.outcome and point.outcome.counts_as_failure:
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
            self._end(point, Ended(Outcome("interrupted", reason), lost=True))
        for point in waiting:
            if not point.outcome:
                point.settle(Outcome(NOT_RUN, reason))
        for point in points:
            if point.twin and not point.outcome:
                point.settle(replace(point.twin.result, skipped=True))
        return interrupted

    def _learn_durations(self, waiting: list[Point]) -> None:
        """Ask the store how long earlier runs took; guesses are worth no failure."""
        uris = {point.claim.uri for point in waiting if point.claim}
        if len(waiting) > 1 and len(uris) == 1:
            with suppress(ConnectionError):
                self.durations.earlier = tracking.durations(uris.pop())

    def _staff(self, places: list[str | None]) -> "list[Worker]":
        """The workers, one a place, on their way; those of an earlier batch that fit live on."""
        from harness.sweep.launchers.workers import Worker

        for number, gpu in enumerate(places):
            if number == len(self.processes):
                self.processes.append(Worker(self.threads, gpu, self.imports))
            elif self.processes[number].gpu != gpu:
                self.processes[number].stop()
                self.processes[number] = Worker(self.threads, gpu, self.imports)
            self.processes[number].begin()
        return self.processes[: len(places)]

    def _next(self, waiting: list[Point], progress: Progress) -> Point | None:
        """The longest of the waiting points, composed; those that no one can tell the length of come before."""
        now = time.monotonic()
        while ready := [point for point in waiting if point.not_before <= now]:
            seconds = {kind: self.durations.of(kind) for kind in {point.kind for point in ready}}
            point = max(ready, key=lambda point: math.inf if (s := seconds[point.kind]) is None else s)
            if point.config is None:
                self._compose(point)
            if point.config is not None:
                return point
            waiting.remove(point)
            write_record(point)
            progress.ended(point)
        return None

    def _start(self, worker: "Worker", point: Point) -> Future[Any]:
        assert point.config is not None
        point.began, point.ended = time.time(), None
        started = worker.start(self.task, point.config, self.context, point.seconds_allowed, point.claim)
        started.add_done_callback(point.stamp)
        return started

    def _settle(self, point: Point, future: Future[Any]) -> bool:
        """Settle a point whose worker is done with it; false when it must be tried again.

        That is one that another sweep works on, and one whose worker died before it began.
        """
        from harness.sweep.launchers.workers import outcome_of

        ended = outcome_of(future, point.seconds_allowed, point.seconds)
        outcome = ended.outcome
        if outcome.status == LOST:
            point.losses += 1
            if point.losses < LOSSES_ALLOWED:
                return False
            outcome.status, outcome.error = "failed", f"{outcome.error}, {point.losses} times in a row"
        if outcome.status == TAKEN:
            point.not_before = time.monotonic() + TAKEN_SECONDS
            return False
        if outcome.skipped:
            point.settle(outcome)
        else:
            self._end(point, ended)
        return True

    def stop(self) -> None:
        """Stop the workers; until then they serve further batches, an import of torch can take a minute."""
        from harness.sweep.launchers.workers import stop_all

        stop_all(self.processes)
        self.processes.clear()

    def _end(self, point: Point, ended: Ended) -> None:
        """Settle a point that ran; where its worker could not record it, or died after doing so, see to the record."""
        written = written_since(point.folder, point.began)
        if ended.lost and written:
            point.settle(replace(_outcome(RunRecord.read(point.folder)), seconds=point.seconds))
            send_once(point)
            return
        seconds = ended.outcome.seconds
        point.settle(replace(ended.outcome, seconds=point.seconds if seconds is None else seconds))
        if not written:
            write_record(point)

    def _returned(self, point: Point) -> JobReturn:
        returned = JobReturn(overrides=point.overrides, working_dir=os.getcwd(), task_name=self.config.hydra.job.name)
        if point.config is not None:
            returned.cfg = without_hydra(point.config)
            returned.hydra_cfg = OmegaConf.create({"hydra": point.config.hydra})
        # COMPLETED also for a failure: sweepers read return_value, which raises for FAILED and would hide the others.
        returned.status, returned.return_value = JobStatus.COMPLETED, point.result.plain()
        return returned


def identities() -> Callable[[dict[str, Any]], str]:
    """The function that gives the identities of resolved configurations."""
    from harness.run import Identities

    return Identities()


def _refuse_if_all_are_wrong(points: list[Point]) -> None:
    wrong = [point.outcome for point in points if point.outcome and not point.skipped]
    if len(wrong) == len(points):
        raise ConfigError("\n".join(dict.fromkeys(str(outcome.error) for outcome in wrong)))


def _goes_on(config: DictConfig, overrides: list[str]) -> bool:
    """Whether a point goes on from the checkpoint of a start that was cut off, if there is one.

    Not where the user said otherwise, or wants everything anew.
    """
    said = any(key_of(override) == "train.resume" for override in overrides)
    return not said and str(config.sweep.rerun) != "all" and OmegaConf.select(config, "train.resume") is False


def _outcome(record: RunRecord) -> Outcome:
    return Outcome(str(record.status), record.error, record.scores, run_id=record.run_id)


def _ended(running: "dict[Future[Any], tuple[Worker, Point]]") -> set[Future[Any]]:
    """The points that ended, as soon as there is one, or none after a second."""
    if not running:
        time.sleep(TAKEN_SECONDS / 4)  # another sweep has all that is left
    return wait(running, timeout=1, return_when=FIRST_COMPLETED).done


@contextmanager
def hydra_config(config: DictConfig) -> Any:
    """Let `${hydra:...}` in a point's configuration mean that point's."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
