"""Tasks whose rows are prompts with answers, written by a template or as a conversation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.config.errors import ConfigError
from harness.models import tokens
from harness.tasks import templates
from harness.tasks.rows import LanguageTask, check_text
from harness.training.batches import IGNORED, Features, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptTask(LanguageTask):
    """What instructions and preferences share.

    Attributes:
        prompt: Template of the prompt.
        prompt_without_input: Template for rows whose `input` column is empty; null: `prompt` serves for all.
        input: The column that may be empty; null where there is none.
        chat_template: null for the prompt as it is; `tokenizer`, or Jinja, for a conversation.
        system: What a conversation begins with.
    """

    prompt: str
    prompt_without_input: str | None
    input: str | None
    chat_template: str | None
    system: str | None

    def check(self, key: str) -> None:
        super().check(key)
        for name, template in {"prompt": self.prompt, "prompt_without_input": self.prompt_without_input}.items():
            if template is not None:
                templates.check(template, f"{key}.{name}")
        if self.prompt_without_input is not None and self.input is None:
            raise ConfigError(f"{key}.input=null: prompt_without_input needs to know which column may be empty")
        if self.system is not None and self.chat_template is None:
            raise ConfigError(f"{key}.system: only a conversation has one; set {key}.chat_template")

    def answers(self) -> dict[str, list[str]]:
        """What an answer is called -> the columns that it is made of."""
        raise NotImplementedError

    def columns(self) -> list[str]:
        prompts = [text for text in (self.prompt, self.prompt_without_input) if text is not None]
        named = [*(templates.columns_of(text, "task") for text in prompts), *self.answers().values()]
        return list(dict.fromkeys(column for columns in named for column in columns))

    def check_row(self, row: Row, where: str) -> None:
        check_text(row, self.columns(), where)
        for what, columns in {"prompt": templates.columns_of(self._template(row), "task"), **self.answers()}.items():
            if not any(row[column].strip() for column in columns):
                raise ConfigError(f"{where}: the {what} is empty ({', '.join(columns)}); remove the row")

    def shown(self, row: Row) -> str:
        return templates.fill(self._template(row), row)

    def generator_revision(self) -> str:
        from harness.tasks.micro_instruct import fingerprint

        return fingerprint()

    def encode_answer(self, row: Row, answer: str, tokenizer: "PreTrainedTokenizerBase") -> Features:
        """Prompt and answer as one row; the loss counts the answer and the end of sequence after it."""
        if self.chat_template is not None:
            return encoded(
                *templates.chat_ids(self.shown(row), answer, self.system, self.chat_template, tokenizer),
                self.max_length,
            )
        # Apart, so that a prompt has the same tokens in training as when an answer is to be generated.
        prompt = tokens.beginning(tokenizer) + tokens.token_ids(self.shown(row), tokenizer)
        ended = [*tokens.token_ids(answer, tokenizer), tokens.end_of_sequence(tokenizer)]
        return encoded(prompt, ended, self.max_length)

    def _template(self, row: Row) -> str:
        if self.prompt_without_input is not None and not str(row[str(self.input)]).strip():
            return self.prompt_without_input
        return self.prompt


def encoded(prompt: list[int], answer: list[int], max_length: int) -> Features:
    """A prompt and its answer as one row, cut at the end; the loss counts what is left of the answer."""
    whole = (prompt + answer)[:max_length]
    left = max(0, len(whole) - len(prompt))
    return {
        "input_ids": whole,
        "attention_mask": [1] * len(whole),
        "labels": [IGNORED] * (len(whole) - left) + whole[len(whole) - left :],
        # The end of a prompt that is too long, which is where the question stands.
        "prompt_ids": prompt[-max_length:],
        "length": len(whole),
        "weight": left,
        "cut": 0 < left < len(answer),
    }
