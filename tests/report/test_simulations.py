"""Simulated tables: tests are wrong no more often than they say, intervals hold what they should."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import simulate_statistics as simulated
from statsmodels.regression.mixed_linear_model import MixedLM

from harness.report.family import (
    FALSE_DISCOVERY,
    HOLM,
    Member,
    chances,
    compare_family,
    counted_member,
    detectable,
    half_widths,
    two_sided,
)
from harness.report.intervals import inside, over_examples, over_seeds, width
from harness.report.spread import Replicates, seed_part, spreads, unstable

CASES = simulated.cases()
# Wide enough for what so many tables leave to chance: three standard errors of 0.05.
WORLDS = 300


# --- Whole tables ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("name", CASES)
def test_equal_methods_are_seldom_told_apart(name: str, seeds: int) -> None:
    """In at most 6 of a hundred tables any method is told from the baseline, whatever the spreads are."""
    assert simulated.family_error(CASES[name], seeds, WORLDS) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("name", simulated.chosen_cases())
def test_equals_are_seldom_told_from_the_highest(name: str, seeds: int) -> None:
    """The same scores choose it: in at most 6 of a hundred tables the tie group shuts out an equal."""
    assert simulated.errors_from_the_highest(simulated.chosen_cases()[name], seeds, WORLDS)[0] <= 0.06


@pytest.mark.slow
def test_correcting_over_the_pairs_with_the_highest_alone_does_not_hold() -> None:
    """Why all pairs are in the family: as if the highest had been fixed in advance, equals are shut out too often."""
    assert simulated.errors_from_the_highest(np.full(10, 0.01), 5, WORLDS)[1] > 0.08


@pytest.mark.slow
def test_a_baseline_that_alone_scatters_is_believed_too_much() -> None:
    """What does not hold, as the page says: passing for stable is luck, and its interval is too narrow then."""
    error, tested, held = simulated.unstable_baseline(simulated.scattering_baselines()["4: 5 points, 0.5"], 3, WORLDS)
    assert 0.05 < error < 0.12
    assert 0.3 < tested < 0.7
    assert held < 0.9


@pytest.mark.slow
def test_a_plain_pool_does_not_hold_where_spreads_differ() -> None:
    """Why reports do not use it: methods with a lucky small variance pass for stable."""
    assert simulated.family_error_of_the_plain_pool(CASES["1 point, 8 of 53 have 5"], 3, 500) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_few_false_discoveries(seeds: int) -> None:
    """Of what exploratory tables find, at most about 5 in a hundred is wrong."""
    assert simulated.false_discoveries(CASES["as published"], seeds, 60) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_differences_hold_the_truth(seeds: int) -> None:
    """At least 93 of a hundred."""
    for deviations in CASES.values():
        assert simulated.coverage(deviations, seeds, 40) >= 0.93


@pytest.mark.slow
def test_five_seeds_find_what_three_do_not() -> None:
    """Ten points among spreads of three are found far more often with five seeds than with three."""
    found = {seeds: simulated.power(CASES["all 3 points"], seeds, 0.1, HOLM, 40) for seeds in (3, 5)}
    assert found[5] > found[3] + 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("level", "deviation"), [(0.8, 0.01), (0.8, 0.03), (0.95, 0.01), (0.95, 0.03)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_a_methods_own_interval_holds_its_score(level: float, deviation: float, seeds: int) -> None:
    """93 to 97 times in a hundred, near the end of the range too."""
    assert 0.93 <= simulated.coverage_of_means(level, deviation, seeds, 1500) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("parts", [(1.0, 1.0, 0.1), (1.0, 0.0, 0.1), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("sides", [(3, 3), (5, 5), (3, 5)])
def test_crossed_seeds_are_not_taken_for_independent_runs(
    parts: tuple[float, float, float], sides: tuple[int, int]
) -> None:
    """The mean is told from the truth at most 6 times in a hundred; as nine runs it would be 20 times."""
    assert simulated.crossed_error(parts, sides, 1500) <= 0.065


def test_runs_of_a_grid_would_be_far_too_sure_of_themselves() -> None:
    """What the two-way variance mends: Student's t of nine crossed runs errs three times as often as it says."""
    generator = np.random.default_rng(0)
    worlds = generator.normal(size=(1500, 3, 1)) + generator.normal(size=(1500, 1, 3)) + np.zeros((1500, 3, 3))
    assert (scipy.stats.ttest_1samp(worlds.reshape(1500, 9), 0, axis=1).pvalue < 0.05).mean() > 0.15


