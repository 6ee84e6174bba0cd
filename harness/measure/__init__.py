"""Measurements: memory, operations, energy and speed; may import `methods` and what lies below it."""

from harness.measure.meters import (
    ForwardMeter,
    LiveBytes,
    StepCosts,
    StepMeter,
    flop_counter,
    gradient_bytes,
    live_bytes,
    optimizer_bytes,
    storage_bytes,
    storages,
    weight_bytes,
)

__all__ = [
    "ForwardMeter",
    "LiveBytes",
    "StepCosts",
    "StepMeter",
    "flop_counter",
    "gradient_bytes",
    "live_bytes",
    "optimizer_bytes",
    "storage_bytes",
    "storages",
    "weight_bytes",
]
