"""Two runs: what differs, and what that made of the same examples."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_directories import write_run

from harness.config.errors import ConfigError
from harness.report.cells import Table
from harness.report.side_by_side import find_runs, tables
from harness.tracking.record import PREDICTIONS_FILE

ROWS = 100


def run_dir(folder: Path, wrong: range, **options: object) -> Path:
    """A run that is wrong on these of a hundred rows."""
    made = write_run(folder, score=1 - len(wrong) / ROWS, **options)  # type: ignore[arg-type]
    labels = np.zeros(ROWS, dtype=int)
    predictions = labels.copy()
    predictions[wrong] = 1
    table = pd.DataFrame({"split": "validation", "idx": range(ROWS), "label": labels, "prediction": predictions})
    table.to_parquet(made / PREDICTIONS_FILE, index=False)
    return made


def shown(*folders: Path) -> tuple[str, dict[str, Table], list[str]]:
    lead, found, notes = tables(*find_runs([str(folder) for folder in folders], "sqlite:///none.db"))
    return lead, {table.title: table for table in found}, notes


def test_what_differs_and_what_it_costs(tmp_path: Path) -> None:
    """Settings that differ, the paired tests on the same rows, and costs with their ratio."""
    one = run_dir(tmp_path, range(10), options={"rank": 8})
    other = run_dir(tmp_path, range(5, 55), options={"rank": 16}, cost={"train_seconds": 25.0})
    _, found, notes = shown(one, other)
    assert found["Configuration"].rows == [("method.rank", "8", "16")]
    assert ("validation.accuracy", "0.9000", "0.5000", "-0.4000") in found["Scores"].rows
    assert ("train_seconds", "10", "25", "2.5") in found["Costs"].rows
    assert ("adapter_file_bytes", "4.1 kB", "4.1 kB", "1") in found["Costs"].rows
    bootstrap, mcnemar = found["On the same examples"].rows
    assert (bootstrap[1], bootstrap[-1]) == ("+0.4000", "A better")
    # 45 that only the first has right, 5 that only the other has.
    assert (mcnemar[1], mcnemar[3]) == ("45 - 5", "<0.0001")
    assert notes == []


def test_equal_runs_show_no_difference(tmp_path: Path) -> None:
    """The same configuration and answers: said so, and no detectable difference."""
    lead, found, _ = shown(*(run_dir(tmp_path, range(10)) for _ in range(2)))
    assert lead.endswith("Their configurations are the same.")
    assert "Configuration" not in found
    _, difference, ends, _, verdict = found["On the same examples"].rows[0]
    assert (difference, verdict) == ("+0.0000", "no detectable difference")
    # A hundred equal answers do not make the next ones equal.
    assert ends == "[-0.0197, 0.0197]"


def test_runs_on_different_tasks_are_not_paired(tmp_path: Path) -> None:
    """The note says what differs; scores and costs stand all the same."""
    _, found, notes = shown(run_dir(tmp_path, range(10)), run_dir(tmp_path, range(10), task="micro/entailment"))
    assert notes == ["No paired test: the runs differ in task, micro/sentiment and micro/entailment."]
    assert {"Scores", "Costs"} <= set(found)


def test_a_run_that_failed_has_no_paired_test(tmp_path: Path) -> None:
    """What it lacks is a dash."""
    _, found, notes = shown(run_dir(tmp_path, range(10)), write_run(tmp_path, status="failed", error="no memory"))
    assert "primary metric" in notes[0] or "on the same split" in notes[0]
    assert ("validation.accuracy", "0.9000", "–", "–") in found["Scores"].rows


def test_a_damaged_run_is_a_mistake_of_one_sentence(tmp_path: Path) -> None:
    """It is named with the reason."""
    folder = write_run(tmp_path)
    (folder / "result.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"result.json is damaged, it holds a list"):
        find_runs([str(folder)], "sqlite:///none.db")
