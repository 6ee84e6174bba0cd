"""Scores that others published once each: what their questions alone let one say."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simulate_statistics as simulated
from statsmodels.stats.proportion import proportion_confint, proportions_ztest

from harness.config.sources import conf_root
from harness.report import markdown, others
from harness.report import scores as load_scores
from harness.report.single_scores import COSTS, Judged, front, judge, single_scores, single_tables


def scores(shares: dict[str, float], questions: int = 1000, costs: dict[str, float] | None = None) -> pd.DataFrame:
    columns = {name: [(costs or {}).get(key, 1.0) for key in shares] for name in COSTS}
    base = {"configuration": list(shares), "accuracy": list(shares.values()), "questions": questions}
    return pd.DataFrame({**base, **columns})


def row(judged: Judged, name: str) -> pd.Series:
    return judged.rows.set_index("configuration").loc[name]


def test_intervals_and_tests_are_those_of_statsmodels() -> None:
    """Wilson's interval, and the score test of two proportions, which Holm's correction leaves alone for one pair."""
    found = judge(scores({"a": 0.52, "b": 0.47}))
    low, high = proportion_confint(520, 1000, method="wilson")
    assert (row(found, "a")["low"], row(found, "a")["high"]) == pytest.approx((low, high))
    assert row(found, "b")["p"] == pytest.approx(proportions_ztest([520, 470], [1000, 1000])[1])
    assert math.isnan(row(found, "a")["p"])


def test_the_tie_group_ranks_and_gaps_follow_from_what_is_told_apart() -> None:
    """Two at the top that nothing tells apart, one far below, and one between that belongs to both neighbors."""
    found = judge(scores({"first": 0.50, "second": 0.49, "between": 0.44, "last": 0.39}))
    assert list(found.rows["level"]) == [True, True, False, False]
    assert [tuple(found.rows.loc[place, ["first_rank", "last_rank"]]) for place in range(4)] == [
        (1, 2),
        (1, 3),
        (2, 4),
        (3, 4),
    ]
    assert (found.pairs, found.apart, found.neighbors) == (6, 3, 0)
    # From the highest, which is what most readers ask.
    assert found.smallest == pytest.approx(0.06)


def test_equal_scores_are_never_told_apart_and_share_being_the_best() -> None:
    """Also at 0, where a score has no binomial variance."""
    found = judge(scores({"a": 0.0, "b": 0.0}))
    assert list(found.rows["p"])[1] == 1.0
    assert found.apart == 0
    assert math.isnan(found.smallest)
    assert list(found.rows["best"]) == pytest.approx([0.5, 0.5], abs=0.02)


def test_the_tie_group_is_corrected_over_all_pairs() -> None:
    """The same scores chose the highest: a gap that three comparisons would bear is noise among six."""
    shares = {"first": 0.5, "second": 0.455, "third": 0.45, "fourth": 0.45}
    found = judge(scores(shares))
    uncorrected = proportions_ztest([500, 450], [1000, 1000])[1]
    assert row(found, "third")["p"] == pytest.approx(6 * uncorrected)
    assert list(found.rows["level"]) == [True] * 4
    assert 3 * uncorrected > 0.05 > uncorrected


@pytest.mark.slow
def test_equals_are_seldom_shut_out_of_the_tie_group() -> None:
    """Of 63 equal scores in some 5 of a hundred tables; corrected over the 62 with the highest, in every other."""
    in_all, with_highest = simulated.single_errors(63, 1319, 100)
    assert in_all <= 0.08
    assert with_highest > 0.3


@pytest.mark.slow
def test_the_family_error_over_all_pairs_holds() -> None:
    """Of 30 methods equal in truth some pair is told apart in few of 300 tables."""
    generator = np.random.default_rng(1)
    shares = generator.binomial(1319, 0.48, size=(300, 30)) / 1319
    apart = [judge(scores({str(n): s for n, s in enumerate(row)}, 1319)).apart > 0 for row in shares]
    assert np.mean(apart) <= 0.06


def test_the_front_has_its_cost_per_point_and_its_probability() -> None:
    """Dearer and worse is off it; a cheap one is on it for sure; a near one may be on it."""
    costs = {"cheap": 10.0, "good": 30.0, "near": 31.0, "waste": 40.0}
    found = judge(scores({"cheap": 0.3, "good": 0.5, "near": 0.495, "waste": 0.2}, costs=costs))
    observed = front(found, "cost.train_seconds")
    assert list(observed["configuration"]) == ["cheap", "good"]
    assert observed["per_point"].iloc[1] == pytest.approx(1.0)
    chances = {name: row(found, name)["front.cost.train_seconds"] for name in costs}
    assert (chances["cheap"], chances["waste"]) == (1.0, 0.0)
    assert chances["good"] == 1.0
    # As probable as near's true share is above good's: normal, with both scores' errors.
    error = math.sqrt(0.5 * 0.5 / 1000 + 0.495 * 0.505 / 1000)
    assert chances["near"] == pytest.approx(0.5 * math.erfc(0.005 / error / math.sqrt(2)), abs=0.01)


def published(**columns: object) -> pd.DataFrame:
    rows = [
        {"task": "t", "method": name, "status": "finished", "stage": "run", "newest": True, "source": "somebody"}
        | {"validation.accuracy": score, "validation.rows": 500.0, "cost.train_seconds": seconds}
        for name, score, seconds in (("a", 0.6, 5.0), ("b", 0.3, 9.0))
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_only_scores_that_others_published_once_are_judged_so() -> None:
    """Not runs of our own, not several of one method, and not without the number of questions."""
    [judged] = single_scores(published()).values()
    assert list(judged.rows["configuration"]) == ["a", "b"]
    assert single_scores(published(source="")) == {}
    assert single_scores(published(method="a")) == {}
    assert single_scores(published(**{"validation.rows": math.nan})) == {}
    assert single_scores(published().drop(columns="validation.rows")) == {}
    assert single_scores(published(status="failed")) == {}


def test_the_tables_say_what_is_noise() -> None:
    """A tie has its mark, the caption its counts, and a cost that nobody measured has no front."""
    ranking, *fronts = single_tables(single_scores(published()))
    assert [cells[4] for cells in ranking.rows] == ["★", ""]
    assert "1 of 2 are the highest" in ranking.caption
    assert "p by Holm over all 1 pairs, since the highest was chosen by the same scores" in ranking.caption
    assert "Of all pairs 1 (100%) are distinguished" in ranking.caption
    assert [table.title for table in fronts] == ["t: the front of accuracy and seconds"]
    assert [cells[0] for cells in fronts[0].rows] == ["a"]


def test_the_published_page_is_what_the_published_scores_give(real_data: Path) -> None:
    """Every table of single scores stands in reports/peft_leaderboard as the code makes it of the 63 results."""
    place = real_data / "peft_method_comparison/results"
    if not place.is_dir():
        pytest.skip("the data folder has no peft_method_comparison")
    runs, damaged = others.read([str(place)])
    assert (len(runs), damaged) == (63, [])
    page = (conf_root() / "reports/peft_leaderboard/report.md").read_text()
    tables = single_tables(single_scores(load_scores.tidy(runs)))
    assert len(tables) == 1 + len(COSTS)
    for table in tables:
        assert markdown.markdown("", "", [table], [], []).strip().removeprefix("# ").strip() in page
