"""Tuning: what each method was searched over, and where its best lay."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from harness.config.schema import Search
from harness.report.cells import NONE, Table, number
from harness.report.labels import label, read_list, searched
from harness.report.scores import DIVERGED, FINISHED, LEARNING_RATE, STOPPED
from harness.sweep.search import RATE, edge
from harness.training.metrics import higher_is_better

COLUMNS = (
    "task configuration search trials beyond stopped spent without_score best median worst chosen chosen_second edge"
    " grid used"
).split()


def tuning(frame: pd.DataFrame) -> pd.DataFrame:
    """Make the tuning table: one row per configuration that was tried at several points with `stage=tune`.

    Columns: task, configuration, search (grid, random or tpe), trials (points tried), beyond (of these, past the edges
    of the method's grid, since the best lay there), stopped (those not run to their
    end, as others were better), spent (share of the tokens that all trials take to their ends; NaN where it was not
    measured), without_score (of the others), best, median, worst (development score, mean over the
    seeds of a trial), chosen (learning rate of the best), chosen_second (its other hyper-parameter, if one was
    searched), edge (`lowest` or `highest` where the choice lies at the end of what was tried or could be drawn), grid
    (learning rates tried), used (learning rates that the final runs used).
    """
    runs = frame[frame["newest"] & frame["stage"].isin(["tune", "final"])]
    if runs.empty or LEARNING_RATE not in runs:
        return pd.DataFrame(columns=COLUMNS)
    keys = searched(runs)
    runs = runs.assign(
        configuration=label(runs, without=keys),
        **{key: pd.to_numeric(runs[f"param.{key}"], errors="coerce") for key in keys},
    )
    rows = []
    for (task, name), group in runs[runs["stage"] == "tune"].groupby(["task", "configuration"], sort=True):
        final = runs[(runs["stage"] == "final") & (runs["task"] == task) & (runs["configuration"] == name)]
        rows.append({"task": task, "configuration": name, **_tuned(group, final, keys)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _tuned(group: pd.DataFrame, final: pd.DataFrame, keys: tuple[str, ...]) -> dict[str, Any]:
    """The row of one configuration, from its trials and its final runs."""
    others = [key for key in keys if key != RATE and group[key].notna().any()]
    points = [group[key] for key in (RATE, *others)]
    scores = group["development"].where(group["status"] == FINISHED).groupby(points).mean()
    scores.index = [point if others else (point,) for point in scores.index]
    stopped = (group["status"] == STOPPED).groupby(points).any()
    grid, scored = sorted({point[0] for point in scores.index}), scores.dropna()
    # A trial that failed says nothing about its place.
    told = sorted(group[RATE][group["status"].isin((FINISHED, STOPPED, DIVERGED))].unique())
    higher = higher_is_better(group["primary_metric"].iloc[0])
    best, worst = (scored.max(), scored.min()) if higher else (scored.min(), scored.max())
    # Of equals the smaller values, as the sweeper does: the points are in ascending order.
    chosen, *second = (scored.idxmax() if higher else scored.idxmin()) if len(scored) else (math.nan,)
    halted = int((stopped.to_numpy() & scores.isna().to_numpy()).sum())
    return {
        "search": _search(group),
        "trials": len(scores),
        "beyond": _beyond(group, scores.index),
        "stopped": halted,
        "spent": _spent(group, points),
        "without_score": len(scores) - len(scored) - halted,
        "best": best,
        "median": scored.median(),
        "worst": worst,
        "chosen": float(chosen),
        "chosen_second": " ".join(
            f"{key.removeprefix('method.')}={value:g}" for key, value in zip(others, second, strict=False)
        ),
        "edge": edge(chosen, *_ends(group, told)) if len(told) > 1 else "",
        "grid": " ".join(f"{rate:g}" for rate in grid),
        "used": " ".join(f"{rate:g}" for rate in sorted(final[RATE].dropna().unique())),
    }


def _spent(group: pd.DataFrame, points: list["pd.Series[Any]"]) -> float:
    """The tokens that trials were trained on, as a share of those of as many whole ones.

    A trial that was stopped and went on has a run for each rung, and the last of them counts the tokens from the start.
    """
    if not {"cost.train_seconds", "cost.tokens_per_second"} <= set(group):
        return math.nan
    tokens = group["cost.train_seconds"] * group["cost.tokens_per_second"]
    taken, whole = tokens.groupby([*points, group["seed"]]).max(), tokens[group["status"] == FINISHED].max()
    return math.nan if taken.isna().any() else float(taken.sum() / (len(taken) * whole))


def tuning_table(tuning: pd.DataFrame) -> Table | None:
    """Make the table of what was tried to choose the learning rates."""
    if tuning.empty:
        return None
    columns = ("task", "method", "trials", "best", "median", "worst", "chosen rate", "grid", "remarks")
    own = tuning["trials"] - tuning["beyond"]
    equal = own.groupby(tuning["task"]).transform("nunique") == 1
    cells = []
    for (_, row), same in zip(tuning.iterrows(), equal, strict=True):
        chosen = NONE if math.isnan(row["chosen"]) else f"{row['chosen']:g}"
        where = "range" if row["search"] in ("random", "tpe") else "grid"
        further = f"{row['beyond']} rate{'' if row['beyond'] == 1 else 's'} beyond its grid"
        also = f", also after {further}" if row["beyond"] else ""
        notes = [f"{row['edge']} of its {where}{also}: the best may lie beyond"] if row["edge"] else []
        notes += [f"{further} tried"] if row["beyond"] and not row["edge"] else []
        notes += [_stopped(row)] if row["stopped"] else []
        notes += [f"{row['without_score']} without a score"] if row["without_score"] else []
        notes += [] if same else ["not the same number of trials for every method"]
        notes += [f"final runs used {row['used']}"] if row["used"] and row["used"] != chosen else []
        scores = [number(row[name]) for name in ("best", "median", "worst")]
        cells.append(
            (
                row["task"],
                row["configuration"],
                str(row["trials"]),
                *scores,
                f"{chosen} {row['chosen_second']}".strip(),
                row["grid"],
                "; ".join(notes),
            )
        )
    kinds = [str(kind) for kind in tuning["search"].unique() if kind in ("random", "tpe")]
    caption = "Scores on the development split, which chose the learning rate; final runs use fresh seeds."
    caption += f" Learning rates were drawn from each method's range ({', '.join(kinds)})." if kinds else ""
    title, text = "How the learning rates were chosen", ("task", "method", "grid", "remarks")
    return Table(title, columns, cells, caption, text, prose=("remarks",), secondary=("median", "worst"), detail=True)


def _stopped(row: "pd.Series[Any]") -> str:
    """How many trials were stopped, and what is left of the tokens of whole ones where that was measured."""
    left = "" if math.isnan(row["spent"]) else f", {row['spent']:.0%} of the tokens of whole trials"
    return f"{row['stopped']} stopped on the way{left}"


def _search(group: pd.DataFrame) -> str:
    """How points were found; runs that do not say took a grid."""
    column = "param.sweep.search"
    return " ".join(sorted(group[column].dropna().unique())) if column in group else ""


def _declared(group: pd.DataFrame) -> list[float]:
    """The learning rates that the method's YAML names."""
    told = group.get("param.method.learning_rates", pd.Series(dtype=object)).dropna()
    return [rate for text in told.unique() for rate in read_list(text) if isinstance(rate, int | float)]


def _beyond(group: pd.DataFrame, points: Iterable[tuple[float, ...]]) -> int:
    """Points past the edges of a grid; a search that draws keeps within its range."""
    rates = _declared(group)
    return sum(not min(rates) <= point[0] <= max(rates) for point in points) if rates else 0


def _ends(group: pd.DataFrame, tried: list[float]) -> tuple[float, float]:
    """The ends of the range of learning rates: of those that could be drawn, or else of those that were tried."""
    rates = _declared(group)
    drawn = _search(group) in (Search.random.name, Search.tpe.name)
    return (min(rates), max(rates)) if drawn and rates else (tried[0], tried[-1])
