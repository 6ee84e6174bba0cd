"""What the advice of `harness-choose` loses where every run is known: `python -m harness.choose.regret key=value`.

  python -m harness.choose.regret sweep=choose_regret                    the sweep of sweeps/choose_regret.yaml
  python -m harness.choose.regret sweep=choose_regret out=reports/choose

A store that holds each method at each learning rate with many seeds holds every run that a choice would make. Choices
of each size are replayed from it, each with seeds of its own, and the method that they advise is scored on the seeds
that they did not see, against the best that all runs find.

keys:
  sweep=NAME        the sweep of all methods, rates and seeds
  out=FOLDER        where the page goes (regret)
  replays=N         choices of each size on each task (40)
  tracking.uri=URI  the store (sqlite:///mlflow.db)
"""

import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.adapters.trained import STORE, parse_options
from harness.choose import answer
from harness.choose.budget import FIRST_SEED, SIZES, Size, survivors
from harness.config.command import carry_out
from harness.config.errors import ConfigError
from harness.tracking.uri import redact

if TYPE_CHECKING:
    import pandas as pd

    from harness.report.report import Report

# Seeds that a choice must leave over, on which its advice is scored.
FEWEST_HELD = 2
POINTS = 100


@dataclass(frozen=True)
class Options:
    """Options of the command line; `uri` is given as `tracking.uri`."""

    sweep: str = ""
    out: str = "regret"
    replays: int = 40
    uri: str = STORE


@dataclass(frozen=True)
class Replay:
    """One choice that was replayed.

    Attributes:
        advised: The method that was advised.
        rate: The learning rate chosen for it.
        held: The seeds that the choice did not see.
        refrained: Whether it said to take none yet, as none is known to beat the majority class or none was tested.
        seconds: What its runs took.
    """

    advised: str
    rate: float
    held: tuple[int, ...]
    refrained: bool
    seconds: float


class Known:
    """Every run of one task: a score for each method, learning rate and seed, and its development curve.

    Args:
        frame: One row per run, of `harness.report.runs.load_runs`.
        curves: Of `harness.report.curves.load`.

    Raises:
        ConfigError: A run is missing, or did not finish.
    """

    def __init__(self, frame: "pd.DataFrame", curves: "pd.DataFrame") -> None:
        from harness.report.scores import LEARNING_RATE
        from harness.training.metrics import higher_is_better

        self.task, metric = str(frame["task"].iloc[0]), str(frame["primary_metric"].iloc[0])
        self.sign = 1 if higher_is_better(metric) else -1
        self.runs = frame.assign(rate=frame[LEARNING_RATE].astype(float))
        self.rates = {
            str(method): sorted(map(float, own["rate"].unique())) for method, own in self.runs.groupby("method")
        }
        self.seeds = sorted(map(int, self.runs["seed"].unique()))
        whole = {(method, rate, seed) for method, rates in self.rates.items() for rate in rates for seed in self.seeds}
        done = self.runs[self.runs["status"] == "finished"]
        self.row = {(str(one["method"]), float(one["rate"]), int(one["seed"])): one for _, one in done.iterrows()}
        if missing := sorted(whole - set(self.row)):
            method, rate, seed = missing[0]
            raise ConfigError(
                f"{self.task}: {len(missing)} of {len(whole)} runs are not finished, the first method={method} "
                f"train.learning_rate={rate:g} seed={seed}; the sweep's command goes on"
            )
        if not self.sizes:
            raise ConfigError(
                f"{self.task}: {len(self.seeds)} seeds; no choice leaves {FEWEST_HELD} over to be scored on"
            )
        lines = curves[curves["name"] == metric].sort_values("step", kind="stable").groupby("run_id", sort=False)
        self.curve = {str(run): list(zip(line["step"], line["value"], strict=True)) for run, line in lines}

    def development(self, method: str, rate: float, seeds: Sequence[int]) -> float:
        """The mean over seeds of the best development scores; higher is better."""
        curves = [self.curve[str(self.row[method, rate, seed]["run_id"])] for seed in seeds]
        return statistics.fmean(max(self.sign * value for _, value in curve) for curve in curves)

    def tuned(self, method: str, rates: Sequence[float], seeds: Sequence[int]) -> float:
        """The rate of the best development scores on some seeds; of equals the smaller one."""
        return min(rates, key=lambda rate: (-self.development(method, rate, seeds), rate))

    def score(self, method: str, rate: float, seeds: Sequence[int]) -> float:
        """The mean validation score over seeds; higher is better."""
        return self.sign * statistics.fmean(float(self.row[method, rate, seed]["validation"]) for seed in seeds)

    def best(self, seeds: Sequence[int]) -> tuple[str, float]:
        """The method of the highest score over seeds and its rate, the one with its best development scores there."""
        found = [(method, self.tuned(method, rates, seeds)) for method, rates in self.rates.items()]
        return max(found, key=lambda one: self.score(one[0], one[1], seeds))

    @cached_property
    def found(self) -> tuple[str, float]:
        """The method and its rate that all runs find best."""
        return self.best(self.seeds)

    @property
    def sizes(self) -> list[Size]:
        """The choices that leave seeds over to be scored on."""
        return [size for size in SIZES if len(self.seeds) >= FEWEST_HELD + 1 + size.seeds]

    @property
    def seconds(self) -> float:
        """What all runs took."""
        return float(sum(row["cost.total_seconds"] for row in self.row.values()))


