"""Stored predictions are compared, and where there are none the report says so."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_directories import store_of, write_run

from harness.report import cells, finding, pairwise, scores, tables
from harness.report.definitions import Analysis, Pairs
from harness.report.family import FALSE_DISCOVERY, HOLM, TOO_UNSTABLE
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


def compared(folder: Path, pairs: Pairs = Pairs.all) -> tuple[pd.DataFrame, list[pairwise.Pairwise]]:
    frame = load_runs(folder)
    summary = scores.summary(frame)
    found = pairwise.compare_tasks(frame, summary, pairs=pairs)
    return pairwise.annotated(summary, found), found


@pytest.fixture
def three_methods(tmp_path: Path) -> Path:
    """Three runs each: full and lora one example apart, head right on fewer by far."""
    for method, counts in (("full", (180, 182, 181)), ("lora", (179, 181, 180)), ("head", (101, 103, 102))):
        for seed, count in enumerate(counts):
            run_with(tmp_path, first_right(count), method=method, seed=seed)
    return tmp_path


def test_methods_share_a_letter_unless_told_apart(three_methods: Path) -> None:
    """One example is no difference, eighty of two hundred are; the best and its equals are marked."""
    summary, [found] = compared(three_methods)
    rows = summary.set_index("configuration")
    assert rows.loc[["full", "lora", "head"], "groups"].tolist() == ["a", "a", "b"]
    assert rows.loc[["full", "lora", "head"], "standing"].tolist() == [pairwise.BEST, pairwise.ALIKE, ""]
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
    assert [(row[0], row[groups], row[best][0]) for row in table.rows[:3]] == [
        ("full", "a", "★"),
        ("lora", "a", "≈"),
        ("head", "b", "0"),
    ]
    assert "Minimum detectable difference: 0.0" in table.caption
    told = "the smallest true difference that these runs would find every other time, with other seeds, other "
    assert f"{told}examples and the correction for 3 comp" in table.caption
    [against] = tables.pair_tables(found)
    assert against.title == "micro/sentiment: against full"
    assert [(row[0], row[1], row[-1]) for row in against.rows] == [
        ("lora", "-0.0050", "no detectable difference"),
        ("head", "-0.3950", "worse"),
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
    """With one seed no interval, letter or mark is invented, and the comparison says that it is about these runs."""
    run_with(tmp_path, first_right(180), method="full")
    run_with(tmp_path, first_right(100), method="lora")
    summary, [found] = compared(tmp_path)
    [table] = tables.score_tables(summary, [found])
    assert table.rows[0][:5] == ("full", "0.9000", "n=1", "1", "n=1")
    assert (found.groups, found.level, set(summary["standing"])) == ({}, frozenset(), {""})
    assert ("groups" in table.columns, "best" in table.columns) == (False, False)
    assert found.comparisons[0].verdict == "full better in these runs"
    assert tables.pair_tables([found])[0].rows[0][-1] == "worse in these runs"
    assert "about these runs on other examples only" in found.notes[-1]


def test_two_runs_show_both_scores_and_no_interval(tmp_path: Path) -> None:
    """A variance of two runs has one degree of freedom: what was measured is shown, and nothing is marked."""
    for method, counts in (("full", (180, 150)), ("lora", (100, 110))):
        for seed, count in enumerate(counts):
            run_with(tmp_path, first_right(count), method=method, seed=seed, majority=0.4)
    summary, [found] = compared(tmp_path)
    [table] = tables.score_tables(summary, [found])
    place = table.columns.index("95% interval")
    assert [row[place] for row in table.rows[:2]] == ["0.7500, 0.9000", "0.5000, 0.5500"]
    assert summary["low"].isna().all()
    assert (found.groups, found.chances, set(summary["standing"])) == ({}, {}, {""})


def test_a_method_with_a_collapsed_run_is_not_tested(three_methods: Path) -> None:
    """It says how many collapsed in place of an interval; it has neither letter nor mark and does not count."""
    for seed, count in enumerate((170, 100, 175)):
        run_with(three_methods, first_right(count), method="bitfit", seed=seed)
    summary, [found] = compared(three_methods)
    [table] = tables.score_tables(summary, [found])
    row = next(row for row in table.rows if row[0] == "bitfit")
    assert row[table.columns.index("95% interval")] == "1 of 3 collapsed"
    assert row[table.columns.index("± sd")] == cells.NONE
    assert ("bitfit" in found.groups, "bitfit" in found.chances) == (False, False)
    verdicts = {pair.verdict for pair in found.comparisons if "bitfit" in (pair.a, pair.b)}
    assert verdicts == {TOO_UNSTABLE}
    assert "Too unstable to say, and not tested: bitfit (a run collapsed or diverged)." in found.notes
    assert "for 3 comparisons in it" in table.caption


def test_a_method_whose_runs_differ_far_more_is_not_tested(tmp_path: Path) -> None:
    """Its spread is no luck beside that of the others."""
    for number, method in enumerate(("full", "lora", "ia3", "head", "houlsby")):
        for seed, more in enumerate((0, 1, 2)):
            run_with(tmp_path, first_right(170 - number + more), method=method, seed=seed)
    for seed, count in enumerate((110, 150, 190)):
        run_with(tmp_path, first_right(count), method="bitfit", seed=seed)
    _, [found] = compared(tmp_path, Pairs.baseline)
    assert {pair.verdict for pair in found.comparisons if "bitfit" in (pair.a, pair.b)} == {TOO_UNSTABLE}
    assert "bitfit (its runs differ more than those of the others)" in " ".join(found.notes)
    assert found.blocked


def test_each_is_held_against_the_baseline_unless_all_pairs_are_asked_for(three_methods: Path) -> None:
    """Two tests of three methods, not three; letters need all of them."""
    summary, [found] = compared(three_methods, Pairs.baseline)
    assert [(pair.a, pair.b) for pair in found.comparisons] == [("full", "lora"), ("full", "head")]
    assert (found.groups, found.every_pair) == ({}, False)
    [table] = tables.score_tables(summary, [found])
    assert "groups" not in table.columns
    assert "over the 2 pairs with the baseline" in tables.pair_tables([found])[0].caption
    assert sum(found.chances.values()) == pytest.approx(1)


def without_baseline(folder: Path, methods: int = 3) -> Path:
    """Three runs each of methods that are one example apart; none is full fine-tuning."""
    for number in range(methods):
        for seed, more in enumerate((0, 2, 1)):
            run_with(folder, first_right(150 - number + more), method=f"m{number:02d}", seed=seed)
    return folder


def test_without_a_baseline_all_pairs_are_the_family(tmp_path: Path) -> None:
    """The scores that are tested chose the highest, so its tests are corrected over all pairs, and the text says so."""
    summary, [found] = compared(without_baseline(tmp_path), Pairs.baseline)
    assert (found.fixed, found.baseline, len(found.comparisons)) == (False, "m00", 3)
    assert found.level == {"m01", "m02"}
    rows = summary.set_index("configuration")
    assert rows.loc[["m00", "m01"], "standing"].tolist() == [pairwise.BEST, pairwise.ALIKE]
    [against] = tables.pair_tables([found])
    assert [row[0] for row in against.rows] == ["m01", "m02"]
    assert "corrected by Holm over the 3 pairs of the task, since m00 was chosen by the same scores" in against.caption
    assert "(Holm over 3 pairs)" in tables.score_tables(summary, [found])[0].caption


def test_a_baseline_that_was_asked_for_is_fixed(three_methods: Path) -> None:
    """Named or full, it was there before the scores were; one without predictions can't be held against."""
    frame = load_runs(three_methods)
    summary = scores.summary(frame)
    [named] = pairwise.compare_tasks(frame, summary, "head")
    assert (named.fixed, named.baseline, len(named.comparisons)) == (True, "head", 2)
    write_run(three_methods, method="ia3", score=0.7)
    frame = load_runs(three_methods)
    [lost] = pairwise.compare_tasks(frame, scores.summary(frame), "ia3")
    assert (lost.fixed, lost.baseline, len(lost.comparisons)) == (False, "full", 3)


