"""Runs of many machines in one store: MLflow's server on PostgreSQL."""

import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded_sweep import end_started, start
from run_directories import write_run
from servers import answers, free_port, server

from harness import tracking

pytestmark = pytest.mark.slow

WRITERS = 50
RUNS = 1 + WRITERS
# Lines by step, and how many of them are there before the run has ended.
STEPS, LIVE = 20, 8
# What MLflow deletes, its database keeps.
ACTIVE = "lifecycle_stage = 'active'"
UNENDED = f"SELECT count(*) FROM runs WHERE status = 'RUNNING' AND {ACTIVE}"
# Fifty processes that share what sending a first run imported. Each takes the lock of its own machine, as far as it can
# tell.
SCRIPT = f"""
import sys, tempfile, time
from multiprocessing import get_context
from pathlib import Path
from harness import tracking
from harness.tracking import live
from harness.tracking.record import RunRecord

live.FIRST_BEAT_SECONDS = 0.01

def write(folder, uri, together):
    tempfile.tempdir = tempfile.mkdtemp(dir=folder)
    together.wait()
    page = live.LiveRun(RunRecord.read(Path(folder)), uri, "shared", {STEPS})
    for step in range(1, {LIVE} + 1):
        page.line({{"step": step, "loss": 1 / step}})
    while not page.sent:
        time.sleep(0.1)
    page.close()
    tracking.send(folder, uri, "shared")

if __name__ == "__main__":
    uri, first, *folders = sys.argv[1:]
    tracking.send(Path(first), uri, "shared")
    context = get_context("fork")
    together = context.Barrier({WRITERS})
    processes = [context.Process(target=write, args=(Path(folder), uri, together)) for folder in folders]
    [process.start() for process in processes]
    [process.join() for process in processes]
    sys.exit(sum(process.exitcode != 0 for process in processes))
"""


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """No sweep outlives its test."""
    yield
    end_started()


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    if not found:
        pytest.skip("there is no PostgreSQL; apt-get install postgresql brings it")
    return found[0].parent


@pytest.fixture(scope="module")
def database(programs: Path) -> Iterator[tuple[str, str]]:
    """Host, port and database of a PostgreSQL of its own, and the password of its user mlflow."""
    pytest.importorskip("psycopg", reason="pip install 'peft-harness[postgres]' brings the driver of PostgreSQL")
    # It refuses to run as root, and another user can't enter pytest's folders.
    user = "postgres" if os.getuid() == 0 else None
    folder, port, password = Path(tempfile.mkdtemp(prefix="harness-postgres-")), free_port(), secrets.token_urlsafe()
    (folder / "password").write_text(password)
    if user:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    data = folder / "data"
    options = ["--auth=scram-sha-256", "--username=mlflow", f"--pwfile={folder / 'password'}", "--no-sync"]

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), f"--pgdata={data}", *arguments],
            user=user,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    try:
        run("initdb", "--encoding=UTF8", "--locale=C", *options)
        place = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder}"
        run("pg_ctl", "start", "--wait", "--timeout=300", f"--log={folder / 'log'}", "-o", place)
        yield f"127.0.0.1:{port}/postgres", password
    finally:
        if (data / "postmaster.pid").exists():
            run("pg_ctl", "stop", "--wait", "--mode=fast")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def store(database: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of MLflow's server on that database."""
    place, password = database
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    command = [sys.executable, "-m", "mlflow", "server", *options, "--artifacts-destination", str(folder / "artifacts")]
    settings = {
        # Not among the arguments, which everyone on the machine can read.
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://mlflow:{password}@{place}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with server(command, folder / "log", lambda: answers(port), **settings):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.timeout(1500)
def test_fifty_writers_at_once_lose_nothing_and_write_nothing_twice(
    store: str, database: tuple[str, str], tmp_path: Path
) -> None:
    """Fifty processes show a run each in the same moment, and send it: each is there whole, once, in one sweep."""
    import psycopg
    from mlflow import MlflowClient

    steps = [{"step": step, "loss": 1 / step} for step in range(1, STEPS + 1)]
    folders = [write_run(tmp_path / "runs", seed=seed, score=seed / 100, steps=steps) for seed in range(RUNS)]
    tracking.create(store, "shared", "grid")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, store, *map(str, folders)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]

    runs = tracking.read_runs(store, "grid")
    assert sorted(run["metrics"]["validation.accuracy"] for run in runs) == [seed / 100 for seed in range(RUNS)]
    assert all(int(run["params"]["seed"]) == round(100 * run["metrics"]["validation.accuracy"]) for run in runs)
    client = MlflowClient(store)
    for run, folder in zip(sorted(runs, key=lambda run: int(run["params"]["seed"])), folders, strict=True):
        got = client.download_artifacts(run["mlflow_run_id"], "result.json", str(tmp_path))
        assert Path(got).read_bytes() == (folder / "result.json").read_bytes()
        assert run["artifact_uri"].startswith("mlflow-artifacts:")
    assert tracking.send(folders[0], store, "shared") in {run["mlflow_run_id"] for run in runs}
    place, password = database
    with psycopg.connect(f"postgresql://mlflow:{password}@{place}") as connection:
        # A server that answers too late is asked again, and makes a run twice: the second is deleted by who sends it.
        runs_there = f"SELECT count(*) FROM runs WHERE {ACTIVE}"
        counts = f"SELECT ({runs_there}), (SELECT count(*) FROM metrics WHERE key = 'train.loss')"
        assert connection.execute(counts).fetchone() == (RUNS + 1, RUNS * len(steps))
        assert connection.execute(UNENDED).fetchone() == (0,)


def test_servers_end_with_a_test_that_fails(tmp_path: Path) -> None:
    """What the fixtures above start is stopped by its own process id, whatever happens."""
    port, started = free_port(), []
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]

    def fail() -> None:
        with server(command, tmp_path / "log", lambda: answers(port)) as process:
            started.append(process)
            raise RuntimeError("a test that fails")

    with pytest.raises(RuntimeError, match="a test that fails"):
        fail()
    assert started[0].returncode == -signal.SIGTERM
    assert not answers(port)


@pytest.mark.timeout(1800)
def test_a_sweep_killed_at_any_moment_leaves_a_server_whole(
    store: str, database: tuple[str, str], tmp_path: Path
) -> None:
    """Workers and whole sweeps, with pages of runs that train: each point ends once, and nothing is left running."""
    import psycopg

    points, order = 6, random.Random(20261126)
    sweep = [f"seed=range(0,{points})", "seconds=2", f"tracking.uri={store}", "sweep.name=killed"]
    for _ in range(5):
        started = start(tmp_path / "sweep", *sweep)
        seen = len(tracking.running(store, "killed"))
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and started.poll() is None and len(tracking.running(store, "killed")) <= seen:
            time.sleep(0.1)
        time.sleep(order.uniform(0, 3))
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert start(tmp_path / "sweep", *sweep).wait(600) == 0, (tmp_path / "sweep/output.txt").read_text()[-2000:]
    runs = [run for run in tracking.read_runs(store, "killed") if run["tags"]["status"] == "finished"]
    assert sorted(int(run["params"]["seed"]) for run in runs) == list(range(points))
    assert tracking.running(store, "killed") == []
    place, password = database
    with psycopg.connect(f"postgresql://mlflow:{password}@{place}") as connection:
        assert connection.execute(UNENDED).fetchone() == (0,)
