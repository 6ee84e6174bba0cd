"""Frames as people read them: one set of cells, shown in the terminal and as Markdown; `page` makes HTML of it."""

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd

from harness.config import ConfigError, near_misses
from harness.record import COST_FIELDS, MEMORY
from harness.reporting.across import Across
from harness.reporting.comparison import NO_DIFFERENCE, NO_SCORE
from harness.reporting.family import HOLM, THESE_RUNS
from harness.reporting.pairwise import ALIKE, BEST, Pairwise, few
from harness.reporting.scores import MAJORITY, MEASURED, SPLITS, means
from harness.reporting.stats import CONFIDENCE

TITLE = "Fine-tuning methods compared"
NONE = "–"
STANDING = {BEST: "★", ALIKE: "≈"}
# Rows of a table in a file or on the page, and in a terminal.
MOST_ROWS, MOST_PRINTED = 2000, 100
# Of the score tables, beside method, score and remarks.
COLUMNS = tuple("sd n interval groups best base forgetting trainable share seconds tokens_per_second adapter".split())
# Tasks whose best is named at the top; of more, the table over tasks tells.
MOST_VERDICTS = 6
# Options of a method in a table of them.
MOST_OPTIONS = 4
# Runs that make a method too unstable to say.
UNSTABLE = ("collapsed", "diverged")
# With few seeds and many methods there are more groups than anybody reads.
MOST_GROUPS = 10


@dataclass(frozen=True)
class Table:
    """Cells ready to be shown; `text_columns` are aligned to the left, all others to the right."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""
    text_columns: tuple[str, ...] = field(default=("method", "remarks"))


def shortened(table: Table, most: int = MOST_ROWS) -> Table:
    """Keep the first rows of a table that nobody reads to its end, and say so."""
    if len(table.rows) <= most:
        return table
    caption = f"The first {most:,} of {len(table.rows):,} rows; all are in the CSV files. {table.caption}"
    return replace(table, rows=table.rows[:most], caption=caption)


# --- Cells ----------------------------------------------------------------------------------------------------------


def number(value: float, places: int = 4) -> str:
    """Write a number with fixed places, or a dash where it is not known."""
    return NONE if pd.isna(value) else f"{value:,.{places}f}"


def deviation(std: float, n: int) -> str:
    """Write a sample standard deviation, or why there is none."""
    return number(std) if n > 1 else f"n={n}"


def interval(low: float, high: float, n: int = 2, places: int = 4) -> str:
    """Write the ends of an interval, or why there is none."""
    if n == 1:
        return "n=1"
    return NONE if pd.isna(low) or pd.isna(high) else f"[{number(low, places)}, {number(high, places)}]"


def known(row: Any) -> str:
    """Write what is known of a method's mean: its interval, or why there is none and what is there instead."""
    lost = [f"{int(row[kind])} of {int(row['n'] + row['diverged'])} {kind}" for kind in UNSTABLE if row[kind]]
    if lost:
        return ", ".join(lost)
    if row["n"] == 2:
        # Two scores are their mean less and plus this.
        half = row["std"] / math.sqrt(2)
        return f"{number(row['mean'] - half)}, {number(row['mean'] + half)}"
    return interval(row["low"], row["high"], 2 if not pd.isna(row["low"]) else row["n"])


def spread(row: Any) -> str:
    """Write a method's sample standard deviation, but of a mixture of runs that learned and runs that did not."""
    return NONE if any(row[kind] for kind in UNSTABLE) else deviation(row["std"], row["n"])


def chance(row: Any) -> str:
    """Mark the highest score observed and those not told apart from it, with the probability of being the best."""
    parts = [STANDING.get(row["standing"], ""), number(row["best_probability"], 2)]
    return "" if pd.isna(row["best_probability"]) else " ".join(part for part in parts if part)


def probability(p: float) -> str:
    """Write a p value; small ones as a bound."""
    return NONE if pd.isna(p) else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def share(value: float) -> str:
    """Write a share in percent, with more places the smaller it is."""
    return NONE if pd.isna(value) else f"{100 * value:.{0 if value >= 0.995 else 2 if value >= 0.01 else 3}f}%"


