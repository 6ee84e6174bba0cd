"""Statistics agree with numpy and SciPy, and invent nothing."""

import itertools
import math
import re

import numpy as np
import pytest
import scipy.stats

from harness.report.stats import (
    average_ranks,
    benjamini_hochberg,
    count_outcomes,
    holm,
    interquartile_mean,
    letters,
    mcnemar,
    summarize,
    win_rates,
)

SCORES = [0.81, 0.86, 0.79, 0.9]
NAN = math.nan


# --- Runs of one configuration --------------------------------------------------------------------------------------


def test_a_summary_agrees_with_numpy_and_scipy() -> None:
    """Mean, sample standard deviation and t interval are those of the reference implementations."""
    found = summarize(SCORES)
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(SCORES), scipy.stats.sem(SCORES))
    assert (found.n, found.mean, found.std) == (
        4,
        pytest.approx(np.mean(SCORES)),
        pytest.approx(np.std(SCORES, ddof=1)),
    )
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_spread() -> None:
    """With n=1 neither a deviation nor an interval is invented."""
    found = summarize([0.5])
    assert (found.n, found.mean) == (1, 0.5)
    assert all(map(math.isnan, (found.std, found.low, found.high)))


def test_values_that_are_not_finite_do_not_count() -> None:
    """NaN and infinite scores change neither n nor the mean; none at all has no mean."""
    assert summarize([0.2, math.nan, 0.4, math.inf]).n == 2
    assert summarize([0.2, math.nan, 0.4, math.inf]).mean == pytest.approx(0.3)
    assert (summarize([]).n, math.isnan(summarize([math.nan]).mean)) == (0, True)


def test_the_order_of_values_changes_no_bit() -> None:
    """Shuffled values have the very same summary."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = generator.normal(size=7)
        shuffled = generator.permutation(values)
        assert summarize(values) == summarize(shuffled)


def test_t_covers_the_mean_of_a_few_seeds_and_a_percentile_interval_does_not() -> None:
    """Over 2, 3 and 5 normal values t holds the mean 95 times in a hundred, the bootstrap 50, 75 and 83 times."""
    generator = np.random.default_rng(0)
    for n, expected in ((2, 0.5), (3, 0.75), (5, 0.83)):
        worlds = generator.normal(size=(800, n))
        summaries = [summarize(world) for world in worlds]
        drawn = [world[generator.integers(0, n, (400, n))].mean(axis=1) for world in worlds]
        percentile = [np.quantile(means, [0.025, 0.975]) for means in drawn]
        assert np.mean([found.low <= 0 <= found.high for found in summaries]) == pytest.approx(0.95, abs=0.025)
        assert np.mean([low <= 0 <= high for low, high in percentile]) == pytest.approx(expected, abs=0.04)


def test_collapsed_and_diverged_runs_are_counted() -> None:
    """A run at or below the majority class is collapsed; a diverged one has no score; a lost one is neither."""
    scores = [0.9, 0.5, 0.4, 0.7, NAN]
    found = count_outcomes(scores, [False, False, False, True, False], majority=0.5)
    assert (found.runs, found.scored, found.collapsed, found.diverged) == (5, 3, 2, 1)


def test_a_loss_above_that_of_the_majority_is_collapsed() -> None:
    """Where lower is better, so is being below the majority class; without one nothing is collapsed."""
    assert count_outcomes([0.3, 0.7, 0.9], [False] * 3, majority=0.7, higher_is_better=False).collapsed == 2
    assert count_outcomes([0.3, 0.7, 0.9], [False] * 3, majority=NAN).collapsed == 0


def test_the_last_bits_of_a_score_hide_no_collapse() -> None:
    """A score that exceeds the majority class by rounding alone is no better."""
    assert 0.1 + 0.2 > 0.3
    assert count_outcomes([0.1 + 0.2], [False], majority=0.3).collapsed == 1


# --- Two runs, and many pairs ---------------------------------------------------------------------------------------


def test_mcnemar_counts_only_the_rows_that_the_runs_differ_on() -> None:
    """Of ten differing rows eight are A's: p is twice P(at most 2 of 10) = 2 (1 + 10 + 45) / 1024."""
    a = [True] * 8 + [False] * 2 + [True] * 50 + [False] * 40
    b = [False] * 8 + [True] * 2 + [True] * 50 + [False] * 40
    found = mcnemar(a, b)
    assert (found.only_a, found.only_b) == (8, 2)
    assert found.p == pytest.approx(2 * 56 / 1024)
    assert mcnemar(b, a).p == found.p


