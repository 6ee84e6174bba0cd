"""Mistakes of the user, in sentences."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A user's mistake, told in one sentence: the dotted key, what was given, what is allowed."""


def near_misses(name: str, valid: Iterable[str]) -> str:
    """Say what may have been meant, and what there is: "did you mean lora? Valid: bitfit, full, head, lora"."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.6)
    question = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{question}Valid: {', '.join(valid)}"
