"""Tasks: the contract of a task; each file beside this one is a family of them, or what they share.

May import `training` and what lies below it.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from harness.training.batches import Collate, Features, Row

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from harness.measure import ForwardMeter
    from harness.methods import Adapter, Method
    from harness.models.architectures import Backbone, Kind
    from harness.training.batches import Batch
    from harness.training.evaluation import Evaluation, Subject

__all__ = ["Task", "TaskData"]


@dataclass(frozen=True)
class TaskData:
    """Checked rows by split.

    Attributes:
        splits: `train`, `development`, `validation`, and further evaluation splits such as `mismatched`.
        revision: Hash of the files, or revision of the Hub's copy, that the rows came from.
        notes: What provenance should say: rows by split, overlap between train and evaluation.
    """

    splits: dict[str, list[Row]]
    revision: str
    notes: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A data set, how it is presented to a model, and how answers are scored; a frozen dataclass from YAML."""

    name: str
    version: int
    primary_metric: str
    max_length: int

    def check(self, key: str) -> None:
        """Refuse settings that can't be right; `key` is the configuration key to name."""

    def revision(self) -> str:
        """Hash of the data that the task stands on, without reading the rows."""

    def load(self) -> TaskData:
        """Read, check and split the rows.

        Raises:
            ConfigError: A file, column or label is missing or wrong; the message names the file and the row.
        """

    @property
    def kind(self) -> "Kind":
        """The kind of head that the backbone needs."""

    @property
    def labels_count(self) -> int | None:
        """Width of the model's new head; null where the backbone's own output layer answers."""

    @property
    def regression(self) -> bool:
        """Whether the output is a number and not a class."""

    def on(self, configuration: "PretrainedConfig") -> "Task":
        """The task as a backbone of this configuration is given it.

        Raises:
            ConfigError: Such a backbone can't learn it.
        """

    def target_length(self) -> int | None:
        """Tokens of the longest answer, where a decoder of its own writes it; null where it is part of the text."""

    def check_method(self, method: "Method") -> None:
        """Refuse a method that the task can't be learned with.

        Raises:
            ConfigError: It can't.
        """

    def sequences(self) -> int:
        """Texts that a row makes the model read."""

    def loss_of_model(self) -> bool:
        """Whether the loss of a batch is what the model itself computes from the batch, in one forward pass."""

    def against_backbone(self) -> bool:
        """Whether the scores are held against the backbone alone already."""

    def lengths(self) -> dict[str, int]:
        """Positions that the longest text takes of the model's context: configuration keys -> tokens, which add up."""

    def encode(self, rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> list[Features]:
        """Token ids of each row, cut to `max_length`, not padded."""

    def train_on(self, features: list[Features]) -> list[Features]:
        """The encoded rows that training uses: those that something can be learned from, packed or not."""

    def collator(self, backbone: "Backbone", tokenizer: "PreTrainedTokenizerBase", device: "Device") -> Collate:
        """The collate function for a backbone."""

    def loss(self, adapter: "Adapter", batch: "Batch") -> "Tensor":
        """The training loss of a batch: a scalar, a mean over what `Batch.weight` counts."""

    def rehearse(self, adapter: "Adapter", batch: "Batch") -> "Tensor":
        """Rehearsal of `loss` on tensors without values: its memory and operations, up to a scalar to go backward from.

        Args:
            batch: Inputs of the model as for its own loss, without targets.
        """

    def evaluate(
        self, subject: "Subject", features: list[Features], rows: list[Row], meter: "ForwardMeter | None" = None
    ) -> "Evaluation":
        """Score a model on encoded rows.

        Args:
            meter: Counts the first batch, which has the longest rows.
        """

    def question_columns(self) -> list[str]:
        """The columns that a row needs to be answered: all but those of the answer.

        Raises:
            ConfigError: The task asks nothing.
        """

    def question(self, row: Row, where: str) -> Row:
        """A row without an answer, its values as the task reads them; `where` names its place.

        Raises:
            ConfigError: It can't be used.
        """

    def infer(self, subject: "Subject", rows: list[Row], max_new_tokens: int | None) -> dict[str, list[Any]]:
        """Answers to such rows: `prediction`, by name where there are classes, and what it rests on.

        Args:
            max_new_tokens: Most tokens of a generated answer; null for the task's own.
        """

    def majority(self, data: TaskData, split: str) -> dict[str, float] | None:
        """The score of always giving the training rows' commonest answer; null where there is no such answer."""
