"""Folders that a command made and that hold nothing in the end."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path


def remove_unused(folder: Path, names: Collection[str]) -> None:
    """Remove a folder in which nothing but files of these names lies, and those around it that it leaves empty.

    The working directory, and what lies outside it, stay.
    """
    if not {path.name for path in folder.glob("*")} <= {*names}:
        return
    for name in names:
        (folder / name).unlink(missing_ok=True)
    here = Path.cwd()
    with suppress(OSError):
        folder.rmdir()
        for parent in folder.absolute().parents:
            if here not in parent.parents:
                break
            parent.rmdir()