# --- Against other implementations ----------------------------------------------------------------------------------


def test_the_variance_of_crossed_means_is_that_of_a_mixed_model() -> None:
    """Restricted maximum likelihood with both factors random (statsmodels) has the same variance of the mean."""
    for draw in range(3):
        generator = np.random.default_rng(draw)
        first, second = np.repeat(np.arange(6), 5), np.tile(np.arange(5), 6)
        values = (
            2 * generator.normal(size=6)[first] + 1.5 * generator.normal(size=5)[second] + generator.normal(size=30)
        )
        table = pd.DataFrame({"y": values, "seed": first, "data": second, "all": 1})
        parts = {"seed": "0 + C(seed)", "data": "0 + C(data)"}
        model = MixedLM.from_formula("y ~ 1", table, groups="all", vc_formula=parts, re_formula="0")
        theirs = model.fit(reml=True).bse["Intercept"] ** 2
        assert seed_part(values, first, second).variance == pytest.approx(theirs, rel=0.02)


def test_independent_runs_are_as_scipy_has_them() -> None:
    """Without crossed seeds the variance is that of a mean, and a loss far from 0 has Student's interval."""
    values = np.random.default_rng(0).normal(size=5)
    part = seed_part(values, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert (part.variance, part.freedom) == (pytest.approx(scipy.stats.sem(values) ** 2), 4)
    low, high = over_seeds("margin", values)
    theirs = scipy.stats.t.interval(0.95, 4, values.mean(), scipy.stats.sem(values))
    assert (low, high) == pytest.approx(theirs)


def test_an_interval_over_examples_is_wilsons() -> None:
    """60 right of 60 are not certain; SciPy's Wilson interval is the same."""
    for right, rows in ((60, 60), (0, 60), (700, 872), (1, 1319)):
        theirs = scipy.stats.binomtest(right, rows).proportion_ci(method="wilson")
        assert over_examples("accuracy", right / rows, rows) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_one_mean_spread_of_many_methods_is_a_normal_test() -> None:
    """Where all variances are alike and many, p and the interval are those of a known variance."""
    variances, weights = np.full((1, 4), 0.25), np.full((1, 4), 0.25)
    assert two_sided(np.array([1.0]), variances, weights)[0] == pytest.approx(2 * scipy.stats.norm.sf(2))
    assert half_widths(variances, weights, 0.05)[0] == pytest.approx(1.96 * 0.5, abs=1e-3)


# --- Properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "least", "most"),
    [("accuracy", 0, 1), ("f1", 0, 1), ("matthews_correlation", -1, 1), ("loss", 0, math.inf)],
)
def test_intervals_stay_where_scores_can_be(metric: str, least: float, most: float) -> None:
    """Whatever the scores, the ends are within the metric's range and about the mean."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        scores = np.clip(generator.normal(generator.uniform(least, min(most, 2)), 0.3, 3), least + 1e-3, most)
        if np.ptp(scores) == 0:
            continue
        low, high = over_seeds(metric, scores)
        assert least <= low <= high <= most
        assert low <= scores.mean() + 1e-9
        assert high >= scores.mean() - 1e-9


def test_equal_runs_of_a_perfect_score_are_not_certain() -> None:
    """Three runs right on 60 of 60 have the interval of 60 examples; other seeds add nothing that is known to it."""
    assert over_seeds("accuracy", [1.0] * 3, rows=60) == over_examples("accuracy", 1.0, 60)
    low, high = over_seeds("accuracy", [0.0] * 3, rows=60)
    assert (low, high) == (0.0, pytest.approx(0.0602, abs=1e-4))


@pytest.mark.parametrize("metric", ["accuracy", "matthews_correlation", "loss", "margin"])
@pytest.mark.parametrize("score", [0.0, 0.8, 1.0])
def test_runs_that_agree_have_no_interval_without_examples(metric: str, score: float) -> None:
    """That three runs are equal does not make the next one so; 0.8 thrice has a mean that rounding moves."""
    assert all(map(math.isnan, over_seeds(metric, [score] * 3)))
    assert all(map(math.isnan, inside(metric, score, 0.0, 2)))


def test_all_against_none_is_no_certain_difference() -> None:
    """Neither 200 right of 200 nor none of 200 has a variance over these examples, but other examples may differ."""
    numbers = np.arange(3.0)
    runs = {name: Replicates(np.full(3, score), numbers, numbers) for name, score in (("all", 1.0), ("none", 0.0))}
    members = {name: counted_member(one.scores.tolist(), 200) for name, one in runs.items()}
    known, pair = spreads(runs), [("all", "none")]
    (found,) = compare_family(members, known, pair, width=width("accuracy"))
    assert found.low == pytest.approx(0.9902, abs=1e-4)
    assert found.high == 1.0
    assert detectable(members, known, pair, 1) == pytest.approx(0.0098, abs=1e-4)


def test_where_nothing_varies_a_difference_has_no_interval() -> None:
    """Of a metric without a known range nobody can say how much other examples would change at least."""
    numbers = np.arange(3.0)
    runs = {name: Replicates(np.full(3, 2.0), numbers, numbers) for name in "ab"}
    members = {name: Member(2.0, 3, 0.0, 200) for name in runs}
    (found,) = compare_family(members, spreads(runs), [("a", "b")])
    assert (found.difference, found.p) == (0.0, 1.0)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(("metric", "end"), [("accuracy", 1.0), ("matthews_correlation", 2.0), ("loss", math.inf)])
def test_intervals_of_differences_end_where_scores_do(metric: str, end: float) -> None:
    """Two scores almost as far apart as they can be: no difference is larger than the range."""
    numbers, low = np.arange(3.0), 1.0 - min(end, 2.0)
    runs = {
        "a": Replicates(np.array([0.97, 1.0, 0.99]), numbers, numbers),
        "b": Replicates(low + np.array([0.02, 0.05, 0.0]), numbers, numbers),
    }
    members = {name: Member(float(one.scores.mean()), 3, 1e-4, 200) for name, one in runs.items()}
    found, turned = (
        compare_family(members, spreads(runs), [pair], width=width(metric))[0] for pair in (("a", "b"), ("b", "a"))
    )
    assert found.low < found.difference < found.high
    assert found.high == end or (math.isinf(end) and found.high > 2.0)
    assert (turned.low, turned.high) == (-found.high, -found.low)


def test_the_least_detectable_difference_is_corrected_as_the_tests_are() -> None:
    """A pair of single runs is in the family too, so what can be found grows with it."""
    numbers = np.arange(3.0)
    runs = {name: Replicates(0.8 + np.array([-0.01, 0, 0.01]), numbers, numbers) for name in "ab"}
    members = {name: Member(0.8, 3, 1e-4, 872) for name in runs} | {"once": Member(0.7, 1, 1e-4, 872)}
    pairs = [("a", "b"), ("a", "once")]
    alone, both = (detectable(members, spreads(runs), pairs, count) for count in (1, 2))
    assert both > alone


def test_unbalanced_crossing_is_taken_by_the_more_cautious_factor() -> None:
    """Two runs of one seed count as one; a run without a seed stands alone."""
    values = np.array([0.1, 0.1, 0.5, 0.9])
    assert seed_part(values, [0, 0, 1, 2], [0, 1, 0, 2]).freedom == 2
    assert seed_part(values, [np.nan] * 4, [np.nan] * 4).freedom == 3


def test_only_what_stands_out_is_unstable() -> None:
    """One variance of sixteen hundred among ones; none of equals; none that examples explain; none of two."""
    found = unstable(np.array([1.0, 1.2, 1600.0, 0.8]), np.full(4, 2.0), 0.0)
    assert found.tolist() == [False, False, True, False]
    assert not unstable(np.ones(6), np.full(6, 2.0), 0.0).any()
    assert not unstable(np.array([1.0, 1.2, 1600.0, 0.8]), np.full(4, 2.0), 400.0).any()
    assert not unstable(np.array([1.0, 1600.0]), np.full(2, 2.0), 0.0).any()
    # Beside runs that agree to the last bit; what rounding leaves of agreeing runs is no scatter.
    assert unstable(np.array([0.04, 0.0, 0.0, 0.0]), np.full(4, 2.0), 0.0).tolist() == [True, False, False, False]
    assert not unstable(np.array([1e-32, 0.0, 0.0, 0.0]), np.full(4, 2.0), 0.0).any()


def test_runs_are_paired_by_seed_where_all_methods_have_the_same() -> None:
    """What a seed has in common is taken off, so a difference is known better; other seeds are not paired."""
    generator = np.random.default_rng(0)
    common = 0.05 * generator.normal(size=5)
    own = 0.005 * generator.normal(size=(6, 5))
    numbers = np.arange(5.0)
    paired = spreads({str(k): Replicates(0.8 + common + row, numbers, numbers) for k, row in enumerate(own)})
    apart = spreads({str(k): Replicates(0.8 + common + row, numbers + k, numbers + k) for k, row in enumerate(own)})
    assert (paired.blocked, apart.blocked) == (True, False)
    usual = {name: float(one.weights["0"] @ one.variances) for name, one in (("paired", paired), ("apart", apart))}
    assert usual["paired"] < usual["apart"] / 10


def test_a_lucky_small_variance_is_not_believed() -> None:
    """Beside methods that all scatter, one whose three runs agree is taken to scatter too."""
    generator = np.random.default_rng(0)
    runs = {str(k): Replicates(generator.normal(0, 0.03, 3), np.arange(3.0), np.arange(3.0)) for k in range(12)}
    runs["calm"] = Replicates(np.array([0.5, 0.5, 0.5001]), np.arange(3.0) + 9, np.arange(3.0) + 9)
    known = spreads(runs)
    assert math.sqrt(known.weights["calm"] @ known.variances) > 20 * runs["calm"].scores.std(ddof=1)


def test_chances_add_up_and_follow_the_scores() -> None:
    """Of equals each has its share; of one far ahead all; lower is better where the metric says so."""
    numbers = np.arange(3.0)
    runs = {
        name: Replicates(mean + np.array([-0.01, 0, 0.01]), numbers, numbers) for name, mean in (("a", 0.9), ("b", 0.5))
    }
    members = {name: Member(float(one.scores.mean()), 3, 1e-4, 872) for name, one in runs.items()}
    known = spreads(runs)
    assert chances(members, known)["a"] > 0.99
    assert chances(members, known, higher_is_better=False)["b"] > 0.99
    level = {name: Member(0.7, 3, 1e-4, 872) for name in runs}
    found = chances(level, known)
    assert sum(found.values()) == pytest.approx(1)
    assert found["a"] == pytest.approx(0.5, abs=0.05)


def test_results_without_predictions_are_tested_unpaired() -> None:
    """Two published accuracies of 1,319 questions: p of the two-sample test of proportions, and about these runs."""
    members = {name: Member(p, 1, p * (1 - p) / 1319, 1319) for name, p in (("a", 0.50), ("b", 0.45))}
    (found,) = compare_family(members, spreads({}), [("a", "b")], FALSE_DISCOVERY)
    error = math.sqrt(sum(one.rows_variance for one in members.values()))
    assert found.p == pytest.approx(2 * scipy.stats.norm.sf(0.05 / error))
    assert (found.over_seeds, found.verdict) == (False, "a better in these runs")
