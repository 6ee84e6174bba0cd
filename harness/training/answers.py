"""Likelihood of the answers that a decoder writes to what its encoder read."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from harness.training.batches import IGNORED, Features

if TYPE_CHECKING:
    from harness.measure import ForwardMeter
    from harness.training.evaluation import Subject


def answers_nll(subject: "Subject", features: list[Features], meter: "ForwardMeter | None" = None) -> list[float]:
    """Negative log-likelihood (nats) of each row's labels, in the order of the rows; float32, a row at a time.

    Args:
        features: Rows with `labels` of their own length.
        meter: Counts the first batch, which has the longest rows.
    """
    from torch.nn import functional

    nll = [0.0] * len(features)
    with subject.computing():
        for number, batch in enumerate(subject.batches(features)):
            labels = batch.inputs["labels"]
            inputs = {name: tensor for name, tensor in batch.inputs.items() if name != "labels"}
            with meter.counting(batch.tokens) if meter and number == 0 else nullcontext():
                logits = subject.model(**inputs).logits
            for place, index in enumerate(batch.indices):
                # `cross_entropy` adds zeros for what is ignored.
                losses = functional.cross_entropy(
                    logits[place].float(), labels[place], reduction="none", ignore_index=IGNORED
                )
                nll[index] = float(losses.double().sum())
    return nll
