"""Pairs of answers, one of them preferred: direct preference optimization, scored by which answer gains more."""

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.tasks import TaskData
from harness.tasks.prompts import PromptTask, answer_of
from harness.training.batches import IGNORED, Batch, Collator, Features, Row

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device
    from transformers import PreTrainedTokenizerBase

    from harness.measure import ForwardMeter
    from harness.methods import Adapter
    from harness.models.architectures import Backbone
    from harness.training.evaluation import Evaluation, Subject

SIDES = ("chosen", "rejected")
SCORES = ("reward_accuracy", "reward_margin", "loss", "chosen_loss", "reference_chosen_loss")


@dataclass(frozen=True)
class Preference(PromptTask):
    """A set of prompts with a preferred and another answer, by the names of its columns.

    An answer's implicit reward is beta * log(pi(answer) / pi_reference(answer)), the reference being the backbone
    alone (Rafailov et al. 2023, arXiv 2305.18290, section 4). The scores, over pairs that `max_length` leaves apart:

        reward_accuracy        share of pairs in which the chosen answer's reward is the larger one
        reward_margin          mean difference of the two rewards
        loss                   mean -log sigmoid(difference)
        chosen_loss            what the chosen answers cost: nats per token, as in supervised fine-tuning
        reference_chosen_loss  the same of the backbone alone

    Attributes:
        chosen: The column of the preferred answer.
        rejected: The column of the other.
        beta: The weight of staying close to the reference.
        dropout: Whether training computes with the dropout of backbone and method.
        drop_equal_pairs: Leave pairs with two equal answers out, and count them; false: they are refused.
    """

    chosen: str
    rejected: str
    beta: float
    dropout: bool
    drop_equal_pairs: bool

    def check(self, key: str) -> None:
        super().check(key)
        if self.metrics:
            raise ConfigError(f"{key}.metrics={self.metrics}: an empty list is allowed; pairs have scores of their own")
        if self.chosen == self.rejected:
            raise ConfigError(f"{key}.rejected={self.rejected}: another column than {key}.chosen is needed")
        if not 0 < self.beta < math.inf:
            raise ConfigError(f"{key}.beta={self.beta}: a positive number is needed")

    def further_scores(self) -> tuple[str, ...]:
        return SCORES

    def sequences(self) -> int:
        return len(SIDES)

    def loss_of_model(self) -> bool:
        return False

    def against_backbone(self) -> bool:
        return True

    def answers(self) -> dict[str, list[str]]:
        return {"chosen answer": [self.chosen], "rejected answer": [self.rejected]}

    def check_row(self, row: Row, where: str) -> None:
        super().check_row(row, where)
        if self._is_equal(row) and not self.drop_equal_pairs:
            raise ConfigError(
                f"{where}: {self.chosen} and {self.rejected} are equal, so neither is preferred; remove the row, or "
                "leave all such pairs out with task.drop_equal_pairs=true"
            )

    def load(self) -> TaskData:
        data = super().load()
        splits = {split: [row for row in rows if not self._is_equal(row)] for split, rows in data.splits.items()}
        left = {split: len(rows) for split, rows in splits.items()}
        for split, rows in data.splits.items():
            if not left[split]:
                raise ConfigError(f"task.drop_equal_pairs=true: all {len(rows)} pairs of the {split} split are equal")
        equal = {split: len(rows) - left[split] for split, rows in data.splits.items()}
        return TaskData(splits, data.revision, {**data.notes, "rows": left, "equal_pairs_left_out": equal})

    def generate(self, split: str, rows: int) -> list[Row]:
        from harness.tasks.micro_instruct import preferences

        return preferences(split, rows)

    def collator(self, backbone: "Backbone", tokenizer: "PreTrainedTokenizerBase", device: "Device") -> "PairCollator":
        from harness.training.batches import collator_for

        return PairCollator(collator_for(backbone, tokenizer, device))

    def loss(self, adapter: "Adapter", batch: Batch) -> "Tensor":
        from harness.tasks import dpo

        return dpo.loss(adapter, batch, self.beta, self.dropout)

    def rehearse(self, adapter: "Adapter", batch: Batch) -> "Tensor":
        from harness.tasks import dpo

        return dpo.rehearse(adapter, batch, self.dropout)

    def evaluate(
        self, subject: "Subject", features: list[Features], rows: list[Row], meter: "ForwardMeter | None" = None
    ) -> "Evaluation":
        from harness.tasks import dpo
        from harness.training.evaluation import Evaluation

        names = [*SIDES, *(f"reference_{side}" for side in SIDES)]
        found: dict[str, list[float]] = {name: [math.nan] * len(features) for name in names}
        with subject.computing():
            for batch, policy, reference in dpo.log_probabilities_of_rows(subject, features, meter):
                for name, values in zip(names, (*policy, *reference), strict=True):
                    for index, value in zip(batch.indices, values.tolist(), strict=True):
                        found[name][index] = value
        apart = [index for index, row in enumerate(features) if row["weight"]]
        margins = {
            index: self.beta
            * (
                found["chosen"][index]
                - found["reference_chosen"][index]
                - (found["rejected"][index] - found["reference_rejected"][index])
            )
            for index in apart
        }
        tokens = sum(features[index]["chosen"]["weight"] for index in apart)
        scores = {
            "reward_accuracy": statistics.fmean(margin > 0 for margin in margins.values()),
            "reward_margin": statistics.fmean(margins.values()),
            "loss": statistics.fmean(softplus(-margin) for margin in margins.values()),
            "chosen_loss": -math.fsum(found["chosen"][index] for index in apart) / tokens,
            "reference_chosen_loss": -math.fsum(found["reference_chosen"][index] for index in apart) / tokens,
        }
        columns: dict[str, list[Any]] = {
            "label": [1] * len(features),
            "prediction": [int(margins[index] > 0) if index in margins else None for index in range(len(features))],
            "margin": [margins.get(index) for index in range(len(features))],
            **{f"{name}_log_probability": values for name, values in found.items()},
        }
        return Evaluation(scores, columns, {"reference_bytes": subject.adapter.reference_bytes()})

    def majority(self, data: TaskData, split: str) -> dict[str, float]:
        """The score of a fair coin."""
        return {"reward_accuracy": 0.5}

    def _is_equal(self, row: Row) -> bool:
        return answer_of(row[self.chosen]).strip() == answer_of(row[self.rejected]).strip()

    def encode_row(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Features:
        """Both answers behind the prompt, each ended; the weight is 0 where nothing is left that tells them apart."""
        sides = {
            side: self.encode_answer(row, answer_of(row[getattr(self, side)]).strip(), tokenizer) for side in SIDES
        }
        chosen, rejected = sides.values()
        longer = max(chosen, rejected, key=lambda side: side["length"])
        apart = chosen["weight"] and rejected["weight"] and chosen["input_ids"] != rejected["input_ids"]
        return {
            **sides,
            "input_ids": longer["input_ids"],
            "length": longer["length"],
            "weight": int(bool(apart)),
            "cut": bool(apart) and (chosen["cut"] or rejected["cut"]),
        }


@dataclass(frozen=True)
class PairCollator:
    """Pads pairs into a batch: the chosen answers' rows, and below them the rejected ones' in the same order."""

    rows: Collator

    @property
    def device(self) -> "Device":
        return self.rows.device

    def __call__(self, features: list[Features], indices: list[int]) -> Batch:
        sides = [features[index][side] for side in SIDES for index in indices]
        batch = self.rows(sides, list(range(len(sides))))
        answers = batch.inputs.pop("labels") != IGNORED
        weight = sum(features[index]["weight"] for index in indices)
        return Batch(
            batch.inputs, indices, batch.tokens, batch.padded_tokens, weight, {"completion_mask": answers.long()}
        )


def softplus(value: float) -> float:
    """log(1 + exp(value)), which is -log sigmoid(-value), without overflow."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
