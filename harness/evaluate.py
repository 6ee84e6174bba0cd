"""Scoring a model on a split, and the predictions that reports compare."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.batches import Batch, by_length
from harness.tasks import Collate, Features, Row, Task

if TYPE_CHECKING:
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
        columns: One entry a row, in the order of the rows: `label`, `prediction`, and more of the task's own.
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
            loss += float(output.loss) * batch.weight
            for index, row in zip(batch.indices, output.logits.float().cpu(), strict=True):
                logits[index] = row
    return torch.stack([row for row in logits if row is not None]), loss / len(features)


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
    """Write a Parquet file: split, idx, and the columns of the evaluation (label, prediction, ...), a line a row."""
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
