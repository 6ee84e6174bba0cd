"""Frames as people read them: one set of cells, shown in the terminal and as Markdown; `page` makes HTML of it."""

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd

from harness.config.errors import ConfigError, near_misses
from harness.reporting.across import Across
from harness.reporting.comparison import NO_DIFFERENCE, NO_SCORE
from harness.reporting.pairwise import BEST, LEVEL, Pairwise, few
from harness.reporting.scores import MAJORITY, MEASURED, SPLITS, means
from harness.reporting.stats import CONFIDENCE
from harness.tracking.record import COST_FIELDS, MEMORY

TITLE = "Fine-tuning methods compared"
NONE = "–"
STANDING = {BEST: "★", LEVEL: "≈"}
# Rows of a table in a file or on the page, and in a terminal.
MOST_ROWS, MOST_PRINTED = 2000, 100
# Of the score tables, beside method, score and remarks.
COLUMNS = tuple("sd n interval groups best base forgetting trainable share seconds tokens_per_second adapter".split())
# Tasks whose best is named at the top; of more, the table over tasks tells.
MOST_VERDICTS = 6
# Options of a method in a table of them.
MOST_OPTIONS = 4
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
    known = next(iter(rows["forgetting_metric"][rows["forgetting_metric"].fillna("") != ""]), "").replace("_", " ")
    groups = set(re.findall(r"[A-Za-z]\d*", " ".join(found.groups.values()))) if found else set()
    available = _columns(rows, known) | {
        name: [(name, partial(_own_figure, name))]
        for name in set(columns) - set(COLUMNS)
        if name in rows and rows[name].notna().any()
    }
    if not groups:
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
    caption += f"the mean over {over}; costs are means."
    if known:
        caption += f" Before and after: {known} on general text, adapter off and on."
    if found and groups:
        caption += (
            f" {STANDING[BEST]} the best, {STANDING[LEVEL]} {LEVEL} (paired over seeds and examples, Holm-corrected "
        )
        caption += f"over {len(found.comparisons):,} pairs)."
        if len(groups) <= MOST_GROUPS:
            caption += " Methods that share a letter were not told apart."
        else:
            caption += f" It takes {len(groups)} groups to say who was not told apart from whom: see comparisons.csv."
    caption = " ".join([caption, *(found.notes if found else ())])
    return Table(task, tuple(written), cells, caption, ("method", "groups", "best", "remarks"))


def _columns(rows: pd.DataFrame, known: str) -> dict[str, list[tuple[str, Callable[[Any], str]]]]:
    """Name of a column -> headings, and how their cells are written; without those that no row has a figure for."""
    found: dict[str, list[tuple[str, Callable[[Any], str]]]] = {
        "sd": [("± sd", lambda row: deviation(row["std"], row["n"]))],
        "n": [("n", lambda row: str(row["n"]))],
        "interval": [("95% interval", lambda row: interval(row["low"], row["high"], row["n"]))],
        "groups": [("groups", lambda row: str(row["groups"]))],
        "best": [("best", lambda row: STANDING.get(row["standing"], ""))],
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
            (f"{known} before", lambda row: number(row["forgetting.before"], 3)),
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
                deviation(row["std"], row["n"]),
                str(row["n"]),
                interval(row["low"], row["high"], row["n"]),
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
    columns = ("method", "difference", "95% interval", "p", "p, Holm", "verdict")
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
            verdict = "better" if pair.verdict == f"{name} better" else "worse"
        difference = NONE if verdict == NO_SCORE else f"{sign * pair.difference + 0.0:+.4f}"
        cells.append(
            (name, difference, interval(low, high), probability(pair.p), probability(pair.corrected_p), verdict)
        )
    caption = (
        f"{found.metric} of the method less that of {found.baseline}, on the same {found.rows:,} examples; p corrected "
        f"by Holm over the {len(found.comparisons):,} pairs of the task, all of which are in comparisons.csv. "
        f'"{NO_DIFFERENCE}" says that these runs cannot tell, not that the methods are equal.'
    )
    return Table(f"{found.task}: against {found.baseline}", columns, cells, caption, ("method", "verdict"))


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
            "operations a real token, and the share of this device's matrix-product ceiling; median latency of one "
            "row on the backbone alone, with the adapter, and merged; taking an adapter off and putting another on. "
            "Means over runs; a dash: nothing was measured."
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
    """Name the best method of each task, and say whether it can be told apart from the others."""
    sentences = []
    for one in found[:MOST_VERDICTS]:
        rows = summary[(summary["task"] == one.task) & (summary["configuration"] != MAJORITY) & (summary["n"] > 0)]
        if len(rows) < 2:
            continue
        best = rows[rows["configuration"] == one.best].iloc[0] if one.best else rows.iloc[0]
        among = " of those compared" * bool(one.best and rows["configuration"].iloc[0] not in one.groups)
        score = f"{best['configuration']} is best{among} with {number(best['mean'])} {one.metric or 'score'}"
        level = [name for name in rows["configuration"] if name in one.level]
        if not one.best:
            rest = "; nothing tells whether by more than chance, as no predictions can be compared"
        elif level:
            rest = f", not told apart from {few(level)}"
        else:
            rest = f", told apart from {'the other' if len(one.groups) == 2 else f'all {len(one.groups) - 1} others'}"
        apart = len(rows) - len(one.groups) if one.best else 0
        rest += f"; {apart} more {'was' if apart == 1 else 'were'} not compared" * bool(apart)
        sentences.append(f"On {one.task} {score}{rest}.")
    return " ".join(sentences)


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
