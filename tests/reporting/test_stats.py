"""Statistics agree with numpy and SciPy, and invent nothing."""

import math

import numpy as np
import pytest
import scipy.stats

from harness.reporting.stats import bootstrap_interval, summarise

SCORES = [0.81, 0.86, 0.79, 0.9]


def test_a_summary_agrees_with_numpy_and_scipy() -> None:
    """Mean, sample standard deviation and t interval are those of the reference implementations."""
    found = summarise(SCORES)
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(SCORES), scipy.stats.sem(SCORES))
    assert (found.n, found.mean, found.std) == (
        4,
        pytest.approx(np.mean(SCORES)),
        pytest.approx(np.std(SCORES, ddof=1)),
    )
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_spread() -> None:
    """With n=1 neither a deviation nor an interval is invented."""
    found = summarise([0.5])
    assert (found.n, found.mean) == (1, 0.5)
    assert all(map(math.isnan, (found.std, found.low, found.high)))


def test_values_that_are_not_finite_do_not_count() -> None:
    """NaN and infinite scores change neither n nor the mean; none at all has no mean."""
    assert summarise([0.2, math.nan, 0.4, math.inf]).n == 2
    assert summarise([0.2, math.nan, 0.4, math.inf]).mean == pytest.approx(0.3)
    assert (summarise([]).n, math.isnan(summarise([math.nan]).mean)) == (0, True)


def test_the_bootstrap_is_seeded() -> None:
    """The same seed gives the same interval, another seed another one, and the mean lies within."""
    values = np.random.default_rng(0).normal(size=50)
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1)
    assert (low, high) != bootstrap_interval(values, seed=2)
    assert low < np.mean(values) < high


def test_the_bootstrap_agrees_with_the_normal_interval_on_many_values() -> None:
    """On a thousand values the percentile interval is close to mean ± 1.96 standard errors."""
    values = np.random.default_rng(0).normal(size=1000)
    expected = np.mean(values) + np.array([-1.96, 1.96]) * scipy.stats.sem(values)
    assert bootstrap_interval(values, resamples=4000) == pytest.approx(tuple(expected), abs=0.01)
