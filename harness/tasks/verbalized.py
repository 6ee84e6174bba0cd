"""Classes and numbers as text: GLUE as T5 was given it (Raffel et al. 2020, arXiv 1910.10683, section 2.4)."""

from collections import Counter
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.tasks import TaskData
from harness.tasks.files import as_text
from harness.tasks.instruction import Instruction, TextToText
from harness.tasks.values import as_number
from harness.training.batches import Row
from harness.training.metrics import COMPARED, compute

if TYPE_CHECKING:
    from harness.training.evaluation import Evaluation

# What an answer counts as that is the name of no class, or no number: T5's own evaluation takes it so.
NONE = -1


@dataclass(frozen=True)
class Verbalized(TextToText):
    """A column of classes or numbers, whose names the decoder writes; an answer that is no name is a wrong one.

    Attributes:
        label: The column.
        verbalizers: The text of each class, in the order of their integers; empty for a number.
        step: A number is written as the nearest multiple of this.
    """

    label: str
    verbalizers: list[str]
    step: float

    def check(self, key: str) -> None:
        super().check(key)
        if len(self.verbalizers) == 1 or len(set(self.verbalizers)) < len(self.verbalizers):
            raise ConfigError(
                f"{key}.verbalizers={self.verbalizers}: two or more different texts, or none for a number"
            )
        if not self.step > 0:
            raise ConfigError(f"{key}.step={self.step}: a positive number is needed")

    def _check_metrics(self, key: str) -> None:
        allowed = COMPARED["classes" if self.verbalizers else "numbers"]
        for metric in self.metrics:
            if metric not in allowed:
                raise ConfigError(f"{key}.metrics={metric}: {', '.join(allowed)} are allowed for what is predicted")

    def further_scores(self) -> tuple[str, ...]:
        return Instruction.further_scores(self)

    def answers(self) -> dict[str, list[str]]:
        return {"answer": [self.label]}

    def tidy(self, row: Row) -> list[Row]:
        row[self.label] = self._written(row[self.label])
        return super().tidy(row)

    def check_row(self, row: Row, where: str) -> None:
        super().check_row(row, where)
        told = row[self.label]
        if self.verbalizers and told not in self.verbalizers:
            raise ConfigError(f"{where}: {self.label}={told!r} is none of {', '.join(self.verbalizers)}, nor its place")
        if not self.verbalizers and as_number(told) is None:
            raise ConfigError(f"{where}: {self.label}={told!r}; a number is needed")

    def _written(self, value: Any) -> str:
        """The text of a class, by its place or its name, or of a number."""
        number = as_number(value)
        if self.verbalizers:
            placed = number is not None and number.is_integer() and 0 <= number < len(self.verbalizers)
            return self.verbalizers[int(number)] if placed and number is not None else as_text(value).strip()
        if number is None:
            return as_text(value).strip()
        decimals = len(f"{self.step:g}".partition(".")[2])
        return f"{round(number / self.step) * self.step:.{decimals}f}"

    def _value(self, answer: str) -> float:
        """The class, by its place, or the number that a text names."""
        if self.verbalizers:
            return self.verbalizers.index(answer) if answer in self.verbalizers else NONE
        number = as_number(answer)
        return NONE if number is None else number

    def majority(self, data: TaskData, split: str) -> dict[str, float]:
        """The training rows' commonest class, or their mean for a number."""
        values = [self._value(row[self.label]) for row in data.splits["train"]]
        answer = Counter(values).most_common(1)[0][0] if self.verbalizers else fmean(values)
        references = [self._value(row[self.label]) for row in data.splits[split]]
        return compute(self.metrics, [answer] * len(references), references)

    def _score(self, texts: list[str], evaluation: "Evaluation") -> None:
        references = [self._value(text) for text in evaluation.columns["label"]]
        predictions = [self._value(text) for text in texts]
        evaluation.scores |= compute(self.metrics, predictions, references)
        evaluation.columns |= {
            "label": references,
            "label_name": evaluation.columns["label"],
            "prediction": predictions,
            "prediction_name": texts,
        }
