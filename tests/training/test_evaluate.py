"""Scoring goes over every row once, whatever the batches, and gives back answers in the order of the rows."""

import math
from types import SimpleNamespace

import pytest
import torch

from harness.config.build import build
from harness.config.compose import compose
from harness.tasks.scoring import evaluate
from harness.training.batches import Collator
from harness.training.evaluation import Subject

FEATURES = [
    {
        "input_ids": [number % 7 + 1] * (number % 5 + 1),
        "attention_mask": [1] * (number % 5 + 1),
        "length": number % 5 + 1,
        "weight": 1,
        "label": number % 2,
    }
    for number in range(23)
]


class FirstTokenDecides(torch.nn.Module):
    """Logits (0, first token - 4): a model whose every answer can be worked out by hand."""

    def forward(self, input_ids, attention_mask, labels):
        logits = torch.stack([torch.zeros(len(input_ids)), input_ids[:, 0].float() - 4], dim=-1)
        return SimpleNamespace(logits=logits, loss=torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_rows_come_back_in_order_and_the_loss_is_a_mean_over_rows(batch_size: int) -> None:
    """Whatever the batch size, though batches go by length."""
    task = build(compose("config", ["task=glue/sst2"])).task
    collate = Collator({"input_ids": 0, "attention_mask": 0}, False, False, torch.device("cpu"))
    subject = Subject(SimpleNamespace(model=FirstTokenDecides()), None, collate, batch_size, None)
    scored = evaluate(task, subject, FEATURES, FEATURES)
    margins = [row["input_ids"][0] - 4 for row in FEATURES]
    assert scored.columns["prediction"] == [int(margin > 0) for margin in margins]
    right = [prediction == row["label"] for prediction, row in zip(scored.columns["prediction"], FEATURES, strict=True)]
    assert scored.scores["accuracy"] == pytest.approx(sum(right) / len(right))
    losses = [math.log1p(math.exp(m)) - m * row["label"] for m, row in zip(margins, FEATURES, strict=True)]
    assert scored.scores["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert [row[1] for row in scored.columns["scores"]] == margins
