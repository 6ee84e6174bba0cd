"""One set of rows parted into splits: by shares, stratified and seeded, rows that belong together kept together."""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

from harness.config.errors import ConfigError

Row = dict[str, Any]


def row_hash(row: Row, columns: Iterable[str]) -> str:
    """Sixteen hexadecimal digits of a row's content, whatever its place in the file."""
    content = json.dumps([row[column] for column in columns], ensure_ascii=False, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def units(keys: list[list[Hashable]]) -> list[list[int]]:
    """Row numbers that belong together, as they share one of their keys, directly or through others."""
    parent = list(range(len(keys)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[Hashable, int] = {}
    for row, of_row in enumerate(keys):
        for key in of_row:
            if key in first:
                parent[root(row)] = root(first[key])
            else:
                first[key] = row
    together: dict[int, list[int]] = defaultdict(list)
    for row in range(len(keys)):
        together[root(row)].append(row)
    return list(together.values())


def part(strata: list[Any], together: list[list[int]], share: float, most: int, seed: int) -> set[int]:
    """Numbers of the rows that are set aside: about a share of all, and of each stratum its own share.

    A stratum of one unit stays whole with the rest. Units that are larger than what is still wanted are passed over.

    Args:
        together: Row numbers of each unit, which is set aside whole or not at all.
    """
    wanted = min(most, round(share * len(strata)))
    groups: dict[Any, list[list[int]]] = defaultdict(list)
    for unit in together:
        groups[Counter(strata[row] for row in unit).most_common(1)[0][0]].append(unit)
    order = random.Random(seed)
    positioned: list[tuple[float, int, list[int]]] = []
    for stratum in sorted(groups, key=str):
        members = groups[stratum]
        order.shuffle(members)
        positioned += [((place + 0.5) / len(members), unit[0], unit) for place, unit in enumerate(members)]
    chosen: set[int] = set()
    for place, _, unit in sorted(positioned):
        if place >= max(0.5, share * 2):
            break
        if len(chosen) + len(unit) <= wanted:
            chosen.update(unit)
    if wanted and not chosen:
        # All units are larger than the share, which is a row at least: the smallest, as long as most rows stay.
        smallest = min(together, key=len)
        chosen.update(smallest if 2 * len(smallest) <= len(strata) else ())
    return chosen


def carve(
    rows: list[Row], strata: list[Any], keys: list[list[Hashable]], share: float, most: int, seed: int, what: str
) -> tuple[list[Row], list[Row]]:
    """Rows that stay, and rows that are set aside.

    Args:
        keys: Of each row what it shares with those that it belongs to.
        what: The split that is set aside, for the message.

    Raises:
        ConfigError: Nothing could be set aside, or nothing would be left.
    """
    together = units(keys)
    chosen = part(strata, together, share, most, seed)
    if not chosen or len(chosen) == len(rows):
        largest = max(map(len, together), default=0)
        raise ConfigError(
            f"task.{what}_share={share}: {len(rows)} rows in {len(together)} part(s) that belong together, the largest "
            f"of {largest}, can't be split; more rows, other groups, or a file of its own for {what} is needed"
        )
    kept = [row for number, row in enumerate(rows) if number not in chosen]
    return kept, [row for number, row in enumerate(rows) if number in chosen]
