"""Tables of an HTML page: a pinned first column, scores drawn with their intervals, columns to pick, rows that open.

The tools above a table are made by page.js from what stands in the markup; without scripts every column is shown.
"""

import html
import math
import re

from harness.report.cells import Forest, Table
from harness.report.words import TONES, explained

# Width and height of the marks in a cell, in pixels.
WIDTH, HEIGHT, EDGE = 120, 16, 4
# Letters of a cell that breaks into lines.
LONG = 24


def anchor(title: str) -> str:
    """The address of a section within its page."""
    return re.sub(r"[^\w-]+", "-", title.lower()).strip("-") or "section"


def figure(drawn: str) -> str:
    """A picture: an SVG document, or an element of HTML."""
    return f"<figure>{drawn[max(drawn.find('<svg'), 0) :]}</figure>"


def section(table: Table, place: int) -> str:
    """Write a table with its heading.

    Args:
        table: Presentable.
        place: Its number on the page.
    """
    title, name = _title(table.title), f"table-{anchor(table.title)}"
    caption = f'<p class="quiet">{html.escape(table.caption)}</p>' if table.caption else ""
    meanings = [(column, explained(column)) for column in table.columns if explained(column)]
    listed = "".join(f"<dt>{html.escape(column)}</dt><dd>{html.escape(text)}</dd>" for column, text in meanings)
    parts = [
        figure(table.picture) if table.picture else "",
        f'<div class="wide">{_table(table, place)}</div>',
        caption,
        f'<details class="quiet meanings"><summary>What the columns mean</summary><dl>{listed}</dl></details>'
        if listed and not table.detail
        else "",
    ]
    body = "\n".join(filter(None, parts))
    if table.detail:
        return f'<details class="section" id="{name}"><summary><h2>{title}</h2></summary>\n{body}\n</details>'
    return f'<section id="{name}"><h2>{title}</h2>\n{body}\n</section>'


def _title(text: str) -> str:
    """A heading, a verdict at its beginning in its color."""
    word, colon, rest = text.partition(": ")
    return f"{_cell(word)}{colon}{html.escape(rest)}"


def _table(table: Table, place: int) -> str:
    kinds = [_kind(table, column) for column in table.columns]
    head = "".join(map(_head, table.columns, kinds, [column in table.secondary for column in table.columns]))
    forest = table.forest if table.forest and table.forest.column in table.columns else None
    drawn = _drawn(forest, len(table.rows)) if forest else []
    at = table.columns.index(forest.column) if forest else 0
    rows = []
    for number, (row, link) in enumerate(zip(table.rows, table.links or [None] * len(table.rows), strict=True)):
        cells = [_cell(cell) for cell in row]
        if drawn:
            cells[at] += drawn[number]
        if link:
            cells[0] = f'<a href="{html.escape(link)}">{cells[0]}</a>'
        written = "".join(
            f'<td class="{kind}">{cell}</td>' if kind else f"<td>{cell}</td>"
            for kind, cell in zip(kinds, cells, strict=True)
        )
        rows.append(f"<tr>{written}</tr>")
    body = "\n".join(rows)
    of_task = f' data-task="{html.escape(table.task)}"' if table.task else ""
    return (
        f'<table id="table{place}" data-title="{html.escape(table.title)}"{of_task}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )


def _kind(table: Table, column: str) -> str:
    place = table.columns.index(column)
    long = any(len(row[place]) > LONG for row in table.rows)
    kinds = ["text"] * (column in table.text_columns) + ["prose"] * (column in table.prose) + ["long"] * long
    kinds += ["drawn"] * (table.forest is not None and table.forest.column == column)
    return " ".join(kinds)


def _head(column: str, kind: str, secondary: bool) -> str:
    meaning = explained(column)
    told = f' title="{html.escape(meaning)}"' if meaning else ""
    later = " data-secondary" * secondary
    return f'<th class="{kind}" scope="col"{told}{later}><button type="button">{html.escape(column)}</button></th>'


def _cell(text: str) -> str:
    tone = TONES.get(text, "")
    return f'<span class="tone {tone}">{html.escape(text)}</span>' if tone else html.escape(text)


def _drawn(forest: Forest, rows: int) -> list[str]:
    """The mark of each row: a dot with its interval, on a scale that all rows of the column share."""
    ends = [end for mark in [*forest.marks, (forest.reference,)] for end in mark if math.isfinite(end)]
    least, span = (min(ends), max(ends) - min(ends)) if ends else (0.0, 0.0)
    if not span:
        return [""] * rows
    middle = HEIGHT // 2

    def x(number: float) -> str:
        return f"{EDGE + (number - least) * (WIDTH - 2 * EDGE) / span:.1f}"

    line = ""
    if math.isfinite(forest.reference):
        at = x(forest.reference)
        line = f'<line class="reference" x1="{at}" x2="{at}" y1="0" y2="{HEIGHT}"/>'
    found = []
    for value, low, high in forest.marks[:rows]:
        bar = dot = ""
        if math.isfinite(low) and math.isfinite(high):
            bar = f'<line x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}"/>'
        if math.isfinite(value):
            dot = f'<circle cx="{x(value)}" cy="{middle}" r="3"/>'
        found.append(f'<svg class="forest" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{line}{bar}{dot}</svg>')
    return found
