"""Races over stored curves: the trials of a method on a task, each with what every row came to at each evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil
from typing import Any

import numpy as np
import pandas as pd

from harness import tracking
from harness.report.labels import label, searched
from harness.report.runs import load_runs
from harness.report.scores import FINISHED, LEARNING_RATE
from harness.report.stats import CONFIDENCE
from harness.sweep.racing import Race, beaten, p_value, read_rows, values_of_rows
from harness.tracking.record import DEVELOPMENT_FILE
from harness.training.metrics import METRICS, higher_is_better

# Fewer trials are no race.
FEWEST_TRIALS = 3
STOPPED_AT = "param.sweep.stop_share"


@dataclass(frozen=True)
class Rule:
    """How trials are stopped.

    Attributes:
        rungs: The shares of the steps at which some are.
        level: The error level of a race; null: the worse half is stopped.
    """

    rungs: tuple[float, ...]
    level: float | None


@dataclass(frozen=True)
class Course:
    """What became of a sweep under a rule.

    Attributes:
        chosen: The place of the chosen trial.
        spent: The share of the steps of all trials that was taken; every step sees as many tokens.
    """

    chosen: int
    spent: float


@dataclass(frozen=True)
class Curves:
    """The trials of one method on one task with one seed, the lowest rate first, each run to its end.

    Attributes:
        metric: The primary metric.
        rates: Learning rates.
        shares: Of the steps, where the evaluations are; the last is 1.
        rows: Trials x evaluations: what each development row came to.
    """

    task: str
    configuration: str
    seed: int
    metric: str
    rates: tuple[float, ...]
    shares: tuple[float, ...]
    rows: tuple[tuple[pd.DataFrame, ...], ...]

    @property
    def count(self) -> int:
        """How many development rows there are."""
        return len(self.rows[0][0])

    def drawn(self, places: np.ndarray) -> "Scored":
        """The curves on some of the rows, which may come several times."""
        return Scored(self, places)

    @cached_property
    def whole(self) -> "Scored":
        """The curves on the rows that there are."""
        return Scored(self, np.arange(self.count))

    @cached_property
    def tied(self) -> np.ndarray:
        """Whether two trials, each at its best evaluation, are not told apart: a paired two-sided test at 5%."""
        best = [self.whole.best(trial, len(self.shares) - 1) for trial in range(len(self.rates))]
        values = [self.whole.values(trial, place) for trial, place in enumerate(best)]
        level = (1 - CONFIDENCE) / 2
        found = np.ones((len(values), len(values)), dtype=bool)
        for a, b in np.argwhere(~np.eye(len(values), dtype=bool)):
            if p_value(values[a], values[b], level) <= level:
                found[a, b] = found[b, a] = False
        return found

    def final(self, trial: int) -> float:
        """The score that a trial ends with on the rows that there are."""
        return self.whole.score(trial, self.whole.best(trial, len(self.shares) - 1))


class Scored:
    """Curves on drawn rows: scores, values of rows and p values, each computed when it is first asked for."""

    def __init__(self, curves: Curves, places: np.ndarray) -> None:
        self.curves, self.places = curves, places
        self.sign = 1.0 if higher_is_better(curves.metric) else -1.0
        self.values: Callable[[int, int], np.ndarray] = cache(self._values)
        self.score: Callable[[int, int], float] = cache(self._score)
        self.best: Callable[[int, int], int] = cache(self._best)
        self.p: Callable[[int, int, int, float], float] = cache(self._p)

    def _values(self, trial: int, evaluation: int) -> np.ndarray:
        found = values_of_rows(self.curves.rows[trial][evaluation].iloc[self.places], self.curves.metric)
        assert found is not None
        return found

    def _score(self, trial: int, evaluation: int) -> float:
        """In the direction in which more is better."""
        rows = self.curves.rows[trial][evaluation]
        if "score" in rows:
            return float(self.values(trial, evaluation).mean())
        predictions, labels = (rows[name].to_numpy()[self.places] for name in ("prediction", "label"))
        return self.sign * METRICS[self.curves.metric](predictions, labels)

    def _best(self, trial: int, evaluation: int) -> int:
        """The best evaluation up to one, the earliest of equals: the weights that a run keeps."""
        return max(range(evaluation + 1), key=lambda place: (self.score(trial, place), -place))

    def _p(self, evaluation: int, better: int, worse: int, level: float) -> float:
        return p_value(self.values(better, evaluation), self.values(worse, evaluation), level)

    def follow(self, rule: Rule, finest: float) -> Course:
        """What a sweep under a rule would have chosen and spent.

        Args:
            rule: The rule.
            finest: The lowest level that any of the rules compared here tests at: so fine are p values known.
        """
        trials = list(range(len(self.curves.rates)))
        last = len(self.curves.shares) - 1
        spent = np.ones(len(trials))
        race = None if rule.level is None else Race(rule.level, len(rule.rungs), len(trials))
        for rung in rule.rungs:
            # The first evaluation past the share, where a run stops.
            place = next(at for at, share in enumerate(self.curves.shares) if share >= rung)
            if place == last:
                break
            ranked = self._ranked(trials, place)
            if race is None:
                kept = ranked[: ceil(len(trials) / 2)]
            else:
                values = [self.values(trial, place) for trial in ranked]
                ask = self._asking(ranked, place, finest)
                lost = beaten(values, 0, race, ask)
                kept = [trial for number, trial in enumerate(ranked) if number not in lost]
            spent[[trial for trial in trials if trial not in kept]] = self.curves.shares[place]
            trials = kept
        return Course(self._ranked(trials, last)[0], float(spent.mean()))

    def _asking(self, ranked: list[int], place: int, finest: float) -> Callable[[int, int], float]:
        return lambda better, worse: self.p(place, ranked[better], ranked[worse], finest)

    def _ranked(self, trials: list[int], evaluation: int) -> list[int]:
        """The best first, of equals the lower rate, as the sweeper ranks them."""
        return sorted(trials, key=lambda trial: (-self.score(trial, self.best(trial, evaluation)), trial))


WHOLE = Rule((), None)


def replay(curves: Sequence[Curves], rules: Sequence[Rule], replays: int, seed: int) -> pd.DataFrame:
    """Race every method on every task under every rule, on development rows drawn anew each time.

    The rows that there are stand for the population: as many are drawn, with replacement, and decide both what the
    whole sweep chooses and what a rule does.

    Returns:
        One row per curves and rule: share of the tokens spent, how often the choice is the whole sweep's (`same`) or is
        not told apart from it (`tied`), and the mean and the largest loss of final score. The rule without rungs is the
        whole sweep on other rows: how far the choice is chance.
    """
    found = []
    generator = np.random.default_rng(seed)
    for one in curves:
        levels = [Race(r.level, len(r.rungs), len(one.rates)).level_of_a_test for r in rules if r.level is not None]
        finest = min(levels, default=1.0)
        scored = [one.drawn(generator.integers(0, one.count, one.count)) for _ in range(replays)]
        wholes = [draw.follow(WHOLE, finest).chosen for draw in scored]
        for rule in (WHOLE, *rules):
            courses = [draw.follow(rule, finest) for draw in scored]
            chosen = [course.chosen for course in courses] if rule.rungs else [*wholes[1:], wholes[0]]
            found.append(
                {
                    "task": one.task,
                    "configuration": one.configuration,
                    "seed": one.seed,
                    "trials": len(one.rates),
                    "rows": one.count,
                    "rungs": " ".join(f"{rung:g}" for rung in rule.rungs),
                    "level": rule.level,
                    **_held_against(one, chosen, wholes, [course.spent for course in courses]),
                }
            )
    return pd.DataFrame(found)


def _held_against(one: Curves, chosen: list[int], wholes: list[int], spent: list[float]) -> dict[str, Any]:
    lost = [one.final(whole) - one.final(choice) for choice, whole in zip(chosen, wholes, strict=True)]
    return {
        "spent": float(np.mean(spent)),
        "same": float(np.mean(np.equal(chosen, wholes))),
        "tied": float(np.mean(one.tied[chosen, wholes])),
        "lost": float(np.mean(lost)),
        "most_lost": float(np.max(lost)),
    }


# --- Reading a store ------------------------------------------------------------------------------------------------


def load(store: str, sweep: str | list[str] | None = None) -> list[Curves]:
    """The curves in a store: the trials of each method on each task that ran to their ends with one seed.

    Trials that did not finish, or left no rows, are no part of it.

    Raises:
        ConfigError: There is no such store.
        ConnectionError: The store cannot be read.
    """
    runs = load_runs(store, sweep=sweep)
    if runs.empty or LEARNING_RATE not in runs:
        return []
    runs = runs[runs["newest"] & (runs["status"] == FINISHED) & (runs["stage"] != "final")]
    if STOPPED_AT in runs:
        runs = runs[runs[STOPPED_AT].isna()]
    if runs.empty:
        return []
    runs = runs.assign(configuration=label(runs, without=searched(runs)), rate=pd.to_numeric(runs[LEARNING_RATE]))
    server = store if store.startswith("http") else None
    found = []
    for (task, model, configuration, seed), group in runs.groupby(["task", "model", "configuration", "seed"]):
        trials = {}
        for _, run in group.sort_values("rate").iterrows():
            file = tracking.artifact(run["artifact_uri"], run["mlflow_run_id"], server, DEVELOPMENT_FILE)
            if file is not None:
                trials[float(run["rate"])] = read_rows(file)
        models = runs["model"].nunique() > 1
        name = f"{configuration} {model}" if models else str(configuration)
        if len(trials) >= FEWEST_TRIALS:
            found += _curves(str(task), name, int(seed), str(group["primary_metric"].iloc[0]), trials)
    return found


def _curves(task: str, name: str, seed: int, metric: str, trials: dict[float, pd.DataFrame]) -> list[Curves]:
    """One set of curves; none where the trials were not scored at the same steps on the same rows."""
    first = next(iter(trials.values()))
    steps = sorted(first["step"].unique())
    place = ["step", "idx"]
    if len(steps) < 2 or any(not rows[place].equals(first[place]) for rows in trials.values()):
        return []
    if values_of_rows(first[first["step"] == steps[0]], metric) is None:
        return []
    rows = tuple(tuple(one[one["step"] == step] for step in steps) for one in trials.values())
    shares = tuple(float(step / steps[-1]) for step in steps)
    return [Curves(task, name, seed, metric, tuple(trials), shares, rows)]
