"""Sweeps past one machine: what is refused at once, what jobs ask for, and nodes that are lost."""

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from omegaconf import open_dict
from servers import free_port, server, stop
from toy_sweep import ToySweep, task

from harness.config.errors import ConfigError
from harness.config.sources import register_resolvers
from harness.sweep.launchers import cluster as clusters
from harness.sweep.launchers import node
from harness.sweep.launchers.ray import RayWorkers
from harness.sweep.launchers.settling import settle_run
from harness.sweep.launchers.slurm import SlurmWorkers
from harness.sweep.outcome import NOT_RUN, Ended, Outcome
from harness.sweep.points import Point
from harness.tracking.record import RESULT_FILE, RunRecord

SUPPORT = Path(__file__).parents[1] / "support"
SOURCE = SUPPORT.parents[1]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToySweep:
    # Jobs find the toy task by its module's name.
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    return ToySweep(tmp_path, monkeypatch)


# --- Refused at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "module", "sentence"),
    [
        ("ray", "ray", r"needs Ray: pip install 'peft-harness\[ray\]'"),
        ("submitit_slurm", "submitit", r"needs submitit: pip install 'peft-harness\[slurm\]'"),
    ],
)
def test_a_missing_extra_is_named(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch, choice: str, module: str, sentence: str
) -> None:
    """Without the engine one sentence says what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=sentence):
        toy.launch([["seed=0"]], f"hydra/launcher={choice}")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["hydra.launcher.address=127.0.0.1:PORT"], "no Ray cluster answers there; start one"),
        (["hydra.launcher.address=somewhere"], "HOST:PORT of a Ray cluster's head is needed, or auto"),
        (["hydra.launcher.retries=-1"], "hydra.launcher.retries=-1: a whole number from 0 is needed"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_that_cannot_be_used_is_refused_in_seconds(
    toy: ToySweep, settings: list[str], sentence: str
) -> None:
    """Nothing starts, and nobody waits for an answer that does not come."""
    pytest.importorskip("ray", reason="pip install 'peft-harness[ray]'")
    settings = [setting.replace("PORT", str(free_port())) for setting in settings]
    began = time.monotonic()
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        toy.launch([["seed=0"]], "hydra/launcher=ray", *settings)
    assert time.monotonic() - began < 20


def test_a_machine_without_slurm_is_refused(toy: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps are started where sinfo and sbatch work."""
    pytest.importorskip("submitit", reason="pip install 'peft-harness[slurm]'")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="there is no SLURM on this machine"):
        toy.launch([["seed=0"]], "hydra/launcher=submitit_slurm")
    with pytest.raises(ConfigError, match=r"launcher\.cluster=slum: did you mean slurm"):
        toy.launch([["seed=0"]], "hydra/launcher=submitit_slurm", "hydra.launcher.cluster=slum")


# --- What a node does -----------------------------------------------------------------------------------------------


