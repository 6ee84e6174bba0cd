"""Batches hold rows of like length, every row once, in an order that the seed decides."""

import random

import pytest
import torch

from harness.config.build import build
from harness.config.compose import compose
from harness.training.batches import MIXED_POOL_BATCHES, POOL_BATCHES, Collator, Order, bucketed, by_length

LENGTHS = [random.Random(number).randint(3, 60) for number in range(1003)]


def padding(batches: list[list[int]]) -> float:
    real = sum(LENGTHS)
    return 1 - real / sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)


@pytest.mark.parametrize("make", [lambda: bucketed(LENGTHS, 32, 0, 0), lambda: by_length(LENGTHS, 32)])
def test_every_row_comes_once(make) -> None:
    """In training order and in evaluation order."""
    rows = [row for batch in make() for row in batch]
    assert sorted(rows) == list(range(len(LENGTHS)))


def test_buckets_pad_little_where_shuffling_pads_much() -> None:
    """Less than a tenth against more than two fifths."""
    rows = list(range(len(LENGTHS)))
    random.Random(0).shuffle(rows)
    shuffled = [rows[start : start + 32] for start in range(0, len(rows), 32)]
    assert padding(bucketed(LENGTHS, 32, 0, 0)) < 0.1 < 0.4 < padding(shuffled)


def test_the_seed_and_the_epoch_decide_the_order() -> None:
    """The same two give the same batches, another one gives others."""
    assert bucketed(LENGTHS, 32, 0, 0) == bucketed(LENGTHS, 32, 0, 0)
    assert bucketed(LENGTHS, 32, 0, 0) != bucketed(LENGTHS, 32, 1, 0)
    assert bucketed(LENGTHS, 32, 0, 0) != bucketed(LENGTHS, 32, 0, 1)


def test_batches_do_not_come_in_order_of_length() -> None:
    """Buckets are shuffled among each other."""
    means = [sum(LENGTHS[row] for row in batch) / len(batch) for batch in bucketed(LENGTHS, 32, 0, 0)]
    assert means != sorted(means)


def order_of(weights: list[int], *overrides: str) -> Order:
    settings = build(compose("config", list(overrides))).train
    features = [{"length": length, "weight": weight} for length, weight in zip(LENGTHS, weights, strict=True)]
    return Order.of(features, settings, 3)


def test_rows_that_weigh_differently_are_mixed_more() -> None:
    """Classes are sorted over many batches, answers over few, and either over as many as are asked for."""
    alike, answers = [1] * len(LENGTHS), [1 + length // 2 for length in LENGTHS]
    assert order_of(alike).pool == POOL_BATCHES
    assert order_of(answers).pool == MIXED_POOL_BATCHES
    assert order_of(alike, "train.pool_batches=2").pool == order_of(answers, "train.pool_batches=2").pool == 2
    assert padding(order_of(alike).epoch(0)) < padding(order_of(answers).epoch(0)) < 0.35
    # Of a pool of one batch every row is as likely to stand beside any other.
    shuffled = order_of(answers, "train.pool_batches=1").epoch(0)
    assert padding(shuffled) > 0.4
    assert sorted(row for batch in shuffled for row in batch) == list(range(len(LENGTHS)))
    assert [batch == sorted(batch, key=LENGTHS.__getitem__) for batch in shuffled] == [True] * len(shuffled)


FEATURES = [
    {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "length": 3, "weight": 1, "label": 1},
    {"input_ids": [8], "attention_mask": [1], "length": 1, "weight": 1, "label": 0},
]


def test_padding_is_on_the_right_for_encoders_and_counted() -> None:
    """Real and padded tokens are counted apart."""
    batch = Collator({"input_ids": 9, "attention_mask": 0}, False, False, torch.device("cpu"))(FEATURES, [0, 1])
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.inputs["labels"].tolist() == [1, 0]
    assert (batch.tokens, batch.padded_tokens) == (4, 6)


def test_padding_is_on_the_left_for_decoders_with_positions_from_the_first_real_token() -> None:
    """A short row starts at position 0 behind its padding."""
    batch = Collator({"input_ids": 9, "attention_mask": 0}, True, True, torch.device("cpu"))(FEATURES, [0, 1])
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