def choose(known: Known, size: Size, order: Sequence[int]) -> Replay:
    """Choose as the command does: tune on the first seed, drop worse methods on the second, score on those fresh ones.

    Args:
        order: Seeds; those that the choice does not need are held back from it.
    """
    import pandas as pd

    from harness.sweep.search import spread

    tuning, fresh, held = order[0], order[1 : 1 + size.seeds], order[1 + size.seeds :]
    seconds, finals, chosen = 0.0, [], {}
    for method, rates in known.rates.items():
        if size.trials > len(rates):
            raise ConfigError(f"{known.task}: {method} has {len(rates)} learning rates, a choice tries {size.trials}")
        trials = spread(rates, size.trials)
        seconds += sum(known.row[method, rate, tuning]["cost.total_seconds"] for rate in trials)
        chosen[method] = known.tuned(method, trials, [tuning])
        for place, seed in enumerate(fresh):
            finals.append({**known.row[method, chosen[method], seed], "seed": FIRST_SEED + place, "stage": "final"})
    frame = pd.DataFrame(finals)
    first = frame["seed"] == FIRST_SEED
    alive = answer.surviving(frame, survivors(len(known.rates)))
    frame = frame[first | frame["method"].isin(alive)]
    seconds += float(frame["cost.total_seconds"].sum())
    advice = answer.advise(frame, pd.DataFrame(columns=["run_id", "name", "step", "value"]))
    return Replay(advice.method, chosen[advice.method], tuple(held), advice.refrained, seconds)


def replays(known: Known, size: Size, count: int) -> Iterator[Replay]:
    """Choices with seeds in different orders, the same ones every time."""
    drawn = random.Random(0)
    for _ in range(count):
        yield choose(known, size, drawn.sample(known.seeds, len(known.seeds)))


def lost(known: Known, method: str, rate: float, seeds: Sequence[int]) -> float:
    """Points of the metric by which a method is behind the one that all runs find best, on some seeds."""
    return POINTS * (known.score(*known.found, seeds) - known.score(method, rate, seeds))


def lost_in_hindsight(known: Known, method: str, rate: float, seeds: Sequence[int]) -> float:
    """Points by which it is behind the one that is best on those very seeds, which no choice could have known."""
    return POINTS * (known.score(*known.best(seeds), seeds) - known.score(method, rate, seeds))


def thumb(known: Known, others: Sequence[Known], seeds: Sequence[int]) -> float | None:
    """Points lost by taking, at its middle rate, the method that lost least on the other tasks, as tables advise.

    Returns:
        Null where there is no other task.
    """
    from harness.sweep.search import spread

    if not others:
        return None
    methods = set.intersection(*(set(one.rates) for one in (known, *others)))
    middle = {one.task: {method: spread(one.rates[method], 1)[0] for method in methods} for one in (known, *others)}
    behind = {
        method: statistics.fmean(lost(one, method, middle[one.task][method], one.seeds) for one in others)
        for method in sorted(methods)
    }
    taken = min(behind, key=behind.__getitem__)
    return lost(known, taken, middle[known.task][taken], seeds)


def rows_of(tasks: Sequence[Known], count: int) -> list[dict[str, Any]]:
    """One row per task and size of a choice."""
    from tqdm import tqdm

    found = []
    for known in tasks:
        others = [one for one in tasks if one is not known]
        for size in known.sizes:
            made = list(tqdm(replays(known, size, count), total=count, desc=f"{known.task} {size}", disable=None))
            regrets = [lost(known, one.advised, one.rate, one.held) for one in made]
            hindsight = [lost_in_hindsight(known, one.advised, one.rate, one.held) for one in made]
            ruled = [thumb(known, others, one.held) for one in made]
            named = [one.advised for one in made]
            found.append(
                {
                    "task": known.task,
                    "trials": size.trials,
                    "seeds": size.seeds,
                    "price": statistics.fmean(one.seconds for one in made) / known.seconds,
                    "advised": ", ".join(
                        f"{name} {named.count(name)}" for name in sorted(set(named), key=lambda n: (-named.count(n), n))
                    ),
                    "refrained": statistics.fmean(one.refrained for one in made),
                    "regret": statistics.fmean(regrets),
                    "worst": sorted(regrets)[int(0.95 * (len(regrets) - 1))],
                    "hindsight": statistics.fmean(hindsight),
                    "thumb": None if None in ruled else statistics.fmean(one for one in ruled if one is not None),
                    "best": known.found[0],
                }
            )
    return found