def size(value: float) -> str:
    """Write a number of bytes in the unit that leaves one to three digits before the point (1 MB is a million)."""
    if pd.isna(value):
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def remarks(row: Any) -> str:
    """Tell what a reader must know about a row before believing its mean."""
    kinds = (("collapsed", "no better than majority"), ("diverged", "diverged"), ("failed", "did not finish"))
    total = row["n"] + row["diverged"] + row["failed"] if row["configuration"] != MAJORITY else 0
    parts = [f"{int(row[kind])} of {int(total)} {text}" for kind, text in kinds if row[kind] and total]
    return ", ".join([*parts, *[row["marked"]] * bool(row["marked"])])


def figure(name: str, value: float) -> str:
    """Write a figure that a run has, by its name in the store."""
    if name.endswith("_bytes"):
        return size(value)
    if name == "cost.flops_ceiling_share" and value > 1:
        return NONE
    if not name.startswith("cost."):
        return number(value)
    return NONE if pd.isna(value) else number(value, 0) if float(value).is_integer() else f"{value:,.4g}"


# --- Tables ---------------------------------------------------------------------------------------------------------


def with_figures(summary: pd.DataFrame, frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Add to the main table what `columns` names of the runs' own figures, means over the finished runs of a row.

    A figure that these runs could have, on another split or of another cost, is no mistake: it is left out.

    Raises:
        ConfigError: A column is neither one of `COLUMNS` nor such a figure.
    """
    there = {str(name) for name in frame.select_dtypes("number") if re.match(r"\w+\.", str(name))}
    metrics = {name.partition(".")[2] for name in there}
    possible = {f"{split}.{metric}" for split in SPLITS for metric in metrics} | {
        f"cost.{name}" for name in COST_FIELDS
    }
    for name in columns:
        if name not in COLUMNS and name not in there | possible:
            valid = there if "." in name else COLUMNS
            raise ConfigError(f"columns={name}: there is no such column; {near_misses(name, valid)}")
    figures = [name for name in columns if name in there and name not in summary]
    return summary.merge(means(frame, figures), on=["task", "configuration"], how="left") if figures else summary


def score_tables(
    summary: pd.DataFrame, found: Sequence[Pairwise] = (), columns: Sequence[str] | None = None
) -> list[Table]:
    """Make a table a task; columns that no run of it has a figure for are left out.

    Args:
        summary: The main table, with `groups` and `standing` where methods were compared.
        found: Those comparisons.
        columns: Names of `COLUMNS` or of figures in the main table, in this order; null for all of `COLUMNS`.
    """
    compared = {one.task: one for one in found}
    return [
        _score_table(str(task), rows, compared.get(str(task)), columns or COLUMNS)
        for task, rows in summary.groupby("task", sort=True)
    ]


def _score_table(task: str, rows: pd.DataFrame, found: Pairwise | None, columns: Sequence[str]) -> Table:
    metric, split = rows["metric"].iloc[0] or "score", rows["split"].iloc[0]
    general = next(iter(rows["forgetting_metric"][rows["forgetting_metric"].fillna("") != ""]), "").replace("_", " ")
    groups = set(re.findall(r"[A-Za-z]\d*", " ".join(found.groups.values()))) if found else set()
    available = _columns(rows, general) | {
        name: [(name, partial(_own_figure, name))]
        for name in set(columns) - set(COLUMNS)
        if name in rows and rows[name].notna().any()
    }
    if not (found and found.chances):
        del available["best"]
    if not 0 < len(groups) <= MOST_GROUPS:
        del available["groups"]
    written: dict[str, Callable[[Any], str]] = {
        "method": lambda row: str(row["configuration"]),
        metric: lambda row: number(row["mean"]),
        **{heading: write for name in columns for heading, write in available.get(name, ())},
        "remarks": remarks,
    }
    # Of the majority class nothing was trained or measured.
    cells = [
        tuple(
            write(row) if row["configuration"] != MAJORITY or name in ("method", metric) else ""
            for name, write in written.items()
        )
        for row in rows.to_dict("records")
    ]
    over = "seeds and examples" if found and found.summaries else "seeds"
    caption = f"Mean {metric} on the {split} split over n runs, ± sample standard deviation (ddof=1), 95% interval of "
    caption += f"the mean over {over}, of two runs both scores; costs are means."
    if general:
        caption += f" Before and after: {general} on general text, adapter off and on."
    caption = " ".join([caption, *_standings(found, len(groups)), *(found.notes if found else ())])
    return Table(task, tuple(written), cells, caption, ("method", "groups", "best", "remarks"))


def _standings(found: Pairwise | None, groups: int) -> list[str]:
    """Say what marks and letters mean; nothing where no method has the runs for them."""
    if not found or not found.chances:
        return []
    text = f"Best: the probability of being so among the {len(found.chances)} methods with three runs or more, "
    sentences = [text + f"{STANDING[BEST]} the {BEST}."]
    if groups:
        sentences.append(f"{STANDING[ALIKE]} {ALIKE} ({found.correction} over {_tested(found):,} pairs).")
    if 0 < groups <= MOST_GROUPS:
        sentences.append("Methods that share a letter were not told apart.")
    elif groups:
        sentences.append(f"It takes {groups} groups to say who was not told apart from whom: see comparisons.csv.")
    return sentences


def _columns(rows: pd.DataFrame, general: str) -> dict[str, list[tuple[str, Callable[[Any], str]]]]:
    """Name of a column -> headings, and how their cells are written; without those that no row has a figure for."""
    found: dict[str, list[tuple[str, Callable[[Any], str]]]] = {
        "sd": [("± sd", spread)],
        "n": [("n", lambda row: str(row["n"]))],
        "interval": [("95% interval", known)],
        "groups": [("groups", lambda row: str(row["groups"]))],
        "best": [("best", chance)],
        "trainable": [("trainable", lambda row: number(row["trainable_parameters"], 0))],
        "share": [("share", lambda row: share(row["share"]))],
        "seconds": [("seconds", lambda row: number(row["train_seconds"], 1))],
        "tokens_per_second": [("tokens/s", lambda row: number(row["tokens_per_second"], 0))],
        "adapter": [("adapter", lambda row: size(row["adapter_file_bytes"]))],
    }
    if rows["base"].notna().any():
        found["base"] = [("backbone alone", lambda row: number(row["base"]))]
    if rows["forgetting.after"].notna().any():
        found["forgetting"] = [
            (f"{general} before", lambda row: number(row["forgetting.before"], 3)),
            ("after", lambda row: number(row["forgetting.after"], 3)),
        ]
    return found


def _own_figure(name: str, row: Any) -> str:
    return figure(name, row[name])


def option_tables(summary: pd.DataFrame, options: pd.DataFrame) -> list[Table]:
    """Make a table a task of what was varied of its methods: a row a rank, a set of targets, or both.

    Args:
        summary: The main table.
        options: Of `scores.options`.
    """
    tables = []
    for task, chosen in options.groupby("task", sort=True):
        varied = [name for name in options.columns[3:] if chosen[name].notna().any()][:MOST_OPTIONS]
        rows = chosen.merge(summary, on=["task", "configuration", "method"])
        rows = rows[rows["n"] > 0].sort_values(["method", *varied], key=_sortable, kind="stable")
        metric = rows["metric"].iloc[0] or "score"
        cells = [
            (
                str(row["method"]),
                *(NONE if pd.isna(row[name]) else listed(row[name]) for name in varied),
                number(row["mean"]),
                spread(row),
                str(row["n"]),
                known(row),
                number(row["trainable_parameters"], 0),
                share(row["share"]),
                number(row["train_seconds"], 1),
            )
            for row in rows.to_dict("records")
        ]
        headings = [name.rpartition(".")[2].replace("_", " ") for name in varied]
        columns = ("method", *headings, metric, "± sd", "n", "95% interval", "trainable", "share", "seconds")
        text = [name for name, full in zip(headings, varied, strict=True) if not _numbers(rows[full])]
        caption = f"What was varied of each method, and its mean {metric}; intervals as above."
        tables.append(Table(f"{task}: {', '.join(headings)}", columns, cells, caption, ("method", *text)))
    return tables


def listed(text: str) -> str:
    """Write a list from a configuration as people do."""
    return ", ".join(re.findall(r'"([^"]*)"', text)) if text.startswith('["') else text


def _numbers(values: pd.Series) -> bool:
    return bool(pd.to_numeric(values.dropna(), errors="coerce").notna().all())


def _sortable(values: pd.Series) -> pd.Series:
    return pd.to_numeric(values) if _numbers(values) else values.fillna("")


def pair_tables(found: Sequence[Pairwise]) -> list[Table]:
    """Make a table a task: each method against the baseline."""
    return [_pair_table(one) for one in found if one.comparisons]


def _pair_table(found: Pairwise) -> Table:
    corrected = "p, Holm" if found.correction == HOLM else "q, BH"
    columns = ("method", "difference", "95% interval", "p", corrected, "verdict")
    cells = []
    for pair in found.comparisons:
        if found.baseline not in (pair.a, pair.b):
            continue
        flipped = pair.a == found.baseline
        name, sign = (pair.b, -1) if flipped else (pair.a, 1)
        # Plus 0.0, so that no difference is not written as -0.0000.
        low, high = sorted((sign * pair.low + 0.0, sign * pair.high + 0.0))
        verdict = pair.verdict
        if pair.corrected_p < 1 - CONFIDENCE:
            verdict = "better" if pair.verdict.startswith(f"{name} better") else "worse"
        if not pair.over_seeds and not pd.isna(pair.p):
            verdict += f" {THESE_RUNS}"
        difference = NONE if verdict == NO_SCORE else f"{sign * pair.difference + 0.0:+.4f}"
        cells.append(
            (name, difference, interval(low, high), probability(pair.p), probability(pair.corrected_p), verdict)
        )
    caption = f"{found.metric} of the method less that of {found.baseline}, on {found.rows:,} examples. "
    caption += _tests(found)
    caption += f' "{NO_DIFFERENCE}" says that these runs cannot tell, not that the methods are equal.'
    return Table(f"{found.task}: against {found.baseline}", columns, cells, caption, ("method", "verdict"))


def _tested(found: Pairwise) -> int:
    """How many pairs have a p: what is corrected for."""
    return sum(not pd.isna(pair.p) for pair in found.comparisons)


def _tests(found: Pairwise) -> str:
    """Say what was tested and how it was corrected."""
    count = _tested(found)
    pairs = f"{count:,} pair{'' if count == 1 else 's'} {'of the task' if found.every_pair else 'with the baseline'}"
    if found.correction == HOLM:
        text = f"Confirmatory: p corrected by Holm over the {pairs}, so that of a hundred such tables "
        text += "at most 5 have any wrong."
    else:
        text = f"Exploratory: q by Benjamini and Hochberg over the {pairs}: of those below 0.05 some 5 in a hundred "
        text += "are wrong, and what is found here is for other runs to confirm."
    text += " All are in comparisons.csv; intervals are not corrected."
    return text + " Runs are paired by seed." * found.blocked


def across_table(across: Across) -> Table:
    """Make the table of methods x tasks: ranks, duels and normalised scores beside the means."""
    columns: tuple[str, ...] = ("method", "average rank", "95% interval", "win rate")
    columns += ("IQM", "IQM interval") if across.normalised else ()
    cells = [
        (
            str(row["configuration"]),
            number(row["rank"], 2),
            interval(row["rank_low"], row["rank_high"], places=2),
            share(row["win_rate"]),
            *((number(row["iqm"], 3), interval(row["iqm_low"], row["iqm_high"], places=3)) * bool(across.normalised)),
            *(number(row[f"score.{task}"]) for task in across.tasks),
        )
        for _, row in across.table.iterrows()
    ]
    caption = "Mean score of each method on each task; a dash: it has none. "
    if not across.common:
        caption += "No two methods share two tasks, so nothing is ranked. "
    else:
        caption += (
            f"Ranks (1 is best, interval over tasks) of {across.ranked} methods on the {len(across.common)} tasks "
        )
        caption += f"that they share: {', '.join(across.common)}. "
    caption += "Win rate: share of duels with each other method on each task that both have, ties counting half. "
    if across.normalised:
        caption += (
            "IQM: interquartile mean over runs and tasks of scores on which 0 is the majority class and 1 full "
            f"fine-tuning, its interval over runs; on {', '.join(across.normalised)}. "
        )
    return Table("Over tasks", columns + across.tasks, cells, caption.strip(), ("method",))


def tuning_table(tuning: pd.DataFrame) -> Table | None:
    """Make the table of what was tried to choose the learning rates."""
    if tuning.empty:
        return None
    columns = ("task", "method", "trials", "best", "median", "worst", "chosen rate", "grid", "remarks")
    equal = tuning.groupby("task")["trials"].transform("nunique") == 1
    cells = []
    for (_, row), same in zip(tuning.iterrows(), equal, strict=True):
        chosen = NONE if math.isnan(row["chosen"]) else f"{row['chosen']:g}"
        where = "range" if row["search"] in ("random", "tpe") else "grid"
        notes = [f"{row['edge']} of its {where}: the best may lie beyond"] if row["edge"] else []
        notes += [f"{row['stopped']} stopped on the way"] if row["stopped"] else []
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
    return Table("How the learning rates were chosen", columns, cells, caption, ("task", "method", "grid", "remarks"))


def cost_tables(costs: pd.DataFrame) -> list[Table]:
    """Make a table a task of what a training step holds and computes, and how long a forward pass takes."""
    held = ("weights", "gradients", "optimizer", "activations", "peak", "evaluation")
    columns = (
        "method",
        *held,
        "ms a step",
        "MFLOP a token",
        "of ceiling",
        "ms base",
        "ms attached",
        "ms merged",
        "ms swap",
    )
    tables = []
    for task, rows in costs.groupby("task", sort=True):
        if rows[list(MEASURED)].isna().all(axis=None):
            continue
        cells = [
            (
                str(row["configuration"]),
                *(size(row[name]) for name in (*MEMORY, "evaluation_peak_bytes")),
                number(1000 * row["step_seconds"], 0),
                number(row["train_flops_per_token"] / 1e6, 1),
                share(row["flops_ceiling_share"]),
                *(number(row[name], 2) for name in ("base", "attached", "merged")),
                number(row["swap_ms"], 0),
            )
            for _, row in rows.iterrows()
        ]
        caption = (
            "Bytes of tensors in the training step with most tokens, and at once in evaluation; the median step; "
            "operations a real token, and the share of this device's matrix-product ceiling, withdrawn above 100%, "
            "where the ceiling was measured too low; median latency of one row on the backbone alone, with the "
            "adapter, and merged; taking an adapter off and putting another on. Means over runs; a dash: not measured."
        )
        tables.append(Table(f"{task}: cost", columns, cells, caption))
    return tables


def prediction_table(predictions: pd.DataFrame) -> Table | None:
    """Make the table of predicted against measured bytes."""
    if predictions.empty:
        return None
    columns = ["task", "method"]
    for name in MEMORY:
        columns += [name.removesuffix("_bytes").removeprefix("train_"), "off by"]
    cells = [
        (
            str(row["task"]),
            str(row["configuration"]),
            *(
                text
                for name in MEMORY
                for text in (size(row[f"measured.{name}"]), f"{100 * row[f'deviation.{name}']:+.2f}%")
            ),
        )
        for _, row in predictions.iterrows()
    ]
    worst = {name: predictions[f"deviation.{name}"].abs().max() for name in MEMORY}
    caption = "Measured bytes, and how far the prediction from the architecture alone is off. Farthest of all: "
    caption += ", ".join(f"{name.removesuffix('_bytes').removeprefix('train_')} {v:.2%}" for name, v in worst.items())
    return Table("Predicted against measured", tuple(columns), cells, caption + ".", ("task", "method"))


def failure_table(failures: pd.DataFrame) -> Table | None:
    """Make the table of runs that did not finish."""
    if failures.empty:
        return None
    columns = ("task", "method", "seed", "status", "reason")
    cells = [
        (
            row["task"],
            row["configuration"],
            "" if pd.isna(row["seed"]) else str(row["seed"]),
            row["status"],
            row["error"],
        )
        for _, row in failures.iterrows()
    ]
    return Table("Runs that did not finish", columns, cells, "", ("task", "method", "status", "reason"))


def opening(frame: pd.DataFrame) -> str:
    """Say in two sentences what the report is about."""
    newest = frame[frame["newest"]]
    done = int((newest["status"] == "finished").sum())
    kinds = [(newest[name].nunique(), name) for name in ("method", "model", "task")]
    counted = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in kinds)
    text = f"{len(newest)} run{'' if len(newest) == 1 else 's'} of {counted}; {done} finished."
    again = len(frame) - len(newest)
    if again:
        text += f" Of a point that was run again only the newest run counts: {again} older left out."
    models = sorted(set(newest["model"]))
    return f"{text} Model{'' if len(models) == 1 else 's'}: {', '.join(models)}."


def verdicts(summary: pd.DataFrame, found: Sequence[Pairwise]) -> str:
    """Name the method with the highest score on each task, and say how far that can be believed."""
    sentences = []
    for one in found[:MOST_VERDICTS]:
        rows = summary[(summary["task"] == one.task) & (summary["configuration"] != MAJORITY) & (summary["n"] > 0)]
        if len(rows) < 2:
            continue
        best = rows[rows["configuration"] == one.best].iloc[0] if one.best else rows.iloc[0]
        score = f"{number(best['mean'])} {one.metric or 'score'}{_doubt(rows, one)}"
        compared = {name for pair in one.comparisons for name in (pair.a, pair.b)} | {*one.groups}
        among = " of those compared" * bool(one.best and rows["configuration"].iloc[0] not in compared)
        sentences.append(f"On {one.task} {best['configuration']} has the highest score observed{among}, {score}.")
    return " ".join(sentences)


def _doubt(rows: pd.DataFrame, one: Pairwise) -> str:
    """Say how far the highest score can be believed."""
    if not one.best:
        return "; nothing tells whether by more than chance, as no predictions can be compared"
    names = {*one.groups} | {name for pair in one.comparisons for name in (pair.a, pair.b)}
    parts = []
    if one.best in one.chances:
        parts.append(f" (the best with probability {one.chances[one.best]:.2f})")
    elif not one.chances:
        parts.append("; under three runs of a method say nothing of the next")
    else:
        parts.append("; it is too unstable to say, or has under three runs")
    level = [name for name in rows["configuration"] if name in one.level]
    if one.every_pair and one.best in one.groups:
        others = len(one.groups) - 1
        apart = f", told apart from {'the other' if others == 1 else f'all {others} others'} tested"
        parts.append(f", not told apart from {few(level)}" if level else apart)
    elif one.chances:
        better = sum(not pd.isna(pair.p) and pair.corrected_p < 1 - CONFIDENCE for pair in one.comparisons)
        parts.append(f"; {better} of {_tested(one)} methods tested differ{'s' * (better == 1)} from {one.baseline}")
    left = sum(name not in names for name in rows["configuration"])
    parts.append(f"; {left} more {'was' if left == 1 else 'were'} not compared" * bool(left))
    return "".join(parts)


def protocol(summary: pd.DataFrame, tuned: bool) -> list[str]:
    """Say which split chose what, and what is counted how."""
    lines = [
        "The development split, which is never the validation split, chose the best checkpoint of each run"
        + (" and each method's learning rate; trials that only chose are left out of the scores." if tuned else "."),
    ]
    if (summary["split"] == "validation").any():
        lines.append("Scores are on the validation split, which chose nothing.")
    if (summary["split"] == "development").any():
        lines.append(
            "Where no run scored the validation split, scores are on the development split, which is optimistic."
        )
    lines.append(
        "Every finished run counts, never only the best; diverged and failed runs have no score and count apart."
    )
    return lines


def odd(frame: pd.DataFrame) -> list[str]:
    """Say how many runs are marked, and why; nothing where none is."""
    marks = frame["mark"][frame["newest"] & (frame["mark"] != "")]
    if marks.empty:
        return []
    kinds = ", ".join(f"{count} {mark}" for mark, count in sorted(marks.value_counts().items()))
    return [f"Runs of other versions, of other people or with missing fields count like the others: {kinds}."]


# --- Shown ----------------------------------------------------------------------------------------------------------


def terminal(tables: Sequence[Table], width: int | None = None) -> Any:
    """Return a function that prints tables with rich to a console; markup in a cell is shown as text."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    # Where the output goes into a file or a pipe there is no width to keep to.
    console = console if console.is_terminal and width is None else Console(highlight=False, width=width or 200)
    for table in (shortened(table, MOST_PRINTED) for table in tables):
        shown = RichTable(
            title=Text(table.title), caption=Text(table.caption), title_justify="left", caption_justify="left"
        )
        for column in table.columns:
            left = column in table.text_columns
            shown.add_column(Text(column), justify="left" if left else "right", no_wrap=not left, overflow="fold")
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown)
        console.print()


def markdown(title: str, lead: str, tables: Sequence[Table], notes: Sequence[str], pictures: Sequence[str]) -> str:
    """Write a report as Markdown."""
    parts = [f"# {_escape(title)}", _escape(lead)]
    for table in map(shortened, tables):
        head = "| " + " | ".join(_escape(column) for column in table.columns) + " |"
        rule = "|" + "|".join(":---" if column in table.text_columns else "---:" for column in table.columns) + "|"
        rows = ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in table.rows]
        parts += [f"## {_escape(table.title)}", "\n".join([head, rule, *rows])]
        parts += [_escape(table.caption)] if table.caption else []
    parts += [f"![{name.partition('.')[0].replace('_', ' ')}]({name})" for name in pictures]
    parts += ["\n".join(f"- {_escape(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    text = html.escape(text, quote=False).replace("\\", "\\\\")
    return re.sub(r"([|*_`\[\]])", r"\\\1", text)
