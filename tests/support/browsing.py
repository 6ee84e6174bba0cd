"""Chromium, and MLflow's pages on a store: for the tests of both, and for the pictures in the README."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from run_directories import new_store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()
# Importing MLflow's server takes a second or, on a machine that does other things, minutes.
START_SECONDS, SHOW_SECONDS = 600, 240


@contextmanager
def chromium() -> Iterator[Any]:
    """Open Debian's Chromium, driven by playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(command: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """Run a program that serves MLflow on a port of this machine; yields its address, and ends all it started."""
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    # What runs judges and other jobs; no test needs it, and it takes as long to start as the server.
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=written, stderr=written, env=environment, start_new_session=True
        )
        try:
            end = time.monotonic() + START_SECONDS
            while not _answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


@contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """Run MLflow's server, which keeps its database and the artifacts in a folder; yields its address."""
    uri, port = new_store(folder), free_port()
    (folder / "mlflow.db").rename(folder / "server.db")
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri.replace("mlflow.db", "server.db")]
    command += ["--artifacts-destination", str(folder / "kept")]
    with serving(command, port, folder / "server.log") as address:
        yield address


def _answers(address: str) -> bool:
    try:
        urlopen(address, timeout=30).close()
    except OSError:
        return False
    return True
