"""`hydra/launcher=ray` and `hydra/launcher=submitit_slurm`: the points of a sweep on the nodes of a cluster.

They are the local launcher with other workers: each follows one point after the other on the cluster, where
`harness.nodes` runs it. Ray and submitit are imported where they are used; neither has to be installed.
"""

import logging
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from harness.claims import Claim
from harness.config import PACKAGE, ConfigError, conf_root, near_misses
from harness.launcher import LocalLauncher, hydra_config
from harness.mistakes import MISTAKES, explain
from harness.points import NOT_RUN, TAKEN, Point
from harness.store import CONNECT_SECONDS

# Names of the variables that go with a point to a node begin so. A batch system passes all of them itself.
ENVIRONMENT = ("HARNESS_", "HF_", "MLFLOW_")
# How long a batch system has to answer a question.
ANSWER_SECONDS = 30
# How often a point on Ray is looked at, and how many times in a row its cluster may be silent then.
POLL_SECONDS, SILENCES = 5, 3
# How long an interrupted point has to come to its end: a worker has 15 s of it.
STOP_SECONDS = 45
# The wall time asked of SLURM: what sweep.timeout_minutes allows and this for getting there, or a day.
SPARE_MINUTES, DAY_MINUTES = 10, 24 * 60
# How old an answer about the queue may be, and how long a file system may take to show the result of a job that ended.
QUEUE_SECONDS, RESULT_SECONDS = 10, 15
# The states of a SLURM job that did nothing wrong.
NODE_STATES = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED")


class NodeLost(Exception):
    """What worked on a point is gone, and the point may be done elsewhere."""


class ClusterLost(Exception):
    """Nothing can be done any more."""


@dataclass(frozen=True)
class Resources:
    """What a point asks of a node.

    Attributes:
        threads: CPU cores, one a thread.
        gpus: GPUs; a part of one on Ray only.
        others: Ray's custom resources.
    """

    threads: int
    gpus: float
    others: Mapping[str, float]


class ClusterWorker:
    """Follows one point at a time on the cluster, as `harness.workers.Worker` does in a process of this machine."""

    def __init__(self, launcher: Any) -> None:
        self.launcher = launcher
        self.thread: threading.Thread | None = None
        self.stopping = False

    def start(
        self, task: Any, config: DictConfig, context: HydraContext, seconds: float | None, claim: Claim | None
    ) -> Future[Any]:
        """Hand a point to the cluster; the future has its outcome and never raises."""
        from harness.nodes import Assignment

        future: Future[Any] = Future()
        if self.launcher.gone:
            future.set_result({"status": NOT_RUN, "error": self.launcher.gone})
            return future
        try:
            asked = self.launcher.resources(config)
        except MISTAKES as error:
            future.set_result(_failed(explain(error)))
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
        outcome: dict[str, Any] = {}
        for attempt in range(1 + self.launcher.retries):
            try:
                outcome = self._attempt(assignment, asked)
                break
            except NodeLost as error:
                times = f" for the {attempt + 1}. time" if attempt else ""
                outcome = _failed(f"what worked on it was lost{times}: {error}")
                if self.stopping:
                    break
            except ClusterLost as error:
                self.launcher.gone = str(error)
                outcome = _failed(str(error))
                break
            except Exception as error:
                outcome = _failed(f"the cluster could not run it: {_sentence(error)}")
                break
        future.set_result(outcome)

    def _attempt(self, assignment: Any, asked: Resources) -> dict[str, Any]:
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
    """What the launchers of clusters share.

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
        """What a point asks for, by its own configuration: the keys of the launcher may depend on other choices.

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
            list(threads.map(ClusterWorker.stop, self.processes))  # type: ignore[arg-type]
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
                point.settle({"status": "failed", "error": reason})
        return [None] * min(self.workers or self.capacity(), len(points))

    def _skip(self, points: list[Point]) -> None:
        super()._skip(points)
        self._open_stores(points)

    def _open_stores(self, points: list[Point]) -> None:
        """Make what the points' runs will lie in, which many nodes would else make at the same moment."""
        from harness import tracking

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

    def _end(self, point: Point, outcome: dict[str, Any], lost: bool) -> None:
        """Settle a point that ran; what came back from a node with files of its own becomes its run directory here."""
        files = outcome.pop("files", {})
        lost = outcome.pop("lost", lost) or bool(files)
        if outcome["status"] == NOT_RUN:
            point.settle(outcome)
            return
        point.folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (point.folder / Path(name).name).write_bytes(content)
        super()._end(point, outcome, lost)


# --- Ray ------------------------------------------------------------------------------------------------------------


