"""Metering of one training step: which one, and what counts it."""

from typing import TYPE_CHECKING

from harness import measure
from harness.config.schema import TrainConfig
from harness.training.batches import Batch, bucketed

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from harness.methods import Adapter


def largest_step(lengths: list[int], settings: TrainConfig, data_seed: int, total: int) -> int:
    """The step of the first epoch that computes most tokens; the very first is left out, as it makes the state.

    Args:
        lengths: Of the training rows.
        total: Steps of the run.
    """
    size = settings.gradient_accumulation_steps
    order = bucketed(lengths, settings.batch_size, data_seed, 0)
    computed = [len(rows) * max(lengths[row] for row in rows) for rows in order]
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
