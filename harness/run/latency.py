"""Latency of inference, with the adapter on, off and merged."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.measure.speed import _synchronize

if TYPE_CHECKING:
    from torch import device as Device
    from torch import nn

    from harness.methods import Adapter
    from harness.training.batches import Batch


# Latency may take this share of the training time, but is measured at least so often.
LATENCY_SHARE = 0.006
FEWEST_REPEATS, MOST_REPEATS = 3, 50


@dataclass
class Latency:
    """Milliseconds of a forward pass, the median of many.

    Attributes:
        milliseconds: base, attached or merged -> rows of the batch -> median; a variant that can't be is left out.
        missing: A variant that can't be -> why.
        repeats: The fewest measurements behind a median.
    """

    milliseconds: dict[str, dict[str, float]]
    missing: dict[str, str]
    repeats: int


def latency(adapter: "Adapter", batches: "list[Batch]", seconds: float, device: "Device") -> Latency:
    """Time the backbone, the adapter on it, and the two merged; merges last, so the adapter is used up afterwards.

    Backbone and adapter are timed in turns, so that both see the same machine.

    Args:
        batches: One or more batches of different size.
        seconds: About how long to measure in all; each figure is measured at least three times whatever it takes.
    """
    import torch

    share = seconds / (3 * len(batches))
    result = Latency({"base": {}, "attached": {}, "merged": {}}, {}, MOST_REPEATS)
    adapter.model.eval()
    for batch in batches:
        rows = str(len(batch.indices))
        times: dict[str, list[float]] = {"base": [], "attached": []}
        for _ in _repeats(2 * share):
            with adapter.disabled():
                times["base"].append(forward_seconds(adapter.model, batch, device))
            times["attached"].append(forward_seconds(adapter.model, batch, device))
        for name, measured in times.items():
            result.milliseconds[name][rows] = _median_milliseconds(measured)
        result.repeats = min(result.repeats, len(times["base"]) - 1)
    try:
        # Sums of weights are made in their own precision, whatever the passes are computed in.
        with torch.autocast(device.type, enabled=False):
            merged = adapter.merge()
    except ValueError as error:
        del result.milliseconds["merged"]
        result.missing["merged"] = str(error)
        return result
    merged.eval()
    for batch in batches:
        measured = [forward_seconds(merged, batch, device) for _ in _repeats(share)]
        result.milliseconds["merged"][str(len(batch.indices))] = _median_milliseconds(measured)
        result.repeats = min(result.repeats, len(measured) - 1)
    return result


def _repeats(seconds: float) -> Iterator[int]:
    """Count from 0, the warm-up, until the time is up, and at least to `FEWEST_REPEATS`."""
    start = time.perf_counter()
    for number in range(MOST_REPEATS + 1):
        yield number
        if number >= FEWEST_REPEATS and time.perf_counter() - start > seconds:
            return


def _median_milliseconds(measured: list[float]) -> float:
    return 1000 * statistics.median(measured[1:])  # the first one warmed up


def forward_seconds(model: "nn.Module", batch: "Batch", device: "Device") -> float:
    """Time one forward pass, the device waited for."""
    import torch

    inputs = {name: value for name, value in batch.inputs.items() if name != "labels"}
    _synchronize(device)
    start = time.perf_counter()
    with torch.inference_mode():
        model(**inputs)
    _synchronize(device)
    return time.perf_counter() - start
