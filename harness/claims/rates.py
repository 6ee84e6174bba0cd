"""Rules on learning rates: where the best one of a method lies, from the same seeds at each rate of a grid."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.claims.evidence import Evidence, Selection, Sweep
from harness.claims.scores import Against, sweeps_of
from harness.claims.verdict import Case, Finding, decide
from harness.config.errors import ConfigError
from harness.report.scores import DIVERGED, FINISHED, LEARNING_RATE, compared, split_of
from harness.report.spread import FEWEST_RUNS
from harness.report.stats import CONFIDENCE
from harness.training.metrics import higher_is_better

RESAMPLES = 2000
# The parabola goes through the best rate and so many on either side of it: a wider one is pulled off its top by the
# rates at which training collapses.
AROUND = 1
# Rates without which a best one between others is hardly to be had.
FEWEST_RATES = 5


@dataclass(frozen=True)
class OptimalRateRatio(Against):
    """The best learning rate of a method is within a range of multiples of another's.

    The best rate is the top of the parabola, in the logarithm of the rate, through the highest mean score and its
    neighbors. The interval is the middle 95% over seeds drawn again, the same ones for both (a percentile bootstrap).

    Attributes:
        least: The smallest multiple with which the claim holds.
        most: The largest.
    """

    least: float
    most: float

    def check(self, key: str) -> None:
        super().check(key)
        if not 0 < self.least <= self.most:
            raise ConfigError(f"{key}.least={self.least}, most={self.most}: above 0, and least is no more than most")

    def judge(self, evidence: Evidence) -> list[Case]:
        cases: list[Case] = []
        for sweep in sweeps_of(evidence, self.sweeps, cases):
            for task in sorted(sweep.runs["task"].unique()):
                cases += [self._of(sweep, str(task), text) for text in self.methods]
        return cases

    def _of(self, sweep: Sweep, task: str, text: str) -> Case:
        where, name = f"{sweep.name}, {task}", f"best learning rate of {text} over that of {self.against}"
        runs = compared(sweep.frame)
        runs = runs[runs["task"] == task]
        ours, theirs = (grid_of(runs[Selection.parse(one).among(runs)]) for one in (text, self.against))
        seeds = ours.index.intersection(theirs.index)
        if len(seeds) < FEWEST_RUNS or min(ours.shape[1], theirs.shape[1]) < FEWEST_RATES:
            rates = f"{ours.shape[1]} and {theirs.shape[1]} rates, {len(seeds)} seeds in common"
            return Case(
                where, name, Finding.no_evidence, remark=f"{rates}; {FEWEST_RATES} and {FEWEST_RUNS} are needed"
            )
        ours, theirs = ours.loc[seeds], theirs.loc[seeds]
        low, high = interval(ours, theirs)
        best = optimum(ours), optimum(theirs)
        ends = [one for one, grid in ((text, ours), (self.against, theirs)) if on_edge(grid)]
        remark = f"{best[0]:.2g} and {best[1]:.2g}"
        if ends:
            remark += f"; the best lies at the end of the grid of {' and '.join(ends)}"
        outcome = Finding.undecided if ends else decide(low, high, self.least, self.most)
        return Case(where, name, outcome, best[0] / best[1], low, high, self.least, self.most, "times", remark)


def grid_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Scores of one method on one task, seeds by rates, more is better; a run that diverged has the worst there is.

    Seeds that lack a rate are left out.
    """
    runs = runs[runs["status"].isin([FINISHED, DIVERGED])]
    if runs.empty:
        return pd.DataFrame()
    sign = 1 if higher_is_better(str(runs["primary_metric"].iloc[0])) else -1
    scores = sign * runs[split_of(runs)].astype(float)
    scored = runs.assign(rate=runs[LEARNING_RATE].astype(float), score=scores.fillna(scores.min()))
    return scored.pivot_table(index="seed", columns="rate", values="score").dropna()


def optimum(grid: pd.DataFrame) -> float:
    """The rate at the top of the parabola, in the logarithm of the rate, through the highest mean and its neighbors.

    Where that mean has no neighbor on one side, its own rate.
    """
    return _top(np.log(grid.columns.to_numpy(dtype=float)), grid.mean(axis=0).to_numpy())


def _top(logs: np.ndarray, means: np.ndarray) -> float:
    best = int(means.argmax())
    near = slice(best - AROUND, best + AROUND + 1)
    if near.start < 0 or near.stop > len(means):
        return float(math.exp(logs[best]))
    curve, slope, _ = np.polyfit(logs[near], means[near], 2)
    # Three equal means have no top.
    return float(math.exp(-slope / (2 * curve) if curve < 0 else logs[best]))


def on_edge(grid: pd.DataFrame) -> bool:
    """Whether the highest mean score is that of the lowest or the highest rate."""
    return int(grid.mean(axis=0).to_numpy().argmax()) in (0, grid.shape[1] - 1)


def interval(ours: pd.DataFrame, theirs: pd.DataFrame, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The middle 95% of the ratio of two best rates over seeds drawn again, the same for both."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(ours), size=(resamples, len(ours)))
    tops = []
    for grid in (ours, theirs):
        logs = np.log(grid.columns.to_numpy(dtype=float))
        tops.append(np.array([_top(logs, means) for means in grid.to_numpy()[drawn].mean(axis=1)]))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(tops[0] / tops[1], [tail, 1 - tail])
    return float(low), float(high)