class RayWorker(ClusterWorker):
    """Follows a point as a task of Ray."""

    call: Any = None

    def _attempt(self, assignment: Any, asked: Resources) -> dict[str, Any]:
        import ray
        from ray import exceptions

        from harness.nodes import carry_out

        # A task that is lost is handed over again here: Ray would also do so with one that takes too much memory.
        remote = ray.remote(carry_out).options(
            num_cpus=asked.threads,
            num_gpus=asked.gpus,
            resources=dict(asked.others),
            max_retries=0,
            name=str(assignment.run_dir),
        )
        try:
            self.call = remote.remote(assignment, True)
            silent = 0
            while not ray.wait([self.call], timeout=POLL_SECONDS)[0]:
                silent = 0 if _answers(self.launcher.head) else silent + 1
                if silent == SILENCES:
                    raise ClusterLost(f"the Ray cluster at {self.launcher.head} was lost")
            return ray.get(self.call)
        except (exceptions.NodeDiedError, exceptions.WorkerCrashedError, exceptions.ObjectLostError) as error:
            raise NodeLost(_sentence(error)) from error
        except exceptions.OutOfMemoryError as error:
            return {**_failed(_sentence(error)), "status": "out_of_memory"}
        except exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error

    def _cancel(self, force: bool) -> None:
        import ray

        if self.call is not None:
            ray.cancel(self.call, force=force)


