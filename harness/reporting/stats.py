"""Numbers with their uncertainty: what a handful of seeds says, and no more."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Scores of one configuration over its seeds.

    Attributes:
        n: How many finite values there are.
        mean: NaN where n is 0.
        std: Sample standard deviation (ddof=1); NaN where n is below 2, since one value says nothing of spread.
        low: Lower end of the 95% interval on the mean; NaN where n is below 2.
        high: Upper end.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float


def summarise(values: Iterable[float]) -> Summary:
    """Summarise finite values, with Student's t interval on their mean; NaN and infinite ones do not count."""
    finite = _finite(values)
    n = len(finite)
    mean = float(np.mean(finite)) if n else math.nan
    if n < 2:
        return Summary(n, mean, math.nan, math.nan, math.nan)
    std = float(np.std(finite, ddof=1))
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def bootstrap_interval(values: Iterable[float], seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval on the mean; the same seed gives the same interval.

    For many values (examples, tasks). Over three seeds it is too narrow, which is why `summarise` uses t.
    """
    finite = _finite(values)
    if len(finite) < 2:
        return math.nan, math.nan
    rows = np.random.default_rng(seed).integers(0, len(finite), (resamples, len(finite)))
    low, high = np.quantile(finite[rows].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _finite(values: Iterable[float]) -> np.ndarray:
    array = np.asarray(list(values), dtype=float)
    return array[np.isfinite(array)]
