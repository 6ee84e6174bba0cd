"""`hydra/launcher=submitit_slurm`: the points of a sweep as jobs of SLURM, which submitit writes and submits.

submitit is imported where it is used: it does not have to be installed.
"""

import math
import os
import re
import shlex
import subprocess
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig

from harness.config.errors import ConfigError, near_misses
from harness.config.sources import PACKAGE, conf_root
from harness.sweep.launchers.cluster import ClusterWorker, ClusterWorkers, NodeLost, Resources, failed
from harness.sweep.launchers.launcher import SweepLauncher
from harness.sweep.outcome import TAKEN, Ended, Outcome

# How long SLURM has to answer a question, how old an answer about the queue may be, and how long a file system may take
# to show the result of a job that ended.
ANSWER_SECONDS, QUEUE_SECONDS, RESULT_SECONDS = 30, 10, 15
# The wall time of a job: what sweep.timeout_minutes allows and this for getting there, or a day.
SPARE_MINUTES, DAY_MINUTES = 10, 24 * 60
# The states of a job that did nothing wrong.
NODE_STATES = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED")


class SlurmWorker(ClusterWorker):
    """Follows a point as a job of SLURM."""

    workers: "SlurmWorkers"
    job: Any = None

    def attempt(self, assignment: Any, asked: Resources) -> Ended:
        from submitit.core.utils import FailedJobError

        from harness.sweep.launchers.node import carry_out

        name = job_name(assignment)
        if self.workers.queued_elsewhere(name):
            return Ended(Outcome(TAKEN))  # a job of a sweep that was killed, or of another one, works on it
        job = self.job = self.workers.submit(name, asked, assignment.seconds, carry_out, assignment)
        # Not job.done(): it asks SLURM's accounting about a job without a result, which not every site has.
        while not job.paths.result_pickle.exists() and not self.workers.left_queue(job):
            time.sleep(1)
        for _ in range(RESULT_SECONDS):
            if job.paths.result_pickle.exists():
                break
            time.sleep(1)
        try:
            if job.paths.result_pickle.exists():
                return job.result()
        except FailedJobError as error:
            lines = str(error).strip().splitlines()
            return failed(f"SLURM job {job.job_id}: {lines[-1] if lines else error}")
        state = self.workers.state(job)
        report = f"SLURM job {job.job_id} ended as {state} without a result ({job.paths.stderr})"
        if state.startswith(NODE_STATES):
            raise NodeLost(report)
        return failed(report, "out_of_memory" if state.startswith("OUT_OF_ME") else "failed")

    def cancel(self, force: bool) -> None:
        if self.job is not None:
            self.job.cancel(check=False)


