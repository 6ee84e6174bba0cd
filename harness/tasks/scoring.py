"""Scores of a model on a split, and the predictions that reports compare."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness.tasks import Task
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


def write_predictions(path: Path, evaluations: dict[str, Evaluation], rows: dict[str, list[Row]]) -> None:
    """Write a Parquet file: split, idx, and the evaluation's columns (label, prediction, ...), one line per row."""
    import pandas as pd

    frames = []
    for split, evaluation in evaluations.items():
        columns = dict(evaluation.columns)
        # What is scored in other pieces than rows numbers them itself.
        idx = columns.pop("idx", None) or [row.get("idx", number) for number, row in enumerate(rows[split])]
        frames.append(pd.DataFrame({"split": split, "idx": idx, **columns}))
    whole = pd.concat(frames, ignore_index=True)
    if not pd.api.types.is_integer_dtype(whole["idx"]):
        # Of several types, as numbers in one file and names in another, there is no column of Parquet.
        whole["idx"] = whole["idx"].map(str)
    whole.to_parquet(path, index=False)
