"""The answer of a choice: which methods can't be told from the best, which of them to take, and what to do next."""

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.choose.budget import FIRST_SEED, SIZES, Size
from harness.choose.state import Choice
from harness.config.errors import ConfigError
from harness.config.mistakes import key_of
from harness.report.definitions import Definition, Pairs

if TYPE_CHECKING:
    import pandas as pd

    from harness.report.report import Report


# How a row is answered -> what was measured of it.
SERVED = {
    "the backbone alone": "cost.latency_ms.base.1",
    "with the adapter": "cost.latency_ms.attached.1",
    "merged": "cost.latency_ms.merged.1",
}

# What only a comparison needs: fewer rows than there are, and what goes by the development score.
FOR_SCORES = (
    "task.max_train_rows",
    "task.max_validation_rows",
    "train.early_stopping_patience",
    "measure.target_score",
)


# How far behind the highest a cheaper method may be and still be taken: a point, or a hundredth of a perplexity. That
# two methods can't be told apart after a few seeds does not make them equal.
CLOSE = 0.01


@dataclass(frozen=True)
class Advice:
    """The method to take.

    Attributes:
        method: Its name.
        level: The methods that can't be distinguished from the best, it among them; empty where nothing was tested.
        learning_rate: The one that was chosen for it.
        run: The id of its best final run by the development score.
        length: The overrides that train for as long as that run did until its weights were best.
        row: Its row of the main table.
        seconds: Of training, the mean of its final runs.
        milliseconds: To answer one row, their mean, for each way that was measured.
        nothing_learned: What is said where no method is known to beat the majority class; empty elsewhere.
        alone: Whether it is known to beat the majority class and every other has a run that does not.
    """

    method: str
    level: tuple[str, ...]
    learning_rate: str
    run: str
    length: tuple[str, ...]
    row: "pd.Series[Any]"
    seconds: float
    milliseconds: dict[str, float]
    nothing_learned: str
    alone: bool = False

    @property
    def refrained(self) -> bool:
        """Whether none is advised: no method is known to beat the majority class, or nothing could be tested."""
        return bool(self.nothing_learned) or not (self.level or self.alone)


def finals(uri: str, sweep: str) -> "pd.DataFrame":
    """The runs of a choice's sweep on the rows that the latest of them saw; empty where none ended.

    The file of an earlier start may have been changed since.
    """
    from harness.report import runs

    try:
        frame = runs.read(uri, {}, sweep).frame
    except ConfigError:  # a store that nothing was sent to yet
        import pandas as pd

        return pd.DataFrame()
    return frame if frame.empty else frame[frame["newest"] & (frame["task"] == frame["task"].iloc[-1])]


def surviving(frame: "pd.DataFrame", count: int) -> list[str]:
    """The methods whose first run after tuning has the best development scores; equal ones all survive."""
    from harness.training.metrics import higher_is_better

    if frame.empty:
        return []
    scored = (frame["stage"] == "final") & (frame["status"] == "finished") & frame["development"].notna()
    first = frame[scored & (frame["seed"] == FIRST_SEED)]
    if first.empty:
        return []
    higher = higher_is_better(str(first["primary_metric"].iloc[0]))
    ranked = first.set_index("method")["development"].sort_values(ascending=not higher)
    last = ranked.iloc[min(count, len(ranked)) - 1]
    return sorted(ranked.index[(ranked >= last) if higher else (ranked <= last)])


def advise(frame: "pd.DataFrame", curves: "pd.DataFrame") -> Advice:
    """Take the cheapest of the methods that can't be told from the best and score as high; untested, the highest.

    Args:
        frame: One row per run.
        curves: Of `harness.report.curves.load`.
    """
    from harness.report import finding, pairwise, scores
    from harness.training.metrics import higher_is_better

    summary = scores.summary(frame)
    (found,) = pairwise.compare_tasks(frame, summary, None, None, Pairs.all, None)
    majority = summary[summary["configuration"] == scores.MAJORITY]
    rows = summary[(summary["configuration"] != scores.MAJORITY) & (summary["n"] > 0)]
    tested = found.best if found.best in found.chances else ""
    level = rows[rows["configuration"].isin([tested, *found.level])] if tested else rows.iloc[:1]
    row = cheapest(level, found.metric)
    runs = frame[(frame["stage"] == "final") & (frame["status"] == "finished") & (frame["method"] == row["method"])]
    best = runs.sort_values("development", ascending=not higher_is_better(found.metric)).iloc[0]
    return Advice(
        method=str(row["method"]),
        level=tuple(level["configuration"]) if tested else (),
        learning_rate=str(best[scores.LEARNING_RATE]),
        run=str(best["run_id"]),
        length=length_of(best, curves),
        row=row,
        seconds=float(runs["cost.train_seconds"].mean()),
        milliseconds={
            name: float(runs[column].mean())
            for name, column in SERVED.items()
            if column in runs and runs[column].notna().any()
        },
        nothing_learned=finding.beaten(rows, majority, found),
        alone=_alone(row, rows, majority, higher_is_better(found.metric)),
    )


def cheapest(level: "pd.DataFrame", metric: str) -> "pd.Series[Any]":
    """Of methods that can't be told apart, the one that trains least of those whose mean is about the highest."""
    from harness.training.metrics import higher_is_better

    higher = higher_is_better(metric)
    best = level["mean"].max() if higher else level["mean"].min()
    close = (level["mean"] - best).abs() <= CLOSE * (1 if higher else best)
    return level[close].sort_values("trainable_parameters").iloc[0]


