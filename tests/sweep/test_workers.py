"""Worker processes themselves, apart from the sweeps that they serve."""

import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest
from pebble import ProcessExpired

from harness.sweep.launchers.workers import WorkerProcess


def draws_a_bar_and_dies() -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": ["a", "b"]}).map(lambda row: {"length": len(row["text"])})
    os.kill(os.getpid(), signal.SIGKILL)


def kill_one() -> None:
    worker = WorkerProcess(threads=1)
    with pytest.raises((ProcessExpired, BrokenProcessPool)):
        worker.begin().schedule(draws_a_bar_and_dies).result()
    worker.stop()


def test_a_worker_that_is_killed_leaves_nothing_to_clean_up() -> None:
    told = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    assert "leaked" not in told.stderr


if __name__ == "__main__":
    kill_one()
