"""Scoring a model on a split, and the predictions that reports compare."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.training.batches import Batch, Collate, Features, by_length
from harness.training.text_metrics import PER_ROW

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn
    from torch import dtype as Dtype
    from transformers import PreTrainedTokenizerBase

    from harness.measure import ForwardMeter
    from harness.methods import Adapter


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    Attributes:
        adapter: The model with what was trained.
        collate: Makes the batches of the forward passes.
        batch_size: Rows of a batch.
        autocast: Lower precision to compute in; null computes in the weights' own.
    """

    adapter: "Adapter"
    tokenizer: "PreTrainedTokenizerBase"
    collate: Collate
    batch_size: int
    autocast: "Dtype | None"

    @property
    def model(self) -> "nn.Module":
        return self.adapter.model

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Evaluation mode, which stays, no gradients, and the precision of the run."""
        import torch

        self.model.eval()
        device = self.collate.device.type
        with torch.inference_mode(), torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            yield

    def batches(self, features: list[Features]) -> Iterator[Batch]:
        """Every row once, the longest first."""
        for indices in by_length([row["length"] for row in features], self.batch_size):
            yield self.collate(features, indices)


@dataclass
class Evaluation:
    """One split, scored.

    Attributes:
        scores: Metric name -> value, and `loss`.
        columns: One entry per row, in the order of the rows: `label`, `prediction`, and more of the task's own.
        costs: Names of `RunRecord.cost` -> what was measured in passing.
        seconds: What it took.
    """

    scores: dict[str, float]
    columns: dict[str, list[Any]]
    costs: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def logits_of_rows(
    subject: Subject, features: list[Features], meter: "ForwardMeter | None" = None
) -> "tuple[Tensor, float]":
    """Logits of a model with a head, rows x labels, float32, on the CPU, in the rows' order; and the mean loss.

    Rows without a label have no loss: their mean is NaN.

    Args:
        meter: Counts the first batch, which has the longest rows.
    """
    import torch

    logits: list[Tensor | None] = [None] * len(features)
    loss = 0.0
    with subject.computing():
        for number, batch in enumerate(subject.batches(features)):
            with meter.counting(batch.tokens) if meter and number == 0 else nullcontext():
                output = subject.model(**batch.inputs)
            loss += float(output.loss) * batch.weight if "labels" in batch.inputs else math.nan
            for index, row in zip(batch.indices, output.logits.float().cpu(), strict=True):
                logits[index] = row
    return torch.stack([row for row in logits if row is not None]), loss / len(features)


def per_row_scores(columns: Mapping[str, Any], metric: str) -> "ndarray | None":
    """Score each row by itself; null where the metric is of all rows at once.

    A column of the metric's name holds the scores; else accuracy, also of pairs, is 1 where the prediction is the label
    and 0 elsewhere, and a metric of texts holds each prediction against its label.

    Args:
        columns: An evaluation's, or a frame of them.
        metric: The metric's name.
    """
    import numpy as np

    if metric in columns:
        return np.asarray(columns[metric], dtype=float)
    if "prediction" not in columns or "label" not in columns:
        return None
    pairs = list(zip(columns["prediction"], columns["label"], strict=True))
    if metric in ("accuracy", "reward_accuracy"):
        return np.array([prediction == label for prediction, label in pairs], dtype=float)
    if metric in PER_ROW:
        return np.array([PER_ROW[metric](*pair) for pair in pairs], dtype=float)
    return None


def outcomes_of_rows(columns: Mapping[str, list[Any]], metric: str) -> dict[str, list[Any]]:
    """What a metric needs of each row, to be computed again on some of the rows.

    Args:
        columns: An evaluation's.
        metric: The metric's name. Perplexity needs the loss.

    Returns:
        `score`, with `tokens` where the mean is over tokens; or `prediction` and `label`, where the metric is of all
        rows at once; with `idx` where the rows are numbered by the evaluation. Empty where the columns have neither.
    """
    column = "loss" if metric == "perplexity" and metric not in columns else metric
    scores = per_row_scores(columns, column)
    weights = ("tokens",) if column == "loss" else ()
    kept = ("idx", "prediction", "label") if scores is None else ("idx", *weights)
    found = {name: list(columns[name]) for name in kept if name in columns}
    if scores is not None:
        return {"score": scores.tolist(), **found}
    return found if "prediction" in found else {}
