"""Metering of one training step: which one, and what counts it."""

from typing import TYPE_CHECKING

from harness import measure
from harness.training.batches import Batch, Order

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from harness.methods import Adapter


def largest_step(order: Order, size: int, total: int) -> int:
    """The step of the first epoch that computes most tokens; the very first is left out, as it makes the state.

    Args:
        order: Of the training rows.
        size: Batches of a step.
        total: Steps of the run.
    """
    computed = [len(rows) * max(order.lengths[row] for row in rows) for rows in order.epoch(0)]
    largest = [max(computed[first : first + size]) for first in range(0, len(computed), size)]
    candidates = range(1, min(len(largest), total)) or range(1)
    return max(candidates, key=largest.__getitem__)


def meter_of(adapter: "Adapter", optimizer: "Optimizer", micro_batches: list[Batch]) -> "measure.StepMeter":
    """The meter of a step over these batches."""
    largest = max(micro_batches, key=lambda batch: batch.padded_tokens)
    # Not the batch's rows: a pair of answers is two texts.
    texts, length = largest.inputs["input_ids"].shape
    written = largest.inputs.get("decoder_input_ids")
    costs = measure.StepCosts(
        texts,
        tokens=sum(batch.tokens for batch in micro_batches),
        length=length,
        padded_tokens=sum(batch.padded_tokens for batch in micro_batches),
        target_length=written.shape[1] if written is not None else None,
    )
    return measure.StepMeter(adapter.model, optimizer, costs)