def test_of_several_rows_of_the_baseline_the_scores_choose(three_methods: Path) -> None:
    """A method at two ranks: the higher one is the baseline, which no one fixed; a row's own name fixes it."""
    for rank, count in ((4, 170), (8, 175)):
        for seed, more in enumerate((0, 2, 1)):
            run_with(three_methods, first_right(count + more), method="dora", options={"rank": rank}, seed=seed)
    frame = load_runs(three_methods)
    summary = scores.summary(frame)
    [chosen] = pairwise.compare_tasks(frame, summary, "dora")
    [named] = pairwise.compare_tasks(frame, summary, "dora rank=4")
    assert (chosen.baseline, chosen.fixed, len(chosen.comparisons)) == ("dora rank=8", False, 10)
    assert (named.baseline, named.fixed, len(named.comparisons)) == ("dora rank=4", True, 4)


def test_the_tie_group_is_by_holm_where_a_table_explores(tmp_path: Path) -> None:
    """Without a baseline a table of many methods confirms, unless told to explore; then its tie group is the same."""
    without_baseline(tmp_path, 12)
    for seed, more in enumerate((0, 2, 1)):
        run_with(tmp_path, first_right(60 + more), method="far", seed=seed)
        run_with(tmp_path, first_right(127 + more), method="near", seed=seed)
    frame = load_runs(tmp_path)
    summary = scores.summary(frame)
    [usual] = pairwise.compare_tasks(frame, summary)
    [explored] = pairwise.compare_tasks(frame, summary, analysis=Analysis.exploratory)
    assert (usual.correction, explored.correction) == (HOLM, FALSE_DISCOVERY)
    assert usual.level == explored.level
    by_explored = {
        name for one in explored.comparisons if one.a == "m00" and one.corrected_p >= 0.05 for name in (one.b,)
    }
    assert by_explored < explored.level
    assert "of those with m00 alone more" in tables.pair_tables([explored])[0].caption


