"""Choices as people write them: `method=LoRA` is `method=lora`, `task=SST-2` stays for the near misses to answer."""

import re

from harness.config.mistakes import choices

GROUPS = ("method", "task", "model")
# Values that are no plain names: lists, functions of Hydra's sweeps, quoted texts, interpolations, paths.
NO_NAME = re.compile(r"[\[\](){}'\"$\\~]")


def spelled(override: str) -> str:
    """An override whose choices have the spelling of their files, where only case, hyphens and blanks differ."""
    group, equals, value = override.partition("=")
    if not equals or group not in GROUPS or NO_NAME.search(value):
        return override
    there = choices(group)
    by_letters: dict[str, list[str]] = {}
    for name in there:
        by_letters.setdefault(_letters(name), []).append(name)
    names = [name if name in there else _meant(name, by_letters) for name in value.split(",")]
    return f"{group}={','.join(names)}"


def _meant(name: str, by_letters: dict[str, list[str]]) -> str:
    found = by_letters.get(_letters(name), [])
    return found[0] if len(found) == 1 else name


def _letters(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.casefold())
