"""Chat templates: how a conversation is written for a model, and where one ends an answer."""

import re
from datetime import date
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.models.tokens import token_ids
from harness.tasks.conversations import ANSWERING, Message
from harness.training.generation import End

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The value of a chat template's key that takes the one that comes with the tokenizer.
OF_TOKENIZER = "tokenizer"
# The day of templates that write today's date, so that a run is the same tomorrow; Llama 3's own where it has no clock.
TODAY = date(2024, 7, 26)
# What reads it; transformers lets no function of ours take its place.
CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
# An answer that no template holds itself.
MARK = "qzjxkvw"


def ids(
    asked: list[Message], answer: str | None, template: str, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation's prompt and of its answer, ended as the chat template ends it.

    Args:
        answer: null for a prompt alone; the second list is then empty.
        template: Jinja, which transformers runs in a sandbox; or `tokenizer` for the tokenizer's own.

    Raises:
        ConfigError: The tokenizer has no template, or it can't be used.
    """
    before = _write(asked, template, tokenizer, add_generation_prompt=True)
    prompt = token_ids(before, tokenizer)
    if answer is None:
        return prompt, []
    whole = _write([*asked, {"role": ANSWERING, "content": answer}], template, tokenizer)
    tokens = token_ids(whole, tokenizer)
    if tokens[: len(prompt)] == prompt:
        return prompt, tokens[len(prompt) :]
    if whole.startswith(before):
        # The border lies inside of a token, so the two are encoded apart, as they are when an answer is generated.
        return prompt, token_ids(whole[len(before) :], tokenizer)
    raise ConfigError(
        "task.chat_template: with an answer it does not begin as it does without, so the answer can't be told from "
        "the prompt"
    )


def end(template: str, tokenizer: "PreTrainedTokenizerBase") -> End:
    """What a template writes behind an answer.

    Raises:
        ConfigError: Nothing, so that no answer could end.
    """
    whole = _write([{"role": "user", "content": "a"}, {"role": ANSWERING, "content": MARK}], template, tokenizer)
    _, found, after = whole.rpartition(MARK)
    if not found:
        raise ConfigError("task.chat_template: it does not write the assistant's message, so nothing could be learned")
    text = after.strip()
    if not text:
        raise ConfigError(
            "task.chat_template: it writes nothing behind an answer, so none could end; write {{ eos_token }} there"
        )
    first = token_ids(text, tokenizer)[0]
    if first in tokenizer.added_tokens_decoder or first in tokenizer.all_special_ids:
        return End(first, None)
    return End(None, text)


def _write(
    messages: list[Message], template: str, tokenizer: "PreTrainedTokenizerBase", add_generation_prompt: bool = False
) -> str:
    from jinja2 import TemplateError

    chosen = None if template == OF_TOKENIZER else template
    if chosen is None and not tokenizer.chat_template:
        raise ConfigError(
            f"task.chat_template=tokenizer: the tokenizer of {tokenizer.name_or_path} has no chat template; give one, "
            "or task.chat_template=null for plain prompts"
        )
    written = CLOCK.sub(lambda call: repr(TODAY.strftime(call[2])), chosen or tokenizer.get_chat_template())
    options: dict[str, Any] = {"chat_template": written, "tokenize": False}
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, **options))
    except TemplateError as error:
        raise ConfigError(f"task.chat_template: it can't be used: {error}") from error
