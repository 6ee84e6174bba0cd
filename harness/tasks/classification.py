"""Sentences, or pairs of them, with a class or a number to predict: GLUE, and the micro world's tasks."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.models.architectures import Kind
from harness.tasks import TaskData, pairs
from harness.tasks.files import as_text
from harness.tasks.generators import revision_of
from harness.tasks.rows import RowTask, check_text
from harness.tasks.values import Classes, as_number
from harness.training.batches import Collate, Features, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from torch import device as Device
    from transformers import PreTrainedTokenizerBase

    from harness.measure import ForwardMeter
    from harness.methods import Adapter
    from harness.models.architectures import Backbone
    from harness.training.batches import Batch
    from harness.training.evaluation import Evaluation, Subject

REGRESSION_STRATA = 5


@dataclass(frozen=True)
class Classification(RowTask):
    """A GLUE-like task.

    Attributes:
        text: One or two columns.
        label: The column of the answer.
        labels: Names of the classes in the order of their integers; empty for a number to predict.
    """

    text: list[str]
    label: str
    labels: list[str]

    def check(self, key: str) -> None:
        super().check(key)
        self._check_metrics(key)
        if len(self.text) not in (1, 2):
            raise ConfigError(f"{key}.text={self.text}: one or two columns are allowed")
        if len(self.labels) == 1:
            raise ConfigError(f"{key}.labels={self.labels}: two or more classes, or none for a number, are needed")
        if len({name.strip() for name in self.labels}) < len(self.labels):
            raise ConfigError(f"{key}.labels={self.labels}: two classes have one name; leave one of them out")

    def _check_metrics(self, key: str) -> None:
        from harness.training.metrics import check_kind

        check_kind(self.metrics, len(self.labels), key)

    @property
    def kind(self) -> Kind:
        return Kind.classification

    @property
    def labels_count(self) -> int:
        return len(self.labels) or 1

    @property
    def regression(self) -> bool:
        return not self.labels

    def columns(self) -> list[str]:
        return [*self.text, self.label]

    def shown(self, row: Row) -> str:
        return " ".join(row[column] for column in self.text)

    def generate(self, split: str, rows: int) -> list[Row]:
        from harness.tasks.micro import generate

        return generate(str(self.generator), split, rows)

    def generator_revision(self) -> str:
        return revision_of("micro")

    def text_columns(self) -> list[str]:
        return self.text

    def question_columns(self) -> list[str]:
        return self.text

    def question(self, row: Row, where: str) -> Row:
        self._write_out(row)
        check_text(row, self.text, where)
        return row

    def _write_out(self, row: Row) -> None:
        """Make its text text."""
        for column in self.text:
            # A text that is missing is a hole in the data; a blank one is a text.
            if not isinstance(row[column], str) and row[column] is not None:
                row[column] = as_text(row[column])

    def tidy(self, row: Row) -> list[Row]:
        self._write_out(row)
        value = row[self.label]
        answer = as_number(value) if self.regression else self._classes.place(value)
        if answer is not None:
            row[self.label] = answer
        elif self.labels and not self._classes.by_place and as_number(value) is not None:
            # As a number it would look like the place that it is not.
            row[self.label] = as_text(value)
        return [row]

    @cached_property
    def _classes(self) -> Classes:
        """Made once; a row asks for it."""
        return Classes(self.labels)

    def check_row(self, row: Row, where: str) -> None:
        check_text(row, self.text, where)
        label = row[self.label]
        is_number = isinstance(label, int | float) and as_number(label) is not None
        if self.regression and not is_number:
            raise ConfigError(f"{where}: {self.label}={label!r}; a number is needed")
        if self.labels and not (is_number and float(label).is_integer() and 0 <= label < len(self.labels)):
            raise ConfigError(f"{where}: {self.label}={label!r}{self._classes.refusal(label)}")

    def strata(self, rows: list[Row]) -> list[Any]:
        import numpy as np

        found: list[Any] = self.strata_of(np.array([row[self.label] for row in rows], dtype=float)).tolist()
        return found

    def strata_of(self, answers: "NDArray[np.float64]") -> "NDArray[np.int64]":
        """Classes; for numbers, the fifth of the range they lie in."""
        import numpy as np

        if self.labels:
            return answers.astype(np.int64)
        low, high = answers.min(), answers.max()
        step = (high - low) / REGRESSION_STRATA or 1.0
        return np.minimum(((answers - low) / step).astype(np.int64), REGRESSION_STRATA - 1)

    def lengths(self) -> dict[str, int]:
        return {"task.max_length": self.max_length}

    def encode(self, rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> list[Features]:
        kind = float if self.regression else int
        features = self._encode_questions(rows, tokenizer)
        return [{**one, "label": kind(row[self.label])} for one, row in zip(features, rows, strict=True)]

    def _encode_questions(self, rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> list[Features]:
        """The same without answers."""
        columns = [[row[column] for row in rows] for column in self.text]
        if len(columns) == 2 and pairs.are_glued(tokenizer):
            encoded: Any = pairs.encode(columns[0], columns[1], tokenizer, self.max_length)
        else:
            encoded = tokenizer(*columns, truncation=True, max_length=self.max_length)
        features = []
        for index, row in enumerate(rows):
            one = {name: values[index] for name, values in encoded.items()}
            if not one["input_ids"]:
                raise ConfigError(f"task={self.name}: {self.shown(row)!r} gives no tokens; remove the empty row")
            features.append({**one, "length": len(one["input_ids"]), "weight": 1})
        return features

    def collator(self, backbone: "Backbone", tokenizer: "PreTrainedTokenizerBase", device: "Device") -> Collate:
        from harness.training.batches import collator_for

        return collator_for(backbone, tokenizer, device)

    def loss(self, adapter: "Adapter", batch: "Batch") -> "Tensor":
        return adapter.model(**batch.inputs).loss

    def evaluate(
        self, subject: "Subject", features: list[Features], rows: list[Row], meter: "ForwardMeter | None" = None
    ) -> "Evaluation":
        from harness.training.evaluation import Evaluation, logits_of_rows

        logits, loss = logits_of_rows(subject, features, meter)
        predictions = (logits.squeeze(-1) if self.regression else logits.argmax(-1)).tolist()
        answers = [row[self.label] for row in rows]
        scores = self._score(predictions, [row["label"] for row in features])
        columns = {"label": answers, "prediction": predictions, "scores": logits.tolist()}
        for name, classes in {"label_name": answers, "prediction_name": predictions}.items():
            if self.labels:
                columns[name] = [self.labels[int(one)] for one in classes]
        return Evaluation({**scores, "loss": loss}, columns)

    def infer(self, subject: "Subject", rows: list[Row], max_new_tokens: int | None) -> dict[str, list[Any]]:
        """The class with the probabilities of all, or the number; `scores` are the logits, in the classes' order."""
        from harness.training.evaluation import logits_of_rows

        if max_new_tokens is not None:
            raise ConfigError(f"max_new_tokens={max_new_tokens}: task={self.name} generates no text")
        logits, _ = logits_of_rows(subject, self._encode_questions(rows, subject.tokenizer))
        if self.regression:
            return {"prediction": logits.squeeze(-1).tolist()}
        probabilities = logits.softmax(-1)
        return {
            "prediction": [self.labels[place] for place in logits.argmax(-1).tolist()],
            "probability": probabilities.max(-1).values.tolist(),
            "probabilities": [dict(zip(self.labels, row, strict=True)) for row in probabilities.tolist()],
            "scores": logits.tolist(),
        }

    def _score(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        from harness.training.metrics import compute

        return compute(self.metrics, predictions, references)

    def majority(self, data: TaskData, split: str) -> dict[str, float]:
        """The training rows' commonest class, or their mean for a number."""
        answers = [row[self.label] for row in data.splits["train"]]
        if self.regression:
            answer: Any = fmean(answers)
        else:
            answer = Counter(answers).most_common(1)[0][0]
        references = [row[self.label] for row in data.splits[split]]
        return self._score([answer] * len(references), references)
