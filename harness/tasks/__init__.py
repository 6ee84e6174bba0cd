"""What a task is; each file beside this one is a family of them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from harness.architectures import Kind

Row = dict[str, Any]
Features = dict[str, Any]


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
        """What the backbone is asked for."""

    @property
    def labels_count(self) -> int:
        """Width of the model's output."""

    @property
    def regression(self) -> bool:
        """Whether the output is a number and not a class."""

    def encode(self, rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> list[Features]:
        """Token ids (and a label) of each row, cut to `max_length`, not padded."""

    def predict(self, logits: "Tensor") -> list[Any]:
        """Answers from logits of batch x labels."""

    def score(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        """Metric name -> value."""

    def majority(self, data: TaskData, split: str) -> dict[str, float]:
        """The score of always giving the training rows' commonest answer (their mean, for a number)."""
