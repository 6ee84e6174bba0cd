"""What the values of a column are: numbers, classes by their names, and how many there are, counted row by row."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from harness.tasks.files import Row, as_text

# Different values that are told apart; a table of any size is counted in the memory that they take.
MOST_COUNTED = 100_000
SHOWN = 8
LONGEST_SHOWN = 30
# What holds several values, or none that can be read: neither a class nor a number.
STRUCTURES = {list: "a list", tuple: "a list", dict: "an object", bytes: "bytes"}
ANSWERS = "an answer is a text, a number, a truth value or a date"
# Names of classes that say false and true, in the order in which they are looked for.
TRUTHS = (("false", "true"), ("no", "yes"), ("f", "t"), ("n", "y"), ("0", "1"))
# Those of them that say so by themselves too, where the other one is missing.
WORDS_OF_TRUTH = TRUTHS[:2]


def as_number(value: Any) -> float | None:
    """A finite number, also one that is written out as text; null for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def exact(value: Any) -> Decimal | None:
    """The same with all of its digits: floats of large integers that differ can be equal."""
    if (number := as_number(value)) is None:
        return None
    try:
        return Decimal(str(value).strip())
    except InvalidOperation:  # Its exponent is beyond a Decimal's.
        return Decimal(number)


def structure(value: Any) -> str | None:
    """What a value is that can be no class and no number; null for any other."""
    return next((what for kind, what in STRUCTURES.items() if isinstance(value, kind)), None)


class Classes:
    """Names of classes, and which of them a value means.

    Its name, whatever its type; else the same number; a truth value by words for it; else its place in the list.

    Attributes:
        by_place: Whether a number that is no name may be a place: not where a name that is a number stands at another.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        placed = list(reversed([(name.strip(), place) for place, name in enumerate(names)]))
        numbers = [(number, place) for name, place in placed if (number := exact(name)) is not None]
        self._named, self._numbers = dict(placed), dict(numbers)
        self.by_place = all(number == place for number, place in numbers)
        self._truths = self._places_of_truths()

    def place(self, value: Any) -> int | None:
        """The place of the class that a value means; null where it means none."""
        if structure(value) is not None:
            return None
        named = self.named(as_text(value).strip())
        if named is not None:
            return named
        if isinstance(value, bool):
            return self._truths[value]
        number = exact(value)
        return None if number is None else self._of_number(number)

    def named(self, text: str) -> int | None:
        """The place of a name."""
        return self._named.get(text)

    def _of_number(self, number: Decimal) -> int | None:
        if number in self._numbers:
            return self._numbers[number]
        return int(number) if self.by_place and 0 <= number < len(self.names) and not number % 1 else None

    def _places_of_truths(self) -> tuple[int | None, int | None]:
        """The places of false and of true."""
        places = {name.lower(): place for name, place in self._named.items()}
        for false, true in TRUTHS:
            if false in places and true in places:
                return places[false], places[true]
        for false, true in WORDS_OF_TRUTH:
            if false in places or true in places:
                return places.get(false), places.get(true)
        return (0, 1) if len(self.names) == 2 and self.by_place else (None, None)

    def refusal(self, value: Any) -> str:
        """What is wrong with a value that means no class, to stand behind it in a sentence."""
        if what := structure(value):
            return f" is {what}; {ANSWERS}"
        if isinstance(value, bool):
            return f" is none of task.labels={self.names}; name the classes false and true"
        number = as_number(value)
        hidden = "; the label is hidden, as in GLUE's test files" if number == -1 else ""
        if value is None or (number is not None and self.by_place):
            return f"; a whole number from 0 to {len(self.names) - 1} is allowed{hidden}"
        return f" is none of task.labels={self.names}; name the classes as the data do{hidden}"


@dataclass
class Values:
    """The values of a column.

    Attributes:
        counts: Rows of each value, as text; of the first `MOST_COUNTED` values where there are more.
        rows: All rows.
        blank: Those without a value.
        no_number: The first value that is none; null where all are numbers.
        structure: What the first value is that can be no answer, such as a list; null where each can be.
    """

    counts: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    blank: int = 0
    no_number: str | None = None
    structure: str | None = None
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
        if self.structure is None:
            self.structure = structure(value)

    def refusal(self) -> str | None:
        """Why the column can be no answer; null where it may be one."""
        if self.blank:
            return f"{self.blank} row(s) have no value there; fill them or leave them out"
        return self.structure and f"{self.structure} stands there; {ANSWERS}"

    @property
    def different(self) -> str:
        """How many values there are."""
        return f"more than {MOST_COUNTED:,}" if self.uncounted else str(len(self.counts))

    def ordered(self) -> list[str]:
        """Names of classes: numbers by their size, false before true, words by the alphabet."""
        names = {value.strip() for value in self.counts}
        return sorted(names, key=lambda name: (exact(name) or 0, name))

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
