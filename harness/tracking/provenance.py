"""Provenance of a result: versions, commit, device, threads, seeds, revisions."""

import os
import platform
import subprocess
import sys
from functools import lru_cache
from typing import Any

from harness.config.sources import PACKAGE
from harness.config.version import RESULTS_VERSION, __version__
from harness.config.versions import installed_versions, untested
from harness.tracking.uri import redact


def provenance(device: Any, dtype: Any, seeds: dict[str, int], revisions: dict[str, str]) -> dict[str, Any]:
    """Provenance of a run: what a reader needs to get the same result again."""
    import torch

    return {
        "command": command_line(),
        "harness": __version__,
        "results_version": RESULTS_VERSION,
        "git": git_state(),
        "packages": {name: found for name, found in installed_versions().items() if found},
        "untested": untested(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "device_type": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seeds": seeds,
        "revisions": revisions,
    }


def command_line() -> list[str]:
    """Command line of this process, without secrets."""
    return [os.path.basename(sys.argv[0]), *map(redact, sys.argv[1:])]


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any] | None:
    """Commit of the clone that this code runs from, and whether files differ from it; null when installed."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(PACKAGE.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return result.stdout.strip()
