"""Tasks whose data are rows with columns: from the Hub, from local files, or from a generator."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError, near_misses
from harness.models import check_head
from harness.models.architectures import Kind
from harness.tasks import TaskData, files, sources
from harness.tasks.leakage import overlap
from harness.training.batches import Collate, Features, Row

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from harness.methods import Adapter, Method
    from harness.models.architectures import Backbone
    from harness.training.batches import Batch


# The column that numbers rows, where there is one.
IDX = "idx"


@dataclass(frozen=True)
class RowTask:
    """Common part of tasks with rows: where the rows come from, and which of them are set aside.

    Attributes:
        hub: The Hub's copy; null for a task that is generated or only local.
        generator: A task of the micro world, with the rows of each split; null elsewhere.
        splits: Our split -> the name it has in the Hub's copy. Further evaluation splits may follow validation.
        metrics: Names of harness/training/metrics.py.
        data_dir: A folder with train.*, validation.* (JSONL, CSV, Parquet) in the column names of the Hub's copy.
        development_share: Share of train that is set aside, at most `max_development_rows`, stratified.
        max_validation_rows: Score at most so many rows of every evaluation split beside development; null: all.
        split_seed: Decides which rows are set aside, and which `max_train_rows` are kept: the same for every method.
    """

    name: str
    version: int
    hub: sources.Hub | None
    generator: str | None
    generator_rows: dict[str, int] | None
    splits: dict[str, str]
    metrics: list[str]
    primary_metric: str
    data_dir: str | None
    max_length: int
    max_train_rows: int | None
    max_development_rows: int
    max_validation_rows: int | None
    development_share: float
    split_seed: int

    @classmethod
    def without_rows(cls, values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The task's keys as a plan takes them, which reads no rows, and what it assumes in their place."""
        has_source = values.get("data_dir") or values.get("generator") or (values.get("hub") or {}).get("path")
        return values if has_source else {**values, "data_dir": "."}, []

    def check(self, key: str) -> None:
        from harness.training.metrics import METRICS

        for metric in self.metrics:
            if metric not in METRICS:
                raise ConfigError(f"{key}.metrics={metric}: no such metric; {near_misses(metric, METRICS)}")
        scores = [*self.metrics, *self.further_scores()]
        if self.primary_metric not in scores:
            raise ConfigError(f"{key}.primary_metric={self.primary_metric}: not among {', '.join(scores)}")
        for name, value in {"max_length": self.max_length, "max_development_rows": self.max_development_rows}.items():
            if value < 1:
                raise ConfigError(f"{key}.{name}={value}: a positive number is needed")
        for name, most in {
            "max_train_rows": self.max_train_rows,
            "max_validation_rows": self.max_validation_rows,
        }.items():
            if most is not None and most < 1:
                raise ConfigError(f"{key}.{name}={most}: a positive number, or null, is needed")
        if not 0 < self.development_share < 1:
            raise ConfigError(f"{key}.development_share={self.development_share}: a share between 0 and 1 is needed")
        if not self.has_source():
            raise ConfigError(f"{key}.data_dir=null: name a folder, a data set of the Hub, or a generator")

    def has_source(self) -> bool:
        """Whether the rows come from somewhere."""
        return bool(self.hub or self.generator or self.data_dir)

    def further_scores(self) -> tuple[str, ...]:
        """Scores beside `metrics` that may be primary."""
        return ()

    def on(self, configuration: "PretrainedConfig") -> "RowTask":
        """The task as a backbone of this configuration is given it.

        Raises:
            ConfigError: Such a backbone can't learn it.
        """
        check_head(configuration, self.kind, f"task={self.name}")
        return self

    def target_length(self) -> int | None:
        """Tokens of the longest answer, where a decoder of its own writes it; null where it is part of the text."""
        return None

    @property
    def kind(self) -> Kind:
        """The kind of head that the backbone needs."""
        raise NotImplementedError

    def check_method(self, method: "Method") -> None:
        """Refuse a method that the task can't be learned with; there is none."""

    def sequences(self) -> int:
        """Texts that a row makes the model read."""
        return 1

    def loss_of_model(self) -> bool:
        return True

    def against_backbone(self) -> bool:
        """Whether the scores are held against the backbone alone already."""
        return False

    def loss(self, adapter: "Adapter", batch: "Batch") -> "Tensor":
        """The training loss of a batch: a scalar, a mean over what `Batch.weight` counts."""
        raise NotImplementedError

    def rehearse(self, adapter: "Adapter", batch: "Batch") -> "Tensor":
        """Rehearsal of `loss` on tensors without values: its memory and operations."""
        return self.loss(adapter, batch)

    def columns(self) -> list[str]:
        """The columns that every row must have."""
        raise NotImplementedError

    def text_columns(self) -> list[str]:
        """Those of the columns that are text, whatever their cells look like."""
        return self.columns()

    def tidy(self, row: Row) -> list[Row]:
        """The rows that a row of the file stands for, their values as the task reads them; mostly itself."""
        return [row]

    def check_row(self, row: Row, where: str) -> None:
        """Refuse a row that can't be used; `where` names its place."""

    def question_columns(self) -> list[str]:
        """The columns that a row needs to be answered: all but those of the answer."""
        raise NotImplementedError

    def question(self, row: Row, where: str) -> Row:
        """A row without an answer, its values as the task reads them; `where` names its place."""
        raise NotImplementedError

    def strata(self, rows: list[Row]) -> list[Any]:
        """Strata whose shares the development split keeps, one value per row."""
        return [None] * len(rows)

    def shown(self, row: Row) -> str:
        """The text of a row that a model is shown; compared between splits to find rows that were seen in training."""
        raise NotImplementedError

    def generate(self, split: str, rows: int) -> list[Row]:
        """Rows of the generator."""
        raise NotImplementedError

    def generator_revision(self) -> str:
        """Hash of what the generator writes."""
        raise NotImplementedError

    def revision(self) -> str:
        if self.data_dir is not None:
            return sources.files_revision(sources.local_files(self.data_dir, self.splits))
        if self.generator is not None:
            return self.generator_revision()
        assert self.hub is not None
        return sources.hub_revision(self.hub, self.splits["train"])

    def load(self) -> TaskData:
        raw = {split: self._checked(rows, split) for split, rows in self._read().items()}
        train = raw["train"]
        if "development" not in raw:
            train, raw["development"] = self.carve(train)
        raw["train"] = self.subsample(train, self.max_train_rows)
        for split in set(raw) - {"train", "development"}:
            raw[split] = self.subsample(raw[split], self.max_validation_rows)
        notes = {
            "rows": {split: len(rows) for split, rows in raw.items()},
            "overlap": {
                split: overlap(map(self.shown, raw["train"]), [self.shown(row) for row in rows])
                for split, rows in raw.items()
                if split != "train"
            },
        }
        return TaskData(raw, self.revision(), notes)

    def carve(self, train: list[Row]) -> tuple[list[Row], list[Row]]:
        """Set the development rows aside."""
        share, most = self.development_share, self.max_development_rows
        return sources.carve(train, self.strata(train), share, most, self.split_seed)

    def subsample(self, rows: list[Row], most: int | None) -> list[Row]:
        """The rows of a split that are used."""
        return sources.subsample(rows, most, self.split_seed)

    def train_on(self, features: list[Features]) -> list[Features]:
        """The encoded rows that training uses: those that something can be learned from."""
        return [row for row in features if row["weight"]]

    def _read(self) -> dict[str, list[Row]]:
        if self.data_dir is not None:
            found = sources.local_files(self.data_dir, self.splits)
            wanted, text = [*self.columns(), IDX], self.text_columns()
            return {
                split: [row for path in paths for row in sources.read_file(path, text, wanted)]
                for split, paths in found.items()
            }
        if self.generator is not None:
            counts = self.generator_rows or {}
            return {split: self.generate(split, rows) for split, rows in counts.items()}
        assert self.hub is not None
        return {split: list(sources.hub_rows(self.hub, name)) for split, name in self.splits.items()}

    def _where(self, split: str) -> str:
        if self.data_dir is not None:
            return f"task.data_dir: {sources.local_files(self.data_dir, self.splits)[split][0]}"
        return f"task={self.name}, {split} split"

    def _there(self, split: str) -> list[str]:
        """The columns of a split's file."""
        return files.columns(sources.local_files(str(self.data_dir), self.splits)[split][0])

    def _checked(self, rows: list[Row], split: str) -> list[Row]:
        where = self._where(split)
        there = None if self.data_dir is None else lambda: self._there(split)
        sources.check_columns(rows, self.columns(), where, there)
        found = []
        for number, row in enumerate(rows, start=1):
            for one in self.tidy(row):
                self.check_row(one, f"{where}, row {number}")
                found.append(one)
        if not found:
            raise ConfigError(f"{where}: the split has no rows")
        return found


@dataclass(frozen=True)
class LanguageTask(RowTask):
    """Common part of tasks that the backbone's own output layer answers."""

    @property
    def kind(self) -> Kind:
        return Kind.causal_lm

    @property
    def labels_count(self) -> None:
        return None

    @property
    def regression(self) -> bool:
        return False

    def lengths(self) -> dict[str, int]:
        return {"task.max_length": self.max_length}

    def collator(self, backbone: "Backbone", tokenizer: "PreTrainedTokenizerBase", device: "Device") -> Collate:
        from harness.training.batches import collator_for

        return collator_for(backbone, tokenizer, device)

    def loss(self, adapter: "Adapter", batch: "Batch") -> "Tensor":
        # A cache is of no use in training, and with one transformers would not look where packed rows begin.
        return adapter.model(**batch.inputs, use_cache=False).loss


def check_text(row: Row, columns: list[str], where: str) -> None:
    """Refuse what is not text.

    Raises:
        ConfigError: A column holds something else.
    """
    for column in columns:
        if not isinstance(row[column], str):
            raise ConfigError(f"{where}: {column}={row[column]!r} is not text")
