"""Text of a report: its opening and its notes, and the whole as Markdown."""

import html
import re
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from harness.config.versions import DECIDING
from harness.report.cells import Table, presentable, shortened
from harness.report.finding import BREAK

TITLE = "Fine-tuning methods compared"


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


def markdown(title: str, lead: str, tables: Sequence[Table], notes: Sequence[str], pictures: Sequence[str]) -> str:
    """Write a report as Markdown; pictures are names of files without their endings."""
    parts = [f"# {_escape(title)}", *map(_escape, lead.split(BREAK))]
    shown = [presentable(shortened(table)) for table in tables]
    answers, details = ([table for table in shown if table.detail is detail] for detail in (False, True))
    drawn = [with_twin(name, name.replace("_", " ")) for name in pictures]
    parts += _tables(answers) + drawn[:1] + _tables(details)
    parts += drawn[1:]
    parts += ["\n".join(f"- {_escape(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def with_twin(name: str, text: str) -> str:
    """Show a picture, and its dark twin to readers of a dark page."""
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{name}.dark.png">'
    return f'<picture>{dark}<img alt="{html.escape(text)}" src="{name}.png"></picture>'


def _tables(tables: Sequence[Table]) -> list[str]:
    parts = []
    for table in tables:
        head = "| " + " | ".join(_escape(column) for column in table.columns) + " |"
        rule = "|" + "|".join(":---" if column in table.text_columns else "---:" for column in table.columns) + "|"
        rows = ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in table.rows]
        parts += [f"## {_escape(table.title)}", "\n".join([head, rule, *rows])]
        parts += [_escape(table.caption)] if table.caption else []
    return parts


def _escape(text: str) -> str:
    text = html.escape(text, quote=False).replace("\\", "\\\\")
    return re.sub(r"([|*_`\[\]])", r"\\\1", text)