def report(tasks: Sequence[Known], count: int) -> "Report":
    """The page: what was lost, by task and size, beside what a rule of thumb loses."""
    import pandas as pd

    from harness.report.cells import Table, number
    from harness.report.report import Report

    frame = pd.DataFrame(rows_of(tasks, count))
    columns = (
        "task",
        "choice",
        "price",
        "best of all runs",
        "advised",
        "none advised",
        "regret",
        "95%",
        "hindsight",
        "rule",
    )
    cells = [
        (
            str(one.task),
            f"{one.trials} rate(s), {one.seeds} seeds",
            f"{one.price:.0%}",
            str(one.best),
            str(one.advised),
            f"{one.refrained:.0%}",
            number(one.regret, 2),
            number(one.worst, 2),
            number(one.hindsight, 2),
            "" if pd.isna(one.thumb) else number(one.thumb, 2),
        )
        for one in frame.itertuples()
    ]
    runs = sum(len(one.row) for one in tasks)
    caption = (
        f"Of {count} choices each, replayed with seeds of their own from {runs} finished runs. Price: seconds of a "
        "choice's runs, as a share of those of all runs of the task. Regret: points of the metric by which the advised "
        "method, at the rate chosen for it, is behind the one that all runs find best, on the seeds that the choice "
        "did not see: the mean, and what 95% of choices stay below. Hindsight: the mean against what is best on those "
        "very seeds, which makes it larger than what a choice could have avoided. Rule: what is lost by taking, "
        "untuned, the method that lost least on the other tasks. None advised: choices that said to take none yet, as "
        "none was known to beat the majority class or none could be tested; their regret is that of the method they "
        "named as highest."
    )
    # A size that some task has too few seeds for is in the table alone.
    of_size = frame.groupby(["trials", "seeds"], sort=False)
    means = of_size[["price", "regret", "thumb"]].mean()[of_size.size() == len(tasks)]
    told = [
        f"with {trials} rate(s) and {seeds} seeds {number(one.regret, 2)} points at {one.price:.0%} of the price"
        for (trials, seeds), one in means.iterrows()
    ]
    ruled = f"; the rule of thumb loses {number(float(means['thumb'].mean()), 2)}" if len(tasks) > 1 else ""
    lead = f"Mean regret over {len(tasks)} task(s): {', '.join(told)}{ruled}."
    table = Table("What the advice lost", columns, cells, caption, ("task", "choice", "best of all runs", "advised"))
    return Report("What does the advice of harness-choose lose?", lead, [table], [], {"regret": frame})


def parse(arguments: Sequence[str]) -> Options:
    """Check the command line.

    Raises:
        ConfigError: A key is unknown, a value is of another type, or no sweep is named.
    """
    needed = {"sweep": "the sweep of all methods, rates and seeds"}
    found = parse_options(Options, arguments, needed, "python -m harness.choose.regret")
    if found.replays < 1:
        raise ConfigError(f"replays={found.replays}: a positive number is needed")
    return found


def run(given: Options) -> None:
    """Read the sweep, replay, and write the page.

    Raises:
        ConfigError: There is no such sweep, or runs of it are missing.
    """
    from pathlib import Path

    from harness.report import curves as curves_of
    from harness.report import runs, terminal
    from harness.report.report import write

    read = runs.read(given.uri, {}, given.sweep)
    if read.frame.empty:
        raise runs.nothing_found(read, {"sweep": given.sweep}, f"tracking.uri={redact(given.uri)}")
    curves = curves_of.load(given.uri, given.sweep)
    frame = read.frame[read.frame["newest"]]
    tasks = [Known(of_task, curves) for _, of_task in frame.groupby("task", sort=True)]
    found = report(tasks, given.replays)
    write(found, Path(given.out))
    print(f"{found.title}\n{found.lead}\n")
    terminal.show(found.tables)
    print(f"The page: {Path(given.out) / 'report.html'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command and return its exit status."""
    return carry_out(lambda given: run(parse(given)), str(__doc__), arguments, name="regret")


if __name__ == "__main__":
    sys.exit(main())
