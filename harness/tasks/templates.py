"""Templates of prompts: texts with column names in braces."""

import re
from collections.abc import Callable
from string import Formatter
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.training.batches import Row

if TYPE_CHECKING:
    pass

# What a shell or a single-quoted YAML text can't write itself; a second backslash in front keeps both characters.
_ESCAPED = re.compile(r"\\(\\?)([nt])")
# Of a field of `str.format`, what reaches into a value.
_REACHING = re.compile(r"[.\[\]]")


def unescaped(template: str) -> str:
    r"""A template with a line's end for `\n` and a tab for `\t`, which Hydra's command line leaves as they are."""
    return _ESCAPED.sub(lambda found: f"\\{found[2]}" if found[1] else {"n": "\n", "t": "\t"}[found[2]], template)


def columns_of(template: str, key: str) -> list[str]:
    """The columns that a template names: `{instruction}`; a brace itself is written twice.

    Raises:
        ConfigError: A brace is left open, or something other than a plain name stands between braces.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{key}: {error}; write {{column}}, and a brace itself twice") from error
    columns = []
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name.strip() or name.isdigit() or _REACHING.search(name) or spec or conversion:
            raise ConfigError(f"{key}: {{{name}}} is not the name of a column alone; write {{column}}")
        columns.append(name)
    return columns


def check(template: str, key: str) -> None:
    """Refuse a template that would make all rows alike.

    Raises:
        ConfigError: It names no column, or is no template.
    """
    if not columns_of(template, key):
        raise ConfigError(f"{key}={template!r}: no column in braces, so all rows would be alike")


def fill(template: str, row: Row, text: Callable[[Any], str]) -> str:
    """The template with a row's values in the place of its columns.

    Args:
        text: Writes a value.
    """
    parts = Formatter().parse(template)
    return "".join(before + ("" if name is None else text(row[name])) for before, name, _, _ in parts)


def sole_column(template: str) -> str | None:
    """The column that a template consists of; null where it holds more."""
    parts = list(Formatter().parse(template))
    return parts[0][1] if len(parts) == 1 and not parts[0][0] else None


def escaped(template: str) -> str:
    r"""A template that `unescaped` gives back as it is: where it has a backslash and an n, `\\n`."""
    return re.sub(r"\\(?=[nt])", r"\\\\", template)
