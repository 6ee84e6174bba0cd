"""Energy that a device takes, by its counters."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import device as Device


RAPL = Path("/sys/class/powercap")


class Energy:
    """Joules that the machine's own counters show between start and end: of the whole device, whoever used it."""

    def __init__(self, device: "Device") -> None:
        self.read, self.reason = _nvml(device) if device.type == "cuda" else _rapl()
        self._start = self._now()

    def _now(self) -> float | None:
        if self.read is None:
            return None
        try:
            return self.read()
        except (OSError, ValueError, RuntimeError) as error:
            self.reason = f"the energy counter can't be read: {error}"
            return None

    def joules(self) -> float | None:
        """Since this object was made; null, and `reason` says why, where nothing counts."""
        now = self._now()
        if now is None or self._start is None:
            return None
        if now < self._start:
            self.reason = "the energy counter restarted during the run"
            return None
        return now - self._start


def _rapl() -> tuple[Callable[[], float] | None, str]:
    """The counters of the processor packages (Linux's powercap), in microjoules."""
    counters = sorted(RAPL.glob("intel-rapl:[0-9]*/energy_uj"))
    counters = [path for path in counters if path.parent.name.count(":") == 1]
    if not counters or not all(os.access(path, os.R_OK) for path in counters):
        return None, f"this machine shows no energy counter that can be read under {RAPL}"
    return lambda: sum(int(path.read_text()) for path in counters) / 1e6, ""


def _nvml(device: "Device") -> tuple[Callable[[], float] | None, str]:
    """The GPU's own counter, in millijoules."""
    try:
        import pynvml
    except ImportError:
        return None, "the package nvidia-ml-py, which reads a GPU's energy counter, is not installed"
    import torch

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return None, f"the GPU shows no energy counter: {error}"
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, ""