def test_single_runs_count_in_the_correction_and_in_no_verdict(three_methods: Path) -> None:
    """Beside three methods one with a single run: three tests are corrected together, two are of methods."""
    run_with(three_methods, first_right(150), method="loha")
    summary, [found] = compared(three_methods, Pairs.baseline)
    assert "the correction for 3 comparisons in it" in " ".join(found.notes)
    assert "over the 3 pairs with the baseline" in tables.pair_tables([found])[0].caption
    assert "1 of 2 methods tested can't be distinguished from full (1 worse); 1 more has under three runs" in (
        finding.verdicts(summary, [found])
    )


def test_a_table_says_whether_it_confirms_or_explores(tmp_path: Path) -> None:
    """Of more than ten methods it explores, unless it is told what it is for."""
    for number in range(11):
        for seed in range(3):
            run_with(
                tmp_path, first_right(150 + number + seed), method="full" if not number else f"m{number}", seed=seed
            )
    frame = load_runs(tmp_path)
    summary = scores.summary(frame)
    [explored] = pairwise.compare_tasks(frame, summary)
    [confirmed] = pairwise.compare_tasks(frame, summary, analysis=Analysis.confirmatory)
    assert (explored.correction, confirmed.correction) == (FALSE_DISCOVERY, HOLM)
    [first], [second] = tables.pair_tables([explored]), tables.pair_tables([confirmed])
    assert ("q, BH" in first.columns, "p, Holm" in second.columns) == (True, True)
    assert ("Exploratory: q by Benjamini" in first.caption, "Confirmatory: p corrected" in second.caption) == (
        True,
        True,
    )


@pytest.mark.slow
def test_thousands_of_methods_are_cut_to_the_best_and_the_baseline(tmp_path: Path) -> None:
    """Pairs grow with the square: only so many of the best are compared, and full fine-tuning always."""
    for seed in range(3):
        run_with(tmp_path, first_right(10 + seed), method="full", seed=seed, majority=None)
        for number in range(pairwise.MOST_METHODS + 2):
            run_with(tmp_path, first_right(100 + number + seed), method=f"m{number:02d}", seed=seed, majority=None)
    summary, [found] = compared(tmp_path)
    assert len(found.groups) == pairwise.MOST_METHODS
    [table] = tables.score_tables(summary, [found])
    assert ("groups" in table.columns, "best" in table.columns) == (False, True)
    assert "groups to say who was not distinguished from whom" in table.caption
    assert (found.baseline, "m00" in found.groups) == ("full", False)
    assert found.notes[0] == f"Of {pairwise.MOST_METHODS + 3} methods the {pairwise.MOST_METHODS} best are compared."


def test_lower_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    """Of two losses the lower one is the best, and a higher one is worse than it."""
    for method, loss in (("full", 1.0), ("lora", 2.0)):
        for seed in range(3):
            losses = loss + np.arange(ROWS) % 7 / 100 + seed / 50
            found = {"primary_metric": "loss", "validation": {"loss": float(losses.mean())}}
            run_dir = write_run(tmp_path, method=method, scores=found, seed=seed)
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
    assert [pair.verdict for pair in found.comparisons] == ["full better in these runs"]


def test_predictions_of_a_server_are_elsewhere() -> None:
    """What lies with a server is not fetched, and the reason says so."""
    with pytest.raises(pairwise.ConfigError, match="with a server"):
        pairwise.predictions_of("mlflow-artifacts:/1/abc/artifacts")
