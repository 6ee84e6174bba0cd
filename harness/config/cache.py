"""Where this package keeps on a machine what it would else compute or fetch again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/peft-harness`, else `~/.cache/peft-harness`; deleting it loses nothing but time.

    Raises:
        RuntimeError: Neither is known.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peft-harness"
