"""Text of a report: its opening, its verdicts, its notes, for a terminal and as Markdown."""

import html
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.config.versions import DECIDING
from harness.report.cells import MOST_PRINTED, Table, number, shortened
from harness.report.pairwise import Pairwise, few, tested
from harness.report.scores import MAJORITY
from harness.report.stats import CONFIDENCE

TITLE = "Fine-tuning methods compared"
# Tasks whose best is named at the top; of more, the table over tasks tells.
MOST_VERDICTS = 6


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
    text = f"{text} Model{'' if len(models) == 1 else 's'}: {', '.join(models)}."
    return " ".join([text, *versions(newest)])


def versions(runs: pd.DataFrame) -> list[str]:
    """Sentences on runs that were made with different versions of what decides results, or with untested ones."""
    said = []
    for name in DECIDING:
        column = f"version.{name}"
        counts = Counter(found for found in runs[column] if found) if column in runs else Counter()
        if len(counts) > 1:
            listed = ", ".join(f"{found} ({count})" for found, count in sorted(counts.items()))
            said.append(f"Runs of different versions of {name} stand side by side: {listed}.")
    if "untested" in runs:
        said += [f"Untested: {found}." for found in sorted(set(runs["untested"]) - {""})]
    return said


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
        apart = f", distinguished from {'the other' if others == 1 else f'all {others} others'} tested"
        parts.append(f", not distinguished from {few(level)}" if level else apart)
    elif one.chances:
        better = sum(not pd.isna(pair.p) and pair.corrected_p < 1 - CONFIDENCE for pair in one.comparisons)
        parts.append(f"; {better} of {tested(one)} methods tested differ{'s' * (better == 1)} from {one.baseline}")
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
