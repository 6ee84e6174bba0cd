"""Classes and numbers as text: GLUE as T5 was given it (Raffel et al. 2020, arXiv 1910.10683, section 2.4)."""

import math
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.tasks import TaskData
from harness.tasks.files import as_text
from harness.tasks.instruction import Instruction, TextToText
from harness.tasks.values import ANSWERS, Classes, as_number, structure
from harness.training.batches import Row
from harness.training.metrics import NO_CLASS, check_kind, compute

if TYPE_CHECKING:
    from harness.training.evaluation import Evaluation


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
        if len(self.verbalizers) == 1 or len({text.strip() for text in self.verbalizers}) < len(self.verbalizers):
            raise ConfigError(
                f"{key}.verbalizers={self.verbalizers}: two or more different texts, or none for a number"
            )
        if not 0 < self.step < math.inf:
            raise ConfigError(f"{key}.step={self.step}: a positive number is needed")

    def _check_metrics(self, key: str) -> None:
        check_kind(self.metrics, len(self.verbalizers), key)

    def further_scores(self) -> tuple[str, ...]:
        return Instruction.further_scores(self)

    def answers(self) -> dict[str, list[str]]:
        return {"answer": [self.label]}

    def tidy(self, row: Row) -> list[Row]:
        if structure(row[self.label]) is None:
            row[self.label] = self._written(row[self.label])
            return super().tidy(row)
        # As it is, for what refuses the row: as text a list of one name would be that name.
        given = row[self.label]
        return [{**one, self.label: given} for one in super().tidy(row)]

    def check_row(self, row: Row, where: str) -> None:
        told = row[self.label]
        if what := structure(told):
            raise ConfigError(f"{where}: {self.label}={told!r} is {what}; {ANSWERS}")
        super().check_row(row, where)
        if self.verbalizers and told not in self.verbalizers:
            raise ConfigError(f"{where}: {self.label}={told!r} is none of {', '.join(self.verbalizers)}, nor its place")
        if not self.verbalizers and as_number(told) is None:
            raise ConfigError(f"{where}: {self.label}={told!r}; a number is needed")

    @cached_property
    def _classes(self) -> Classes:
        return Classes(self.verbalizers)

    @cached_property
    def _decimals(self) -> int:
        """Digits behind the point that a multiple of the step has."""
        return max(0, -int(Decimal(str(self.step)).normalize().as_tuple().exponent))

    def _written(self, value: Any) -> str:
        """The text of a class, by its name or its place, or of a number."""
        if self.verbalizers:
            place = self._classes.place(value)
            return as_text(value).strip() if place is None else self.verbalizers[place]
        number = as_number(value)
        if number is None:
            return as_text(value).strip()
        return f"{round(number / self.step) * self.step:.{self._decimals}f}"

    def _value(self, answer: str) -> float:
        """The class, by its place, or the number that a text names; -1 for none, as in T5's own evaluation."""
        if self.verbalizers:
            place = self._classes.named(answer)
            return NO_CLASS if place is None else place
        number = as_number(answer)
        return NO_CLASS if number is None else number

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
