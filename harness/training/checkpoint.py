"""Checkpoints: a file that holds what a training run needs to go on, whole or not there."""

import json
import logging
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import device as Device

log = logging.getLogger(__name__)

CHECKPOINT_FILE = "checkpoint.pt"
# Beside it: what decides the run that it is of.
NOTE_FILE = "run.json"
MOST_TOLD, LONGEST_TOLD = 4, 40


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; a crash while writing leaves the one before."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path, device: "Device") -> dict[str, Any] | None:
    """Contents of a checkpoint, on a device; null where there is no complete one."""
    import torch

    if not path.is_file():
        return None
    try:
        # weights_only: a checkpoint is data, nothing in it is executed.
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        log.warning("%s is damaged (%s); training starts from the beginning", path, type(error).__name__)
        return None


def note(path: Path, decisive: dict[str, Any]) -> None:
    """Write beside a checkpoint what decides the run that it is of: dotted key -> value."""
    path.with_name(NOTE_FILE).write_text(json.dumps(decisive, default=str), encoding="utf-8")


def missing(path: Path, decisive: dict[str, Any]) -> str:
    """Why there is no checkpoint to go on from: what decides the nearest one in the same folder, and is not so here."""
    nearest: dict[str, tuple[Any, Any]] | None = None
    here = json.loads(json.dumps(decisive, default=str))
    for other in sorted(path.parent.parent.glob(f"*/{NOTE_FILE}")):
        there = json.loads(other.read_text(encoding="utf-8"))
        differing = {
            key: (there.get(key), here.get(key)) for key in sorted({*there, *here}) if there.get(key) != here.get(key)
        }
        if nearest is None or len(differing) < len(nearest):
            nearest = differing
    if nearest is None:
        return f"{path.parent.parent} holds no checkpoint that says which run it is of"
    told = [f"{key} ({_short(before)} there, {_short(now)} here)" for key, (before, now) in nearest.items()]
    more = f" and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return f"the nearest checkpoint in {path.parent.parent} differs in {', '.join(told[:MOST_TOLD])}{more}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_TOLD else f"{text[:12]}\u2026"


def discard(path: Path) -> None:
    """Remove a checkpoint, what is left of one half written, and their folder where it is empty then."""
    for file in (path, path.with_suffix(".partial"), path.with_name(NOTE_FILE)):
        file.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()


def random_state() -> dict[str, Any]:
    """The states of torch's generators: the CPU's and each GPU's."""
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Put torch's generators back where `random_state` found them."""
    import torch

    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])
