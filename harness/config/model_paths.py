"""`model=FOLDER` and `model=OWNER/NAME` on a command line: a value that is no file of conf/model/ is a place.

And `model.architecture.KEY=VALUE`: which keys an architecture has, transformers says, so a YAML need not list them.
"""

import re
from pathlib import Path

from harness.config.errors import ConfigError
from harness.config.mistakes import choices
from harness.config.spelling import spelled

GROUP = "model="
DIMENSION = "model.architecture."
# Any YAML whose architecture is left to the folder; path and name are then set.
STARTING_FROM = "micro_encoder"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def with_paths(overrides: list[str]) -> list[str]:
    """Overrides with `model.path` in the place of a folder or Hub name given as `model`; dimensions may be new keys.

    All others stay as they are.

    Raises:
        ConfigError: Some of several values are files of conf/model/ and others are not.
    """
    return [one for override in overrides for one in _of_one(override if _is_place(override) else spelled(override))]


def _of_one(override: str) -> list[str]:
    if override.startswith(DIMENSION):
        return [f"++{override}"]
    if not override.startswith(GROUP):
        return [override]
    values = [value.strip().strip("'\"") for value in override.removeprefix(GROUP).split(",")]
    elsewhere = [value for value in values if _is_elsewhere(value)]
    if not elsewhere:
        return [override]
    if len(elsewhere) < len(values):
        named = next(value for value in values if value not in elsewhere)
        raise ConfigError(
            f"{override}: {elsewhere[0]} is where a model is and {named} is a file of conf/model/; a sweep takes one "
            "sort: write the other as its folder or Hub name too"
        )
    quoted = ",".join("'" + value.replace("'", r"\'") + "'" for value in values)
    return [f"{GROUP}{STARTING_FROM}", f"model.path={quoted}", "model.name='${base_name:${model.path}}'"]


def _is_place(override: str) -> bool:
    """Whether it names a model by its folder or Hub name, which is taken as it is."""
    return override.startswith(GROUP) and any(_is_elsewhere(value) for value in override.removeprefix(GROUP).split(","))


def _is_elsewhere(value: str) -> bool:
    if value in choices("model"):
        return False
    looks_local = value.startswith((".", "~", "/"))
    return looks_local or Path(value).is_dir() or bool(HUB_NAME.fullmatch(value))