class RayLauncher(ClusterLauncher):
    """Runs points as tasks of a Ray cluster that is there already.

    Args:
        workers, threads, gpus, retries: See `ClusterLauncher`.
        address: HOST:PORT of the cluster's head, or auto for the one that this machine is part of.
        connect_seconds: How long the cluster has to take the sweep and its code in.
        resources: Custom resources of a point, name -> amount.
    """

    worker_class = RayWorker

    def __init__(
        self,
        address: str,
        connect_seconds: float,
        workers: int | None,
        threads: int,
        gpus: float | None,
        resources: DictConfig | None,
        retries: int,
    ) -> None:
        super().__init__(workers, threads, gpus, retries)
        self.address, self.connect_seconds = str(address), connect_seconds

    def connect(self) -> None:
        """Find the cluster and send it the code.

        Raises:
            ConfigError: Ray is not installed, or the cluster does not answer, or does not let the sweep in.
        """
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ModuleNotFoundError:
            raise ConfigError("hydra/launcher=ray needs Ray: pip install 'peft-harness[ray]'") from None
        given = f"hydra.launcher.address={self.address}"
        remedy = "start one (ray start --head), or use hydra/launcher=local"
        if self.address != "auto":
            host, _, port = self.address.rpartition(":")
            if not host or not port.isdigit():
                raise ConfigError(f"{given}: HOST:PORT of a Ray cluster's head is needed, or auto")
            if not _answers(self.address):
                raise ConfigError(f"{given}: no Ray cluster answers there; {remedy}")
        mistakes: list[Exception] = []

        def init() -> None:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    ray.init(
                        self.address,
                        runtime_env={"py_modules": [str(whole_package(Path(folder)))], "excludes": ["__pycache__"]},
                        logging_level=logging.ERROR,
                        log_to_driver=False,
                    )
            except Exception as error:
                mistakes.append(error)

        # Apart, for its limit, and since Ray would take the signals of the main thread for itself.
        thread = threading.Thread(target=init, daemon=True)
        thread.start()
        thread.join(self.connect_seconds)
        if mistakes or thread.is_alive():
            why = _sentence(mistakes[0]) if mistakes else f"it did not answer within {self.connect_seconds:g} s"
            raise ConfigError(f"{given}: the Ray cluster can't be used ({why}); {remedy}")
        self.head = ray.get_runtime_context().gcs_address

    def disconnect(self) -> None:
        import ray

        if not self.gone:  # else it would wait for an answer
            ray.shutdown()

    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)}

    def has_gpus(self) -> bool:
        return any(node.get("GPU") for node in self._nodes())

    def capacity(self) -> int:
        return max(1, sum(int(node.get("CPU", 0) // self.threads) for node in self._nodes()))

    def resources(self, config: DictConfig) -> Resources:
        asked = super().resources(config)
        wanted = {"CPU": asked.threads, "GPU": asked.gpus, **asked.others}
        nodes = self._nodes()
        if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            told = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)
            most = ", ".join(f"{max(n.get(name, 0) for n in nodes):g} {name}" for name, a in wanted.items() if a)
            raise ConfigError(f"the point asks for {told}, and no node of the Ray cluster has that (at most {most})")
        return asked

    def _gpus(self, device: str, slots: int) -> float:
        return super()._gpus(device, slots) / slots

    def _nodes(self) -> list[dict[str, float]]:
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def whole_package(folder: Path) -> Path:
    """The package with its conf/ inside, as nodes need it: what is installed, or a copy in `folder` of a clone's."""
    if conf_root() == PACKAGE:
        return PACKAGE
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(conf_root() / "conf", folder / PACKAGE.name / "conf")
    return folder / PACKAGE.name


# --- SLURM ----------------------------------------------------------------------------------------------------------


class SlurmWorker(ClusterWorker):
    """Follows a point as a job of SLURM."""

    job: Any = None

    def _attempt(self, assignment: Any, asked: Resources) -> dict[str, Any]:
        from submitit.core.utils import FailedJobError

        from harness.nodes import carry_out

        name = job_name(assignment)
        if self.launcher.queued_elsewhere(name):
            return {"status": TAKEN}  # a job of a sweep that was killed, or of another one, works on it
        job = self.job = self.launcher.submit(name, asked, assignment.seconds, carry_out, assignment)
        # Not job.done(): it asks SLURM's accounting about a job without a result, which not every site has.
        while not job.paths.result_pickle.exists() and not self.launcher.left_queue(job):
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
            return _failed(f"SLURM job {job.job_id}: {lines[-1] if lines else error}")
        state = self.launcher.state(job)
        told = f"SLURM job {job.job_id} ended as {state} without a result ({job.paths.stderr})"
        if state.startswith(NODE_STATES):
            raise NodeLost(told)
        return {**_failed(told), **({"status": "out_of_memory"} if state.startswith("OUT_OF_ME") else {})}

    def _cancel(self, force: bool) -> None:
        if self.job is not None:
            self.job.cancel(check=False)


class SlurmLauncher(ClusterLauncher):
    """Runs each point as a job of SLURM; the nodes share the file system, as submitit needs it.

    Args:
        workers, threads, gpus, retries: See `ClusterLauncher`.
        cluster: slurm, or local for processes of this machine in place of jobs.
        mem_gb, partition, account, qos, constraint: As of sbatch; null for the site's defaults.
        timeout_min: Wall time of a job; null: sweep.timeout_minutes and ten more, or a day.
        setup: Shell commands of a job before the point.
        additional_parameters: Further options of sbatch, name -> value.
    """

    worker_class = SlurmWorker

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
        logging.getLogger("submitit").setLevel(
            logging.ERROR
        )  # it warns of each question that accounting did not answer
        if self.cluster == "local":
            os.environ["PYTHONPATH"] = os.pathsep.join([*_code_path(), *_given_path()])
            return
        if self.cluster != "slurm":
            raise ConfigError(f"hydra.launcher.cluster={self.cluster}: {near_misses(self.cluster, ['local', 'slurm'])}")
        command = ["sinfo", "--noheader", "--format=%G", *([f"--partition={self.partition}"] if self.partition else [])]
        try:
            self.features = _told(command)
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

    def has_gpus(self) -> bool:
        return "gpu" in self.features

    def capacity(self) -> int:
        raise ConfigError("hydra.launcher.workers=null: a number of jobs in the queue at a time is needed")

    def submit(self, name: str, asked: Resources, seconds: float | None, *call: Any) -> Any:
        """Put a job into the queue; returns submitit's."""
        import submitit

        # Passwords in tracking.uri lie in the pickles there.
        folder = Path(self.config.hydra.sweep.dir).absolute() / "submitit"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        executor = submitit.AutoExecutor(folder, cluster=self.cluster)
        executor.update_parameters(**self.parameters(name, asked, seconds))
        with self.submitting:
            job = executor.submit(*call)
            self.own[str(job.job_id)] = time.monotonic()
        return job

    def parameters(self, name: str, asked: Resources, seconds: float | None) -> dict[str, Any]:
        """What submitit is told of a job."""
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
        """What SLURM says of a job that ended, with accounting or in the minutes after."""
        try:
            told = _told(["scontrol", "--oneliner", "show", "job", str(job.job_id)])
        except (OSError, subprocess.SubprocessError):
            told = ""
        found = re.search(r"\bJobState=(\w+)", told)
        return found[1] if found else str(job.state)

    def _queue(self) -> dict[str, str]:
        """The user's jobs that wait or run, identifier -> name, as they were a moment ago."""
        with self.submitting:
            if self.cluster == "slurm" and time.monotonic() - self.asked_last > QUEUE_SECONDS:
                self.asked_last = began = time.monotonic()
                with suppress(OSError, subprocess.SubprocessError):  # it is busy: the next answer will do
                    lines = _told(["squeue", "--me", "--noheader", "--format=%i %j"]).splitlines()
                    self.queue = {job: name for job, _, name in (line.strip().partition(" ") for line in lines)}
                    self.asked_at = began
            return self.queue


def job_name(assignment: Any) -> str:
    """The name of a point's job, the same each time it is handed over."""
    return f"harness-{assignment.claim.identity[:16] if assignment.claim else uuid.uuid4().hex[:16]}"


def _code_path() -> list[str]:
    """Where a node finds this package: an installed one finds itself."""
    return [] if conf_root() == PACKAGE else [str(conf_root())]


def _given_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in _code_path()]


def _path_setup() -> list[str]:
    return [f"export PYTHONPATH={shlex.quote(path)}${{PYTHONPATH:+:$PYTHONPATH}}" for path in _code_path()]


def _told(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True).stdout


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _failed(error: str) -> dict[str, Any]:
    """An outcome that the node recorded nothing of, as far as is known here."""
    return {"status": "failed", "error": error, "scores": {}, "lost": True}


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