@pytest.fixture
def assign(toy: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the assignment of a point; `sign` exists."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a node sets it
    (tmp_path / "sign").touch()

    def make(act: str, sign: str, seconds: float | None = None) -> node.Assignment:
        folder = tmp_path / "sweep" / "0"
        with toy.hydra([f"act={act}", f"+folder={folder}", "+wait=0"], task) as (context, config):
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = 0
            return node.Assignment(
                task, config, context, seconds, None, tmp_path, folder, tmp_path / sign, threads=1, gpus=0
            )

    return make


@pytest.mark.slow
def test_a_node_with_a_file_system_of_its_own_sends_the_files_back(assign: Any) -> None:
    """The record of a run travels with its outcome where the sweep's machine does not see the run directory."""
    here, elsewhere = (node.carry_out(assign("count", sign)) for sign in ("sign", "no sign"))
    assert here.outcome.status == elsewhere.outcome.status == "finished"
    assert here.files == {}
    assert {"console.log", "began", "ended"} <= set(elsewhere.files)


def test_what_a_node_sends_back_becomes_the_run_directory(toy: ToySweep, tmp_path: Path) -> None:
    """The launcher writes the files and takes the outcome from the record among them."""
    away = tmp_path / "away"
    away.mkdir()
    scores = {"primary_metric": "x", "validation": {"x": 0.75}}
    RunRecord("0" * 32, "finished", None, "i", {}, {}, scores=scores).write(away)
    here = Point(0, [], tmp_path / "here", began=time.time() - 5)
    files = {RESULT_FILE: (away / RESULT_FILE).read_bytes(), "../../steps.jsonl": b"{}"}
    settle_run(here, Ended(Outcome("failed", "its worker died"), lost=True, files=files))
    assert (here.result.status, here.result.scores["validation"]) == ("finished", {"x": 0.75})
    assert sorted(path.name for path in here.folder.iterdir()) == [RESULT_FILE, "steps.jsonl"]


def test_a_point_that_hangs_on_a_node_is_stopped_there(assign: Any) -> None:
    """The clock runs on the node: waiting for it does not count."""
    ended = node.carry_out(assign("hang", "sign", seconds=2))
    assert (ended.outcome.status, ended.lost) == ("failed", True)
    assert "took longer than sweep.timeout_minutes" in str(ended.outcome.error)


class Follower(clusters.ClusterWorker):
    """Follows points whose attempts end as a list says."""

    def __init__(self, ends: list[Any], retries: int) -> None:
        super().__init__(RayWorkers("auto", 30, None, 1, None, None, retries))
        self.ends = ends

    def attempt(self, assignment: Any, asked: clusters.Resources) -> Ended:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    def cancel(self, force: bool) -> None:
        """Nothing runs."""

    def end(self) -> Ended:
        future: Future[Any] = Future()
        self.follow(None, clusters.Resources(1, 0, {}), future)
        return future.result()


def test_a_point_whose_node_was_lost_is_handed_over_again() -> None:
    """As often as hydra.launcher.retries says, then it failed; another failure is not the node's."""
    lost, done = clusters.NodeLost("the node died"), Ended(Outcome("finished"))
    assert Follower([lost, lost, done], retries=2).end() == done
    twice = Follower([lost, lost], retries=1).end()
    assert twice.outcome.error == "what worked on it was lost (attempt 2): the node died"
    assert Follower([ValueError("no"), done], retries=2).end().outcome.status == "failed"
    stopped = Follower([lost, done], retries=2)
    stopped.stop()
    assert stopped.end().outcome.status == "failed"


def test_after_a_cluster_was_lost_nothing_more_is_handed_over(toy: ToySweep) -> None:
    """What ran then failed, what had not begun was not run, and has no record."""
    follower = Follower([clusters.ClusterLost("the Ray cluster was lost")], retries=2)
    assert follower.end().outcome.error == "the Ray cluster was lost"
    ended = follower.start(None, None, None, None, None).result()  # type: ignore[arg-type]
    assert ended == Ended(Outcome(NOT_RUN, "the Ray cluster was lost"))


# --- SLURM ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(toy: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the script that a point's job would have, on a SLURM whose nodes have GPUs."""
    submitit = pytest.importorskip("submitit", reason="pip install 'peft-harness[slurm]'")
    register_resolvers()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sinfo", "gpu:a100:4"), ("srun", ""), ("squeue", "7 harness-abc\n8 other")):
        (programs / name).write_text(f"#!/bin/sh\nprintf '{text}'\n")
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def script(told: list[str], *settings: str) -> str:
        from hydra.core.plugins import Plugins

        chosen = ["hydra/launcher=submitit_slurm", *settings]
        with toy.hydra(chosen, task) as (context, config):
            launcher: Any = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=task, config=config
            )
            workers = launcher.workers
            workers.connect()
            asked = workers.resources(context.config_loader.load_sweep_config(config, told))
            executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="slurm")
            executor.update_parameters(**workers.parameters("harness-abc", asked, 1800))
            return executor._executor._make_submission_file_text("run the point", "uid")

    return script


def test_a_job_asks_for_what_its_point_needs(slurm: Any) -> None:
    """A big point asks for a GPU, a small one for a core, in one sweep; sbatch can read the script."""
    by_method = "hydra.launcher.gpus='${by:${method.name},{wide: 1, narrow: 0}}'"
    site = ["hydra.launcher.partition=long", "hydra.launcher.mem_gb=24", "hydra.launcher.account=lab"]
    further = ["+hydra.launcher.additional_parameters.licenses=x", "hydra.launcher.setup=[module load cuda]"]
    big = slurm(["method=wide"], by_method, *site, *further)
    small = slurm(["method=narrow"], by_method, "hydra.launcher.threads=2")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", big, re.MULTILINE))
    expected = {"gpus-per-node": "1", "cpus-per-task": "1", "mem": "24GB", "partition": "long", "account": "lab"}
    expected |= {"licenses": "x", "job-name": "harness-abc", "nodes": "1", "time": "40"}
    assert options.items() >= expected.items()
    assert "module load cuda" in big.splitlines()
    assert f"export PYTHONPATH={SOURCE}" in big
    assert "gpus" not in small
    assert "--cpus-per-task=2" in small
    assert "partition" not in small
    assert subprocess.run(["bash", "-n"], input=big, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("told", "gpus"),
    [("train.device=cpu", None), ("train.device=cuda", "1"), ("train.device=auto", "1")],
)
def test_gpus_follow_from_the_device_unless_told(slurm: Any, told: str, gpus: str | None) -> None:
    """None on the CPU, one where cuda is asked for or there are GPUs."""
    found = re.search(r"--gpus-per-node=(\d+)", slurm([told]))
    assert (found and found[1]) == gpus


@pytest.mark.parametrize("value", ["gpus=-1", "gpus=some", "threads=0", "threads=1.5"])
def test_resources_that_make_no_sense_are_refused(slurm: Any, value: str) -> None:
    """One sentence with the key and what it was told."""
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{value}: a (positive whole )?number"):
        slurm([], f"hydra.launcher.{value}")