def test_runs_that_agree_on_every_row_are_not_told_apart() -> None:
    """Without a differing row p is 1; other rows are refused."""
    assert mcnemar([True, False], [True, False]).p == 1
    with pytest.raises(ValueError, match="2 rows of one run, 3 of the other"):
        mcnemar([True, False], [True, False, True])


def test_holm_agrees_with_a_worked_case() -> None:
    """0.01 x 4; 0.02 x 3 = 0.06; 0.03 x 2 = 0.06; 0.04 x 1 raised to the 0.06 before it."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1, 1])


def test_a_pair_without_a_test_does_not_count() -> None:
    """NaN stays NaN, and the others are corrected as if it were not there."""
    found = holm([0.01, NAN, 0.04])
    assert found[[0, 2]] == pytest.approx([0.02, 0.04])
    assert math.isnan(found[1])
    assert len(holm([])) == 0


def test_benjamini_and_hochberg_agree_with_a_worked_case_and_with_scipy() -> None:
    """0.01 x 4 / 1 lowered to 0.02 x 4 / 2; NaN stays NaN and does not count; any others as SciPy has them."""
    assert benjamini_hochberg([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.04, 0.04, 0.04, 0.04])
    found = benjamini_hochberg([0.01, NAN, 0.04])
    assert found[[0, 2]] == pytest.approx([0.02, 0.04])
    assert math.isnan(found[1])
    generator = np.random.default_rng(0)
    for _ in range(100):
        p = generator.beta(0.3, 2, size=generator.integers(1, 60))
        assert benjamini_hochberg(p) == pytest.approx(scipy.stats.false_discovery_control(p))
        assert (benjamini_hochberg(p) <= holm(p) + 1e-15).all()


def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni() -> None:
    """A smaller p never becomes the larger one; rejections are those of the step-down rule as Holm states it."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        p = generator.beta(0.3, 2, size=generator.integers(1, 12))
        found = holm(p)
        assert (np.diff(found[np.argsort(p)]) >= 0).all()
        assert (p <= found).all()
        assert (found <= np.minimum(1, p * len(p)) + 1e-15).all()
        rejected = 0
        for rank, value in enumerate(np.sort(p)):
            if value > 0.05 / (len(p) - rank):
                break
            rejected += 1
        assert (found <= 0.05).sum() == rejected


def test_a_letter_that_tells_nothing_is_dropped() -> None:
    """The pairs of the group q, s, t all share another letter: five of the six largest groups are enough."""
    found = letters("pqrstu", [("p", "t"), ("q", "r"), ("r", "u"), ("s", "u")])
    assert found == {"p": "abc", "q": "ace", "r": "bd", "s": "abd", "t": "de", "u": "ce"}


@pytest.mark.parametrize(
    ("told_apart", "expected"),
    [
        ([], {"p": "a", "q": "a", "r": "a", "s": "a"}),
        ([("p", "r"), ("p", "s"), ("q", "s")], {"p": "a", "q": "ab", "r": "bc", "s": "c"}),
        ([("p", "q"), ("p", "r"), ("p", "s")], {"p": "a", "q": "b", "r": "b", "s": "b"}),
        ([("q", "r")], {"p": "ab", "q": "a", "r": "b", "s": "ab"}),
        (list(itertools.combinations("pqrs", 2)), {"p": "a", "q": "b", "r": "c", "s": "d"}),
    ],
)
def test_letters_of_worked_cases(told_apart: list[tuple[str, str]], expected: dict[str, str]) -> None:
    """Groups that overlap share letters, and the best method has the first."""
    assert letters("pqrs", told_apart) == expected


