"""Numbers with their uncertainty: what a handful of seeds says, and no more.

Whatever is drawn is drawn from a seed and from sorted values, so that the same scores give the same numbers to the last
bit in whatever order they come. Intervals are 95% ones. Comparisons on the same examples are in
`harness.report.comparison`.
"""

import math
import string
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
RESAMPLES = 2000
# Scores that agree to so many places tie: the rest is what summing in another order leaves.
PLACES = 12


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


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval, whose ends are NaN where there is too little to tell."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outcomes:
    """How the runs of one configuration ended: all, those with a score, no better than majority, diverged."""

    runs: int
    scored: int
    collapsed: int
    diverged: int


@dataclass(frozen=True)
class McNemar:
    """Rows that only the one run has right, rows that only the other has right, and the exact two-sided p."""

    only_a: int
    only_b: int
    p: float


# --- Runs of one configuration --------------------------------------------------------------------------------------


def summarize(values: Iterable[float]) -> Summary:
    """Summarize finite values, with Student's t interval on their mean; NaN and infinite ones do not count.

    t and no bootstrap: of n = 2, 3 or 5 normal values, a percentile interval meant to hold the mean 95 times in a
    hundred holds it 50, 75 or 83 times, t's 95 times. It is wide at n = 2 because two runs say that little.
    """
    finite = _finite(values)
    n = len(finite)
    mean = float(np.mean(finite)) if n else math.nan
    if n < 2:
        return Summary(n, mean, math.nan, math.nan, math.nan)
    std = float(np.std(finite, ddof=1))
    half = t_quantile(n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


@cache
def t_quantile(freedom: int) -> float:
    """How many standard errors a 95% interval of Student's t reaches to either side."""
    from scipy.stats import t

    return float(t.ppf(TAILS[1], freedom))


def _finite(values: Iterable[float]) -> np.ndarray:
    """Sorted, because the last bits of a sum depend on the order."""
    array = np.asarray(list(values), dtype=float)
    return np.sort(array[np.isfinite(array)])


def count_outcomes(
    scores: Sequence[float], diverged: Sequence[bool], majority: float | Sequence[float], higher_is_better: bool = True
) -> Outcomes:
    """Count collapsed and diverged runs.

    Args:
        scores: One a run; NaN where a run has none.
        diverged: Whether each run's loss became NaN or infinite. Such a run has no score that counts.
        majority: The majority class's score, or one per run; NaN where there is none, and then nothing is called
            collapsed.
        higher_is_better: Direction of the score.
    """
    fell = np.asarray(diverged, dtype=bool)
    found = np.asarray(scores, dtype=float)
    counted = np.isfinite(found) & ~fell
    gain = _sign(higher_is_better) * (found - np.asarray(majority, dtype=float))[counted]
    return Outcomes(len(fell), int(counted.sum()), int((np.round(gain, PLACES) <= 0).sum()), int(fell.sum()))


def _sign(higher_is_better: bool | Sequence[bool]) -> np.ndarray:
    return np.where(higher_is_better, 1.0, -1.0)


# --- Two runs, and many pairs ---------------------------------------------------------------------------------------


def mcnemar(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> McNemar:
    """Test two runs on the same rows: whether one is right where the other is wrong as often as the other way round.

    Exact (binomial) form of McNemar 1947, Psychometrika 12(2): of the rows that exactly one run has right, half should
    be either's. It is about these two runs; their seeds are not in it.

    Raises:
        ValueError: The two are not over the same number of rows.
    """
    from scipy.stats import binomtest

    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} rows of one run, {b.size} of the other: the rows must be the same")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    differing = only_a + only_b
    return McNemar(only_a, only_b, float(binomtest(only_a, differing).pvalue) if differing else 1.0)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Correct p values for having looked at all of them (Holm 1979, Scand. J. Statist. 6(2)).

    The smallest of m is multiplied by m, the next by m - 1, and so on, none falling below the one before it. Rejecting
    where the result is below 0.05 is wrong about any of the pairs at most 5 times in a hundred. NaN is no test: it
    stays NaN and does not count.
    """
    p = np.asarray(p_values, dtype=float)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    corrected = np.full(p.shape, np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return corrected


def benjamini_hochberg(p_values: Sequence[float]) -> np.ndarray:
    """Correct p values for having looked at many (Benjamini and Hochberg 1995, J. R. Statist. Soc. B 57(1)).

    Of those below 0.05 afterwards, at most 5 in a hundred are expected to be wrong: for tables that explore, where Holm
    would find nothing. NaN is no test: it stays NaN and does not count.
    """
    p = np.asarray(p_values, dtype=float)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    raised = p[order] * len(order) / np.arange(1, len(order) + 1)
    corrected = np.full(p.shape, np.nan)
    corrected[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1.0)
    return corrected


def letters(methods: Sequence[str], told_apart: Iterable[Collection[str]]) -> dict[str, str]:
    """Give every method letters so that two methods share one if and only if they were not distinguished.

    The compact letter display (Piepho 2004, J. Comput. Graph. Statist. 13(2)). His insert-and-absorb can need 2^k
    columns for k pairs; this is the clique-growing form of Gramm et al. 2007 (Comput. Statist. Data Anal. 52(2)), which
    has the same property in polynomial time: each two methods still without a letter in common found a group, which
    grows by methods distinguished from nobody in it; a group whose pairs all share another letter is dropped again.

    Args:
        methods: Best first: the letter a then goes to the best.
        told_apart: Pairs of methods.

    Returns:
        Method -> letters in their order. The 53rd letter is a1.
    """
    place = {name: number for number, name in enumerate(methods)}
    alike = np.ones((len(place), len(place)), dtype=bool)
    for a, b in told_apart:
        alike[place[a], place[b]] = alike[place[b], place[a]] = False
    shared = np.zeros(alike.shape, dtype=int)
    groups: list[list[int]] = []
    for first in range(len(place)):
        # The pair with itself comes last: a method that was distinguished from all others has a letter of its own.
        for second in [*range(first + 1, len(place)), first]:
            if alike[first, second] and not shared[first, second]:
                groups.append(_grown(list({first, second}), alike, shared == 0))
                shared[np.ix_(groups[-1], groups[-1])] += 1
    for group in groups[::-1]:
        if (shared[np.ix_(group, group)] > 1).all():
            shared[np.ix_(group, group)] -= 1
            groups.remove(group)
    members = [set(group) for group in groups]
    return {
        name: "".join(_letter(number) for number, group in enumerate(members) if index in group)
        for name, index in place.items()
    }


def _grown(group: list[int], alike: np.ndarray, uncovered: np.ndarray) -> list[int]:
    """Let in who is alike to all members, first who brings most pairs that have no letter yet, the better of equals."""
    fits: np.ndarray = np.all(alike[group], axis=0)
    fits[group] = False
    brings = uncovered[group].sum(axis=0)
    while fits.any():
        group.append(int(np.argmax(np.where(fits, brings, -1))))
        fits &= alike[group[-1]]
        fits[group[-1]] = False
        brings += uncovered[group[-1]]
    return group


def _letter(number: int) -> str:
    again, number = divmod(number, len(string.ascii_letters))
    return string.ascii_letters[number] + (str(again) if again else "")


# --- Many tasks -----------------------------------------------------------------------------------------------------


def interquartile_mean(scores: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean of the middle half of all runs on all tasks (Agarwal et al. 2021, arXiv 2108.13264, section 4.3).

    The tasks' scores must share a scale and a direction. The interval is over runs, not over tasks: Student's t with
    the bootstrap's standard error, since percentiles of so few runs are too narrow (docs/statistics.md has how often
    either holds the truth); there is none where the runs of each task agree.

    Args:
        scores: Runs x tasks; NaN where there is none.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
    """
    from scipy.stats import trim_mean

    tasks = sorted((task for task in _tasks(scores) if len(task)), key=tuple)
    if not tasks:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(trim_mean(np.sort(np.concatenate(tasks)), 0.25))
    if min(map(len, tasks)) < 2:
        return Estimate(value, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    drawn = [task[_resampled(generator, len(task), resamples)] for task in tasks]
    error = float(trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1).std(ddof=1))
    if error <= 10.0**-PLACES:
        return Estimate(value, math.nan, math.nan)
    # The middle half of the runs is what the mean is of.
    half = t_quantile(max(min(map(len, tasks)) - 1, sum(len(task) - 1 for task in tasks) // 2)) * error
    return Estimate(value, value - half, value + half)


def _tasks(scores: np.ndarray) -> list[np.ndarray]:
    """The finite scores of each column, sorted."""
    return [_finite(column) for column in np.asarray(scores, dtype=float).T]


def _resampled(generator: np.random.Generator, runs: int, resamples: int) -> np.ndarray:
    """Draw n - 1 of a task's n runs with replacement: resamples x (n - 1) numbers of runs.

    Each task apart (stratified), as Agarwal et al. do; n - 1 and not n after McCarthy and Snowden 1985 (Vital and
    Health Statistics 2(95)), because n of n gives a variance that is (n - 1) / n of the true one, two thirds of it
    with three runs.
    """
    return generator.integers(0, runs, (resamples, runs - 1))


def average_ranks(scores: np.ndarray, higher_is_better: bool | Sequence[bool] = True) -> list[Summary]:
    """Average rank of each method, 1 the best, with a t interval over tasks; methods that tie share their mean rank.

    The interval ends at the first and the last rank; of a method that has the same rank on all tasks there is none, as
    the next task may give it another.

    Args:
        scores: Methods x tasks, one number each; NaN where there is none. Only tasks that all methods have count.
        higher_is_better: Direction of the scores, for all tasks or one per task.
    """
    from scipy.stats import rankdata

    oriented = _rounded(scores, higher_is_better)
    common = oriented[:, np.isfinite(oriented).all(axis=0)]
    found = [summarize(ranks) for ranks in rankdata(-common, axis=0)]
    return [
        replace(one, low=max(1.0, one.low), high=min(float(len(found)), one.high))
        if one.std > 0
        else replace(one, low=math.nan, high=math.nan)
        for one in found
    ]


def win_rates(scores: np.ndarray, higher_is_better: bool | Sequence[bool] = True) -> np.ndarray:
    """Share of its duels, one with each other method on each task, that a method wins; a tie is half a win.

    Args:
        scores: Methods x tasks; NaN where there is none. A duel takes place where both have a score.
        higher_is_better: Direction of the scores, for all tasks or one per task.

    Returns:
        One share a method; NaN without any duel.
    """
    from scipy.stats import rankdata

    oriented = _rounded(scores, higher_is_better)
    there = np.isfinite(oriented)
    duels = np.where(there, there.sum(axis=0) - 1, 0).sum(axis=1)
    # Ranked from the worst, a method has beaten as many as its rank says less one, those that tie with it half.
    won = rankdata(np.where(there, oriented, np.nan), axis=0, nan_policy="omit") - 1
    return np.where(duels > 0, np.where(there, won, 0.0).sum(axis=1) / np.maximum(duels, 1), np.nan)


def _rounded(scores: np.ndarray, higher_is_better: bool | Sequence[bool]) -> np.ndarray:
    """Oriented so that more is better."""
    return np.round(_sign(higher_is_better) * np.asarray(scores, dtype=float), PLACES)
