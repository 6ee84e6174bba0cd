"""What the columns of a table hold: how many values, which, and whether they are numbers; counted row by row."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from harness.tasks.files import Row, as_text

# Different values that are told apart; a table of any size is counted in the memory that they take.
MOST_COUNTED = 100_000
SHOWN = 8
LONGEST_SHOWN = 30


def as_number(value: Any) -> float | None:
    """A finite number, also one that is written out as text; null for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass
class Values:
    """The values of a column.

    Attributes:
        counts: Rows of each value, as text; of the first `MOST_COUNTED` values where there are more.
        rows: All rows.
        blank: Those without a value.
        no_number: The first value that is none; null where all are numbers.
    """

    counts: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    blank: int = 0
    no_number: str | None = None
    uncounted: int = 0

    def add(self, value: Any) -> None:
        """Count the value of a row."""
        text = as_text(value)
        self.rows += 1
        if text in self.counts:
            self.counts[text] += 1
        elif len(self.counts) < MOST_COUNTED:
            self.counts[text] = 1
        else:
            self.uncounted += 1
        self.blank += not text.strip()
        if self.no_number is None and as_number(text) is None:
            self.no_number = text

    @property
    def different(self) -> str:
        """How many values there are."""
        return f"more than {MOST_COUNTED:,}" if self.uncounted else str(len(self.counts))

    def ordered(self) -> list[str]:
        """Names of classes: numbers by their size, false before true, words by the alphabet."""
        names = {value.strip() for value in self.counts}
        return sorted(names, key=lambda name: (as_number(name) or 0, name))

    def __str__(self) -> str:
        shown = [_cut(value) for value, _ in self.counts.most_common(SHOWN)]
        if self.uncounted or len(self.counts) > SHOWN:
            return f"{self.different} values, as {shown[0]!r}"
        return f"{len(shown)} value{'s' * (len(shown) != 1)}: {', '.join(shown)}"


def count(rows: Iterable[Row], columns: Iterable[str]) -> dict[str, Values]:
    """The values of some columns of rows that are read once."""
    found = {column: Values() for column in columns}
    for row in rows:
        for column, values in found.items():
            values.add(row[column])
    return found


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}\u2026"