def test_a_job_of_a_sweep_that_was_killed_is_waited_for(slurm: Any) -> None:
    """A point that is in the queue already is not put there again; this sweep's own jobs do not count."""
    workers = SlurmWorkers("slurm", 1, 1, None, None, None, None, None, None, None, [], {}, 0)  # type: ignore[arg-type]
    assert workers.queued_elsewhere("harness-abc")
    assert not workers.queued_elsewhere("harness-abd")
    workers.own["7"] = time.monotonic()
    assert not workers.queued_elsewhere("harness-abc")


@pytest.mark.slow
def test_submitits_local_jobs_keep_the_guarantees(toy: ToySweep) -> None:
    """Points that raise or are killed fail alone, each as a job of its own, and leave their records."""
    pytest.importorskip("submitit", reason="pip install 'peft-harness[slurm]'")
    told = [["act=finish"], ["act=raise"], ["act=kill"]]
    settings = ["hydra/launcher=submitit_slurm", "hydra.launcher.cluster=local", "hydra.launcher.workers=2"]
    finished, raised, killed = toy.launch(told, *settings)
    assert (finished["status"], finished["scores"]["validation"]) == ("finished", {"accuracy": pytest.approx(0.15)})
    assert raised["error"] == "RuntimeError: no such luck"
    assert killed["error"] == "its worker process was killed by SIGKILL (perhaps the machine ran out of memory)"
    failed = {record.config["act"] for record in toy.sent if record.status == "failed"}
    assert failed == {"raise", "kill"}
    assert stat.S_IMODE((toy.folder / "sweep" / "submitit").stat().st_mode) == stat.S_IRWXU


# --- Ray ------------------------------------------------------------------------------------------------------------


class Cluster:
    """Two nodes of Ray on loopback, a core each."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self.stack, self.port = folder, stack, free_port()
        self.address = f"127.0.0.1:{self.port}"
        head = ["--head", f"--port={self.port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        self.head = self._start("head", *head, f"--temp-dir={folder}")
        self.second = self._start("second", f"--address={self.address}", "--node-ip-address=127.0.0.1")

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        # A slow machine has not the ports ready in time that Ray's parts would choose for themselves.
        parts = ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent")
        ports = [f"--{part}-port={free_port()}" for part in parts]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--block", *ports, *options]
        log = self.folder / f"{name}.log"
        paths = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": paths, "HARNESS_TOY": name}
        return self.stack.enter_context(
            server(
                [*command, "--object-store-memory=100000000"],
                log,
                lambda: "Ray runtime started" in text(log),
                1200,
                **settings,
            )
        )


def text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="pip install 'peft-harness[ray]'")
    # pytest's own folders have names too long for the sockets that Ray makes there.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, contextlib.ExitStack() as stack:
        yield Cluster(Path(folder), stack)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_on_ray_keeps_the_guarantees(
    cluster: Cluster, toy: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node of two is killed in mid-sweep, and everything still ends once.

    First `sweep.fail_fast` stops a point that is under way. Then a node is killed: its point runs again on the other,
    and points that die there harm none. Last a real run is done with the code that nodes were sent, and the second
    time skipped.
    """
    ray = ["hydra/launcher=ray", f"hydra.launcher.address={cluster.address}", "hydra.launcher.connect_seconds=600"]

    stopped = tmp_path / "stopped"
    stopped.mkdir()
    told = [["act=count", f"+folder={stopped}", "+wait=600"], ["act=raise_after", f"+folder={stopped}"]]
    outcomes = toy.launch(told, "sweep.fail_fast=true", *ray)
    assert [outcome["status"] for outcome in outcomes] == ["interrupted", "failed"]
    process = Path("/proc") / text(stopped / "began").split()[1]
    assert not process.exists()

    record = tmp_path / "record"
    record.mkdir()

    def kill_the_second_node() -> None:
        while " second" not in text(record / "began"):
            time.sleep(0.2)
        stop(cluster.second, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_second_node)
    killer.start()
    told = [["act=count", f"seed={seed}", f"+folder={record}", "+wait=10"] for seed in range(4)]
    told += [["act=kill"], ["act=raise"]]
    outcomes = toy.launch(told, f"hydra.sweep.dir={tmp_path}/second", *ray)
    killer.join()
    assert [outcome["status"] for outcome in outcomes] == [*["finished"] * 4, "failed", "failed"]
    assert "killed by SIGKILL" in outcomes[4]["error"]
    began, ended = ([line.split()[0] for line in text(record / name).splitlines()] for name in ("began", "ended"))
    assert sorted(ended) == ["0", "1", "2", "3"]
    assert sorted(Counter(began).values()) == [1, 1, 1, 2]

    short = ["train.max_steps=3", "task.max_train_rows=64", "forgetting.text=null", "train.device=cpu"]
    command = [sys.executable, "-m", "harness", "-m", "method=head", "seed=0", *short, *ray]
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    empty = tmp_path / "empty"
    empty.mkdir()
    for told_of in ("1 points: 1 finished", "1 points: 1 skipped"):
        real = subprocess.run(command, capture_output=True, text=True, cwd=empty)
        assert real.returncode == 0, real.stdout + real.stderr
        assert told_of in real.stdout
