"""Speed and load of this device as measured now: latency, ceiling of matrix products, peak resident size, energy."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from torch import device as Device


log = logging.getLogger(__name__)

# Runs that train for less have no curve of the machine's load.
SYSTEM_SECONDS = 10
CEILING_SIZE = 1024
# At each of a run's moments; of the first one the first product warms up.
CEILING_REPEATS = 2
# A product that takes as long, as one in a precision that the processor emulates, is a mean of many moments itself.
LONG_SECONDS = 1.0
# The best so far, by device, precision and threads.
_ceilings: dict[tuple[Any, Any, int], float] = {}
# What this process itself takes of a GPU beside its tensors, the CUDA context and libraries, is below this.
OWN_CUDA_BYTES = 2**30


def _synchronize(device: "Device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_ceiling(device: "Device", dtype: Any) -> float:
    """FLOP/s of a large square matrix product here: what a training step is held against.

    Clocks vary twofold within seconds where others compute too, and a step is the mean of many moments: so it is the
    best of all calls of this process in this precision and on these threads. A run calls it at several moments; where a
    product is slow, one is enough.
    """
    import torch

    place = device, dtype, torch.get_num_threads()
    size = CEILING_SIZE * (8 if device.type == "cuda" else 1)
    operations = 2 * size**3
    if place in _ceilings and operations / _ceilings[place] > LONG_SECONDS:
        return _ceilings[place]
    # From a generator of its own: a measurement must not move the one that seeds the run.
    generator = torch.Generator(device="cpu").manual_seed(0)
    matrix = torch.rand(size, size, generator=generator).to(device, dtype)
    with torch.inference_mode():
        for _ in range(CEILING_REPEATS):
            _synchronize(device)
            start = time.perf_counter()
            matrix @ matrix
            _synchronize(device)
            seconds = time.perf_counter() - start
            _ceilings[place] = max(_ceilings.get(place, 0.0), operations / seconds)
            if seconds > LONG_SECONDS:
                break
    return _ceilings[place]


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
    """Load of the machine while a run trains, sampled now and then; named as MLflow names it, which shows it apart."""

    def __init__(self, device: "Device") -> None:
        self.device = device
        self._sampled = time.monotonic()
        psutil.cpu_percent()  # the first call only marks where to count from

    def sample(self) -> dict[str, float]:
        """Percent and megabytes since the last sample; nothing while that is less than `SYSTEM_SECONDS` ago."""
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
