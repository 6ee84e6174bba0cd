"""Cache of a sweep's worker between its runs: rows, encoded rows, tokenizers. No run changes them.

Each is kept under all that decides it, the hashes of its files among it, so that a run comes to the same bits as in a
process of its own. How much is kept has a bound; what was used longest ago goes first.

Backbones are not: training changes them, so each run would need a copy. The operating system keeps their files, and
maps MiniLM's into memory in 0.03 s; a copy takes 0.07 s, as much memory again, and lies at other addresses, which may
change the last bits of a sum.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Shelf:
    """Values of one sort.

    Attributes:
        limit: How much of it is kept, in the unit of `size`.
        size: How much a value is.
    """

    limit: int
    size: Callable[[Any], int]
    values: "OrderedDict[str, Any]" = field(default_factory=OrderedDict)

    def put(self, key: str, value: Any) -> None:
        size = self.size(value)
        if size > self.limit:
            return
        while self.values and size + sum(map(self.size, self.values.values())) > self.limit:
            self.values.popitem(last=False)
        self.values[key] = value


def _shelves() -> dict[str, Shelf]:
    return {
        "rows": Shelf(200_000, lambda data: sum(map(len, data.splits.values()))),
        # In tokens, each of which takes a hundred bytes in lists of Python: 300 MB.
        "features": Shelf(3_000_000, lambda splits: sum(row["length"] for rows in splits.values() for row in rows)),
        "tokenizer": Shelf(4, lambda tokenizer: 1),
    }


# Null outside of workers: a single run has no next one.
_cache: dict[str, Shelf] | None = None
_used: list[str] = []


def begin() -> None:
    """Keep things from now on, in this process."""
    global _cache
    _cache = _shelves()


def new_run() -> None:
    """Begin to count anew what comes from earlier runs."""
    _used.clear()


def used() -> list[str]:
    """The sorts that this run had from an earlier one."""
    return sorted(_used)


def once(sort: str, decisive: Any, make: Callable[[], T]) -> T:
    """The value of `make`, or the one it gave in an earlier run for the same key.

    Args:
        sort: rows, features or tokenizer.
        decisive: Everything that the value depends on; its repr is compared.
    """
    if _cache is None:
        return make()
    shelf, key = _cache[sort], repr(decisive)
    if key not in shelf.values:
        value = make()
        shelf.put(key, value)
        return value
    shelf.values.move_to_end(key)
    _used.append(sort)
    found: T = shelf.values[key]
    return found
