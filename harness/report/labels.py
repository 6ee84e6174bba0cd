"""Names of configurations: a method, and what tells it from the others of its kind."""

import json
import re
from typing import Any

import numpy as np
import pandas as pd

from harness.config.identity import LATER, NOT_IDENTITY
from harness.sweep.search import RATE

# Parameters that tell configurations apart, most telling first; the others follow in alphabetical order.
TELLING = (
    "method.variant",
    "model.name",
    "model.pretrained",
    "model.quantization",
    "method.rank",
    "method.alpha",
    "train.learning_rate",
)
# Repetitions of a point differ in these, and a place is no property of a result.
NOT_TELLING = {"seed", "data_seed", "method.name", "task.name", "model.path", "model.revision"} | {
    f"{section}.{key}" for section, keys in NOT_IDENTITY.items() for key in keys if key != "name"
}
CACHED = "cache_features=true"
# A list whose words hold no comma, so that no two lists look alike.
WORDS = re.compile(r'\["[\w.]+"(, ?"[\w.]+")*\]')
NOT_TELLING_SECTIONS = ("sweep.", "evaluate.", "plan.")


def label(frame: pd.DataFrame, without: tuple[str, ...] = ()) -> pd.Series:
    """Name each run's configuration: its method, and what differs between the runs of that method on that task.

    What tuning chose is named only where nothing that was asked about tells two configurations apart. One that trained
    on cached features says so, since its costs are not those of the others.
    """
    found = sorted(str(column).removeprefix("param.") for column in frame if str(column).startswith("param."))
    before = {".".join(key): value for key, value in LATER.items()}
    candidates = [key for key in TELLING if key in found] + [key for key in found if key not in TELLING]
    tuned, final = searched(frame), frame.get("stage", pd.Series("", frame.index)).eq("final").to_numpy()
    values = {
        key: frame[f"param.{key}"].fillna(before.get(key, "")).to_numpy()
        for key in candidates
        if key not in NOT_TELLING and key not in without and not key.startswith(NOT_TELLING_SECTIONS)
    }
    codes = {key: pd.factorize(column)[0] for key, column in values.items()}
    # Most are the same in all runs.
    codes = {key: numbers for key, numbers in codes.items() if len(numbers) and numbers.max()}
    labels = np.full(len(frame), "", dtype=object)
    for (_, method), rows in frame.groupby(["task", "method"], sort=True).indices.items():
        asked_first = sorted(codes, key=lambda key: key in tuned) if final[rows].all() else list(codes)
        keys = _telling({key: codes[key][rows] for key in asked_first})
        short = [key.rpartition(".")[2] for key in keys]
        names = [full if short.count(part) > 1 else part for full, part in zip(keys, short, strict=True)]
        names = ["model" if key == "model.name" else name for key, name in zip(keys, names, strict=True)]
        parts = [
            [f"{name}={_typed(value) or 'none'}" for value in values[key][rows]]
            for name, key in zip(names, keys, strict=True)
        ]
        labels[rows] = [" ".join([str(method), *row]) for row in zip(*parts, strict=True)] if parts else str(method)
    if "cached_features" in frame:
        for place in np.flatnonzero(frame["cached_features"].fillna("").to_numpy() != ""):
            labels[place] += f" {CACHED}" * (CACHED not in labels[place])
    return pd.Series(labels, index=frame.index, dtype=object)


def _typed(value: str) -> str:
    """A list of words as people type it; anything else as the store keeps it."""
    words = read_list(value) if WORDS.fullmatch(value) else []
    return ",".join(words) if words else value


def _telling(codes: dict[str, np.ndarray]) -> list[str]:
    """Find the fewest parameters that tell a group's configurations apart.

    Args:
        codes: Parameter, most telling first -> a number for each of its values, one per run.
    """
    chosen: list[str] = []
    parts, count = np.zeros(1, dtype=np.int64), 1
    for key, numbers in codes.items():
        if (numbers == numbers[0]).all():
            continue
        finer, kinds = pd.factorize(parts * (numbers.max() + 1) + numbers)
        if len(kinds) > count:
            chosen, parts, count = [*chosen, key], finer.astype(np.int64), len(kinds)
    return chosen


def searched(frame: pd.DataFrame) -> tuple[str, ...]:
    """The keys that the sweeper searched; the learning rate always."""
    lists = frame["param.sweep.searched"].dropna().unique() if "param.sweep.searched" in frame else []
    keys = {str(key) for text in lists for key in read_list(text)} - {RATE}
    return (RATE, *sorted(key for key in keys if f"param.{key}" in frame))


def read_list(text: str) -> list[Any]:
    """Read a list that a store keeps as text; what is none is empty."""
    try:
        values = json.loads(text)
    except ValueError:
        return []
    return values if isinstance(values, list) else []
