"""`hydra/launcher=ray`: the points of a sweep as tasks of Ray.

Ray is imported where it is used: it does not have to be installed.
"""

import logging
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.config.errors import ConfigError
from harness.config.sources import PACKAGE, conf_root
from harness.sweep.launchers.cluster import (
    ClusterLost,
    ClusterWorker,
    ClusterWorkers,
    NodeLost,
    Resources,
    failed,
    sentence,
)
from harness.sweep.launchers.launcher import SweepLauncher
from harness.sweep.outcome import Ended
from harness.tracking.uri import CONNECT_SECONDS

# Names of the variables that go with a point to a node begin so.
ENVIRONMENT = ("HARNESS_", "HF_", "MLFLOW_")
# How often a point is looked at, and how many times in a row the cluster may be silent then.
POLL_SECONDS, SILENCES = 5, 3


class RayWorker(ClusterWorker):
    """Follows a point as a task of Ray."""

    workers: "RayWorkers"
    call: Any = None

    def attempt(self, assignment: Any, asked: Resources) -> Ended:
        import ray
        from ray import exceptions

        from harness.sweep.launchers.node import carry_out

        # A task that is lost is handed over again here: Ray would also do so with one that takes too much memory.
        remote: Any = ray.remote(carry_out).options(
            num_cpus=asked.threads,
            num_gpus=asked.gpus,
            resources=dict(asked.others),
            max_retries=0,
            name=str(assignment.run_dir),
        )
        try:
            # Without its head Ray waits a minute and then ends the sweep's process, with no table.
            if not _answers(self.workers.head):
                raise ClusterLost(f"the Ray cluster at {self.workers.head} was lost")
            self.call = remote.remote(assignment, True)
            silent = 0
            while not ray.wait([self.call], timeout=POLL_SECONDS)[0]:
                silent = 0 if _answers(self.workers.head) else silent + 1
                if silent == SILENCES:
                    raise ClusterLost(f"the Ray cluster at {self.workers.head} was lost")
            ended: Ended = ray.get(self.call)
            return ended
        except (exceptions.NodeDiedError, exceptions.WorkerCrashedError, exceptions.ObjectLostError) as error:
            raise NodeLost(sentence(error)) from error
        except exceptions.OutOfMemoryError as error:
            return failed(sentence(error), "out_of_memory")
        except exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error

    def cancel(self, force: bool) -> None:
        import ray

        if self.call is not None:
            ray.cancel(self.call, force=force)


class RayWorkers(ClusterWorkers):
    """Workers that hand points as tasks to a Ray cluster that is there already.

    Args:
        workers, threads, gpus, retries: See `ClusterWorkers`.
        address: HOST:PORT of the cluster's head, or auto for the one that this machine is part of.
        connect_seconds: How long the cluster has to take the sweep and its code in.
        resources: Custom resources of a point, name -> amount, which its own configuration decides.
    """

    worker = RayWorker

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
            why = sentence(mistakes[0]) if mistakes else f"it did not answer within {self.connect_seconds:g} s"
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
            wish = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)
            most = ", ".join(f"{max(n.get(name, 0) for n in nodes):g} {name}" for name, a in wanted.items() if a)
            raise ConfigError(f"the point asks for {wish}, and no node of the Ray cluster has that (at most {most})")
        return asked

    def gpus_for(self, device: str, slots: int) -> float:
        """None or one, or the part of one that each of its slots is."""
        return super().gpus_for(device, slots) / slots

    def _nodes(self) -> list[dict[str, float]]:
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class RayLauncher(SweepLauncher):
    """Runs points as tasks of a Ray cluster; conf/hydra/launcher/ray.yaml explains each setting."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(RayWorkers(**settings))


def whole_package(folder: Path) -> Path:
    """The package with its conf/ inside, as nodes need it: what is installed, or a copy in `folder` of a clone's."""
    if conf_root() == PACKAGE:
        return PACKAGE
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(conf_root() / "conf", folder / PACKAGE.name / "conf")
    return folder / PACKAGE.name


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
