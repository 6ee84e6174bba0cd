"""Training: batches, the trainer, processes, evaluation and metrics; may import `measure` and what lies below it."""

from harness.training.batches import IGNORED, Batch, Collate, Features, Row, collator_for
from harness.training.evaluation import Evaluation, Subject
from harness.training.metrics import higher_is_better

__all__ = [
    "IGNORED",
    "Batch",
    "Collate",
    "Evaluation",
    "Features",
    "Row",
    "Subject",
    "collator_for",
    "higher_is_better",
]
