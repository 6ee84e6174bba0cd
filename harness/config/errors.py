"""Mistakes of the user, in sentences."""

import difflib
import io
import os
import sys
from collections.abc import Iterable


class ConfigError(ValueError):
    """A user's mistake, told in one sentence: the dotted key, what was given, what is allowed."""


def write_anywhere() -> None:
    """Let every terminal show what is printed, and read arguments as UTF-8, whatever its locale: `?` for what it lacks.

    A locale such as C or Latin-1 is common on clusters, and a report has en dashes in it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    sys.argv = [os.fsencode(one).decode("utf-8", "surrogateescape") for one in sys.argv]


def near_misses(name: str, valid: Iterable[str]) -> str:
    """Say what may have been meant, and what there is: "did you mean lora? Valid: bitfit, full, head, lora"."""
    valid = sorted(valid)
    folded: dict[str, str] = {}
    for one in valid:
        folded.setdefault(one.casefold(), one)
    close = [folded[one] for one in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)]
    question = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{question}Valid: {', '.join(valid) or 'none'}"
