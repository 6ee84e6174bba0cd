"""Cells of tables: numbers, intervals and marks as text."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from harness.report.pairwise import ALIKE, BEST
from harness.report.scores import MAJORITY

NONE = "–"
STANDING = {BEST: "★", ALIKE: "≈"}
# Runs that make a method too unstable to say.
UNSTABLE = ("collapsed", "diverged")
UNITS = ("B", "kB", "MB", "GB")
# Rows of a table in a file or on the page, and in a terminal.
MOST_ROWS, MOST_PRINTED = 2000, 100


@dataclass(frozen=True)
class Forest:
    """Marks that a page draws in the cells of a column: one value per row, and the ends of its interval.

    Attributes:
        column: Heading.
        marks: Value, low and high of each row; NaN where there is none.
        reference: Where a line stands in every cell, such as the majority class; NaN for none.
    """

    column: str
    marks: Sequence[tuple[float, float, float]]
    reference: float = math.nan


@dataclass(frozen=True)
class Table:
    """Cells ready to be shown; the first column names the row.

    Attributes:
        title: Heading.
        columns: Headings of the columns.
        rows: Cells of each row.
        caption: Sentences below.
        text_columns: Aligned to the left; all others are to the right.
        prose: Columns of sentences, which break into lines.
        secondary: Columns that a page shows when asked, and that a narrow terminal leaves out first.
        detail: Whether it comes after the tables that answer, folded.
        forest: What is drawn in a column.
        task: Whose configurations the rows are, where each can show its runs.
        picture: SVG document that stands above it.
        links: Addresses that the rows' first cells lead to; null for none.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""
    text_columns: tuple[str, ...] = field(default=("method", "remarks"))
    prose: tuple[str, ...] = ()
    secondary: tuple[str, ...] = ()
    detail: bool = False
    forest: Forest | None = None
    task: str = ""
    picture: str = ""
    links: tuple[str | None, ...] = ()


def presentable(table: Table) -> Table:
    """Leave out columns that say nothing: empty ones, and deviations and intervals where every row is one run."""
    kept = [
        place
        for place in range(len(table.columns))
        if place == 0 or not table.rows or not {row[place] for row in table.rows} <= {"", NONE, "n=1"}
    ]
    if len(kept) == len(table.columns):
        return table
    return chosen_columns(table, kept)


def chosen_columns(table: Table, places: Sequence[int]) -> Table:
    """Keep some columns of a table."""
    rows = [tuple(row[place] for place in places) for row in table.rows]
    return replace(table, columns=tuple(table.columns[place] for place in places), rows=rows)


def shortened(table: Table, most: int = MOST_ROWS) -> Table:
    """Keep the first rows of a table that nobody reads to its end, and say so."""
    if len(table.rows) <= most:
        return table
    caption = f"The first {most:,} of {len(table.rows):,} rows; all are in the CSV files. {table.caption}"
    return replace(table, rows=table.rows[:most], caption=caption, links=table.links[:most])


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
    """Mark the highest score observed and those not distinguished from it, with the probability of being the best."""
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
    return sizes([value])(value)


def sizes(values: Iterable[float]) -> Callable[[float], str]:
    """How the bytes of a column are written, all in one unit: what stands below each other is compared at a glance.

    The unit is that of the least of them, or the next in which the most has no more than six digits before the point.
    """
    known = [abs(value) for value in values if not pd.isna(value) and value]
    least, most = min(known, default=0.0), max(known, default=0.0)
    power = 0
    while power < len(UNITS) - 1 and (least >= 999.5 * 1000**power or most >= 999_999.5 * 1000**power):
        power += 1

    def write(value: float) -> str:
        if pd.isna(value):
            return NONE
        amount = value / 1000**power
        # Below 1 as many places as show two figures.
        places = 0 if not power else 1 if abs(amount) >= 0.95 or not amount else 1 - math.floor(math.log10(abs(amount)))
        return f"{amount:,.{places}f} {UNITS[power]}"

    return write


def remarks(row: Any) -> str:
    """Tell what a reader must know about a row before believing its mean."""
    kinds = (("collapsed", "no better than majority"), ("diverged", "diverged"), ("failed", "did not finish"))
    total = row["n"] + row["diverged"] + row["failed"] if row["configuration"] != MAJORITY else 0
    parts = [f"{int(row[kind])} of {int(total)} {text}" for kind, text in kinds if row[kind] and total]
    undertrained = f"undertrained ({row['undertrained']})" if row["undertrained"] else ""
    return ", ".join(filter(None, [*parts, undertrained, row["marked"]]))


def figure(name: str, value: float) -> str:
    """Write a figure that a run has, by its name in the store."""
    if name.endswith("_bytes"):
        return size(value)
    if name == "cost.flops_ceiling_share" and value > 1:
        return NONE
    if not name.startswith("cost."):
        return number(value)
    return NONE if pd.isna(value) else number(value, 0) if float(value).is_integer() else f"{value:,.4g}"


def listed(text: str) -> str:
    """Write a list from a configuration as people do."""
    return ", ".join(re.findall(r'"([^"]*)"', text)) if text.startswith('["') else text


def _numbers(values: pd.Series) -> bool:
    return bool(pd.to_numeric(values.dropna(), errors="coerce").notna().all())


def _sortable(values: pd.Series) -> pd.Series:
    return pd.to_numeric(values) if _numbers(values) else values.fillna("")
