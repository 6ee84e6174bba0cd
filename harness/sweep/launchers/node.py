"""Worker on a node of a cluster: does with a point of a sweep as the sweep's own machine would."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hydra.types import HydraContext
from omegaconf import DictConfig

from harness.sweep.launchers.protocol import Task
from harness.sweep.launchers.workers import WorkerProcess, outcome_of
from harness.sweep.locks import PointLock
from harness.sweep.outcome import Ended
from harness.tracking.uri import parse

# The worker of this process between two points: it has imported torch.
_idle: dict[int, WorkerProcess] = {}


@dataclass(frozen=True)
class Assignment:
    """A point on its way to a node.

    Attributes:
        task: Runs a configuration.
        config: The point's, with its Hydra node.
        context: Hydra's.
        seconds: How long it may take; null: no limit. Waiting for the node does not count.
        lock: Keeps other processes from the point; null where there is no store to share.
        folder: The sweep's working directory, absolute: what relative paths in the configuration start from.
        run_dir: The point's directory.
        sign: A file in the sweep's directory: a node that sees it shares the file system.
        threads: CPU threads.
        gpus: GPUs of the node that are the point's; without any it sees none.
        environment: Variables of the sweep's machine that a run reads.
    """

    task: Task
    config: DictConfig
    context: HydraContext
    seconds: float | None
    lock: PointLock | None
    folder: Path
    run_dir: Path
    sign: Path
    threads: int
    gpus: float
    # Tokens and passwords may be among them.
    environment: dict[str, str] = field(default_factory=dict, repr=False)


def carry_out(assignment: Assignment, keep: bool = False) -> Ended:
    """Run a point on this node, in a worker process whose death or hanging harms no more than the point.

    Args:
        assignment: The point.
        keep: Let the worker live on for this process's next point. Not on a GPU, whose memory it would hold.

    Returns:
        Its end. On a node that does not share the file system, `files` are those of the run directory, without its
        folders.
    """
    os.environ.update(assignment.environment)
    if not assignment.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    assignment.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(assignment.folder)
    shared = assignment.sign.exists()
    config, lock = assignment.config, assignment.lock
    if lock and not shared and parse(lock.uri).path is not None:
        # A file of the sweep's machine, which sends what comes back.
        config, lock = config.copy(), None
        config.tracking.kind = "none"
    worker = _idle.pop(assignment.threads, None) or WorkerProcess(assignment.threads)
    began = time.time()
    try:
        with _warning_withheld():
            running = worker.start(assignment.task, config, assignment.context, assignment.seconds, lock)
        while not running.done():
            wait([running], timeout=1)  # without a limit Ray could not interrupt it
        elapsed = time.time() - began
        ended = outcome_of(running, assignment.seconds, elapsed)
    except BaseException:
        worker.stop()  # which lets it save a checkpoint and its record
        raise
    if keep and not assignment.gpus:
        _idle[assignment.threads] = worker
    else:
        worker.stop()
    ended.outcome.seconds = elapsed if ended.outcome.seconds is None else ended.outcome.seconds
    run_dir = assignment.folder / assignment.run_dir
    if not shared and run_dir.is_dir():
        ended.files = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    return ended


@contextmanager
def _warning_withheld() -> Iterator[None]:
    """Processes started meanwhile ignore the warning that SLURM gives all of a job's before it ends the job.

    It is for this one, which tells its worker to go.
    """
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, before)
