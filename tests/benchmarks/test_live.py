"""Watching a run costs less than a hundredth of its time."""

import time
from pathlib import Path
from typing import Any

import pytest
from run_directories import SampleRun, new_store

from harness.tracking import live

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SECONDS, MOST = 90, 0.01


def test_a_watched_run_pays_little_for_it(tmp_path: Path, capsys: Any) -> None:
    """Processor time of the thread that feeds its page, against the run's own time, with ten lines a second."""
    page = live.LiveRun(SampleRun().record(0), new_store(tmp_path), "tests", 1000)
    began = time.monotonic()
    step = 0
    while time.monotonic() - began < SECONDS:
        step += 1
        page.line(
            {"step": step, "loss": 1 / step, "learning_rate": 1e-3, "tokens_per_second": 1e3, "train_seconds": step}
        )
        time.sleep(0.1)
    share = page.seconds / (time.monotonic() - began)
    page.close()
    with capsys.disabled():
        print(f"\nwatching: {page.seconds:.2f} s of processor time for {page.sent} lines in {SECONDS} s, {share:.2%}")
    assert page.sent > 0.8 * step
    assert share < MOST
