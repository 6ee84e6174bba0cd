"""How much a method's mean would change with other seeds, known from few runs of each of several methods.

A variance of three runs is hardly known, so one method's own says little; but the methods of a table are trained alike,
and together their runs say how large such spreads are. The model: each method's true variance is drawn from one
distribution, which is estimated from all of them without a shape being assumed (nonparametric maximum likelihood on a
grid), and a test then averages over what a method's true variance may be, given its own runs (Ignatiadis and Sen 2023,
"Empirical partially Bayes multiple testing and compound chi-squared decisions", arXiv 2303.02887). If all spreads are
alike, this is the pooled variance; if they are not, a method with a lucky small one is not believed.

`docs/statistics.md` has what simulations say of it, beside what they say of a plain pooled variance.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Runs of a method below which nothing is tested over seeds: two runs give a variance with one degree of freedom.
FEWEST_RUNS = 3
# Methods below which what a seed has in common over them is known too badly to be taken off.
FEWEST_BLOCKED = 4
# So many methods of unknown spread are added to those that there are. On its own one gives Student's t test; without
# them two methods' variances would be taken for the truth.
UNKNOWN = 3.0
GRID, LOWEST, HIGHEST = 16, 1 / 20, 4.0
ROUNDS = 60
LEVEL = 0.05
# A variance below it is what rounding leaves of equal scores.
ROUNDING = 1e-24


@dataclass(frozen=True)
class Replicates:
    """The runs of one method that have a score.

    Attributes:
        scores: One per run.
        seeds: Of new weights and dropout; NaN where none is known.
        data_seeds: Of the order of the rows.
        lost: How many of its runs diverged or are no better than the commonest answer.
    """

    scores: np.ndarray
    seeds: np.ndarray
    data_seeds: np.ndarray
    lost: int = 0

    @property
    def testable(self) -> bool:
        """Whether there are enough runs to test over seeds."""
        return len(self.scores) >= FEWEST_RUNS and not self.lost


@dataclass(frozen=True)
class SeedPart:
    """The variance of a mean over runs that comes from their seeds, and the degrees of freedom it is known with."""

    variance: float
    freedom: float


def seed_part(scores: Sequence[float] | np.ndarray, seeds: Any = None, data_seeds: Any = None) -> SeedPart:
    """Estimate the variance of the mean of some runs, two or more.

    Runs of different seeds are independent. Where every seed met every data_seed they are not: nine runs of three by
    three are not nine draws. With mean squares of the two-way analysis of variance (Searle, Casella and McCulloch 1992,
    Variance Components, chapter 4), the mean's variance is v_seed / a + v_data / b + v_both / (a b), its degrees of
    freedom are Satterthwaite's. Where only some seeds met several, runs of one seed count as one, or those of one
    data_seed if that is the more cautious.

    Args:
        scores: One per run.
        seeds: One per run; without them all runs are independent.
        data_seeds: Likewise.
    """
    values = np.asarray(scores, dtype=float)
    count = len(values)
    factors = [_levels(given, count) for given in (seeds, data_seeds)]
    several = [factor for factor in factors if factor.max() > 0]
    if not several or all(factor.max() == count - 1 for factor in several):
        return SeedPart(float(values.var(ddof=1)) / count, count - 1)
    a, b = (int(factor.max()) + 1 for factor in factors)
    if min(a, b) > 1 and count == a * b and len({*zip(*factors, strict=True)}) == count:
        cells = np.empty((a, b))
        cells[factors[0], factors[1]] = values
        return _crossed(cells)
    parts = []
    for factor in several:
        means = np.bincount(factor, values) / np.bincount(factor)
        parts.append(SeedPart(float(means.var(ddof=1)) / len(means), len(means) - 1))
    return max(parts, key=lambda part: part.variance)


def _levels(given: Any, count: int) -> np.ndarray:
    """Number the levels of a factor; a run without one has one of its own."""
    if given is None:
        return np.arange(count)
    return np.asarray(np.unique(np.asarray(given, dtype=float), return_inverse=True, equal_nan=False)[1])


def _crossed(cells: np.ndarray) -> SeedPart:
    """Of scores, seeds x data_seeds. An estimate of a variance below nothing is nothing."""
    a, b = cells.shape
    by_seed, by_order = cells.mean(axis=1), cells.mean(axis=0)
    rest = cells - by_seed[:, None] - by_order[None, :] + cells.mean()
    squares = np.array(
        [b * by_seed.var(ddof=1), a * by_order.var(ddof=1), (rest**2).sum() / ((a - 1) * (b - 1))], dtype=float
    )
    freedom = np.array([a - 1, b - 1, (a - 1) * (b - 1)])
    signs = np.array([squares[0] > squares[2], squares[1] > squares[2], 0.0])
    # Each part above nothing brings its own square and takes the rest's off once; alone, the rest stays.
    signs[2] = 1.0 - signs.sum()
    total = float(signs @ squares)
    spread = float((signs**2 * squares**2 / freedom).sum())
    return SeedPart(total / (a * b), total**2 / spread if spread > 0 else float(freedom[:2].min()))


def unstable(variances: np.ndarray, freedom: np.ndarray, floor: float) -> np.ndarray:
    """Find methods whose runs differ so much more than those of the others that it is no luck.

    Cochran's outlying variance (1941, Annals of Eugenics 11), one after the other from the largest: its F against the
    mean of the others, at 5% over all methods. What examples alone would explain (`floor`) is no instability.

    Args:
        variances: Of single runs, one per method.
        freedom: Of each.
        floor: The variance that other examples would give a score.

    Returns:
        Which they are. Of two methods neither is.
    """
    from scipy.stats import f

    found = np.zeros(len(variances), dtype=bool)
    for place in np.argsort(variances)[::-1]:
        others = ~found
        others[place] = False
        if others.sum() < 2:
            break
        # Beside methods whose runs all agree, any scatter stands out.
        usual = max(float(np.average(variances[others], weights=freedom[others])), floor, ROUNDING)
        if variances[place] / usual <= f.isf(LEVEL / len(found), freedom[place], freedom[others].sum()):
            break
        found[place] = True
    return found


@dataclass(frozen=True)
class Spreads:
    """What the runs of several methods say of the variance of one run's score.

    Attributes:
        variances: The grid of possible ones.
        weights: Method -> how probable each is, given its runs and the others'.
        units: Method -> how many independent runs its mean is over.
        unstable: Methods whose runs differ too much to be tested.
        blocked: Whether runs were paired by seed: what a seed has in common over the methods was taken off.
    """

    variances: np.ndarray
    weights: Mapping[str, np.ndarray]
    units: Mapping[str, int]
    unstable: frozenset[str]
    blocked: bool

    def parts(self, name: str) -> np.ndarray:
        """The possible variances of a method's mean, in the order of its weights."""
        return self.variances / self.units[name]


