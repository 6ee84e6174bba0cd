"""Batches of rows of like length, so that little of a batch is padding."""

import inspect
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from harness.config.schema import TrainConfig
from harness.models.architectures import Kind

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch import device as Device
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from harness.models.architectures import Backbone


# Rows are shuffled, then sorted within pools of this many batches: smaller pools mix more, larger ones pad less.
POOL_BATCHES = 64
# The same where rows weigh differently, by their target tokens. Every batch moves the weights about as far, so that a
# batch of short answers alone, which are often of one kind, would count for more than its tokens do.
MIXED_POOL_BATCHES = 4
# transformers' losses skip targets of this value.
IGNORED = -100

Row = dict[str, Any]
# An encoded row: `input_ids`; `length`, its tokens; `weight`, how much of what the loss is a mean over it brings (a
# row, its target tokens), 0 where nothing can be learned from it; and what the task's own collator wants.
Features = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """A padded batch.

    Attributes:
        inputs: The model's arguments: tensors of batch x sequence, and `labels` of batch (classes) or batch x sequence.
        indices: Row numbers of the batch, in its order.
        tokens: Real tokens, padding left out.
        padded_tokens: Batch times sequence.
        weight: What the loss is a mean over: rows, target tokens, pairs. Accumulated batches are weighted by it.
        targets: What the task's loss needs beside the model's arguments.
    """

    inputs: "dict[str, Tensor]"
    indices: list[int]
    tokens: int
    padded_tokens: int
    weight: int
    targets: "dict[str, Tensor]" = field(default_factory=dict)


class Collate(Protocol):
    """Makes a batch of some of the encoded rows, on a device."""

    @property
    def device(self) -> "Device": ...

    def __call__(self, features: list[Features], indices: list[int]) -> Batch: ...


@dataclass(frozen=True)
class Order:
    """In which batches the rows come.

    Attributes:
        lengths: Tokens of each row.
        batch_size: Rows of a batch.
        pool: Batches within which rows are sorted by length.
        seed: Of the order.
    """

    lengths: list[int]
    batch_size: int
    pool: int
    seed: int

    @classmethod
    def of(cls, features: list[Features], settings: TrainConfig, seed: int) -> "Order":
        """The order of a run over these rows."""
        weights = {row["weight"] for row in features}
        pool = settings.pool_batches or (POOL_BATCHES if len(weights) < 2 else MIXED_POOL_BATCHES)
        return cls([row["length"] for row in features], settings.batch_size, pool, seed)

    def epoch(self, number: int) -> list[list[int]]:
        """Row numbers of an epoch's batches."""
        return bucketed(self.lengths, self.batch_size, self.seed, number, self.pool)


def bucketed(
    lengths: list[int], batch_size: int, seed: int, epoch: int, pool_batches: int = POOL_BATCHES
) -> list[list[int]]:
    """Row numbers of an epoch's batches: every row once, rows of like length together, batches in random order."""
    order = random.Random(f"{seed}/{epoch}")
    rows = list(range(len(lengths)))
    order.shuffle(rows)
    pool = pool_batches * batch_size
    batches = []
    for start in range(0, len(rows), pool):
        # The sort is stable, so rows of equal length stay shuffled.
        by_length = sorted(rows[start : start + pool], key=lengths.__getitem__)
        batches += [by_length[first : first + batch_size] for first in range(0, len(by_length), batch_size)]
    order.shuffle(batches)
    return batches


def by_length(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Row numbers of batches for evaluation: longest rows first, so that memory runs out at once or not at all."""
    rows = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]


@dataclass(frozen=True)
class Collator:
    """Pads rows into a batch.

    Attributes:
        pad_values: Name of an input of batch x sequence -> what to pad it with.
        left: Pad on the left, as decoders need whose score is read at the last position.
        positions: Give position ids that start at each row's first real token. Left padding would shift the absolute
            positions that some decoders count from the left edge.
        start: The token that a decoder beside an encoder begins to write from: it reads its labels one place later.
            Null for any other model.
    """

    pad_values: dict[str, int]
    left: bool
    positions: bool
    device: "Device"
    start: int | None = None

    def __call__(self, features: list[Features], indices: list[int]) -> Batch:
        import torch

        rows = [features[index] for index in indices]
        # A text and its answer are of one length, but where a decoder of its own writes the answer.
        longest = {name: max(len(row[name]) for row in rows) for name in self.pad_values if name in rows[0]}
        inputs = {
            name: torch.tensor([self._pad(row[name], width, self.pad_values[name]) for row in rows])
            for name, width in longest.items()
        }
        if self.positions:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        if "label" in rows[0]:
            inputs["labels"] = torch.tensor([row["label"] for row in rows])
        if self.start is not None and "labels" in longest:
            inputs["decoder_input_ids"] = shifted_right(inputs["labels"], self.start, self.pad_values["input_ids"])
        on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
        weight = sum(row["weight"] for row in rows)
        width = longest["input_ids"] + (longest["labels"] if "decoder_input_ids" in inputs else 0)
        return Batch(on_device, indices, sum(row["length"] for row in rows), width * len(rows), weight)

    def _pad(self, values: list[int], longest: int, value: int) -> list[int]:
        padding = [value] * (longest - len(values))
        return padding + values if self.left else values + padding


def collator_for(backbone: "Backbone", tokenizer: "PreTrainedTokenizerBase", device: "Device") -> Collator:
    """Padding of rows for a backbone: the inputs that its forward pass takes, on the side that its score needs.

    A decoder that classifies reads the score at the last position. A language model is scored at every position, and
    its padding lies on the right, where no real token sees it.
    """
    accepted = inspect.signature(backbone.model.forward).parameters
    pad_values = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    left = backbone.architecture.decoder and backbone.kind is Kind.classification
    padded = {name: value for name, value in pad_values.items() if name in accepted}
    if backbone.kind is not Kind.classification:
        # Positions come with packed rows only, whose attention they part.
        padded |= {"labels": IGNORED, "position_ids": 0}
    start = backbone.model.config.decoder_start_token_id if backbone.kind is Kind.seq2seq_lm else None
    return Collator(padded, left, left and "position_ids" in accepted, device, start)


def shifted_right(labels: "Tensor", start: int, padding: int) -> "Tensor":
    """What a decoder reads to write its labels (batch x sequence): a start token, then each label but the last."""
    read = labels.roll(1, dims=-1)
    read[:, 0] = start
    return read.masked_fill(read == IGNORED, padding)


def plain_inputs(tokens: "Tensor", kind: Kind, configuration: "PretrainedConfig | None" = None) -> "dict[str, Tensor]":
    """A model's arguments for token ids of batch x sequence without padding; the labels of a classifier alternate.

    Args:
        configuration: Of a classifier that reads its score at the end of sequence, which then ends each row.
    """
    import torch

    if kind is Kind.classification and configuration is not None and configuration.is_encoder_decoder:
        tokens = tokens.clone()
        tokens[:, -1] = configuration.eos_token_id

    labels = torch.arange(len(tokens)) % 2 if kind is Kind.classification else tokens.clone()
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def pad(rows: list[list[int]], value: int) -> "torch.Tensor":
    """Returns rows of different lengths as one tensor (batch x sequence), padded on the right."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
