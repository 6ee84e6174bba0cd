"""Rules on what runs cost, hold and leave behind: ratios, bounds, and the files that runs keep."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from harness.claims.evidence import Evidence, Selection, Sweep
from harness.claims.scores import (
    NOT_FINISHED,
    NOT_MEASURED,
    ONE_RUN,
    Against,
    OfMethods,
    across_runs,
    check_selections,
    sweeps_of,
)
from harness.claims.verdict import Case, Finding, decide
from harness.config.errors import ConfigError
from harness.config.sources import conf_root
from harness.report.pairwise import predictions_of
from harness.report.stats import Summary, summarize
from harness.tracking.record import SOFT_PROMPT_FILE
from harness.training.metrics import pearson

if TYPE_CHECKING:
    from collections.abc import Callable

# Counted, not timed: the same on every machine, known from one run.
COUNTED = ("_bytes", "_parameters")
# Runs below which what is not counted has no interval.
FEWEST_MEASURED = 2
SHOWN = 5


class Kept(Enum):
    """Statistic that is taken of several figures of a run."""

    mean = "mean"
    largest = "largest"


class Statistic(Enum):
    """Statistic that is taken of the methods of a backbone."""

    median = "median"
    largest = "largest"


@dataclass(frozen=True)
class CostRatio(Against):
    """A cost of some runs over that of others on the same task; of what is timed by Welch's t over runs, on logarithms.

    Attributes:
        figure: A cost by its name in a record, or several with plus signs between them.
        least: The claim holds from this ratio on.
        most: And up to this one.
    """

    figure: str
    least: float = 0.0
    most: float = math.inf

    @property
    def fewest(self) -> int:
        """Runs of a method below which nothing is decided."""
        return 1 if _is_counted(self.figure) else FEWEST_MEASURED

    def judge(self, evidence: Evidence) -> list[Case]:
        def of_task(sweep: Sweep, task: str) -> Iterator[Case]:
            for a, b in sweep.pairs(task, self.methods, self.against):
                yield self._case(sweep, task, a, b)

        return _by_task(evidence, self.sweeps, of_task)

    def _case(self, sweep: Sweep, task: str, a: str, b: str) -> Case:
        values = {name: _positive(_figure(_rows(sweep, task, name), self.figure)) for name in (a, b)}
        place, name = f"{sweep.name}, {task}", f"{_spelled(self.figure)} of {a} over that of {b}"
        if not all(values.values()):
            return Case(place, name, Finding.no_evidence, remark=NOT_MEASURED)
        found = across_runs(np.log(values[a]).tolist(), np.log(values[b]).tolist())
        value, low, high = (float(np.exp(end)) for end in (found.difference, found.low, found.high))
        runs = min(found.runs_a, found.runs_b)
        outcome = decide(low, high, self.least, self.most) if runs >= self.fewest else Finding.undecided
        remark = "" if runs >= self.fewest else ONE_RUN
        return Case(place, name, outcome, value, low, high, self.least, self.most, "ratio", remark, runs)


@dataclass(frozen=True)
class SameRunRatio(OfMethods):
    """One cost over another of the same run, so that a busy machine cancels; t interval over runs, on logarithms.

    Attributes:
        fewest: Runs of a method below which nothing is decided.
        figure: A cost by its name in a record.
        over: Another.
        least: The claim holds from this ratio on.
        most: And up to this one.
    """

    fewest: ClassVar[int] = FEWEST_MEASURED
    figure: str
    over: str
    least: float = 0.0
    most: float = math.inf

    def judge(self, evidence: Evidence) -> list[Case]:
        def case(sweep: Sweep, task: str, name: str) -> Case | None:
            rows = _rows(sweep, task, name)
            ratios = _figure(rows, self.figure) / _figure(rows, self.over)
            found = summarize(np.log(_positive(ratios)))
            title = f"{_spelled(self.figure)} over {_spelled(self.over)}, {name}"
            return _over_runs(f"{sweep.name}, {task}", title, found, self.least, self.most, "ratio", np.exp)

        return _by_configuration(evidence, self.sweeps, self.methods, case)


@dataclass(frozen=True)
class CostWithin(OfMethods):
    """The mean of a cost lies in a range, with its t interval over runs.

    Attributes:
        fewest: As for `SameRunRatio`.
        figure: A cost by its name in a record.
        least: The claim holds from here on.
        most: And up to here.
    """

    fewest: ClassVar[int] = FEWEST_MEASURED
    figure: str
    least: float = 0.0
    most: float = math.inf

    def judge(self, evidence: Evidence) -> list[Case]:
        def case(sweep: Sweep, task: str, name: str) -> Case | None:
            found = summarize(_figure(_rows(sweep, task, name), self.figure))
            title = f"{_spelled(self.figure)}, {name}"
            return _over_runs(f"{sweep.name}, {task}", title, found, self.least, self.most)

        return _by_configuration(evidence, self.sweeps, self.methods, case)


@dataclass(frozen=True)
class TrainedShare:
    """The share of a backbone's parameters that methods train, heads left out: their median, or the largest.

    One case per backbone, over all methods that the sweeps ran on it; counted, so without an interval.

    Attributes:
        sweeps: Where runs are sought.
        without: Methods that are left out.
        take: median or largest.
        most: The claim holds up to this share.
    """

    sweeps: list[str]
    without: list[str]
    take: Statistic
    most: float

    def judge(self, evidence: Evidence) -> list[Case]:
        cases: list[Case] = []
        frames = [sweep.runs for sweep in sweeps_of(evidence, self.sweeps, cases)]
        runs = pd.concat(frames) if frames else pd.DataFrame(columns=["model", "method"])
        runs = runs[~runs["method"].isin(self.without)]
        for model, rows in runs.groupby("model", sort=True):
            backbone = rows["cost.total_parameters"] - rows["cost.trainable_parameters"]
            # Some train a part of the backbone, some add frozen matrices: the typical method leaves it as it is.
            size = backbone.median()
            shares = (rows["cost.adapter_parameters"] / size).groupby(rows["method"]).max().sort_values()
            value = float(shares.median() if self.take is Statistic.median else shares.max())
            above = [f"{name} {100 * share:.3g}%" for name, share in shares[shares > self.most].items()][::-1]
            remark = f"{len(shares)} methods, {len(above)} of them above"
            if above:
                more = f" and {len(above) - SHOWN} more" if len(above) > SHOWN else ""
                remark += f": {', '.join(above[:SHOWN])}{more}"
            outcome = decide(value, value, 0, self.most)
            ends = (value, value, value, 0, self.most, "share")
            name = f"{self.take.value} share, {model}"
            cases.append(Case(", ".join(sorted(rows["sweep"].unique())), name, outcome, *ends, remark))
        return cases


@dataclass(frozen=True)
class LinearInBits:
    """Bytes of the weights lie on a line over bits per weight, by Pearson's correlation over ways to store them.

    Attributes:
        sweeps: Where runs are sought.
        stored: Selection -> bits per weight.
        least: The claim holds from this correlation on.
    """

    sweeps: list[str]
    stored: dict[str, float]
    least: float

    def check(self, key: str) -> None:
        check_selections(key, list(self.stored))
        if len(self.stored) < 3:
            raise ConfigError(f"{key}.stored: {len(self.stored)} ways to store weights; any two lie on a line")

    def judge(self, evidence: Evidence) -> list[Case]:
        def of_task(sweep: Sweep, task: str) -> Iterator[Case]:
            selected = {bits: sweep.configurations(task, Selection.parse(text)) for text, bits in self.stored.items()}
            sizes = {
                bits: _figure(_rows(sweep, task, names[0]), "weight_bytes").mean()
                for bits, names in selected.items()
                if names
            }
            if len(sizes) == len(self.stored):
                yield line(f"{sweep.name}, {task}", sizes, self.least)

        return _by_task(evidence, self.sweeps, of_task)


def line(evidence: str, sizes: dict[float, float], least: float) -> Case:
    """The correlation of bytes with bits per weight; `sizes` is bits -> bytes."""
    value = pearson(np.array([*sizes]), np.array([*sizes.values()]))
    largest = max(sizes)
    written = ", ".join(f"{bits:g} bits {size / sizes[largest]:.3f}" for bits, size in sizes.items())
    ends = (value, value, value, least, 1.0, "number")
    name = "correlation of weight bytes with bits"
    return Case(evidence, name, decide(value, value, least, 1.0), *ends, f"of {largest:g} bits' bytes: {written}")


# --- Files that runs keep -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SoftPrompts(OfMethods):
    """Neighbors of soft prompts, from `soft_prompt.csv`: one figure per virtual token, t interval over runs.

    Attributes:
        fewest: As for `SameRunRatio`.
        figure: A column of the file.
        less: A column that is taken off it, such as the same figure of random vectors.
        take: The mean over a run's virtual tokens, or the largest.
        least: The claim holds from here on.
        most: And up to here.
    """

    fewest: ClassVar[int] = FEWEST_MEASURED
    figure: str
    take: Kept
    less: str | None = None
    least: float = -math.inf
    most: float = math.inf

    def judge(self, evidence: Evidence) -> list[Case]:
        def case(sweep: Sweep, task: str, name: str) -> Case | None:
            found = summarize(self._of_run(uri) for uri in _rows(sweep, task, name)["artifact_uri"])
            title = f"{self.take.value} {_spelled(self.figure)}" + (f" less {_spelled(self.less)}" if self.less else "")
            return _over_runs(f"{sweep.name}, {task}", f"{title}, {name}", found, self.least, self.most)

        return _by_configuration(evidence, self.sweeps, self.methods, case)

    def _of_run(self, artifact_uri: str) -> float:
        try:
            table = pd.read_csv(predictions_of(artifact_uri).with_name(SOFT_PROMPT_FILE))
            values = table[self.figure] - (table[self.less] if self.less else 0)
        except (ConfigError, OSError, ValueError, KeyError):
            return math.nan
        return float(values.mean() if self.take is Kept.mean else values.max())


@dataclass(frozen=True)
class SwappedScores:
    """After swapping adapters on one backbone each scores what its run scored, from `multi_task.json`.

    Attributes:
        file: What `python -m harness.multi_task` wrote, in the working directory or beside `reports/`.
        command: What writes it.
        most: The claim holds up to this difference.
        most_share: And where backbone and adapters take up to this share of the bytes of whole models.
    """

    file: str
    command: str
    most: float
    most_share: float

    def judge(self, evidence: Evidence) -> list[Case]:
        path = next((path for path in (Path(self.file), conf_root() / self.file) if path.is_file()), None)
        if path is None:
            return [Case(self.file, "", Finding.no_evidence, remark=f"no evidence yet: run {self.command}")]
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            storage = content["storage"]
            share = (storage["backbone_bytes"] + storage["adapters_bytes"]) / storage["copies_bytes"]
            changes = {str(row["task"]): abs(row["score"] - row["recorded"]) for row in content["tasks"]}
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise ConfigError(f"{path} is damaged: {error!r}; write it again with {self.command}") from error
        cases = [_counted(self.file, f"change of score, {task}", value, self.most) for task, value in changes.items()]
        return [*cases, _counted(self.file, f"bytes of {len(changes)} tasks", share, self.most_share, "share")]


def _counted(evidence: str, name: str, value: float, most: float, unit: str = "number") -> Case:
    return Case(evidence, name, decide(value, value, 0, most), value, value, value, 0, most, unit)


# --- Figures of runs ------------------------------------------------------------------------------------------------


def _by_task(evidence: Evidence, names: Sequence[str], judge: "Callable[[Sweep, str], Iterator[Case]]") -> list[Case]:
    cases: list[Case] = []
    for sweep in sweeps_of(evidence, names, cases):
        found = [case for task in sorted(sweep.runs["task"].unique()) for case in judge(sweep, task)]
        cases += found or [Case(sweep.name, "", Finding.no_evidence, remark=NOT_FINISHED)]
    return cases


def _by_configuration(
    evidence: Evidence,
    names: Sequence[str],
    methods: Sequence[str],
    judge: "Callable[[Sweep, str, str], Case | None]",
) -> list[Case]:
    def of_task(sweep: Sweep, task: str) -> Iterator[Case]:
        for text in methods:
            for name in sweep.configurations(task, Selection.parse(text)):
                case = judge(sweep, task, name)
                yield case or Case(f"{sweep.name}, {task}", name, Finding.no_evidence, remark=NOT_MEASURED)

    return _by_task(evidence, names, of_task)


def _over_runs(
    evidence: str,
    name: str,
    found: Summary,
    least: float,
    most: float,
    unit: str = "number",
    back: "Callable[[float], float]" = float,
) -> Case | None:
    """The case of a mean over runs; null where no run has the figure.

    Args:
        back: From the scale of the mean to the figure's own.
    """
    if not found.n:
        return None
    value, low, high = (float(back(end)) for end in (found.mean, found.low, found.high))
    outcome = decide(low, high, least, most)
    remark = "" if found.n >= FEWEST_MEASURED else ONE_RUN
    return Case(evidence, name, outcome, value, low, high, least, most, unit, remark, found.n)


def _rows(sweep: Sweep, task: str, configuration: str) -> pd.DataFrame:
    return sweep.runs[(sweep.runs["task"] == task) & (sweep.runs["configuration"] == configuration)]


def _figure(rows: pd.DataFrame, figure: str) -> "pd.Series[float]":
    """A cost of each run, or another metric of the store; a sum where there are plus signs; NaN where not measured."""
    unknown = pd.Series(math.nan, rows.index)
    parts = [rows.get(name, rows.get(f"cost.{name}", unknown)) for name in figure.split("+")]
    return sum(parts, start=pd.Series(0.0, rows.index))


def _positive(values: "pd.Series[float]") -> list[float]:
    return [value for value in values if value > 0]


def _is_counted(figure: str) -> bool:
    return all(name.endswith(COUNTED) for name in figure.split("+"))


def _spelled(figure: str) -> str:
    return figure.replace("_", " ").replace("+", " + ").replace(".1", "").replace(".", " ")
