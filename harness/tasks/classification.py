"""Sentences, or pairs of them, with a class or a number to predict: GLUE, and the micro world's tasks."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.architectures import Kind
from harness.config import ConfigError, near_misses
from harness.tasks import Features, Row, TaskData, sources
from harness.tasks.leakage import overlap

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

REGRESSION_STRATA = 5


@cache
def _generator_revision() -> str:
    """Once a process: a sweep asks for every point."""
    from harness.tasks.micro import fingerprint

    return fingerprint()


@dataclass(frozen=True)
class Classification:
    """A GLUE-like task.

    Attributes:
        hub: The Hub's copy; null for a task that is generated or only local.
        generator: A task of the micro world (harness/tasks/micro.py), with the rows of each split; null elsewhere.
        splits: Our split -> the name it has in the Hub's copy. Further evaluation splits may follow validation.
        text: One or two columns.
        labels: Names of the classes in the order of their integers; empty for a number to predict.
        data_dir: A folder with train.*, validation.* (JSONL, CSV, Parquet) in the column names of the Hub's copy.
        development_share: Share of train that is set aside, at most `max_development_rows`, stratified by label.
        split_seed: Decides which rows are set aside, and which `max_train_rows` are kept: the same for every method.
    """

    name: str
    version: int
    hub: sources.Hub | None
    generator: str | None
    generator_rows: dict[str, int] | None
    splits: dict[str, str]
    text: list[str]
    label: str
    labels: list[str]
    metrics: list[str]
    primary_metric: str
    data_dir: str | None
    max_length: int
    max_train_rows: int | None
    max_development_rows: int
    development_share: float
    split_seed: int

    def check(self, key: str) -> None:
        from harness.metrics import METRICS

        for metric in self.metrics:
            if metric not in METRICS:
                raise ConfigError(f"{key}.metrics={metric}: no such metric; {near_misses(metric, METRICS)}")
        if self.primary_metric not in self.metrics:
            raise ConfigError(f"{key}.primary_metric={self.primary_metric}: not in metrics, {', '.join(self.metrics)}")
        if len(self.text) not in (1, 2):
            raise ConfigError(f"{key}.text={self.text}: one or two columns are allowed")
        if len(self.labels) == 1:
            raise ConfigError(f"{key}.labels={self.labels}: two or more classes, or none for a number, are needed")
        for name, value in {"max_length": self.max_length, "max_development_rows": self.max_development_rows}.items():
            if value < 1:
                raise ConfigError(f"{key}.{name}={value}: a positive number is needed")
        if self.max_train_rows is not None and self.max_train_rows < 1:
            raise ConfigError(f"{key}.max_train_rows={self.max_train_rows}: a positive number, or null, is needed")
        if not 0 < self.development_share < 1:
            raise ConfigError(f"{key}.development_share={self.development_share}: a share between 0 and 1 is needed")
        if not (self.hub or self.generator or self.data_dir):
            raise ConfigError(f"{key}.data_dir=null: name a folder, a data set of the Hub, or a generator")

    @property
    def kind(self) -> Kind:
        return Kind.classification

    @property
    def labels_count(self) -> int:
        return len(self.labels) or 1

    @property
    def regression(self) -> bool:
        return not self.labels

    def revision(self) -> str:
        if self.data_dir is not None:
            return sources.files_revision(sources.local_files(self.data_dir, self.splits))
        if self.generator is not None:
            return _generator_revision()
        assert self.hub is not None
        return sources.read_hub(self.hub, self.splits["train"])[1]

    def load(self) -> TaskData:
        raw = self._read()
        for split, rows in raw.items():
            self._check_rows(rows, split)
        train = raw["train"]
        if "development" not in raw:
            train, raw["development"] = sources.carve(
                train, self._strata(train), self.development_share, self.max_development_rows, self.split_seed
            )
        raw["train"] = sources.subsample(train, self.max_train_rows, self.split_seed)
        notes = {
            "rows": {split: len(rows) for split, rows in raw.items()},
            "overlap": {
                split: overlap(map(self._text, raw["train"]), [self._text(row) for row in rows])
                for split, rows in raw.items()
                if split != "train"
            },
        }
        return TaskData(raw, self.revision(), notes)

    def _read(self) -> dict[str, list[Row]]:
        if self.data_dir is not None:
            files = sources.local_files(self.data_dir, self.splits)
            return {split: sources.read_file(path) for split, path in files.items()}
        if self.generator is not None:
            from harness.tasks.micro import generate

            counts = self.generator_rows or {}
            return {split: generate(self.generator, split, rows) for split, rows in counts.items()}
        assert self.hub is not None
        return {split: sources.read_hub(self.hub, name)[0] for split, name in self.splits.items()}

    def _where(self, split: str) -> str:
        if self.data_dir is not None:
            return f"task.data_dir: {sources.local_files(self.data_dir, self.splits)[split]}"
        return f"task={self.name}, {split} split"

    def _check_rows(self, rows: list[Row], split: str) -> None:
        where = self._where(split)
        sources.check_columns(rows, [*self.text, self.label], where)
        for number, row in enumerate(rows, start=1):
            for column in self.text:
                if not isinstance(row[column], str):
                    raise ConfigError(f"{where}, row {number}: {column}={row[column]!r} is not text")
            self._check_label(row[self.label], f"{where}, row {number}")

    def _check_label(self, label: Any, where: str) -> None:
        is_number = isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label)
        if self.regression and not is_number:
            raise ConfigError(f"{where}: {self.label}={label!r}; a number is needed")
        if self.labels and not (is_number and float(label).is_integer() and 0 <= label < len(self.labels)):
            hidden = "; the label is hidden, as in GLUE's test files" if label == -1 else ""
            raise ConfigError(
                f"{where}: {self.label}={label!r}; a whole number from 0 to {len(self.labels) - 1} is allowed{hidden}"
            )

    def _strata(self, rows: list[Row]) -> list[Any]:
        """Classes; for numbers, the fifth of the range they lie in."""
        if self.labels:
            return [int(row[self.label]) for row in rows]
        values = [float(row[self.label]) for row in rows]
        low, high = min(values), max(values)
        step = (high - low) / REGRESSION_STRATA or 1.0
        return [min(int((value - low) / step), REGRESSION_STRATA - 1) for value in values]

    def _text(self, row: Row) -> str:
        return " ".join(row[column] for column in self.text)

    def encode(self, rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> list[Features]:
        columns = [[row[column] for row in rows] for column in self.text]
        encoded = tokenizer(*columns, truncation=True, max_length=self.max_length)
        kind = float if self.regression else int
        features = []
        for index, row in enumerate(rows):
            one = {name: values[index] for name, values in encoded.items()}
            if not one["input_ids"]:
                raise ConfigError(f"task={self.name}: {self._text(row)!r} gives no tokens; remove the empty row")
            features.append({**one, "label": kind(row[self.label])})
        return features

    def predict(self, logits: "Tensor") -> list[Any]:
        return (logits.squeeze(-1) if self.regression else logits.argmax(-1)).tolist()

    def score(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        from harness.metrics import compute

        return compute(self.metrics, predictions, references)

    def majority(self, data: TaskData, split: str) -> dict[str, float]:
        answers = [row[self.label] for row in data.splits["train"]]
        if self.regression:
            answer: Any = fmean(answers)
        else:
            answer = Counter(answers).most_common(1)[0][0]
        references = [row[self.label] for row in data.splits[split]]
        return self.score([answer] * len(references), references)