class SlurmWorkers(ClusterWorkers):
    """Workers that hand points to SLURM as jobs; the nodes share the file system, as submitit needs it.

    Args:
        workers, threads, gpus, retries: See `ClusterWorkers`.
        cluster: slurm, or local for processes of this machine in place of jobs.
        mem_gb, partition, account, qos, constraint: As of sbatch; null for the site's defaults.
        timeout_min: Wall time of a job; null: sweep.timeout_minutes and ten more, or a day.
        setup: Shell commands of a job before the point.
        additional_parameters: Further options of sbatch, name -> value.
    """

    worker = SlurmWorker

    def __init__(
        self,
        cluster: str,
        workers: int,
        threads: int,
        gpus: int | None,
        mem_gb: float | None,
        timeout_min: int | None,
        partition: str | None,
        account: str | None,
        qos: str | None,
        constraint: str | None,
        setup: list[str],
        additional_parameters: DictConfig,
        retries: int,
    ) -> None:
        super().__init__(workers, threads, gpus, retries)
        self.cluster, self.partition = cluster, partition
        self.mem_gb, self.timeout_min = mem_gb, timeout_min
        self.options = {
            "partition": partition,
            "account": account,
            "qos": qos,
            "constraint": constraint,
            "setup": [*_path_setup(), *setup],
            "additional_parameters": {str(key): value for key, value in additional_parameters.items()} or None,
        }
        self.submitting = threading.Lock()
        # This sweep's jobs, identifier -> when it was submitted, and when SLURM was asked last and last answered.
        self.own: dict[str, float] = {}
        self.queue: dict[str, str] = {}
        self.asked_last = self.asked_at = -math.inf
        self.features = ""

    def connect(self) -> None:
        """Ask SLURM which kinds of nodes there are.

        Raises:
            ConfigError: submitit is not installed, or there is no SLURM, or it does not answer.
        """
        try:
            import submitit  # noqa: F401
        except ModuleNotFoundError:
            raise ConfigError(
                "hydra/launcher=submitit_slurm needs submitit: pip install 'peft-harness[slurm]'"
            ) from None
        if self.cluster == "local":
            os.environ["PYTHONPATH"] = os.pathsep.join([*_code_path(), *_given_path()])
            return
        if self.cluster != "slurm":
            raise ConfigError(f"hydra.launcher.cluster={self.cluster}: {near_misses(self.cluster, ['local', 'slurm'])}")
        command = ["sinfo", "--noheader", "--format=%G", *([f"--partition={self.partition}"] if self.partition else [])]
        try:
            self.features = _output(command)
        except FileNotFoundError:
            raise ConfigError(
                "hydra/launcher=submitit_slurm: there is no SLURM on this machine (no sinfo); start the sweep on a"
                " login node, or use hydra/launcher=local"
            ) from None
        except subprocess.TimeoutExpired:
            raise ConfigError(f"hydra/launcher=submitit_slurm: SLURM did not answer in {ANSWER_SECONDS} s") from None
        except subprocess.CalledProcessError as error:
            why = " ".join((error.stderr or error.stdout).split())
            raise ConfigError(f"hydra/launcher=submitit_slurm: SLURM can't be used ({why})") from None
        if not self.features.strip():
            raise ConfigError(f"hydra.launcher.partition={self.partition}: there is no such partition")

    def disconnect(self) -> None:
        """Nothing is held open: each question to SLURM is a command of its own."""

    def has_gpus(self) -> bool:
        return "gpu" in self.features

    def capacity(self) -> int:
        raise ConfigError("hydra.launcher.workers=null: a number of jobs in the queue at a time is needed")

    def submit(self, name: str, asked: Resources, seconds: float | None, *call: Any) -> Any:
        """Put a job into the queue; returns submitit's."""
        import submitit

        # Passwords in tracking.uri lie in the pickles there.
        folder = self.folder / "submitit"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        executor = submitit.AutoExecutor(folder, cluster=self.cluster)
        executor.update_parameters(**self.parameters(name, asked, seconds))
        with self.submitting:
            job = executor.submit(*call)
            self.own[str(job.job_id)] = time.monotonic()
        return job

    def parameters(self, name: str, asked: Resources, seconds: float | None) -> dict[str, Any]:
        """Parameters of a job, as submitit takes them."""
        minutes = DAY_MINUTES if seconds is None else math.ceil(seconds / 60) + SPARE_MINUTES
        return {
            "name": name,
            "nodes": 1,
            "tasks_per_node": 1,
            "cpus_per_task": asked.threads,
            "gpus_per_node": math.ceil(asked.gpus) or None,
            "mem_gb": self.mem_gb,
            "timeout_min": self.timeout_min or minutes,
            **{f"slurm_{key}": value for key, value in self.options.items()},
        }

    def queued_elsewhere(self, name: str) -> bool:
        """Whether a job of this name is in the queue that is not this sweep's."""
        return any(name == other for job, other in self._queue().items() if job not in self.own)

    def left_queue(self, job: Any) -> bool:
        """Whether a job that was submitted is neither waiting nor running."""
        if self.cluster == "local":
            return job.done()
        queue = self._queue()
        return self.asked_at > self.own[str(job.job_id)] and str(job.job_id) not in queue

    def state(self, job: Any) -> str:
        """SLURM's state of a job that ended, from its accounting or in the minutes after."""
        try:
            shown = _output(["scontrol", "--oneliner", "show", "job", str(job.job_id)])
        except (OSError, subprocess.SubprocessError):
            shown = ""
        found = re.search(r"\bJobState=(\w+)", shown)
        return found[1] if found else str(job.state)

    def _queue(self) -> dict[str, str]:
        """The user's jobs that wait or run, identifier -> name, as they were a moment ago."""
        with self.submitting:
            if self.cluster == "slurm" and time.monotonic() - self.asked_last > QUEUE_SECONDS:
                self.asked_last = began = time.monotonic()
                with suppress(OSError, subprocess.SubprocessError):  # it is busy: the next answer will do
                    lines = _output(["squeue", "--me", "--noheader", "--format=%i %j"]).splitlines()
                    self.queue = {job: name for job, _, name in (line.strip().partition(" ") for line in lines)}
                    self.asked_at = began
            return self.queue


class SlurmLauncher(SweepLauncher):
    """Runs each point as a job of SLURM; conf/hydra/launcher/submitit_slurm.yaml explains each setting."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(SlurmWorkers(**settings))


def job_name(assignment: Any) -> str:
    """The name of a point's job, the same each time it is handed over."""
    return f"harness-{assignment.lock.identity[:16] if assignment.lock else uuid.uuid4().hex[:16]}"


def _code_path() -> list[str]:
    """Where a node finds this package: an installed one finds itself."""
    return [] if conf_root() == PACKAGE else [str(conf_root())]


def _given_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in _code_path()]


def _path_setup() -> list[str]:
    return [f"export PYTHONPATH={shlex.quote(path)}${{PYTHONPATH:+:$PYTHONPATH}}" for path in _code_path()]


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True).stdout
