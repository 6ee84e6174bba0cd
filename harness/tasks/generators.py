"""Hashes of what the generators of rows write: computed once for their sources, and kept on this machine.

A run's identity holds the hash of its rows, and to write a fixed sample of everything that a generator can write takes
up to a second, which each process of a sweep would spend anew.
"""

import hashlib
import importlib
import os
import platform
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

from harness.config.cache import cache_folder

SOURCES = Path(__file__).parent
HASH = re.compile(r"[0-9a-f]{64}")


@cache
def revision_of(generator: str) -> str:
    """The SHA-256 that a generator gives of what it writes.

    Args:
        generator: Name of its module here, which has a `fingerprint`.
    """
    with suppress(OSError, RuntimeError, ValueError):  # sources in an archive, no home, damaged
        return _kept(_place(generator))
    found = str(importlib.import_module(f"harness.tasks.{generator}").fingerprint())
    # Without a place to keep it, this process alone knows.
    with suppress(OSError, RuntimeError):
        _keep(_place(generator), found)
    return found


def _place(generator: str) -> Path:
    """Where it is kept for these sources, and for this Python, whose `random` draws."""
    told = hashlib.sha256(platform.python_version().encode())
    for path in sorted(SOURCES.glob("micro*.py")):
        told.update(path.name.encode() + path.read_bytes())
    return cache_folder() / "generators" / f"{generator}-{told.hexdigest()[:32]}"


def _kept(path: Path) -> str:
    found = path.read_text(encoding="ascii")
    if not HASH.fullmatch(found):
        raise ValueError(f"{path} holds no hash")
    return found


def _keep(path: Path, found: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        own.write_text(found, encoding="ascii")
        own.replace(path)
    finally:
        own.unlink(missing_ok=True)
