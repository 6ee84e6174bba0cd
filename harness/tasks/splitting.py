"""One set of rows parted into splits: by shares, stratified and seeded, rows that belong together kept together.

Rows are numbers here: of each, its stratum and what it shares with others are known, so that a file may be larger than
memory.
"""

import hashlib
import json
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = dict[str, Any]
KEY_BYTES = 8


def row_hash(row: Row, columns: Iterable[str]) -> str:
    """Sixteen hexadecimal digits of a row's content, whatever its place in the file."""
    content = json.dumps([row[column] for column in columns], ensure_ascii=False, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def key(text: str) -> int:
    """A number of eight bytes that equal texts share, and of ten million different ones no two."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest(), "little", signed=True)


def units(keys: "Sequence[NDArray[np.int64]]") -> "NDArray[np.intp]":
    """The unit of each row: rows that share a key, directly or through others, are one. Numbered by their first rows.

    Args:
        keys: One or two sorts of keys, with one per row.
    """
    import numpy as np

    ids = _numbered(keys[0])
    if len(keys) > 1:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        # A row ties its first key to its second, as an edge of a graph does.
        others = _numbered(keys[1]) + ids.max() + 1
        count = others.max() + 1
        edges = coo_array((np.ones(len(ids), dtype=np.int8), (ids, others)), shape=(count, count))
        ids = _numbered(connected_components(edges, directed=False)[1][ids])
    return ids


def _numbered(values: "NDArray[Any]") -> "NDArray[np.intp]":
    """Equal values as equal numbers from 0, in the order in which they first occur."""
    import numpy as np

    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.intp)
    place[np.argsort(first)] = np.arange(len(first))
    return place[inverse]


def part(
    strata: "NDArray[np.int64]", unit: "NDArray[np.intp]", share: float, most: int, seed: int
) -> "NDArray[np.bool_]":
    """Which rows are set aside: about a share of all, and of each stratum its own share.

    A stratum of one unit stays whole with the rest. Units that are larger than what is still wanted are passed over.

    Args:
        unit: The unit of each row, which is set aside whole or not at all.
    """
    import numpy as np

    wanted = min(most, round(share * len(strata)))
    sizes = np.bincount(unit)
    # Rows of one unit side by side, the first of the file first.
    rows = np.argsort(unit, kind="stable")
    begins = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    of_unit = strata[rows[begins]]
    for one in np.flatnonzero(sizes > 1):
        inside = strata[rows[begins[one] : begins[one] + sizes[one]]]
        of_unit[one] = Counter(inside.tolist()).most_common(1)[0][0]
    members, places = _in_turn(of_unit, seed)
    turn = np.lexsort((rows[begins][members], places))
    in_turn = members[turn[places[turn] < max(0.5, share * 2)]]
    total = np.cumsum(sizes[in_turn])
    fitting = int(np.searchsorted(total, wanted, side="right"))
    aside = np.zeros(len(sizes), dtype=bool)
    aside[in_turn[:fitting]] = True
    found = int(total[fitting - 1]) if fitting else 0
    for one in in_turn[fitting:]:
        if found == wanted:
            break
        if found + sizes[one] <= wanted:
            aside[one] = True
            found += int(sizes[one])
    if wanted and not found:
        # All units are larger than the share, which is a row at least: the smallest, as long as most rows stay.
        smallest = sizes.argmin()
        aside[smallest] = 2 * sizes[smallest] <= len(strata)
    return aside[unit]


def _in_turn(of_unit: "NDArray[np.int64]", seed: int) -> "tuple[NDArray[np.int64], NDArray[np.float64]]":
    """Units, those of each stratum shuffled, and the relative place of each within its stratum.

    Taking units by that place gives every stratum its share.
    """
    import numpy as np

    by_stratum = np.argsort(of_unit, kind="stable")
    strata, counts = np.unique(of_unit, return_counts=True)
    members = dict(zip(strata.tolist(), np.split(by_stratum, np.cumsum(counts)[:-1]), strict=True))
    order = random.Random(seed)
    units_found, places = [], []
    for stratum in sorted(members, key=str):
        shuffled = array("q", members[stratum].tobytes())
        order.shuffle(shuffled)
        units_found.append(np.frombuffer(shuffled, dtype=np.int64))
        places.append((np.arange(len(shuffled)) + 0.5) / len(shuffled))
    return np.concatenate(units_found), np.concatenate(places)


def carve(
    strata: "NDArray[np.int64]", keys: "Sequence[NDArray[np.int64]]", share: float, most: int, seed: int, what: str
) -> "NDArray[np.bool_]":
    """Which rows are set aside, where the rest stays.

    Args:
        keys: Of each row what it shares with those that it belongs to; one or two sorts.
        what: The split that is set aside, for the message.

    Raises:
        ConfigError: Nothing could be set aside, or nothing would be left.
    """
    import numpy as np

    unit = units(keys)
    chosen = part(strata, unit, share, most, seed)
    if not chosen.any() or chosen.all():
        sizes = np.bincount(unit)
        raise ConfigError(
            f"task.{what}_share={share}: {len(strata)} rows in {len(sizes)} part(s) that belong together, the largest "
            f"of {sizes.max(initial=0)}, can't be split; more rows, other groups, or a file of its own for {what} is "
            "needed"
        )
    return chosen
