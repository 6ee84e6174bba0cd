"""Worker processes that live on between the points of a sweep, and lose no more than their own point when they die."""

import atexit
import faulthandler
import gc
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from hydra.core.utils import JobRuntime, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig
from pebble import CONSTS, ProcessExpired, ProcessFuture, ProcessPool
from tqdm import tqdm

from harness.config.errors import ConfigError
from harness.config.sources import register_resolvers
from harness.sweep.launchers.protocol import Task
from harness.sweep.locks import PointLock
from harness.sweep.outcome import LOST, TAKEN, Ended, Outcome, failed
from harness.sweep.points import CONSOLE_FILE
from harness.training import cache

# Every library that would otherwise start as many threads as there are cores, in each worker.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)
# The status of a worker that left without a word; pebble waits for ever for one that leaves with 0.
SILENT_EXIT = 70
# The status of a worker whose clock, that of faulthandler, ended it.
TIMED_OUT = 1
# How long pebble waits for a process that outstays its time to end itself.
GRACE_SECONDS = 60
# How long an interrupted run has to save a checkpoint and its record before it is killed.
CONSTS.term_timeout = 15


class WorkerProcess:
    """One process and the point it works on.

    A pebble pool of one, not one pool of many: pebble's workers share a channel and a lock, and a worker killed
    between taking a task and saying so breaks the whole pool.

    Args:
        threads: CPU threads that it computes with.
        gpu: The one that it sees; null: what there is.
        imports: Modules that it imports before its first point.
    """

    def __init__(self, threads: int, gpu: str | None = None, imports: Sequence[str] = ()) -> None:
        self.threads, self.gpu, self.imports = threads, gpu, tuple(imports)
        self.pool: ProcessPool | None = None

    def begin(self) -> ProcessPool:
        """Start the process unless it lives, and let it import what its points need."""
        if self.pool is None or not self.pool.active:
            self.stop()
            # spawn: a forked torch inherits locks and threads in an unknown state.
            self.pool = ProcessPool(1, 0, _prepare, (self.threads, self.gpu), get_context("spawn"))
            self.pool.schedule(import_modules, args=(self.imports,))
        return self.pool

    def start(
        self, task: Task, config: DictConfig, context: HydraContext, seconds: float | None, lock: PointLock | None
    ) -> ProcessFuture[Any]:
        """Begin a point."""
        return self.begin().schedule(
            run_in_worker, args=(task, config, context, seconds, lock), timeout=seconds and seconds + GRACE_SECONDS
        )

    def start_pack(
        self,
        configs: Sequence[DictConfig],
        context: HydraContext,
        seconds: float | None,
        locks: Sequence[PointLock | None],
    ) -> ProcessFuture[Any]:
        """Begin points that train in one pack."""
        return self.begin().schedule(
            run_pack_in_worker, args=(configs, context, seconds, locks), timeout=seconds and seconds + GRACE_SECONDS
        )

    def stop(self) -> None:
        if self.pool is not None:
            self.pool.stop()
            self.pool.join()
            self.pool = None


def outcome_of(future: Future[Any], allowed: float | None, elapsed: float) -> Ended:
    """End of a point, also when its worker was lost and so could record nothing."""
    try:
        ended: Ended = future.result()
        return ended
    except BrokenProcessPool:
        # Its process died without work: while it was starting, or between two points.
        return Ended(failed("its worker process died before the run began", LOST), lost=True)
    except (ProcessExpired, TimeoutError) as error:
        status = getattr(error, "exitcode", TIMED_OUT)
        # The time until the worker was there counts in `elapsed` too, so its status decides.
        if allowed is not None and elapsed >= allowed and status == TIMED_OUT:
            return Ended(failed(f"took longer than sweep.timeout_minutes={allowed / 60:g} and was stopped"), lost=True)
        return Ended(failed(_death(status)), lost=True)
    except (CancelledError, Exception) as error:
        return Ended(failed(f"its worker process could not be used: {type(error).__name__}: {error}"), lost=True)


def outcomes_of(future: Future[Any], allowed: float | None, elapsed: float, count: int) -> list[Ended]:
    """The ends of points that were carried out together; of a lost worker that of each."""
    if count == 1:
        return [outcome_of(future, allowed, elapsed)]
    try:
        ends: list[Ended] = future.result()
    except (CancelledError, Exception):
        return [outcome_of(future, allowed and allowed * count, elapsed) for _ in range(count)]
    return ends


def _death(status: int | None) -> str:
    if status is not None and status < 0:
        hint = " (perhaps the machine ran out of memory)" if -status == signal.SIGKILL else ""
        return f"its worker process was killed by {signal.Signals(-status).name}{hint}"
    return f"its worker process ended with exit status {status}"


