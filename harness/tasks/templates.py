"""How a row becomes a prompt: a template with column names in braces."""

import re
from collections.abc import Callable
from string import Formatter
from typing import TYPE_CHECKING, Any

from harness.config import ConfigError
from harness.tasks import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


def beginning(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The beginning-of-sequence token, where the tokenizer puts it in front or the model has one for that alone.

    Some tokenizers leave it to whoever trains; GPT-2 and its like know only of a token that ends a sequence.
    """
    begin = tokenizer.bos_token_id
    if begin is None or (begin == tokenizer.eos_token_id and tokenizer("")["input_ids"][:1] != [begin]):
        return []
    return [begin]


def token_ids(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of text alone, whatever the tokenizer would put around it."""
    # Cut by who asks, so the tokenizer's warning that a model could not read it whole does not apply.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def end_of_sequence(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that ends an answer.

    Raises:
        ConfigError: There is none.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model.path={tokenizer.name_or_path}: the tokenizer has no end-of-sequence token, so no answer could end"
        )
    return tokenizer.eos_token_id
