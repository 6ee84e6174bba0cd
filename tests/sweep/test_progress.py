"""Display of a sweep while it runs: counts, the time left from what was measured, the best score so far."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from harness.sweep.outcome import Outcome
from harness.sweep.points import Point
from harness.sweep.progress import Durations, Progress
from harness.tracking.record import LIVE_FILE


def point(number: int, method: str = "lora", task: str = "glue/rte", **outcome: Any) -> Point:
    settings = {
        "method": {"name": method},
        "task": {"name": task},
        "model": {"name": "minilm"},
        "sweep": {"stage": "run"},
    }
    made = Point(number, [f"method={method}", f"seed={number}"], Path(), settings=settings)
    if outcome:
        made.settle(Outcome(**outcome))
    return made


def finished(number: int, score: float, metric: str = "accuracy", **more: Any) -> Point:
    scores = {"primary_metric": metric, "validation": {metric: score}}
    return point(number, status="finished", scores=scores, **more)


def test_durations_are_told_apart_by_kind() -> None:
    """This sweep's count before the store's, and an unknown kind is like the mean."""
    durations = Durations()
    slow, fast, new = (point(0, method).combination for method in ("full", "head", "ia3"))
    assert durations.of_all([slow]) is None
    durations.earlier = {slow: [100.0, 300.0, 120.0]}
    assert durations.of_all([slow]) == 120
    assert durations.of_all([slow, new]) is None
    durations.measured[slow] += [10.0]
    durations.measured[fast] += [2.0, 4.0]
    assert durations.of(slow) == 10
    assert durations.of_all([slow, fast, new]) == pytest.approx(10 + 3 + 16 / 3)


def test_the_line_says_what_runs_what_ended_what_is_left_and_the_best() -> None:
    """The time left follows from the points that ended and the number of workers."""
    durations = Durations()
    progress = Progress(6, 2, durations)
    for one in (
        finished(1, 0.61, seconds=8.0),
        finished(2, 0.72, skipped=True),
        finished(3, 0.70, seconds=12.0),
        point(4, status="failed", error="no luck"),
    ):
        progress.ended(one)
    line = progress.line([], [point(5), point(6)])
    assert line == "0 running, 1 failed, 2 finished, 1 skipped, 10.0 s left"
    assert progress.best_lines() == ["best glue/rte accuracy 0.7200 method=lora seed=2"]


def test_each_task_has_its_best() -> None:
    """That of the last improvement comes first."""
    progress = Progress(4, 1, Durations())
    for one in (
        finished(1, 0.6),
        finished(2, 0.9, task="glue/mrpc"),
        finished(3, 0.7),
        finished(4, 0.8, task="glue/mrpc"),
    ):
        progress.ended(one)
    assert progress.best_lines() == [
        "best glue/rte accuracy 0.7000 method=lora seed=3",
        "best glue/mrpc accuracy 0.9000 method=lora seed=2",
    ]


def test_a_running_point_says_where_it_stands(tmp_path: Path) -> None:
    """From the file in its folder; one of an earlier start, or half of one, says nothing."""
    progress = Progress(2, 2, Durations())
    running, other = point(1), point(2)
    running.folder, other.folder, running.began, other.began = tmp_path / "1", tmp_path / "2", 1.0, time.time() + 60
    for one in (running, other):
        one.folder.mkdir()
        state = {"steps": 300, "step": 120, "loss": 0.4321, "development": 0.81, "primary_metric": "accuracy"}
        (one.folder / LIVE_FILE).write_text(json.dumps(state))
    assert progress.running_lines([running, other]) == [
        "method=lora seed=1: step 120 of 300, loss 0.4321, accuracy 0.8100 (dev)",
        "method=lora seed=2: starting",
    ]
    (running.folder / LIVE_FILE).write_text('{"steps": 300, "st')
    assert progress.running_lines([running] * 10) == ["method=lora seed=1: starting"] * 8 + ["and 2 more"]


def test_the_best_is_the_lowest_where_lower_is_better() -> None:
    """Of two perplexities the smaller one is shown."""
    progress = Progress(2, 1, Durations())
    progress.ended(finished(1, 3.0, "perplexity"))
    progress.ended(finished(2, 4.0, "perplexity"))
    assert progress.best_lines() == ["best glue/rte perplexity 3.0000 method=lora seed=1"]


def test_elsewhere_than_on_a_terminal_there_is_a_line_a_point(capsys: pytest.CaptureFixture[str]) -> None:
    """Which says whose score is the best so far; a skipped point has none."""
    progress = Progress(3, 1, Durations())
    for one in (finished(1, 0.6, seconds=8.0), finished(2, 0.5, seconds=8.0), finished(3, 0.9, skipped=True)):
        progress.ended(one)
    assert capsys.readouterr().err.splitlines() == [
        "[1/3] method=lora seed=1: finished 0.6000 (best so far) 8.0 s",
        "[2/3] method=lora seed=2: finished 0.5000 8.0 s",
    ]
