"""What stored predictions say of methods, and what is said where there are none."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_directories import store_of, write_run

from harness.report import pairwise, scores, tables
from harness.report.runs import load_runs
from harness.tracking.record import PREDICTIONS_FILE

ROWS = 200


def run_with(folder: Path, right: Sequence[bool] | np.ndarray, split: str = "validation", **options: object) -> Path:
    """A run whose predictions are right on these rows; its score is their share."""
    run_dir = write_run(folder, score=float(np.mean(right)), **options)  # type: ignore[arg-type]
    labels = np.arange(len(right)) % 2
    table = {
        "split": split,
        "idx": range(len(right)),
        "label": labels,
        "prediction": np.where(right, labels, 1 - labels),
    }
    pd.DataFrame(table).to_parquet(run_dir / PREDICTIONS_FILE, index=False)
    return run_dir


def first_right(count: int) -> np.ndarray:
    return np.arange(ROWS) < count


def compared(folder: Path) -> tuple[pd.DataFrame, list[pairwise.Pairwise]]:
    frame = load_runs(folder)
    summary = scores.summary(frame)
    found = pairwise.compare_tasks(frame, summary)
    return pairwise.annotated(summary, found), found


@pytest.fixture
def three_methods(tmp_path: Path) -> Path:
    """Two runs each: full and lora one example apart, head right on half as many."""
    for method, counts in (("full", (180, 182)), ("lora", (179, 181)), ("head", (100, 102))):
        for seed, count in enumerate(counts):
            run_with(tmp_path, first_right(count), method=method, seed=seed)
    return tmp_path


def test_methods_share_a_letter_unless_told_apart(three_methods: Path) -> None:
    """One example is no difference, eighty of two hundred are; the best and its equals are marked."""
    summary, [found] = compared(three_methods)
    rows = summary.set_index("configuration")
    assert rows.loc[["full", "lora", "head"], "groups"].tolist() == ["a", "a", "b"]
    assert rows.loc[["full", "lora", "head"], "standing"].tolist() == [pairwise.BEST, pairwise.LEVEL, ""]
    assert (rows.loc["majority class", "groups"], found.rows, len(found.comparisons)) == ("", ROWS, 3)
    assert set(rows.loc[["full", "head"], "interval"]) == {"seeds and examples"}


def test_an_interval_over_examples_is_wider_than_over_seeds(three_methods: Path) -> None:
    """Other examples add to what other seeds would change."""
    frame = load_runs(three_methods)
    plain = scores.summary(frame).set_index("configuration").loc["lora"]
    both = compared(three_methods)[0].set_index("configuration").loc["lora"]
    assert both["low"] < plain["mean"] < both["high"]
    assert both["high"] - both["low"] != plain["high"] - plain["low"]


def test_the_tables_say_what_could_not_be_told(three_methods: Path) -> None:
    """The main table has intervals, letters and marks; the pairwise one stands against full fine-tuning."""
    summary, found = compared(three_methods)
    [table] = tables.score_tables(summary, found)
    groups, best = (table.columns.index(name) for name in ("groups", "best"))
    assert [(row[0], row[groups], row[best]) for row in table.rows[:3]] == [
        ("full", "a", "★"),
        ("lora", "a", "≈"),
        ("head", "b", ""),
    ]
    assert "Minimum detectable difference: 0.04" in table.caption
    [against] = tables.pair_tables(found)
    assert against.title == "micro/sentiment: against full"
    assert [(row[0], row[1], row[-1]) for row in against.rows] == [
        ("lora", "-0.0050", "no detectable difference"),
        ("head", "-0.4000", "worse"),
    ]


def test_a_run_without_predictions_is_not_compared(three_methods: Path) -> None:
    """Its method keeps its row without a letter, a note says why, and all intervals are over seeds."""
    write_run(three_methods, method="ia3", score=0.7)
    summary, [found] = compared(three_methods)
    rows = summary.set_index("configuration")
    assert (rows.loc["ia3", "groups"], rows.loc["full", "groups"]) == ("", "a")
    assert found.notes[0].startswith("Not compared: ia3 (it kept no predictions")
    assert set(rows["interval"]) == {"seeds"}


def test_predictions_that_contradict_the_record_are_not_compared(three_methods: Path) -> None:
    """A file that another run overwrote gives another score than the record has."""
    run = run_with(three_methods, first_right(150), method="ia3")
    run_with(three_methods, first_right(20), method="other").joinpath(PREDICTIONS_FILE).replace(run / PREDICTIONS_FILE)
    _, [found] = compared(three_methods)
    assert "Not compared: ia3 (its predictions give another score than its record)." in found.notes
    assert "ia3" not in found.groups


def test_runs_on_other_examples_are_not_compared(tmp_path: Path) -> None:
    """Nothing pairs with rows that the other run has not seen; both methods keep their scores."""
    run_with(tmp_path, first_right(150), method="full")
    run_with(tmp_path, first_right(150)[:100], method="lora")
    summary, [found] = compared(tmp_path)
    assert (found.comparisons, found.rows) == ((), 0)
    assert "different examples" in found.notes[0]
    assert summary["n"].tolist()[:2] == [1, 1]


def test_single_runs_are_compared_as_such(tmp_path: Path) -> None:
    """With one seed no interval is invented, and the comparison says that it is about these runs."""
    run_with(tmp_path, first_right(180), method="full")
    run_with(tmp_path, first_right(100), method="lora")
    summary, [found] = compared(tmp_path)
    [table] = tables.score_tables(summary, [found])
    assert table.rows[0][:5] == ("full", "0.9000", "n=1", "1", "n=1")
    assert found.groups == {"full": "a", "lora": "b"}
    assert found.notes[-1] == "Where a method has one run, its comparisons are about that run on other examples only."


def test_thousands_of_methods_are_cut_to_the_best_and_the_baseline(tmp_path: Path) -> None:
    """Pairs grow with the square: only so many of the best are compared, and full fine-tuning always."""
    run_with(tmp_path, first_right(10), method="full")
    for number in range(pairwise.MOST_METHODS + 2):
        run_with(tmp_path, first_right(100 + number), method=f"m{number:02d}")
    summary, [found] = compared(tmp_path)
    assert len(found.groups) == pairwise.MOST_METHODS
    [table] = tables.score_tables(summary, [found])
    assert ("groups" in table.columns, "best" in table.columns) == (False, True)
    assert "groups to say who was not told apart from whom" in table.caption
    assert (found.baseline, "m00" in found.groups) == ("full", False)
    assert found.notes[0] == f"Of {pairwise.MOST_METHODS + 3} methods the {pairwise.MOST_METHODS} best are compared."


def test_lower_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    """Of two losses the lower one is the best, and a higher one is worse than it."""
    for method, loss in (("full", 1.0), ("lora", 2.0)):
        losses = loss + np.arange(ROWS) % 7 / 100
        found = {"primary_metric": "loss", "validation": {"loss": float(losses.mean())}}
        run_dir = write_run(tmp_path, method=method, scores=found)
        table = pd.DataFrame({"split": "validation", "idx": range(ROWS), "loss": losses})
        table.to_parquet(run_dir / PREDICTIONS_FILE, index=False)
    summary, found = compared(tmp_path)
    assert summary["configuration"].tolist() == ["full", "lora"]
    assert summary["standing"].tolist() == [pairwise.BEST, ""]
    assert tables.pair_tables(found)[0].rows[0][-1] == "worse"


def test_predictions_are_found_in_a_store(tmp_path: Path) -> None:
    """A local store keeps them beside itself."""
    dirs = [
        run_with(tmp_path / "runs", first_right(count), method=name) for name, count in (("full", 180), ("lora", 9))
    ]
    frame = scores.load(store_of(tmp_path, *dirs))
    [found] = pairwise.compare_tasks(frame, scores.summary(frame))
    assert found.groups == {"full": "a", "lora": "b"}


def test_predictions_of_a_server_are_elsewhere() -> None:
    """What lies with a server is not fetched, and the reason says so."""
    with pytest.raises(pairwise.ConfigError, match="with a server"):
        pairwise.predictions_of("mlflow-artifacts:/1/abc/artifacts")
