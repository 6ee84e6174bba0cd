"""Precision that `train.precision=auto` computes in on a CPU: what its matrix products are faster in, tried once.

A product in bfloat16 is several times as fast as in float32 where the processor has instructions for it, and 20 to 30
times slower where it has not. Which of those that have them gain how much is not written anywhere, so it is tried, and
kept for the machine: its runs must all compute in the same precision.
"""

import hashlib
import json
import os
import platform
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from harness.config.cache import cache_folder
from harness.config.errors import ConfigError
from harness.config.schema import Precision

# Fixes the precision, for machines that differ and work on one sweep.
VARIABLE = "HARNESS_CPU_PRECISION"
FIXED = (Precision.float32.name, Precision.bfloat16.name)
# Names of the instructions, as Linux spells them on x86 and on ARM.
INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
# What bfloat16 must gain. Clocks vary twofold within seconds, and a step has casts beside its products.
MARGIN = 1.5
# Rows, inner and columns of products as in a step of MiniLM and of BERT, the cheap one first; how often each is timed.
SIZES = ((512, 384, 384), (1024, 768, 768))
MOMENTS = 8
CPU_FACTS = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Choice:
    """A precision, and why it is this one."""

    precision: Precision
    why: str

    def __str__(self) -> str:
        return f"{self.precision.name}: {self.why}"


@dataclass(frozen=True)
class Processor:
    """What decides how fast products are here.

    Attributes:
        name: As its maker calls it.
        flags: Instructions that it has.
        threads: What torch computes with.
    """

    name: str
    flags: frozenset[str]
    threads: int
    torch: str

    @property
    def file(self) -> Path:
        """Where the choice is kept."""
        told = [self.name, sorted(self.flags), self.threads, self.torch]
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        return cache_folder() / "precision" / f"{digest[:32]}.json"


def choose() -> Choice:
    """The precision of this machine's CPU; tries it where nobody has, for a part of one second.

    Raises:
        ConfigError: The environment fixes it to something else than a precision.
    """
    fixed = os.environ.get(VARIABLE)
    if fixed:
        if fixed not in FIXED:
            raise ConfigError(f"{VARIABLE}={fixed}: {' or '.join(FIXED)} is allowed")
        return Choice(Precision[fixed], f"{VARIABLE} fixes it")
    return _choose(processor())


@cache
def _choose(here: Processor | None) -> Choice:
    if here is None:
        return Choice(Precision.float32, "the instructions of this processor are not known")
    if not here.flags & INSTRUCTIONS:
        return Choice(Precision.float32, "this processor has no instructions for bfloat16")
    with suppress(OSError, RuntimeError, ValueError, KeyError, TypeError):
        return _read(here.file)
    choice = decide(gain())
    # Without a place to keep it, this process alone knows.
    with suppress(OSError, RuntimeError):
        return _keep(here, choice)
    return choice


@cache
def processor() -> Processor | None:
    """The processor of this machine; null where the system does not tell its instructions."""
    try:
        facts = CPU_FACTS.read_text()
    except OSError:
        return None
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", facts, re.MULTILINE)
    if listed is None:
        return None
    name = re.search(r"^model name\s*:(.*)$", facts, re.MULTILINE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return Processor(
        name[1].strip() if name else platform.machine(),
        frozenset(listed[1].split()),
        int(given) if given.isdecimal() else cores,
        version("torch"),
    )


def gain() -> float:
    """How many times as fast as float32's the products of bfloat16 are, at the size where they gain least.

    The two are timed in turn, so that a processor that slows down slows both, and the best time of each counts.
    """
    import torch

    least = float("inf")
    # From a generator of its own: to choose must not move the one that seeds the run.
    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in SIZES:
        factors = torch.rand(rows, inner, generator=generator), torch.rand(inner, columns, generator=generator)
        operands = {dtype: [factor.to(dtype) for factor in factors] for dtype in (torch.float32, torch.bfloat16)}
        best = dict.fromkeys(operands, float("inf"))
        with torch.inference_mode():
            for _ in range(MOMENTS):
                for dtype, (left, right) in operands.items():
                    start = time.perf_counter()
                    left @ right
                    best[dtype] = min(best[dtype], time.perf_counter() - start)
        least = min(least, best[torch.float32] / best[torch.bfloat16])
        if least < MARGIN:
            break  # where it is slow, the larger sizes would take seconds
    return least


def decide(gained: float) -> Choice:
    """The precision where bfloat16's products are so many times as fast as float32's."""
    if gained >= MARGIN:
        return Choice(Precision.bfloat16, f"{gained:.1f} times float32's products on this processor")
    return Choice(
        Precision.float32,
        f"bfloat16 has {gained:.2g} times float32's products on this processor, and {MARGIN:g} times would be needed",
    )


def _read(path: Path) -> Choice:
    kept = json.loads(path.read_text(encoding="utf-8"))
    return Choice(Precision[kept["precision"]], str(kept["why"]))


def _keep(here: Processor, choice: Choice) -> Choice:
    """Keep a choice; where another process was first, its choice is the machine's."""
    path = here.file
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_suffix(f".{os.getpid()}")
    told = {"processor": here.name, "threads": here.threads, "torch": here.torch}
    try:
        own.write_text(json.dumps({"precision": choice.precision.name, "why": choice.why, **told}), encoding="utf-8")
        try:
            os.link(own, path)
        except FileExistsError:
            with suppress(ValueError, KeyError, TypeError):
                return _read(path)
            own.replace(path)  # what was there could not be read
    finally:
        own.unlink(missing_ok=True)
    return choice
