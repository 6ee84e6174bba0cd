"""Watching a run costs less than a hundredth of its time."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from run_directories import SampleRun, new_store, write_run

from harness import tracking
from harness.tracking import live
from harness.tracking.record import STEPS_FILE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SECONDS, LINES_A_SECOND, MOST = 45, 5, 0.01


def line(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "learning_rate": 1e-3, "tokens_per_second": 1e3, "train_seconds": step / 5}


def send(run_dir: Path, uri: str, steps: int) -> float:
    """Send a run with so many lines by step; the processor time that it took."""
    (run_dir / STEPS_FILE).write_text("".join(json.dumps(line(step)) + "\n" for step in range(1, steps + 1)))
    began = time.process_time()
    tracking.send(run_dir, uri, "tests")
    return time.process_time() - began


def test_a_watched_run_pays_little_for_it(tmp_path: Path, capsys: Any) -> None:
    """The processor time of its page and of its sending, less that of sending one that was not watched."""
    uri, steps = new_store(tmp_path), SECONDS * LINES_A_SECOND
    send(write_run(tmp_path / "first"), uri, 1)  # imports
    unwatched = send(write_run(tmp_path / "unwatched"), uri, steps)
    run_dir = tmp_path / "watched"
    run_dir.mkdir()
    record = SampleRun().record(9_999)
    record.write(run_dir)
    page = live.LiveRun(record, uri, "tests", steps)
    for step in range(1, steps + 1):
        page.line(line(step))
        time.sleep(1 / LINES_A_SECOND)
    page.close()
    sent = send(run_dir, uri, steps)
    share = (page.seconds + sent - unwatched) / SECONDS
    with capsys.disabled():
        print(
            f"\nwatching a run of {SECONDS} s: {page.seconds:.2f} s of processor time for {page.sent} of {steps} "
            f"lines, {sent:.2f} s to send the rest, {unwatched:.2f} s to send one unwatched: {share:.2%} more"
        )
    assert page.sent > steps / 2
    assert share < MOST
