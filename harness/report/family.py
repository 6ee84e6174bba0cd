"""The tests of a table: which methods differ from the baseline, or from each other, and how far chance can be trusted.

The variance of a difference has two parts: other examples (a paired bootstrap where predictions are there, else the
binomial variance of each method by itself) and other seeds (`harness.report.spread`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.report.comparison import NO_DIFFERENCE, NO_SCORE, Comparison, Resampled
from harness.report.intervals import least_variance
from harness.report.spread import LEVEL, Spreads
from harness.report.stats import PLACES, benjamini_hochberg, holm

TOO_UNSTABLE = "too unstable to say"
THESE_RUNS = "in these runs"
HOLM, FALSE_DISCOVERY = "Holm", "Benjamini-Hochberg"
# Methods of a task beyond which a table explores: of so many some difference is found by looking long enough.
MOST_CONFIRMED = 10
HALVINGS = 20
DRAWS = 4000


@dataclass(frozen=True)
class Member:
    """A method of a family.

    Attributes:
        mean: Of its runs' scores; NaN without any.
        runs: How many have a score.
        rows_variance: What other examples would change in the mean.
        rows: How many examples.
        replicates: The mean on resampled examples, the same ones for all; null without predictions.
        lost: How many runs diverged or are no better than the commonest answer.
        least: What other examples change at least, though none here differs.
    """

    mean: float
    runs: int
    rows_variance: float
    rows: int
    replicates: np.ndarray | None = None
    lost: int = 0
    least: float = 0.0


def resampled_member(method: Resampled, lost: int = 0, metric: str = "") -> Member:
    """A method whose predictions could be read; its metric says what other examples change at least."""
    runs = len(method.scores)
    if not runs:
        return Member(math.nan, 0, math.nan, method.rows, None, lost)
    replicates = method.replicates.mean(axis=1)
    mean = math.fsum(method.scores) / runs
    least = least_variance(metric, method.rows)
    return Member(mean, runs, max(float(replicates.var(ddof=1)), least), method.rows, replicates, lost, least)


def counted_member(scores: Sequence[float], rows: int, lost: int = 0) -> Member:
    """A method of which only the share of right examples is known: their variance is binomial."""
    mean = math.fsum(scores) / len(scores)
    least = least_variance("accuracy", rows)
    return Member(mean, len(scores), max(mean * (1 - mean) / rows, least), rows, None, lost, least)


def compare_family(
    members: Mapping[str, Member],
    spreads: Spreads,
    pairs: Sequence[tuple[str, str]],
    correction: str = HOLM,
    higher_is_better: bool = True,
    width: float = math.inf,
) -> list[Comparison]:
    """Test pairs of methods, corrected together.

    Args:
        members: Method -> what is known of it.
        spreads: Of those that can be tested over seeds.
        pairs: What is compared.
        correction: `HOLM`, or `FALSE_DISCOVERY`.
        higher_is_better: Direction of the metric.
        width: How far apart two scores can be; intervals end there.
    """
    figures = _figures(members, spreads, pairs, width)
    corrected = (holm if correction == HOLM else benjamini_hochberg)([figure[3] for figure in figures])
    found = []
    for (a, b), (difference, low, high, p), adjusted in zip(pairs, figures, corrected, strict=True):
        over_seeds = {a, b} <= {*spreads.weights}
        verdict = NO_DIFFERENCE
        if min(members[a].runs, members[b].runs) == 0:
            verdict = NO_SCORE
        elif math.isnan(p):
            verdict = TOO_UNSTABLE
        elif adjusted < LEVEL:
            verdict = f"{a if (difference > 0) == higher_is_better else b} better"
            verdict += "" if over_seeds else f" {THESE_RUNS}"
        runs = (members[a].runs, members[b].runs)
        found.append(Comparison(a, b, difference, low, high, p, float(adjusted), verdict, *runs, over_seeds))
    return found


def _figures(
    members: Mapping[str, Member], spreads: Spreads, pairs: Sequence[tuple[str, str]], width: float
) -> list[tuple[float, float, float, float]]:
    """Difference, the ends of its interval, and p of each pair; NaN where the two are not to be tested.

    Where nothing varies there is no interval: that nothing was seen to differ does not make a difference certain.
    """
    # Rounded, because the same runs in another order may differ in the last bit of their mean.
    differences = np.round([members[a].mean - members[b].mean for a, b in pairs], PLACES)
    places = [place for place, pair in enumerate(pairs) if _testable(members, spreads, pair)]
    half, p = np.full((2, len(pairs)), math.nan)
    if places:
        mixtures = [_mixture(members, spreads, *pairs[place]) for place in places]
        variances, weights = (np.array(part) for part in zip(*mixtures, strict=True))
        reach = half_widths(variances, weights, LEVEL)
        half[places] = np.where(reach > 10.0**-PLACES, reach, math.nan)
        found = np.where(differences[places] == 0, 1.0, two_sided(np.abs(differences[places]), variances, weights))
        # No test that lets each example's difference change its sign goes lower; two examples can't prove anything.
        rows = np.array([min(members[name].rows for name in pairs[place]) for place in places], dtype=float)
        p[places] = np.maximum(found, 2.0 ** (1 - np.minimum(rows, 1000)))
    columns = (differences, *np.clip([differences - half, differences + half], -width, width), p)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _testable(members: Mapping[str, Member], spreads: Spreads, pair: tuple[str, str]) -> bool:
    """Whether both have a score, neither is too unstable, and no run of several collapsed or diverged."""
    both = [members[name] for name in pair]
    return all(one.runs and not (one.lost and one.runs > 1) for one in both) and not {*pair} & spreads.unstable


def _mixture(members: Mapping[str, Member], spreads: Spreads, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """What the variance of a difference may be, and how probable each value is; of these runs alone without three."""
    a, b = members[first], members[second]
    if a.replicates is not None and b.replicates is not None:
        rows = max(float((a.replicates - b.replicates).var(ddof=1)), a.least + b.least)
    else:
        rows = a.rows_variance + b.rows_variance
    if not {first, second} <= {*spreads.weights}:
        many = len(spreads.variances) ** 2
        return np.full(many, rows), np.full(many, 1 / many)
    seeds = spreads.parts(first)[:, None] + spreads.parts(second)[None, :]
    return (rows + seeds).ravel(), np.outer(spreads.weights[first], spreads.weights[second]).ravel()


def two_sided(differences: np.ndarray, variances: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How probable differences at least as large are by chance, on average over what each variance may be.

    Args:
        differences: One per pair, none below 0.
        variances: Pairs x possible values.
        weights: How probable each is.
    """
    from scipy.special import ndtr

    errors = np.sqrt(np.maximum(variances, np.finfo(float).tiny))
    return np.asarray(2 * (weights * ndtr(-differences[:, None] / errors)).sum(axis=1))


