"""How a row becomes a prompt: a template with column names in braces, or a chat template."""

from string import Formatter
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.training.batches import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The value of a chat template's key that takes the one that comes with the tokenizer.
OF_TOKENIZER = "tokenizer"


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
        if not name.isidentifier() or spec or conversion:
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


def fill(template: str, row: Row) -> str:
    """The template with a row's values in the place of its columns."""
    return template.format_map(row)


def chat_ids(
    prompt: str, answer: str | None, system: str | None, template: str, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation's prompt and of its answer, ended as the chat template ends it.

    Args:
        answer: null for a prompt alone; the second list is then empty.
        template: Jinja, which transformers runs in a sandbox; or `tokenizer` for the tokenizer's own.

    Raises:
        ConfigError: The tokenizer has no template, or it can't be used.
    """
    from jinja2 import TemplateError

    chosen = None if template == OF_TOKENIZER else template
    if chosen is None and not tokenizer.chat_template:
        raise ConfigError(
            f"task.chat_template=tokenizer: the tokenizer of {tokenizer.name_or_path} has no chat template; give one, "
            "or task.chat_template=null for plain prompts"
        )
    asked = [{"role": "system", "content": system}] if system else []
    asked.append({"role": "user", "content": prompt})
    options: dict[str, Any] = {"chat_template": chosen, "tokenize": True, "return_dict": False}
    try:
        before = list(tokenizer.apply_chat_template(asked, add_generation_prompt=True, **options))
        if answer is None:
            return before, []
        whole = list(tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": answer}], **options))
    except TemplateError as error:
        raise ConfigError(f"task.chat_template: it can't be used: {error}") from error
    if whole[: len(before)] != before:
        raise ConfigError(
            "task.chat_template: with an answer it does not begin as it does without, so the answer can't be told from "
            "the prompt"
        )
    return before, whole[len(before) :]
