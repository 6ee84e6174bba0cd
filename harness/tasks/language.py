"""Language modeling: the next token of running text, scored as perplexity by strided windows."""

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.models import tokens
from harness.tasks import TaskData
from harness.tasks.files import as_text, paragraphs
from harness.tasks.generators import revision_of
from harness.tasks.rows import LanguageTask, check_text
from harness.training.batches import IGNORED, Features, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.measure import ForwardMeter
    from harness.training.evaluation import Evaluation, Subject


class Documents(Enum):
    """The unit that is read as one text, with nothing before it: all rows in sequence, a paragraph, or one row."""

    whole = "whole"
    paragraph = "paragraph"
    row = "row"


@dataclass(frozen=True)
class LanguageModelling(LanguageTask):
    """Running text; the rows of a text file are its lines, in the column `text`.

    Attributes:
        text: The column of the text.
        documents: What is one text; windows never reach over its end.
        stride: Tokens from one window of the evaluation to the next; every token is scored once, with at least
            `max_length - stride` tokens of context where there are so many.
    """

    text: str
    documents: Documents
    stride: int

    def check(self, key: str) -> None:
        super().check(key)
        if self.metrics:
            raise ConfigError(f"{key}.metrics={self.metrics}: running text is scored by {', '.join(SCORES)} alone")
        if not 0 < self.stride < self.max_length:
            raise ConfigError(
                f"{key}.stride={self.stride}: from 1 to {key}.max_length - 1 = {self.max_length - 1} is allowed"
            )

    def further_scores(self) -> tuple[str, ...]:
        return SCORES

    def columns(self) -> list[str]:
        return [self.text]

    def tidy(self, row: Row) -> list[Row]:
        if not isinstance(row[self.text], list | dict):
            row[self.text] = as_text(row[self.text])
        return [row]

    def check_row(self, row: Row, where: str) -> None:
        check_text(row, self.columns(), where)

    def question_columns(self) -> list[str]:
        raise ConfigError(f"task={self.name}: running text asks nothing, so there is no answer to predict")

    def shown(self, row: Row) -> str:
        return row[self.text]

    def generate(self, split: str, rows: int) -> list[Row]:
        """Instructions with their answers as running text: a genre that the micro decoder was not pretrained on."""
        from harness.tasks.micro_instruct import generate

        parts = ("input", "instruction", "output")
        return [{self.text: " ".join(row[part] for part in parts)} for row in generate(split, rows)]

    def generator_revision(self) -> str:
        return revision_of("micro_instruct")

    def revision(self) -> str:
        """Of the data, and of how they are parted into paragraphs."""
        found = super().revision()
        if self.documents is Documents.paragraph:
            # A line of spaces was once no blank line: results on the same text may differ from those.
            found = hashlib.sha256(f"{found} blank lines of spaces".encode()).hexdigest()
        return found

    def carve(self, train: list[Row]) -> tuple[list[Row], list[Row]]:
        """The end of a running text is set aside; of rows that are texts, some of all."""
        if self.documents is Documents.row:
            return super().carve(train)
        aside = min(self.max_development_rows, round(self.development_share * len(train)))
        if not 0 < aside < len(train):
            raise ConfigError(
                f"task.development_share={self.development_share}: {len(train)} lines of training text can't be split "
                "into train and development"
            )
        return train[:-aside], train[-aside:]

    def subsample(self, rows: list[Row], most: int | None) -> list[Row]:
        """The beginning of a running text; of rows that are texts, some of all."""
        return super().subsample(rows, most) if self.documents is Documents.row else rows[:most]

    def texts(self, rows: list[Row]) -> list[str]:
        """The documents of a split."""
        parts = [row[self.text] for row in rows]
        if self.documents is Documents.row:
            return [part for part in parts if part.strip()]
        # Rows of a text file are its lines and end themselves; others are texts of their own.
        border = "\n" if self.documents is Documents.whole else "\n\n"
        whole = "".join(part + border if part and not part.endswith("\n") else part for part in parts)
        pieces = [whole] if self.documents is Documents.whole else paragraphs(whole)
        return [piece.strip("\r\n") for piece in pieces if piece.strip()]

    def encode(self, rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> list[Features]:
        """Documents cut into pieces of `max_length` tokens, an end of sequence after each document."""
        begin, end = tokens.beginning(tokenizer), tokenizer.eos_token_id
        features = []
        for text in self.texts(rows):
            ids = begin + tokens.token_ids(text, tokenizer) + ([] if end is None else [end])
            if self.documents is Documents.whole and len(ids) < self.max_length:
                raise ConfigError(
                    f"task.max_length={self.max_length}: a split of task={self.name} has {len(ids)} tokens, less "
                    "than one window; a smaller number is needed"
                )
            features += [_piece(ids[start : start + self.max_length]) for start in range(0, len(ids), self.max_length)]
        if not features:
            raise ConfigError(f"task={self.name}: a split has no text")
        return features

    def evaluate(
        self, subject: "Subject", features: list[Features], rows: list[Row], meter: "ForwardMeter | None" = None
    ) -> "Evaluation":
        from harness.training import perplexity
        from harness.training.evaluation import Evaluation

        found = perplexity.score(
            subject.model,
            subject.tokenizer,
            self.texts(rows),
            self.max_length,
            self.stride,
            subject.batch_size,
            subject.collate.device,
            subject.autocast,
            meter,
        )
        if not found.tokens:
            raise ConfigError(f"task={self.name}: the text has no token to score; two are needed")
        columns: dict[str, list[Any]] = {
            "idx": list(range(len(found.window_nll))),
            "document": found.window_document,
            "loss": [nll / tokens for nll, tokens in zip(found.window_nll, found.window_tokens, strict=True)],
            "tokens": found.window_tokens,
        }
        return Evaluation(found.scores(), columns)

    def majority(self, data: TaskData, split: str) -> None:
        """No token is an answer to running text; the backbone's own score is what training is held against."""
        return None


SCORES = ("loss", "perplexity", "word_perplexity", "bits_per_byte")


def _piece(ids: list[int]) -> Features:
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        # The first token is predicted from nothing, or by virtual tokens, which do not count.
        "labels": [IGNORED, *ids[1:]],
        "length": len(ids),
        "weight": len(ids) - 1,
    }
