"""Tasks whose rows are prompts with answers, written by a template or as a conversation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.models import tokens
from harness.tasks import chat, conversations, templates
from harness.tasks.conversations import Message
from harness.tasks.files import as_text
from harness.tasks.generators import revision_of
from harness.tasks.rows import LanguageTask, check_text
from harness.training.batches import IGNORED, Features, Row
from harness.training.generation import End, Generated, generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.training.evaluation import Subject


@dataclass(frozen=True)
class PromptTask(LanguageTask):
    """Common part of instruction and preference tasks.

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

    def __post_init__(self) -> None:
        self._unescape("prompt", "prompt_without_input", "system")

    def _unescape(self, *names: str) -> None:
        for name in names:
            if (template := getattr(self, name)) is not None:
                object.__setattr__(self, name, templates.unescaped(template))

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
        """Name of each answer -> the columns that it is made of."""
        raise NotImplementedError

    def question_columns(self) -> list[str]:
        prompts = [text for text in (self.prompt, self.prompt_without_input) if text is not None]
        named = [name for text in prompts for name in templates.columns_of(text, "task")]
        return list(dict.fromkeys([*named, *([self.input] if self.input else [])]))

    def columns(self) -> list[str]:
        prompts = [text for text in (self.prompt, self.prompt_without_input) if text is not None]
        named = [*(templates.columns_of(text, "task") for text in prompts), *self.answers().values()]
        return list(dict.fromkeys(column for columns in named for column in columns))

    def question(self, row: Row, where: str) -> Row:
        self._read_values(row, self.question_columns())
        self._check_prompt(row, self.question_columns(), where)
        return row

    def tidy(self, row: Row) -> list[Row]:
        self._read_values(row, self.text_columns())
        return [row]

    def _read_values(self, row: Row, columns: list[str]) -> None:
        """Make the values of columns conversations or text."""
        for column in columns:
            messages = conversations.read(row[column])
            if messages is not None:
                row[column] = messages
            elif not isinstance(row[column], dict):
                row[column] = as_text(row[column])

    def _check_prompt(self, row: Row, columns: list[str], where: str) -> None:
        check_text(row, [column for column in columns if not isinstance(row[column], list)], where)
        prompt = templates.columns_of(self._template(row), "task")
        if not any(_asked(row[column]).strip() for column in prompt):
            raise ConfigError(f"{where}: the prompt is empty ({', '.join(prompt)}); remove the row")

    def check_row(self, row: Row, where: str) -> None:
        self._check_prompt(row, self.columns(), where)
        for what, columns in self.answers().items():
            if not any(answer_of(row[column]).strip() for column in columns):
                raise ConfigError(f"{where}: the {what} is empty ({', '.join(columns)}); remove the row")

    def shown(self, row: Row) -> str:
        return templates.fill(self._template(row), row, _asked)

    def asked(self, row: Row) -> list[Message]:
        """The conversation that an answer ends: the column's own, or the prompt as one message."""
        column = templates.sole_column(self._template(row))
        told = row[column] if column is not None else None
        messages: list[Message] = conversations.asked(told) if told and conversations.is_one(told) else []
        messages = messages or [{"role": "user", "content": self.shown(row)}]
        if self.system is not None and messages[0]["role"] != "system":
            return [{"role": "system", "content": self.system}, *messages]
        return messages

    def encode(self, rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> list[Features]:
        features = [self.encode_row(row, tokenizer) for row in rows]
        self.answer_end(tokenizer)
        return features

    def encode_row(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Features:
        """Token ids of one row."""
        raise NotImplementedError

    def generator_revision(self) -> str:
        return revision_of("micro_instruct")

    def token_ids(self, row: Row, answer: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
        """Token ids of a row's prompt, and of an answer with its end."""
        if self.chat_template is not None:
            return chat.ids(self.asked(row), answer, self.chat_template, tokenizer)
        # Apart, so that a prompt has the same tokens in training as when an answer is to be generated.
        return self._plain_prompt(row, tokenizer), [
            *tokens.token_ids(answer, tokenizer),
            tokens.end_of_sequence(tokenizer),
        ]

    def _plain_prompt(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        return tokens.beginning(tokenizer) + tokens.token_ids(self.shown(row), tokenizer)

    def prompt_ids(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Token ids of a row's prompt, as an answer is generated from them: its end, where it is too long."""
        if self.chat_template is not None:
            prompt, _ = chat.ids(self.asked(row), None, self.chat_template, tokenizer)
        else:
            prompt = self._plain_prompt(row, tokenizer)
        return prompt[-self.max_length :]

    def beams(self) -> int:
        """Answers that generation keeps side by side; 1 is greedy."""
        return 1

    def generated(
        self, subject: "Subject", prompts: list[list[int]], max_new_tokens: int
    ) -> "tuple[list[str], Generated]":
        """Answers to prompts as texts, and as what was generated."""
        end = self.answer_end(subject.tokenizer)
        with subject.computing():
            found = generate(
                subject.model, subject.tokenizer, prompts, max_new_tokens, subject.batch_size, end, self.beams()
            )
        texts = [text.strip() for text in subject.tokenizer.batch_decode(found.tokens, skip_special_tokens=True)]
        if end is not None and end.text is not None:
            texts = [text.partition(end.text)[0].strip() for text in texts]
        return texts, found

    def infer(self, subject: "Subject", rows: list[Row], max_new_tokens: int | None) -> dict[str, list[Any]]:
        """What the model writes."""
        if max_new_tokens is None:
            raise ConfigError(
                f"max_new_tokens=: task={self.name} generated no answers; say how many tokens one may have"
            )
        prompts = [self.prompt_ids(row, subject.tokenizer) for row in rows]
        return {"prediction": self.generated(subject, prompts, max_new_tokens)[0]}

    def encode_answer(self, row: Row, answer: str, tokenizer: "PreTrainedTokenizerBase") -> Features:
        """Prompt and answer as one row; the loss counts the answer and the end of sequence after it."""
        return encoded(*self.token_ids(row, answer, tokenizer), self.max_length)

    def answer_end(self, tokenizer: "PreTrainedTokenizerBase") -> End | None:
        """What ends an answer beside the end of sequence.

        Raises:
            ConfigError: A chat template ends none.
        """
        return None if self.chat_template is None else chat.end(self.chat_template, tokenizer)

    def _template(self, row: Row) -> str:
        if self.prompt_without_input is not None and not as_text(row[str(self.input)]).strip():
            return self.prompt_without_input
        return self.prompt


def answer_of(value: Any) -> str:
    """An answer as text: of a conversation its last."""
    return conversations.answer(value) if conversations.is_one(value) else as_text(value)


def _asked(value: Any) -> str:
    """A part of a prompt as text: of a conversation what stands before its last answer."""
    return conversations.written(conversations.asked(value)) if conversations.is_one(value) else as_text(value)


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


def encoded_pair(
    text: str, answer: list[int], tokenizer: "PreTrainedTokenizerBase", lengths: tuple[int, int]
) -> Features:
    """A text for an encoder and an answer for its decoder, each cut at the end to its own length.

    The loss counts what is left of the answer.
    """
    read, written = lengths
    source = list(tokenizer(text, truncation=True, max_length=read)["input_ids"])
    target = answer[:written]
    return {
        "input_ids": source,
        "attention_mask": [1] * len(source),
        "labels": target,
        "prompt_ids": source,
        "length": len(source) + len(target),
        "weight": len(target),
        "cut": len(target) < len(answer),
    }


def answer_ids(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of an answer for a decoder beside an encoder: what the tokenizer makes of a text, and an end.

    Raises:
        ConfigError: The tokenizer has no end of sequence.
    """
    ids = list(tokenizer(text_target=text, verbose=False)["input_ids"])
    end = tokens.end_of_sequence(tokenizer)
    return ids if ids[-1:] == [end] else [*ids, end]