def _prepare(threads: int, gpu: str | None) -> None:
    """Runs first in a new worker, before anything imports torch, which reads the variables once."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    # Threads that wait for the next parallel section would else spin, and keep the other workers from the core.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    cache.begin()
    faulthandler.enable()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # Told to go, a worker unwinds; the signal that pebble sends after the word must not cut that short half-way.
    Finalize(None, signal.signal, (signal.SIGTERM, signal.SIG_IGN), exitpriority=1000)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    own, leave = os.getpid(), os._exit

    def leave_loudly(status: int) -> None:
        leave(status or SILENT_EXIT if os.getpid() == own else status)

    def leave_at_once() -> None:
        if os.getpid() == own:
            sys.stdout.flush()
            sys.stderr.flush()
            leave(0)

    os._exit = leave_loudly  # type: ignore[assignment]
    # What is registered first is called last. To take thousands of modules apart would take seconds.
    atexit.register(leave_at_once)


def import_modules(names: Sequence[str]) -> None:
    """Import, without looking for garbage meanwhile: among thousands of new modules that takes a quarter of the time.

    One that fails or warns here does so again in the run, whose log says so.
    """
    # The lock of tqdm's own is a semaphore of the system too: a worker that is killed leaves it behind, and Python says
    # so at the end of the sweep. A worker's bars are drawn by its threads alone.
    tqdm.set_lock(threading.RLock())
    gc.disable()
    try:
        with _silence():
            for name in names:
                with suppress(Exception):
                    importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _silence() -> Iterator[None]:
    """Let what this process says, also C code of it, get lost."""
    before = [(stream, os.dup(stream)) for stream in (1, 2)]
    _redirect_output(Path(os.devnull))
    try:
        yield
    finally:
        for stream, kept_open in before:
            os.dup2(kept_open, stream)
            os.close(kept_open)


def _die_with_parent() -> None:
    """End this worker when the sweep was killed, else a sweep started again would run beside it."""
    if (parent := parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def run_in_worker(
    task: Task, config: DictConfig, context: HydraContext, seconds: float | None, lock: PointLock | None
) -> Ended:
    """Run a point, unless another sweep is at it, or has done it by now; never raises.

    The lock is this process's: a sweep that was killed may leave a worker for a moment, which still holds it.
    """
    if lock is None:
        return Ended(_run_alone(task, config, context, seconds))
    with lock.hold() as held:
        if not held:
            return Ended(Outcome(TAKEN))
        return Ended(lock.result() or _run_alone(task, config, context, seconds))


def run_pack_in_worker(
    configs: Sequence[DictConfig], context: HydraContext, seconds: float | None, locks: Sequence[PointLock | None]
) -> list[Ended]:
    """Run points in one pack, but for those that another sweep is at, or has done by now; never raises."""
    ends: dict[int, Outcome] = {}
    # All are held to the end: a lock that is let go in a process takes the others of the same file with it.
    with ExitStack() as locked:
        for number, lock in enumerate(locks):
            if lock is None:
                continue
            if not locked.enter_context(lock.hold()):
                ends[number] = Outcome(TAKEN)
            elif known := lock.result():
                ends[number] = known
        left = [number for number in range(len(configs)) if number not in ends]
        if left:
            ends |= zip(left, _run_together([configs[number] for number in left], context, seconds), strict=True)
    return [Ended(ends[number]) for number in range(len(configs))]


def _run_together(configs: Sequence[DictConfig], context: HydraContext, seconds: float | None) -> list[Outcome]:
    """Run points as one Hydra job, the first one's; the logs of the others say where theirs is."""
    setup_globals()
    register_resolvers()
    folders = [Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir) for config in configs]
    for folder in folders[1:]:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / CONSOLE_FILE).open("a") as log:
            log.write(f"trains in one pack with {len(configs) - 1} others; their log is {folders[0] / CONSOLE_FILE}\n")

    def together(_: DictConfig) -> dict[str, Any]:
        from harness.run.job import jobs_in_a_pack

        points = jobs_in_a_pack(configs)
        stopped = any(one["status"] == "interrupted" and not one.get("stopped_alone") for one in points)
        return {"status": "interrupted" if stopped else "finished", "points": points}

    outcome = _run_alone(together, configs[0], context, seconds)
    told = outcome.further.get("points")
    return [Outcome.of(one) for one in told] if told else [outcome] * len(configs)


def _run_alone(task: Task, config: DictConfig, context: HydraContext, seconds: float | None) -> Outcome:
    """Run a point as a Hydra job, its output in `console.log` of its directory.

    Past `seconds` the process ends, and `console.log` shows where it hung. A clock of C ends also what no signal
    handler of Python would, and leaves the run no time to record that it was interrupted.
    """
    setup_globals()
    register_resolvers()
    hydra = config.hydra
    folder = Path(hydra.sweep.dir) / str(hydra.sweep.subdir)
    folder.mkdir(parents=True, exist_ok=True)
    _redirect_output(folder / CONSOLE_FILE)
    if seconds is not None:
        faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        outcome = _run(task, config, context)
    finally:
        faulthandler.cancel_dump_traceback_later()
    if outcome.status == "interrupted" and not outcome.stopped_alone:
        # The signal that interrupted the run meant this process: its record is written, so it may leave.
        signal.raise_signal(signal.SIGTERM)
    return outcome


def _run(task: Task, config: DictConfig, context: HydraContext) -> Outcome:
    JobRuntime.instance().set("name", config.hydra.job.name)
    try:
        job = run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
        outcome = job.return_value
    except ConfigError as error:
        return failed(str(error))
    except KeyboardInterrupt:
        return failed("interrupted", "interrupted")
    except SystemExit as error:
        return failed(f"the run called sys.exit({error.code!r})")
    except Exception as error:
        traceback.print_exc()
        return failed(f"{type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        gc.collect()
    if not isinstance(outcome, dict) or "status" not in outcome:
        return failed(f"the run returned {outcome!r:.80} where a result was expected")
    return Outcome.of(outcome)


def _redirect_output(path: Path) -> None:
    """Send this process's output, also that of C code and of child processes, to a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
