"""Packing: several short rows as one, which do not see each other."""

from harness.training.batches import IGNORED, Features


def pack(features: list[Features], max_length: int) -> list[Features]:
    """Rows filled up with others, best fit first, longest first; positions that start anew keep them apart."""
    bins: list[list[Features]] = []
    free: list[int] = []
    for row in sorted(features, key=lambda row: row["length"], reverse=True):
        fitting = [index for index, room in enumerate(free) if room >= row["length"]]
        if fitting:
            best = min(fitting, key=free.__getitem__)
            bins[best].append(row)
            free[best] -= row["length"]
        else:
            bins.append([row])
            free.append(max_length - row["length"])
    return [_packed(rows) for rows in bins]


def _packed(rows: list[Features]) -> Features:
    """Several rows as one. Without an attention mask transformers reads from the positions where a row begins."""
    return {
        "input_ids": [token for row in rows for token in row["input_ids"]],
        "labels": [label for row in rows for label in (IGNORED, *row["labels"][1:])],
        "position_ids": [place for row in rows for place in range(row["length"])],
        "length": sum(row["length"] for row in rows),
        "weight": sum(row["weight"] for row in rows),
    }
