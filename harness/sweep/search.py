"""Hyper-parameter search with an equal budget per method: a grid, or points of its ranges, at random or by TPE."""

import json
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

from harness.config.errors import ConfigError
from harness.config.schema import Search

RATE = "train.learning_rate"
# A choice in the outermost share of its range, on a log scale, says that the best may lie beyond.
EDGE_SHARE = 0.05
# Of a value that is drawn: what it is called in tables is then what it is.
DIGITS = 3
# To find a point that was not tried yet: a narrow range may have no other.
ATTEMPTS = 50

# Dotted key -> value.
Hyperparameters = dict[str, float]


@dataclass(frozen=True)
class Range:
    """The values of one hyper-parameter, ascending: a grid takes of them, other searches draw between the two ends."""

    key: str
    values: tuple[float, ...]

    @property
    def whole(self) -> bool:
        return all(isinstance(value, int) for value in self.values)

    def at(self, share: float) -> float:
        """The value that lies at a share of the range, on a log scale; a whole number between whole ends."""
        low, high = self.values[0], self.values[-1]
        value = low * (high / low) ** share
        return self.rounded(round(value) if self.whole else value)

    def rounded(self, value: float) -> float:
        """A drawn value in a few digits, still in the range."""
        if self.whole:
            return int(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.values[0]), self.values[-1])


@dataclass(frozen=True)
class TuningBudget:
    """Trials that every method gets; the keys of `hydra.sweeper` that conf/hydra/sweeper/equal_budget.yaml explains."""

    search: Search
    trials: int
    seed: int
    startup_trials: int
    parallel_trials: int
    extend: int = 0


class Searcher(Protocol):
    """Proposes the trials of one method on one task."""

    def ask(self) -> list[Hyperparameters]:
        """The next trials, to be run together; none when the budget is spent."""

    def tell(self, scores: Sequence[float | None], diverged: Sequence[bool]) -> None:
        """Take the results of the trials asked for last; a score is null where there is none."""


def ranges_of(method: Mapping[str, Any], second: bool) -> tuple[Range, ...]:
    """The ranges that a method's YAML declares: of its learning rate and, if `second`, of one more hyper-parameter.

    Raises:
        ConfigError: There is none, or its values are not positive and ascending.
    """
    name = str(method.get("name"))
    ranges = [_range(RATE, method.get("learning_rates"), "method.learning_rates", name)]
    more = dict(method.get("second_range") or {}) if second else {}
    if len(more) > 1:
        raise ConfigError(f"method.second_range: {', '.join(more)} are {len(more)} hyper-parameters; one is allowed")
    for key, values in more.items():
        if not _is_number(method.get(key)):
            raise ConfigError(f"method.second_range.{key}: method {name} has no number called {key}")
        ranges.append(_range(f"method.{key}", values, f"method.second_range.{key}", name))
    return tuple(ranges)