def test_two_methods_share_a_letter_if_and_only_if_they_were_not_told_apart() -> None:
    """Of any pairs whatever, also such as no ranking would give; every method has a letter."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        names = [str(number) for number in range(generator.integers(1, 11))]
        share = generator.random()
        apart = {pair for pair in itertools.combinations(names, 2) if generator.random() < share}
        found = letters(names, apart)
        assert all(found.values())
        for a, b in itertools.combinations(names, 2):
            assert bool(set(found[a]) & set(found[b])) == ((a, b) not in apart)


def test_letters_of_many_methods_are_found_at_once() -> None:
    """Twenty-five pairs distinguished, each from one another alone, for which insert-and-absorb keeps 2^25 columns."""
    names = [str(number) for number in range(50)]
    apart = {(names[n], names[n + 1]) for n in range(0, 50, 2)}
    found = {name: set(re.findall(r"[a-zA-Z]\d*", text)) for name, text in letters(names, apart).items()}
    for a, b in itertools.combinations(names, 2):
        assert bool(found[a] & found[b]) == ((a, b) not in apart)
    assert len(set.union(*found.values())) < 30


def test_letters_do_not_run_out() -> None:
    """After z come capitals, after Z a1."""
    names = [str(number) for number in range(54)]
    found = letters(names, itertools.combinations(names, 2))
    assert [found[name] for name in ("0", "25", "26", "51", "52", "53")] == ["a", "z", "A", "Z", "a1", "b1"]


# --- Many tasks -----------------------------------------------------------------------------------------------------


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    """Of 1 to 8 the middle half is 3 to 6; an outlier does not move it; NaN does not count."""
    scores = np.array([[1.0, 3, 5, 7], [2, 4, 6, 1000], [NAN] * 4])
    assert interquartile_mean(scores).value == 4.5
    assert interquartile_mean(scores).value == scipy.stats.trim_mean(scores[:2].ravel(), 0.25)


def test_one_run_a_task_has_no_interval() -> None:
    """The estimate stands alone where a task has a single run; no score at all has no estimate."""
    one = np.array([[0.2, 0.4, 0.6]])
    found = interquartile_mean(one)
    assert math.isfinite(found.value)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(interquartile_mean(np.full((2, 2), NAN)).value)


def test_intervals_over_tasks_do_not_depend_on_the_order_of_runs_and_tasks() -> None:
    """Shuffled runs (each task's by themselves) and tasks give the same numbers to the last bit; a seed others."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        a = generator.normal(size=(3, 6))
        mixed = generator.permuted(a, axis=0)[:, generator.permutation(6)]
        found = interquartile_mean(a, resamples=100)
        assert found == interquartile_mean(mixed, resamples=100)
        assert found != interquartile_mean(a, seed=1, resamples=100)
        assert found.low <= found.value <= found.high


def test_the_interval_of_the_interquartile_mean_covers() -> None:
    """Three runs of each of eight tasks: the interval holds the truth at least 93 times in a hundred."""
    generator = np.random.default_rng(0)
    found = [interquartile_mean(generator.normal(size=(3, 8)), resamples=400) for _ in range(400)]
    assert 0.93 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.995


def test_average_ranks_share_ties() -> None:
    """Ranks 1, 2.5, 2.5 and then 1, 2, 3; a task that a method lacks does not count."""
    scores = np.array([[0.9, 0.8, 0.7], [0.5, 0.7, 0.9], [0.5, 0.6, NAN]])
    found = average_ranks(scores)
    assert [rank.mean for rank in found] == [1, 2.25, 2.75]
    assert [rank.n for rank in found] == [2, 2, 2]
    # First on both tasks is not first on every other one, and no rank is above the first or below the last.
    assert math.isnan(found[0].low)
    assert math.isnan(found[0].high)
    assert (found[1].low, found[1].high) == (1, 3)


def test_ranks_follow_each_tasks_direction() -> None:
    """The lowest perplexity and the highest accuracy rank first; means that differ in the last bit tie."""
    scores = np.array([[0.9, 12.0], [0.8, 15.0]])
    assert [rank.mean for rank in average_ranks(scores, [True, False])] == [1, 2]
    assert [rank.mean for rank in average_ranks(np.array([[0.1 + 0.2], [0.3]]))] == [1.5, 1.5]


def test_win_rates_of_a_worked_case() -> None:
    """First of three wins both duels on one task and ties one on the other; a missing score is no duel."""
    scores = np.array([[3.0, 1.0], [2.0, 1.0], [1.0, NAN]])
    assert win_rates(scores) == pytest.approx([2.5 / 3, 1.5 / 3, 0])
    assert win_rates(scores, higher_is_better=False) == pytest.approx([0.5 / 3, 1.5 / 3, 1])
    assert np.isnan(win_rates(np.array([[1.0], [NAN]]))).all()


def test_win_rates_and_average_ranks_say_the_same() -> None:
    """Without holes the win rate of m methods is (m - average rank) / (m - 1), ties or not."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        scores = generator.integers(0, 6, (5, 4)).astype(float)
        ranks = np.array([rank.mean for rank in average_ranks(scores)])
        assert win_rates(scores) == pytest.approx((5 - ranks) / 4)
