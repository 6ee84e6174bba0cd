"""Tables in a terminal: the first column stays, and what its width has no room for is left out and named."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.report.cells import MOST_PRINTED, Table, chosen_columns, presentable, shortened

if TYPE_CHECKING:
    from rich.console import Console

# Where output goes into a file or a pipe there is no width to keep to.
UNBOUND = 200
# Blanks and the line beside each cell, and the line at the end.
BESIDE, END = 3, 1
# The least that a column of sentences is readable in, and the most that the first column takes.
NARROWEST, WIDEST_FIRST = 16, 40


def show(tables: Sequence[Table], width: int | None = None) -> None:
    """Print tables; markup in a cell is shown as text.

    Args:
        tables: In their order.
        width: Null for that of the terminal.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if width is not None or not console.is_terminal:
        console = Console(highlight=False, width=width or UNBOUND)
    for table in tables:
        _show(console, presentable(shortened(table, MOST_PRINTED)))


def _show(console: "Console", table: Table) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    kept, left = fitting(table, console.width)
    caption = table.caption
    if left:
        caption = f"Left out at this width: {', '.join(left)}; the files have them. {caption}".strip()
    shown = RichTable(title=Text(table.title), caption=Text(caption), title_justify="left", caption_justify="left")
    for place, column in enumerate(kept.columns):
        text = column in table.text_columns
        shown.add_column(
            Text(column),
            justify="left" if text else "right",
            no_wrap=not text,
            overflow="fold",
            min_width=_needed(kept, place),
        )
    for row in kept.rows:
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)
    console.print()


def fitting(table: Table, width: int) -> tuple[Table, list[str]]:
    """Leave out columns until the others fit.

    The first column and the one after it stay; secondary ones go first, from the right, then the others from the right.

    Returns:
        The table, and the headings of what was left out.
    """
    places = list(range(len(table.columns)))
    needed = [_needed(table, place) + BESIDE for place in places]
    order = [place for place in reversed(places) if place > 1]
    order.sort(key=lambda place: (table.columns[place] not in table.secondary, table.columns[place] in KEPT_LONG))
    for place in order:
        if sum(needed[kept] for kept in places) + END <= width:
            break
        places.remove(place)
    left = [column for place, column in enumerate(table.columns) if place not in places]
    return chosen_columns(table, places), left


# What has to be known before a mean is believed goes last.
KEPT_LONG = ("remarks", "reason", "verdict")


def _needed(table: Table, place: int) -> int:
    column = table.columns[place]
    longest = max((len(cell) for cell in [column, *(row[place] for row in table.rows)]), default=0)
    if place == 0:
        return min(longest, WIDEST_FIRST)
    words = max((len(word) for row in table.rows for word in row[place].split()), default=0)
    return (
        min(longest, max(NARROWEST, len(column), min(words, 2 * NARROWEST)))
        if column in table.text_columns
        else longest
    )
