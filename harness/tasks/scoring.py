"""Scores of a model on a split, and the predictions that reports compare."""

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.tasks import Task
from harness.tasks.rows import IDX
from harness.training.batches import Features, Row
from harness.training.evaluation import Evaluation, Subject

if TYPE_CHECKING:
    from harness.measure import ForwardMeter


def evaluate(
    task: Task,
    subject: Subject,
    features: list[Features],
    rows: list[Row],
    meter: "ForwardMeter | None" = None,
) -> Evaluation:
    """Score a model on encoded rows, and time it; leaves the model in evaluation mode.

    Args:
        meter: Counts the first batch, which has the longest rows.
    """
    start = time.perf_counter()
    evaluation = task.evaluate(subject, features, rows, meter)
    evaluation.seconds = time.perf_counter() - start
    return evaluation


def row_ids(rows: list[Row]) -> list[Any]:
    """What each row of a split is known by: its `idx`, else its number.

    An `idx` that came before, as of equal rows of a table or of several files that each count from zero, gets a number
    of its own (`7-2`): a run's answers to such rows could not be paired with another run's.
    """
    seen: Counter[Any] = Counter()
    found = []
    for number, row in enumerate(rows):
        one = row.get(IDX, number)
        seen[one] += 1
        found.append(one if seen[one] == 1 else f"{one}-{seen[one]}")
    return found


def write_predictions(path: Path, evaluations: dict[str, Evaluation], rows: dict[str, list[Row]]) -> None:
    """Write a Parquet file: split, idx, and the evaluation's columns (label, prediction, ...), one line per row."""
    import pandas as pd

    frames = []
    for split, evaluation in evaluations.items():
        columns = dict(evaluation.columns)
        # What is scored in other pieces than rows numbers them itself.
        idx = columns.pop("idx", None) or row_ids(rows[split])
        frames.append(pd.DataFrame({"split": split, "idx": idx, **columns}))
    whole = pd.concat(frames, ignore_index=True)
    if not pd.api.types.is_integer_dtype(whole["idx"]):
        # Of several types, as numbers in one file and names in another, there is no column of Parquet.
        whole["idx"] = whole["idx"].map(str)
    whole.to_parquet(path, index=False)
