"""Slots for points: how many run at a time, and on which GPU each; found without importing torch."""

import os
import re
import subprocess
import sys


def slots(points: int, gpus: list[str], per_gpu: int, workers: int | None, threads: int) -> list[str | None]:
    """The GPU of each worker, null for one that computes on the CPU.

    Args:
        points: How many there are to run; more workers would have nothing to do.
        gpus: What the points may use; none for the CPU.
        per_gpu: Points that share a GPU.
        workers: As the user wants it; null for one a slot of a GPU, or for the cores divided by `threads`.
    """
    places: list[str | None] = [gpu for _ in range(per_gpu) for gpu in gpus]
    if places:
        return [places[number % len(places)] for number in range(min(workers or len(places), points))]
    cores = available_cores()
    if workers and workers * threads > cores:
        print(
            f"warning: hydra.launcher.workers={workers} with threads={threads} is more than the"
            f" {cores} cores of this machine: points slow each other down",
            file=sys.stderr,
        )
    return [None] * min(workers or max(1, cores // threads), points)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES, one for each GPU, or for each part of a partitioned one."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.replace(" ", "").split(",") if gpu and gpu != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = re.findall(r"UUID: ((?:GPU|MIG)-[\w-]+)", listed)
    return [gpu for gpu in found if gpu.startswith("MIG")] or found


def free_memory(gpu: str) -> int | None:
    """Free bytes of a GPU named as for CUDA_VISIBLE_DEVICES; null where the driver's tool can't say, as of a part."""
    asked = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return int(told) * 2**20 if told.isdecimal() else None
