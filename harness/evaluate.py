"""Scoring a model on a split: logits of every row, metrics, and the predictions that reports compare."""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.batches import Collator, by_length
from harness.tasks import Features, Row, Task

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch import dtype as Dtype

    from harness.measure import ForwardMeter


@dataclass
class Evaluation:
    """One split, scored.

    Attributes:
        scores: Metric name -> value, and `loss`, the mean over rows.
        predictions: One a row, in the order of the rows.
        logits: Rows x labels, float32, on the CPU.
    """

    scores: dict[str, float]
    predictions: list[Any]
    logits: "Tensor"
    seconds: float


def evaluate(
    model: "nn.Module",
    task: Task,
    features: list[Features],
    collate: Collator,
    batch_size: int,
    autocast: "Dtype | None",
    meter: "ForwardMeter | None" = None,
) -> Evaluation:
    """Score a model on encoded rows; leaves it in evaluation mode.

    Args:
        meter: Counts the first batch, which has the longest rows.
    """
    import torch

    start = time.perf_counter()
    model.eval()
    logits: list[Tensor | None] = [None] * len(features)
    loss = 0.0
    order = by_length([len(row["input_ids"]) for row in features], batch_size)
    with torch.inference_mode(), torch.autocast(collate.device.type, autocast, enabled=autocast is not None):
        for number, batch in enumerate(collate.batches(features, order)):
            with meter.counting(batch.tokens) if meter and number == 0 else nullcontext():
                output = model(**batch.inputs)
            loss += float(output.loss) * len(batch.indices)
            for index, row in zip(batch.indices, output.logits.float().cpu(), strict=True):
                logits[index] = row
    stacked = torch.stack([row for row in logits if row is not None])
    predictions = task.predict(stacked)
    scores = task.score(predictions, [row["label"] for row in features])
    return Evaluation({**scores, "loss": loss / len(features)}, predictions, stacked, time.perf_counter() - start)


def write_predictions(path: Path, evaluations: dict[str, Evaluation], rows: dict[str, list[Row]], label: str) -> None:
    """Write a Parquet file: split, idx, label, prediction, scores (logits), a line a row."""
    import pandas as pd

    frames = [
        pd.DataFrame(
            {
                "split": split,
                "idx": [row.get("idx", number) for number, row in enumerate(rows[split])],
                "label": [row[label] for row in rows[split]],
                "prediction": evaluation.predictions,
                "scores": evaluation.logits.tolist(),
            }
        )
        for split, evaluation in evaluations.items()
    ]
    pd.concat(frames, ignore_index=True).to_parquet(path, index=False)