def _alone(row: "pd.Series[Any]", rows: "pd.DataFrame", majority: "pd.DataFrame", higher: bool) -> bool:
    if majority.empty or not (rows["collapsed"] > 0)[rows["configuration"] != row["configuration"]].all():
        return False
    floor = float(majority["mean"].iloc[0])
    return bool(row["low"] > floor if higher else row["high"] < floor)


def length_of(run: "pd.Series[Any]", curves: "pd.DataFrame") -> tuple[str, ...]:
    """The override that trains as long as a run did until its development score was best; none for all of its steps."""
    from harness.training.metrics import higher_is_better

    metric = str(run["primary_metric"])
    line = curves[(curves["run_id"] == run["run_id"]) & (curves["name"] == metric)].sort_values("step", kind="stable")
    if len(line) < 2:
        return ()
    best = int(line["step"][line["value"].idxmax() if higher_is_better(metric) else line["value"].idxmin()])
    if run.get("param.train.max_steps", "None") not in ("None", "null"):
        return (f"train.max_steps={best}",)
    # The first evaluation ends an epoch, or one of its equal parts.
    epochs = best / (int(line["step"].iloc[0]) * float(run["param.train.evaluations_per_epoch"]))
    return (f"train.epochs={epochs:.3g}",) if epochs < float(run["param.train.epochs"]) else ()


def report(choice: Choice, frame: "pd.DataFrame", advice: Advice, size: Size) -> "Report":
    """The sweep's report, opened by the advice and what to do next."""
    from harness.report.cells import Table, number
    from harness.report.cells import size as bytes_of
    from harness.report.finding import BREAK
    from harness.report.report import build

    found = build(frame, Definition(title=f"Which method? {frame['task'].iloc[0]}", pairs=Pairs.all))
    why = "told apart from all others that were tested"
    if len(advice.level) > 1:
        why = f"the cheapest within a point of the highest, of the {len(advice.level)} that can't be told from the best"
    lead, _, about = found.lead.partition(BREAK)
    costs = (
        f"A run of it trains {number(advice.row['trainable_parameters'], 0)} parameters in "
        f"{number(advice.seconds, 0)} s here and leaves a file of {bytes_of(advice.row['adapter_file_bytes'])}"
    )
    served = ", ".join(f"{name} {number(value, 1)} ms" for name, value in advice.milliseconds.items())
    costs += f"; one row is answered in: {served}" if served else ""
    opened = f"Take {advice.method}: {why}. {costs}."
    if not advice.level and advice.alone:
        opened = (
            f"Take {advice.method}: the only one known to beat the majority class. Every other has a run that learned "
            f"nothing in so many steps; more rows or epochs may change that. {costs}."
        )
    elif not advice.level:
        opened = (
            f"None can be advised yet, as nothing could be tested: {advice.method} is the highest observed. {costs}."
        )
    if advice.nothing_learned:
        opened = "Take none of these yet; another backbone, more rows or more epochs come first."
    found.lead = f"{opened} {lead}{BREAK}{about}"
    following = Table(
        "What to do next",
        ("step", "command"),
        commands(advice, choice.asked["overrides"], choice.sweep),
        "Trained on all rows, development and validation too, it can't be scored; it trains for as long as the run of "
        "this comparison with the best development score did until then. The id is that run's, whose adapter was kept.",
        ("step", "command"),
        ("command",),
    )
    out = Table(
        "Not compared to the end",
        ("method", "why"),
        [(one.name, one.refused) for one in choice.candidates if one.refused],
        "Refused before the race, by plan or by a run of a few steps.",
        ("method", "why"),
        ("why",),
        detail=True,
    )
    shown = [] if advice.nothing_learned else [following]
    found.tables = [found.tables[0], *shown, *found.tables[1:], *([out] if out.rows else [])]
    found.notes = [*changes(advice, size, SIZES[0]), *found.notes]
    return found


def commands(advice: Advice, overrides: list[str], sweep: str) -> list[tuple[str, str]]:
    """What a practitioner types next."""
    kept = [one for one in overrides if key_of(one) not in FOR_SCORES]
    length = {key_of(one): one for one in advice.length}
    own = [*(one for one in kept if key_of(one) not in length), *length.values()]
    own += [f"method={advice.method}", f"train.learning_rate={advice.learning_rate}", "train.all_rows=true"]
    store = [one for one in overrides if one.startswith("tracking.uri=")]
    run = f"adapter={advice.run[:12]}"
    told = {
        "train on all rows": ["harness", *own],
        "predict": ["harness-predict", run, "data=NEW.csv", "out=answers.parquet", *store],
        "export": ["harness-export", run, "out=exported", *store],
        "look closer": ["harness-report", f"sweep={sweep}", *store],
    }
    return [(step, shlex.join(words)) for step, words in told.items()]


def changes(advice: Advice, size: Size, largest: Size) -> list[str]:
    """What would change the advice."""
    told = []
    if size != largest:
        told.append(
            f"More hours would: here each method had {size.trials} learning rate(s) and {size.seeds} seeds, the "
            f"largest comparison has {largest.trials} and {largest.seeds}; the same command with more hours= goes on "
            "from here."
        )
    if len(advice.level) > 1:
        told.append(
            f"More rows to score would: on those here {', '.join(advice.level)} can't be told apart, and the cheapest "
            "within a point of the highest was taken."
        )
    return [*told, "It is of these rows, this backbone and this length; with many more rows to train on, ask again."]