def spreads(runs: Mapping[str, Replicates], floor: float = 0.0) -> Spreads:
    """Estimate the spreads of the methods that can be tested: three runs or more, none lost.

    A method that is too unstable is not tested, but its variance stays in what is known of variances: those that were
    lucky enough not to be found out are like it, and leaving it out would hide them.

    Args:
        runs: Method -> its runs.
        floor: As for `unstable`.
    """
    kept = {name: one for name, one in runs.items() if one.testable}
    if not kept:
        return Spreads(np.zeros(1), {}, {}, frozenset(), False)
    units = {name: len(one.scores) for name, one in kept.items()}
    parts = {name: seed_part(one.scores, one.seeds, one.data_seeds) for name, one in kept.items()}
    own = np.array([units[name] * part.variance for name, part in parts.items()])
    freedom = np.array([part.freedom for part in parts.values()])
    wild = {name for name, out in zip(kept, unstable(own, freedom, floor), strict=True) if out}
    calm = [name for name in kept if name not in wild]
    blocked = _same_seeds(kept, calm)
    if blocked:
        parts |= _blocked({name: kept[name] for name in calm})
        own = np.array([units[name] * part.variance for name, part in parts.items()])
        freedom = np.array([part.freedom for part in parts.values()])
    grid, weights = _posterior(own, freedom)
    return Spreads(grid, dict(zip(kept, weights, strict=True)), units, frozenset(wild), blocked)


def _pairs(runs: Replicates) -> list[tuple[float, float]]:
    return sorted(zip(runs.seeds.tolist(), runs.data_seeds.tolist(), strict=True))


def _same_seeds(runs: Mapping[str, Replicates], names: Collection[str]) -> bool:
    """Whether enough methods have runs of the very same seeds."""
    if len(names) < FEWEST_BLOCKED:
        return False
    first, *others = [_pairs(runs[name]) for name in names]
    return not np.isnan(first).any() and len({*first}) == len(first) and all(other == first for other in others)


def _blocked(runs: Mapping[str, Replicates]) -> dict[str, SeedPart]:
    """Take off what each seed has in common over the methods; K methods lose one of K parts of their freedom by it."""
    orders = {name: np.lexsort((one.data_seeds, one.seeds)) for name, one in runs.items()}
    table = np.array([one.scores[orders[name]] for name, one in runs.items()])
    rest = table - table.mean(axis=0)
    share = (len(runs) - 1) / len(runs)
    found = {}
    for row, (name, one) in zip(rest, runs.items(), strict=True):
        part = seed_part(row, one.seeds[orders[name]], one.data_seeds[orders[name]])
        found[name] = SeedPart(part.variance / share, part.freedom * share)
    return found


def _posterior(variances: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A grid of variances, and how probable each is for each method: expectation and maximization, `ROUNDS` times."""
    usual = float(variances.mean())
    ratios = np.exp(np.linspace(np.log(LOWEST), np.log(HIGHEST), GRID)) ** 2
    if usual == 0:
        return np.zeros(1), np.ones((len(variances), 1))
    grid = usual * ratios
    # Equal scores have no variance; a millionth of the usual one is as small.
    relative = np.maximum(variances, 1e-6 * usual)[:, None] / grid
    log = freedom[:, None] / 2 * (np.log(relative) - relative)
    likelihood = np.exp(log - log.max(axis=1, keepdims=True))
    prior = np.full(GRID, 1 / GRID)
    for _ in range(ROUNDS):
        posterior = likelihood * prior
        posterior /= posterior.sum(axis=1, keepdims=True)
        prior = (posterior.sum(axis=0) + UNKNOWN / GRID) / (len(variances) + UNKNOWN)
    posterior = likelihood * prior
    return grid, posterior / posterior.sum(axis=1, keepdims=True)
