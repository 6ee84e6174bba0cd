"""Intervals on a mean score that stay where scores can be.

A share, such as an accuracy, gets Wilson's interval (1927, J. Amer. Statist. Assoc. 22) with Student's quantile and as
many examples as its variance is worth; a correlation the interval of Fisher's z; a loss that of its logarithm.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.report.spread import FEWEST_RUNS, seed_part
from harness.report.stats import PLACES, TAILS
from harness.training.metrics import RANGE_OF, higher_is_better


def over_seeds(
    metric: str,
    scores: Sequence[float] | np.ndarray,
    seeds: Any = None,
    data_seeds: Any = None,
    rows_variance: float = 0.0,
    rows: int = 0,
) -> tuple[float, float]:
    """The 95% interval on the mean of some runs: of other seeds, and of other examples where their variance is given.

    Args:
        metric: Decides where scores can be.
        scores: One per run; NaN below three of them, as two have hardly a variance, and where nothing varies.
        seeds: As for `seed_part`.
        data_seeds: As for `seed_part`.
        rows_variance: What other examples add to the mean's variance.
        rows: How many examples; 0 where it is not known.
    """
    values = np.sort(np.asarray(scores, dtype=float)) if seeds is None else np.asarray(scores, dtype=float)
    if len(values) < FEWEST_RUNS:
        return math.nan, math.nan
    part = seed_part(values, seeds, data_seeds)
    total = part.variance + rows_variance
    spread = part.variance**2 / part.freedom
    # What examples give a share is known from the share itself, as Wilson has it.
    spread += rows_variance**2 / (rows - 1) if rows > 1 and not is_share(metric) else 0.0
    freedom = total**2 / spread if spread > 0 else math.inf
    return inside(metric, math.fsum(values) / len(values), total, freedom, rows)


def over_examples(metric: str, score: float, rows: int) -> tuple[float, float]:
    """The 95% interval of one run's share of so many examples, were it asked others (Wilson); NaN of other metrics."""
    if not is_share(metric) or rows < 1 or not 0 <= score <= 1:
        return math.nan, math.nan
    return _wilson(score, float(rows), math.inf)


def inside(metric: str, mean: float, variance: float, freedom: float, rows: int = 0) -> tuple[float, float]:
    """The 95% interval on a mean of a known variance, within the metric's range.

    Args:
        metric: Its name.
        mean: The estimate.
        variance: Its own, not that of single runs.
        freedom: Degrees of freedom that it is known with.
        rows: Examples, for a share that is 0 or 1: 60 right of 60 are not certain.

    Returns:
        NaN where nothing varies: that runs agree does not make their mean certain.
    """
    from scipy.stats import t

    error = math.sqrt(variance)
    if is_share(metric) and rows and mean in (0.0, 1.0):
        return _wilson(mean, float(rows), freedom)
    # Equal scores leave what rounding does to their mean.
    if error <= 10.0**-PLACES * max(1.0, abs(mean)):
        return math.nan, math.nan
    if is_share(metric) and 0 <= mean <= 1:
        return _wilson(mean, mean * (1 - mean) / variance, freedom)
    reach = float(t.ppf(TAILS[1], freedom)) * error
    if width(metric) == 2.0 and -1 < mean < 1:
        reach /= 1 - mean**2
        return math.tanh(math.atanh(mean) - reach), math.tanh(math.atanh(mean) + reach)
    if not higher_is_better(metric) and mean > 0:
        return mean * math.exp(-reach / mean), mean * math.exp(reach / mean)
    return mean - reach, mean + reach


def is_share(metric: str) -> bool:
    """Whether its scores are between 0 and 1."""
    return width(metric) == 1.0


def width(metric: str) -> float:
    """How far apart two scores can be: 1 of shares, 2 of correlations, infinitely of what has no known range."""
    name = metric.rpartition(".")[2]
    values = "share" if name == "reward_accuracy" else RANGE_OF.get(name)
    return {"share": 1.0, "correlation": 2.0}.get(values or "", math.inf)


def least_variance(metric: str, rows: int) -> float:
    """The least variance that other examples give a mean, also where no example here differs.

    That of a share of which none of the examples is right, as Jeffreys' prior estimates it: half of one is. 0 of
    metrics without a known range.
    """
    if math.isinf(width(metric)) or rows < 1:
        return 0.0
    share = 0.5 / (rows + 1)
    return width(metric) ** 2 * share * (1 - share) / rows


def _wilson(mean: float, worth: float, freedom: float) -> tuple[float, float]:
    from scipy.stats import t

    square = float(t.ppf(TAILS[1], freedom)) ** 2 / max(worth, 1e-9)
    center = (mean + square / 2) / (1 + square)
    half = math.sqrt(square * (mean * (1 - mean) + square / 4)) / (1 + square)
    # At the very ends the root leaves the last bit.
    return max(0.0, min(mean, center - half)), min(1.0, max(mean, center + half))
