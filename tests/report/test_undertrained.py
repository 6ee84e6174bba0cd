"""Methods that would have needed more steps are marked by rule, and those that had enough are not."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from run_directories import store_of, write_run

from harness.report import curves, report, scores
from harness.report.definitions import Definition
from harness.report.undertrained import AT_MAJORITY, STILL_RISES, still_rises, undertrained

STEPS = [10, 20, 30, 40, 50, 60]
RISING = [0.5, 0.6, 0.65, 0.7, 0.75, 0.8]
PLATEAU = [0.5, 0.7, 0.79, 0.8, 0.799, 0.805]
STOPPED_EARLY = [0.5, 0.6, 0.7, 0.8, 0.79, 0.79]
# Jumped late, but was stopped after the two evaluations that gained nothing.
LATE_JUMP = [0.5, 0.5, 0.5, 0.8, 0.8, 0.8]


@pytest.mark.parametrize(
    ("line", "higher", "rises"),
    [
        (RISING, True, True),
        (PLATEAU, True, False),
        (STOPPED_EARLY, True, False),
        (LATE_JUMP, True, False),
        ([0.5, 0.8], True, False),
        ([0.8] * 6, True, False),
        ([0.80, 0.80, 0.80, 0.80, 0.80, 0.811], True, True),
        ([0.80, 0.80, 0.80, 0.80, 0.80, 0.809], True, False),
        # A perplexity that falls, and one that fell by less than a hundredth of itself.
        ([60, 50, 40, 35, 30, 25], False, True),
        ([60, 50, 40, 35, 34.9, 34.8], False, False),
        (RISING, False, False),
    ],
)
def test_a_run_still_rises_where_its_last_evaluation_beats_its_first_two_thirds(line, higher, rises) -> None:
    """By more than a hundredth; not where it was stopped early or came to a plateau."""
    assert still_rises(STEPS[: len(line)], line, higher) is rises


def evaluations(line: list[float]) -> list[dict[str, Any]]:
    return [{"step": step, "development.accuracy": value} for step, value in zip(STEPS, line, strict=True)]


def marks(folder: Path, *runs: Path) -> dict[str, str]:
    """Configuration -> why it is undertrained."""
    uri = store_of(folder, *runs)
    frame = scores.load(uri)
    found = undertrained(frame, scores.summary(frame), curves.load(uri))
    return dict(zip(found["configuration"], found["undertrained"], strict=True))


def tuned(folder: Path, method: str, trials: dict[float, list[float]], final: list[float]) -> list[Path]:
    """Trials with their curves, and two final runs at the rate of the best that have another curve."""
    best = max(trials, key=lambda rate: max(trials[rate]))
    found = [
        write_run(
            folder, method=method, stage="tune", learning_rate=rate, development=max(line), steps=evaluations(line)
        )
        for rate, line in trials.items()
    ]
    return found + [
        write_run(folder, method=method, stage="final", learning_rate=best, seed=seed, steps=evaluations(final))
        for seed in (1, 2)
    ]


@pytest.mark.slow
def test_the_trial_that_chose_decides_and_no_other(tmp_path: Path) -> None:
    """A worse trial that still rises is not the method's fault, nor does a final run that happens to rise mark it."""
    rising, flat = [score - 0.1 for score in RISING], PLATEAU
    runs = tuned(tmp_path / "runs", "lora", {1e-4: RISING, 1e-3: [score - 0.2 for score in PLATEAU]}, PLATEAU)
    runs += tuned(tmp_path / "runs", "houlsby", {1e-4: rising, 1e-3: flat}, RISING)
    runs += tuned(tmp_path / "runs", "bitfit", {1e-4: rising, 1e-3: STOPPED_EARLY}, PLATEAU)
    found = marks(tmp_path, *runs)
    assert found["lora"] == STILL_RISES
    assert found["houlsby"] == found["bitfit"] == ""


def test_without_trials_the_best_run_decides(tmp_path: Path) -> None:
    """Of a plain sweep: the run of the best development score."""
    folder = tmp_path / "runs"
    runs = [write_run(folder, seed=0, development=0.8, steps=evaluations(RISING))]
    runs += [write_run(folder, seed=1, development=0.7, steps=evaluations(PLATEAU))]
    runs += [write_run(folder, method="full", seed=0, development=0.7, steps=evaluations(RISING))]
    runs += [write_run(folder, method="full", seed=1, development=0.8, steps=evaluations(PLATEAU))]
    assert marks(tmp_path, *runs) == {"lora": STILL_RISES, "full": "", scores.MAJORITY: ""}


def test_one_run_at_the_majority_marks_its_method(tmp_path: Path) -> None:
    """Two seeds of which one learned nothing: the other's score does not hide it. A diverged run is another matter."""
    folder = tmp_path / "runs"
    runs = [write_run(folder, method="bitfit", seed=seed, score=score) for seed, score in enumerate((0.8, 0.5))]
    runs += [write_run(folder, method="ia3", score=0.9), write_run(folder, method="ia3", seed=1, status="diverged")]
    assert marks(tmp_path, *runs) == {"bitfit": AT_MAJORITY, "ia3": "", scores.MAJORITY: ""}


@pytest.mark.slow
def test_a_report_marks_the_row_and_says_what_that_means(tmp_path: Path) -> None:
    """In the table's remarks, in the frame, and as a note; without such a row there is no note."""
    runs = tuned(tmp_path / "runs", "lora", {1e-4: RISING, 1e-3: [score - 0.2 for score in PLATEAU]}, PLATEAU)
    runs += tuned(tmp_path / "runs", "full", {1e-4: PLATEAU, 1e-3: [score - 0.2 for score in PLATEAU]}, PLATEAU)
    uri = store_of(tmp_path, *runs)
    frame = scores.load(uri)
    built = report.build(frame, Definition(), curves.load(uri))
    [table] = [one for one in built.tables if one.title == "micro/sentiment"]
    shown = {cells[0]: cells[-1] for cells in table.rows}
    assert shown["lora"] == f"undertrained ({STILL_RISES})"
    assert shown["full"] == ""
    assert any(note.startswith("Undertrained: ") for note in built.notes)
    assert isinstance(built.frames["scores"], pd.DataFrame)
    assert (built.frames["scores"]["undertrained"] == STILL_RISES).sum() == 1
    without = report.build(frame[frame["method"] == "full"], Definition(), curves.load(uri))
    assert not any(note.startswith("Undertrained: ") for note in without.notes)
