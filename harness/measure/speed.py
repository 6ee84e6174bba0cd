"""How fast, on this device and now: inference latency, the ceiling of matrix products, peak resident size, energy."""

import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import device as Device
    from torch import nn

    from harness.methods import Adapter
    from harness.training.batches import Batch

log = logging.getLogger(__name__)

# Runs that train for less have no curve of the machine's load.
SYSTEM_SECONDS = 10
# Latency may take this share of the training time, but is measured at least so often.
LATENCY_SHARE = 0.01
FEWEST_REPEATS, MOST_REPEATS = 3, 50
CEILING_SIZE = 1024
CEILING_REPEATS = 5
# What this process itself takes of a GPU beside its tensors, the CUDA context and libraries, is below this.
OWN_CUDA_BYTES = 2**30


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


def _synchronize(device: "Device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache
def flops_ceiling(device: "Device", dtype: Any) -> float:
    """FLOP/s of a large square matrix product here, the best of a few: what a training step is held against."""
    import torch

    # From a generator of its own: a measurement must not move the one that seeds the run.
    generator = torch.Generator(device="cpu").manual_seed(0)
    size = CEILING_SIZE * (8 if device.type == "cuda" else 1)
    matrix = torch.rand(size, size, generator=generator).to(device, dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(CEILING_REPEATS + 1):
            _synchronize(device)
            start = time.perf_counter()
            matrix @ matrix
            _synchronize(device)
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def reset_peak_resident_size() -> bool:
    """Start the process's peak resident size anew, which Linux allows; returns whether it did."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_resident_bytes() -> int | None:
    """The most memory that this process had resident since the last reset, libraries and all; null off Linux."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])


class SystemLoad:
    """How busy the machine is while a run trains, now and then; named as MLflow names it, which shows it apart."""

    def __init__(self, device: "Device") -> None:
        import psutil

        self.device = device
        self._sampled = time.monotonic()
        psutil.cpu_percent()  # the first call only marks where to count from

    def sample(self) -> dict[str, float]:
        """Percent and megabytes since the last sample; nothing while that is less than `SYSTEM_SECONDS` ago."""
        import psutil
        import torch

        if time.monotonic() - self._sampled < SYSTEM_SECONDS:
            return {}
        self._sampled = time.monotonic()
        memory = psutil.virtual_memory()
        load = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
        }
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            load["system/gpu_0_memory_usage_megabytes"] = (total - free) / 1e6
            load["system/gpu_0_memory_usage_percentage"] = 100 * (1 - free / total)
        return load


def warn_of_others(device: "Device") -> None:
    """Warn when other processes hold memory on the GPU: its peaks and times are then not of this run alone."""
    import torch

    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    if others > OWN_CUDA_BYTES:
        log.warning("others hold %.1f GB of the GPU: memory and times are not of this run alone", others / 1e9)


@contextmanager
def timed(seconds: dict[str, Any], name: str) -> Iterator[None]:
    """Add the time that the context takes to `seconds[name]`, also when it raises."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = (seconds.get(name) or 0.0) + time.perf_counter() - start
