"""Frames as people read them: one set of cells, shown in the terminal and as Markdown; `page` makes HTML of it."""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from harness.config.errors import ConfigError, near_misses
from harness.report.across import Across
from harness.report.cells import (
    NONE,
    STANDING,
    Forest,
    Table,
    _numbers,
    _sortable,
    chance,
    figure,
    interval,
    known,
    listed,
    number,
    probability,
    remarks,
    share,
    sizes,
    spread,
)
from harness.report.comparison import NO_DIFFERENCE, NO_SCORE
from harness.report.family import HOLM, THESE_RUNS
from harness.report.pairwise import ALIKE, BEST, Pairwise, tested
from harness.report.scores import MAJORITY, MEASURED, SPLITS, means
from harness.report.stats import CONFIDENCE
from harness.report.words import heading, metric_name
from harness.tracking.record import COST_FIELDS, MEMORY

# Of the score tables, beside method, score and remarks.
COLUMNS = tuple("sd n interval groups best base forgetting trainable share seconds tokens_per_second adapter".split())
# Columns that a page shows when asked: what the picture in the score's cell says, and costs beyond the first ones.
SECONDARY = ("± sd", "95% interval", "groups", "share", "tokens/s", "backbone alone", "after", "peak in evaluation")
# Options of a method in a table of them.
MOST_OPTIONS = 4
# With few seeds and many methods there are more groups than anybody reads.
MOST_GROUPS = 10


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
    """Make one table per task; columns that no run of it has a figure for are left out.

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
    metric, split = metric_name(rows["metric"].iloc[0]), rows["split"].iloc[0]
    general = next(iter(rows["forgetting_metric"][rows["forgetting_metric"].fillna("") != ""]), "").replace("_", " ")
    groups = set(re.findall(r"[A-Za-z]\d*", " ".join(found.groups.values()))) if found else set()
    available = _columns(rows, general) | {
        name: [(heading(name), _written(name, rows))]
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
    secondary = tuple(name for name in written if name in SECONDARY or name.endswith(" before"))
    return Table(
        task,
        tuple(written),
        cells,
        caption,
        ("method", "groups", "best", "remarks"),
        prose=("remarks",),
        secondary=secondary,
        forest=_forest(metric, rows),
        task=task,
    )


def _forest(metric: str, rows: pd.DataFrame) -> Forest:
    """Means with their intervals, and the majority class as the line that they are held against."""
    marks = [
        (row["mean"], row["low"], row["high"]) if row["configuration"] != MAJORITY else (math.nan,) * 3
        for row in rows.to_dict("records")
    ]
    majority = rows["mean"][rows["configuration"] == MAJORITY]
    return Forest(metric, marks, float(majority.iloc[0]) if len(majority) else math.nan)


def _standings(found: Pairwise | None, groups: int) -> list[str]:
    """Say what marks and letters mean; nothing where no method has the runs for them."""
    if not found or not found.chances:
        return []
    text = f"Best: the probability of being so among the {len(found.chances)} methods with three runs or more of which "
    text += "none collapsed or diverged, "
    sentences = [text + f"{STANDING[BEST]} the {BEST}."]
    if groups:
        sentences.append(f"{STANDING[ALIKE]} {ALIKE} ({HOLM} over {tested(found):,} pairs).")
    if 0 < groups <= MOST_GROUPS:
        by = "" if found.correction == HOLM else f" ({found.correction})"
        sentences.append(f"Methods that share a letter were not distinguished{by}.")
    elif groups:
        sentences.append(f"It takes {groups} groups to say who was not distinguished from whom: see comparisons.csv.")
    return sentences


def _columns(rows: pd.DataFrame, general: str) -> dict[str, list[tuple[str, Callable[[Any], str]]]]:
    """Name of a column -> headings, and how their cells are written; without those that no row has a figure for."""
    adapter = sizes(rows["adapter_file_bytes"])
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
        "adapter": [("adapter", lambda row: adapter(row["adapter_file_bytes"]))],
    }
    if rows["base"].notna().any():
        found["base"] = [("backbone alone", lambda row: number(row["base"]))]
    if rows["forgetting.after"].notna().any():
        found["forgetting"] = [
            (f"{general} before", lambda row: number(row["forgetting.before"], 3)),
            ("after", lambda row: number(row["forgetting.after"], 3)),
        ]
    return found


def _written(name: str, rows: pd.DataFrame) -> Callable[[Any], str]:
    write = sizes(rows[name]) if name.endswith("_bytes") else partial(figure, name)
    return lambda row: write(row[name])


def option_tables(summary: pd.DataFrame, options: pd.DataFrame) -> list[Table]:
    """Make one table per task of what was varied of its methods: one row per rank, a set of targets, or both.

    Args:
        summary: The main table.
        options: Of `scores.options`.
    """
    tables = []
    for task, chosen in options.groupby("task", sort=True):
        varied = [name for name in options.columns[3:] if chosen[name].notna().any()][:MOST_OPTIONS]
        rows = chosen.merge(summary, on=["task", "configuration", "method"])
        rows = rows[rows["n"] > 0].sort_values(["method", *varied], key=_sortable, kind="stable")
        metric = metric_name(rows["metric"].iloc[0])
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
        marks = [(row["mean"], row["low"], row["high"]) for row in rows.to_dict("records")]
        tables.append(
            Table(
                f"{task}: {', '.join(headings)}",
                columns,
                cells,
                caption,
                ("method", *text),
                secondary=("± sd", "95% interval", "share"),
                forest=Forest(metric, marks),
            )
        )
    return tables


def pair_tables(found: Sequence[Pairwise]) -> list[Table]:
    """Make one table per task: each method against the baseline."""
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
    caption = f"{metric_name(found.metric)} of the method less that of {found.baseline}, on {found.rows:,} examples. "
    caption += _tests(found)
    caption += f' "{NO_DIFFERENCE}" says that these runs cannot tell, not that the methods are equal.'
    title = f"{found.task}: against {found.baseline}"
    return Table(title, columns, cells, caption, ("method", "verdict"), secondary=("p",), detail=True)


def _tests(found: Pairwise) -> str:
    """Say what was tested and how it was corrected."""
    count = tested(found)
    pairs = f"{count:,} pair{'' if count == 1 else 's'} {'of the task' if found.every_pair else 'with the baseline'}"
    if not found.fixed:
        pairs = f"{pairs}, since {found.baseline} was chosen by the same scores"
    if found.correction == HOLM:
        text = f"Confirmatory: p corrected by Holm over the {pairs}, so that of a hundred such tables "
        text += "at most 5 have any wrong."
    else:
        text = f"Exploratory: q by Benjamini and Hochberg over the {pairs}: of those below 0.05 some 5 in a hundred "
        text += "are wrong"
        text += "" if found.fixed else f", of those with {found.baseline} alone more"
        text += ", and what is found here is for other runs to confirm."
    text += " All are in comparisons.csv; intervals are not corrected."
    return text + " Runs are paired by seed." * found.blocked


def across_table(across: Across) -> Table:
    """Make the table of methods x tasks: ranks, duels and normalized scores beside the means."""
    columns: tuple[str, ...] = ("method", "average rank", "95% interval", "win rate")
    columns += ("IQM", "IQM interval") if across.normalized else ()
    cells = [
        (
            str(row["configuration"]),
            number(row["rank"], 2),
            interval(row["rank_low"], row["rank_high"], places=2),
            share(row["win_rate"]),
            *((number(row["iqm"], 3), interval(row["iqm_low"], row["iqm_high"], places=3)) * bool(across.normalized)),
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
    if across.normalized:
        caption += (
            "IQM: interquartile mean over runs and tasks of scores on which 0 is the majority class and 1 full "
            f"fine-tuning, its interval over runs; on {', '.join(across.normalized)}. "
        )
    later = ("95% interval", "IQM interval")
    return Table("Over tasks", columns + across.tasks, cells, caption.strip(), ("method",), secondary=later)


def cost_tables(costs: pd.DataFrame) -> list[Table]:
    """Make one table per task of what a training step holds and computes, and how long a forward pass takes."""
    held = ("weights", "gradients", "optimizer", "activations", "peak", "evaluation")
    columns = (
        "method",
        *held,
        "ms a step",
        "MFLOP per token",
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
        in_bytes = {name: sizes(rows[name]) for name in (*MEMORY, "evaluation_peak_bytes")}
        cached = bool(rows["features_bytes"].notna().any())
        kept = sizes(rows["features_bytes"])
        cells = [
            (
                str(row["configuration"]),
                *(write(row[name]) for name, write in in_bytes.items()),
                number(1000 * row["step_seconds"], 0),
                number(row["train_flops_per_token"] / 1e6, 1),
                share(row["flops_ceiling_share"]),
                *(number(row[name], 2) for name in ("base", "attached", "merged")),
                number(row["swap_ms"], 0),
                *([kept(row["features_bytes"]), number(row["features_seconds"], 1)] if cached else []),
            )
            for _, row in rows.iterrows()
        ]
        caption = (
            "Bytes of tensors in the training step with most tokens, and at once in evaluation; the median step; "
            "operations per real token, and the share of this device's matrix-product ceiling, withdrawn above 100%, "
            "where the ceiling was measured too low; median latency of one row on the backbone alone, with the "
            "adapter, and merged; taking an adapter off and putting another on. Means over runs; a dash: not measured."
        )
        if cached:
            caption += (
                " Where there are features, the frozen layers ran once for each text, in the seconds beside the bytes "
                "of the features, and steps and their memory are of what is behind them: not to be held against rows "
                "without."
            )
        later = ("gradients", "optimizer", "evaluation", "of ceiling", "ms base", "ms swap")
        told = (*columns, "features", "s features") if cached else columns
        tables.append(Table(f"{task}: cost", told, cells, caption, secondary=later, detail=True))
    return tables


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
    left = ("task", "method", "status", "reason")
    return Table("Runs that did not finish", columns, cells, "", left, prose=("reason",), detail=True)