def half_widths(variances: np.ndarray, weights: np.ndarray, level: float) -> np.ndarray:
    """The differences whose two-sided p is the level: at 0.05 half of a 95% interval each."""
    from scipy.special import ndtri

    low, high = np.zeros(len(variances)), -ndtri(level / 4) * np.sqrt(variances.max(axis=1))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        beyond = two_sided(middle, variances, weights) > level
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    return np.asarray(high)


def detectable(
    members: Mapping[str, Member], spreads: Spreads, pairs: Sequence[tuple[str, str]], corrected_over: int
) -> float:
    """The smallest true difference that is found every other time, median over the pairs that are tested over seeds.

    Other examples, other seeds and the correction are in it: it is what the smallest p of so many pairs must reach,
    which is p times their number in either correction. NaN where no pair is tested over seeds.

    Args:
        members: As for `compare_family`.
        spreads: Likewise.
        pairs: Likewise.
        corrected_over: How many of them have a p, also those that are about these runs alone.
    """
    tested = [pair for pair in pairs if {*pair} <= {*spreads.weights} - spreads.unstable]
    if not tested:
        return math.nan
    variances, weights = (
        np.array(part) for part in zip(*(_mixture(members, spreads, *p) for p in tested), strict=True)
    )
    return float(np.median(half_widths(variances, weights, LEVEL / corrected_over)))


def chances(members: Mapping[str, Member], spreads: Spreads, higher_is_better: bool = True) -> dict[str, float]:
    """How probable it is that each method is the best of those tested over seeds, given these runs.

    Means are drawn `DRAWS` times from what other examples and other seeds would make of them: resampled examples, and a
    variance from `spreads`. Before there were runs every method was as likely the best.
    """
    names = [name for name in members if name in spreads.weights]
    if len(names) < 2:
        return {}
    generator = np.random.default_rng(0)
    drawn = np.empty((DRAWS, len(names)))
    for place, name in enumerate(names):
        one = members[name]
        seeds = generator.choice(spreads.parts(name), DRAWS, p=spreads.weights[name])
        drawn[:, place] = one.mean + generator.normal(size=DRAWS) * np.sqrt(seeds)
        if one.replicates is None:
            drawn[:, place] += generator.normal(size=DRAWS) * math.sqrt(one.rows_variance)
        else:
            drawn[:, place] += np.resize(one.replicates, DRAWS) - one.mean
    best = drawn.max(axis=1, keepdims=True) if higher_is_better else drawn.min(axis=1, keepdims=True)
    first = drawn == best
    return dict(zip(names, (first / first.sum(axis=1, keepdims=True)).mean(axis=0).tolist(), strict=True))