def _range(key: str, values: Any, given: str, method: str) -> Range:
    if not values:
        raise ConfigError(f"{given}={json.dumps(values)}: method {method} declares no values to try")
    values = list(values)
    if not all(_is_number(value) and 0 < value < math.inf for value in values) or sorted(set(values)) != values:
        raise ConfigError(
            f"{given}={json.dumps(values, default=str)}: positive numbers are needed, each higher than the one before"
        )
    return Range(key, tuple(map(float, values) if key == RATE else values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def searcher(ranges: tuple[Range, ...], budget: TuningBudget, method: str, higher_is_better: bool) -> Searcher:
    """Make what proposes a method's trials.

    Raises:
        ConfigError: The grid holds fewer trials, a range has one value only, or Optuna is missing.
    """
    if budget.search is Search.grid:
        return Listed(grid_points(ranges, budget.trials, method))
    for one in ranges:
        if len(one.values) < 2:
            raise ConfigError(
                f"hydra.sweeper.search={budget.search.name}: method {method} has one value, {one.values[0]:g}, for"
                f" {one.key}, where two ends of a range are needed"
            )
    if budget.search is Search.random:
        return Listed(random_points(ranges, budget.trials, budget.seed))
    return Tpe(ranges, budget, higher_is_better)


class Listed:
    """Trials that are all known at the start."""

    def __init__(self, points: list[Hyperparameters]) -> None:
        self.points = points

    def ask(self) -> list[Hyperparameters]:
        points, self.points = self.points, []
        return points

    def tell(self, scores: Sequence[float | None], diverged: Sequence[bool]) -> None:
        """Nothing follows from it."""


class Tpe:
    """The tree-structured Parzen estimator (Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization).

    The points that Optuna's sampler proposes follow from the seed and from the scores so far, in the order in which
    points were asked for: a sweep that is started again asks for the same ones and finds them in the store. How many
    are asked for together is a number of the configuration and not that of the workers, else another machine would ask
    for others.
    """

    def __init__(self, ranges: tuple[Range, ...], budget: TuningBudget, higher_is_better: bool) -> None:
        optuna = import_optuna()
        self.ranges, self.left, self.parallel = ranges, budget.trials, budget.parallel_trials
        self.worst = -math.inf if higher_is_better else math.inf
        kinds = {True: optuna.distributions.IntDistribution, False: optuna.distributions.FloatDistribution}
        self.space = {one.key: kinds[one.whole](one.values[0], one.values[-1], log=True) for one in ranges}
        with warnings.catch_warnings():
            # Before Optuna 5 the constant liar, which keeps points asked for together apart, is called experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=budget.startup_trials, seed=budget.seed, constant_liar=True
            )
        self.study = optuna.create_study(
            direction="maximize" if higher_is_better else "minimize",
            sampler=sampler,
            storage=optuna.storages.InMemoryStorage(),
        )
        self.failed = optuna.trial.TrialState.FAIL
        self.asked: list[Any] = []
        self.seen: list[Hyperparameters] = []

    def ask(self) -> list[Hyperparameters]:
        self.asked = []
        points = [self._ask() for _ in range(min(self.parallel, self.left))]
        self.left -= len(points)
        return points

    def _ask(self) -> Hyperparameters:
        """A new point; near the end of a range Optuna may come back to one, which would be a trial for nothing."""
        for attempt in range(ATTEMPTS):
            trial = self.study.ask(self.space)
            point = {one.key: one.rounded(trial.params[one.key]) for one in self.ranges}
            if point not in self.seen or attempt == ATTEMPTS - 1:
                break
            self.study.tell(trial, state=self.failed)
        self.asked.append(trial)
        self.seen.append(point)
        return point

    def tell(self, scores: Sequence[float | None], diverged: Sequence[bool]) -> None:
        """A diverged trial counts as worse than any other; one that failed otherwise says nothing about its point."""
        for trial, score, lost in zip(self.asked, scores, diverged, strict=True):
            if score is None and not lost:
                self.study.tell(trial, state=self.failed)
            else:
                self.study.tell(trial, self.worst if score is None else score)


def import_optuna() -> Any:
    """Import Optuna, quiet.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            f"hydra.sweeper.search=tpe: it needs Optuna ({error}); pip install 'peft-harness[optuna]', or search=random"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def grid_points(ranges: tuple[Range, ...], trials: int, method: str) -> list[Hyperparameters]:
    """Take `trials` points of the product of all values, spread over it; of two ranges as many of the first as can be.

    Raises:
        ConfigError: The product holds fewer, or no rectangle of that many.
    """
    first, rest = ranges[0], ranges[1:]
    most = len(rest[0].values) if rest else 1
    for number in range(min(trials, len(first.values)), 0, -1):
        if trials % number == 0 and trials // number <= most:
            axes = [spread(first.values, number), *(spread(one.values, trials // number) for one in rest)]
            return [dict(zip((one.key for one in ranges), point, strict=True)) for point in product(*axes)]
    held = f"{len(first.values)} learning rates in method.learning_rates"
    held += "".join(f" and {len(one.values)} values of {one.key}" for one in rest)
    raise ConfigError(
        f"hydra.sweeper.trials={trials}: method {method} has {held}, of which no grid of {trials} can be made, and"
        " every method gets the same number of trials; another number, or search=random or tpe"
    )


def spread(values: Sequence[float], number: int) -> list[float]:
    """Take `number` of the sorted values, evenly over the whole range, both ends included; the middle one for one."""
    if number == 1:
        return [values[(len(values) - 1) // 2]]
    return [values[round(i * (len(values) - 1) / (number - 1))] for i in range(number)]


def beyond(values: Sequence[float], steps: int) -> float:
    """The learning rate so many steps above a grid, or below it where negative, on the grid's own log scale."""
    low, high = values[0], values[-1]
    step = (high / low) ** (1 / (len(values) - 1))
    return float(f"{(high if steps > 0 else low) * step**steps:.{DIGITS}g}")


def random_points(ranges: tuple[Range, ...], trials: int, seed: int) -> list[Hyperparameters]:
    """Draw points evenly on a log scale (Bergstra and Bengio 2012, Random Search for Hyper-Parameter Optimization).

    Every method is tried at the same places of its own range, and more trials go on where fewer ended.
    """
    draws = [random.Random(f"{seed} {position}") for position in range(len(ranges))]
    return [{one.key: one.at(draw.random()) for one, draw in zip(ranges, draws, strict=True)} for _ in range(trials)]


def edge(value: float, low: float, high: float) -> str:
    """`lowest` or `highest` where a value lies at that end of its range, within `EDGE_SHARE` on a log scale."""
    if not 0 < low < high < math.inf or not low <= value <= high:
        return ""
    place = math.log(value / low) / math.log(high / low)
    return "lowest" if place <= EDGE_SHARE else "highest" if place >= 1 - EDGE_SHARE else ""
