"""Over tasks: what can be compared, on what, and where the holes are."""

from pathlib import Path

import numpy as np
import pytest
from run_directories import write_run

from harness.report import across, scores, tables
from harness.report.runs import load_runs


def found(folder: Path, table: dict[str, dict[str, tuple[float, ...]]]) -> across.Across | None:
    """Over tasks, of runs with these scores: method -> task -> one per seed."""
    for method, tasks in table.items():
        for task, values in tasks.items():
            for seed, score in enumerate(values):
                write_run(folder, method=method, task=task, seed=seed, score=score)
    frame = load_runs(folder)
    return across.over_tasks(frame, scores.summary(frame))


def test_ranks_wins_and_normalized_scores_are_those_by_hand(tmp_path: Path) -> None:
    """Majority is 0.5: lora reaches 0.75 and 1.25 of what full fine-tuning gains, and wins one task of two."""
    one = found(
        tmp_path,
        {
            "full": {"a": (0.9,) * 3, "b": (0.7,) * 3},
            "lora": {"a": (0.8,) * 3, "b": (0.75,) * 3},
            "head": {"a": (0.5,), "b": (0.5,)},
        },
    )
    assert one is not None
    rows = one.table.set_index("configuration")
    assert (one.common, one.normalized) == (("a", "b"), ("a", "b"))
    assert rows["rank"].to_dict() == {"full": 1.5, "lora": 1.5, "head": 3.0}
    assert rows["win_rate"].to_dict() == {"full": 0.75, "lora": 0.75, "head": 0.0}
    assert rows["iqm"].to_dict() == {"full": pytest.approx(1), "lora": pytest.approx(1.0), "head": pytest.approx(0)}
    # The middle half of 0.75, 0.75, 0.75, 1.25, 1.25, 1.25; seeds that agree say nothing of its interval.
    assert rows.loc["lora", ["iqm_low", "iqm_high"]].isna().all()


def test_methods_are_ranked_on_the_tasks_that_all_have(tmp_path: Path) -> None:
    """The task that one method lacks does not count in ranks; the hole is shown as a dash."""
    one = found(
        tmp_path,
        {
            "full": {"a": (0.9,), "b": (0.9,), "c": (0.6,)},
            "lora": {"a": (0.8,), "b": (0.8,)},
            "head": {"a": (0.7,), "b": (0.7,), "c": (0.99,)},
        },
    )
    assert one is not None
    assert one.common == ("a", "b")
    assert one.table.set_index("configuration")["rank"].to_dict() == {"full": 1.0, "lora": 2.0, "head": 3.0}
    table = tables.across_table(one)
    assert {row[0]: row[-1] for row in table.rows} == {"full": "0.6000", "lora": "–", "head": "0.9900"}
    assert "3 methods on the 2 tasks that they share: a, b." in table.caption


def test_without_common_tasks_only_complete_methods_are_ranked(tmp_path: Path) -> None:
    """A method with a single task stands last without a rank, and takes the others none away."""
    one = found(
        tmp_path, {"full": {"a": (0.9,), "b": (0.9,)}, "lora": {"a": (0.8,), "b": (0.8,)}, "head": {"b": (0.95,)}}
    )
    assert one is not None
    rows = one.table.set_index("configuration")
    assert (rows.index[-1], np.isnan(rows.loc["head", "rank"]), np.isnan(rows.loc["head", "iqm"])) == (
        "head",
        True,
        True,
    )
    assert rows.loc["head", "win_rate"] == 1.0
    assert rows["ranked_on"].to_dict() == {"full": 2, "lora": 2, "head": 0}


def test_without_full_fine_tuning_nothing_is_normalized(tmp_path: Path) -> None:
    """The scale's upper end is full fine-tuning; without it the table has no interquartile mean."""
    one = found(tmp_path, {"lora": {"a": (0.9,), "b": (0.9,)}, "head": {"a": (0.8,), "b": (0.8,)}})
    assert one is not None
    assert one.normalized == ()
    assert "IQM" not in tables.across_table(one).columns


@pytest.mark.parametrize(
    "table", [{"lora": {"a": (0.9,)}, "head": {"a": (0.8,)}}, {"lora": {"a": (0.9,), "b": (0.9,)}}]
)
def test_one_task_or_one_method_is_no_comparison_over_tasks(
    tmp_path: Path, table: dict[str, dict[str, tuple[float, ...]]]
) -> None:
    """There is nothing to rank, or nothing to rank over."""
    assert found(tmp_path, table) is None
