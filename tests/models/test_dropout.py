"""Dropout from whole words: rate, scale and independence are as torch's own, in every place that has dropout."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.functional import dropout as torch_dropout
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForSequenceClassification

from harness import models
from harness.models.dropout import VALUES, drop, dropout_apart, dropout_places, fast_dropout

NUMBERS = 2**20
# Deviations of a count that has so many standard deviations is seen once in a billion tests.
DEVIATIONS = 6


def near(count: float, of: int, rate: float) -> bool:
    """Whether so many hits are what independent draws at the rate give."""
    return abs(count - of * rate) <= DEVIATIONS * math.sqrt(of * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.003, 0.9])
def test_the_rate_is_the_one_asked_for_in_every_part_of_a_word(rate: float) -> None:
    """To 1/65,536; a word has four numbers, and each of them has all of its bits."""
    torch.manual_seed(0)
    dropped = drop(torch.ones(NUMBERS), rate) == 0
    assert near(float(dropped.sum()), NUMBERS, rate)
    for part in range(4):
        assert near(float(dropped[part::4].sum()), NUMBERS // 4, rate)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_numbers_are_independent_of_their_neighbors_and_of_the_next_draw(rate: float) -> None:
    """Two are dropped together as often as chance has it, at each distance within a word and beyond, and over calls."""
    torch.manual_seed(1)
    first, second = (drop(torch.ones(NUMBERS), rate) == 0 for _ in range(2))
    for distance in (1, 2, 3, 4, 5, 8, 64):
        pairs = first[distance:] & first[:-distance]
        assert near(float(pairs.sum()), len(pairs), rate**2), distance
    assert near(float((first & second).sum()), NUMBERS, rate**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_stays(dtype: torch.dtype) -> None:
    """What stays is scaled by what the rate is once it is rounded; zeros are exact."""
    torch.manual_seed(2)
    states = torch.full((NUMBERS // 4, 3), 0.5, dtype=dtype)
    dropped = drop(states, 0.1)
    assert (dropped.dtype, dropped.shape) == (states.dtype, states.shape)
    share = round(0.1 * VALUES) / VALUES
    kept = torch.tensor(0.5, dtype=dtype) * (1 / (1 - share))
    assert set(dropped.unique().tolist()) == {0.0, float(kept)}
    assert float(dropped.double().mean()) == pytest.approx(0.5, rel=5e-3)


@pytest.mark.parametrize("rate", [0.999995, math.nextafter(1, 0)])
def test_of_the_highest_rates_below_one_something_stays(rate: float) -> None:
    """One number in 65,536, scaled by as much."""
    torch.manual_seed(9)
    dropped = drop(torch.ones(NUMBERS), rate)
    assert near(float((dropped != 0).sum()), NUMBERS, 1 / VALUES)
    assert set(dropped.unique().tolist()) == {0.0, float(VALUES)}


def test_gradients_go_where_states_went() -> None:
    """The same numbers are zero, the others scaled alike; one byte a number is kept for it."""
    torch.manual_seed(3)
    states = torch.randn(64, 33, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        dropped = drop(states, 0.25)
    dropped.sum().backward()
    assert states.grad is not None
    assert torch.equal(states.grad == 0, dropped == 0)
    assert torch.allclose(dropped, states * states.grad)
    assert sum(tensor.nbytes for tensor in kept if tensor.dim()) == states.numel()


def test_draws_come_from_torchs_generator() -> None:
    """The same seed gives the same masks, the next call others, and a state that is brought back goes on from there."""
    states = torch.ones(1000)
    torch.manual_seed(4)
    first, state = drop(states, 0.5), torch.get_rng_state()
    second = drop(states, 0.5)
    torch.manual_seed(4)
    assert torch.equal(drop(states, 0.5), first)
    torch.set_rng_state(state)
    assert torch.equal(drop(states, 0.5), second)
    assert not torch.equal(first, second)


def test_only_training_inside_of_the_context_draws_words() -> None:
    """Elsewhere dropout is torch's to the bit: in evaluation, at the rates 0 and 1, on a GPU, behind the context."""
    states = torch.randn(100)

    def seeded(**options: bool) -> torch.Tensor:
        torch.manual_seed(5)
        return functional.dropout(states, 0.5, **options)

    plain = seeded()
    with fast_dropout("cpu"):
        words = seeded()
        assert torch.equal(seeded(training=False), states)
        assert torch.equal(functional.dropout(states, 0.0), states)
        assert not functional.dropout(states, 1.0).any()
    assert not torch.equal(words, plain)
    with fast_dropout("cuda"):
        assert torch.equal(seeded(), plain)
    assert torch.equal(seeded(), plain)


class Named(torch.nn.Module):
    """A backbone whose file imported torch's dropout by name."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch_dropout(states, 0.5)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "drops",
    [torch.nn.Dropout(0.5), torch.nn.Dropout(0.5, inplace=True), Named()],
    ids=["module", "in place", "imported"],
)
def test_parts_of_a_batch_are_dropped_as_each_of_them_alone(drops: torch.nn.Module, device: str) -> None:
    """By a module, in place, and by a name that was imported; a part's numbers and gradients are to the bit."""

    def apart(given: list[torch.Tensor], compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        results = []
        for number, rows in enumerate(given[0].split(4)):
            torch.manual_seed(number)
            results.append(compute(rows))
        return torch.cat(results)

    states = torch.randn(12, 5, requires_grad=True)
    places = dropout_places(drops)
    with fast_dropout(device), dropout_apart(places, apart):
        together = drops(2 * states)
    together.sum().backward()
    for number, rows in enumerate(states.detach().split(4)):
        own = rows.clone().requires_grad_()
        torch.manual_seed(number)
        with fast_dropout(device):
            dropped = drops(2 * own)
        dropped.sum().backward()
        assert torch.equal(together[4 * number : 4 * number + 4], dropped)
        assert torch.equal(states.grad[4 * number : 4 * number + 4], own.grad)
    assert all(getattr(file, name) is torch_dropout for file, name in places)


def masks(rows: int, queries: int, keys: int) -> dict[str, torch.Tensor | None]:
    """What attention is masked with: nothing, truth values per key and per pair, and numbers to add."""
    seen = torch.rand(rows, 1, 1, keys) > 0.3
    seen[..., 0] = True
    return {"none": None, "keys": seen, "added": torch.randn(rows, 1, queries, keys)}


@pytest.mark.parametrize("mask", ["none", "keys", "added", "causal"])
@pytest.mark.parametrize("heads", [4, 2])
def test_attention_without_a_drop_is_the_fused_one(mask: str, heads: int) -> None:
    """At a rate that rounds to nothing every step is there but the drop; also where heads share keys and values."""
    torch.manual_seed(6)
    query, key, value = torch.randn(3, 4, 5, 8), torch.randn(3, heads, 5, 8), torch.randn(3, heads, 5, 8)
    given = {"attn_mask": masks(3, 5, 5).get(mask), "is_causal": mask == "causal", "enable_gqa": heads < 4}
    expected = functional.scaled_dot_product_attention(query, key, value, scale=0.3, **given)
    with fast_dropout("cpu"):
        found = functional.scaled_dot_product_attention(query, key, value, dropout_p=1e-9, scale=0.3, **given)
        undropped = functional.scaled_dot_product_attention(query, key, value, scale=0.3, **given)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(undropped, expected)


def test_attention_drops_probabilities() -> None:
    """With the unit vectors for values its output is the probabilities, of which the asked share is zero."""
    torch.manual_seed(7)
    query, key = torch.randn(64, 4, 32, 8), torch.randn(64, 4, 32, 8)
    value = torch.eye(32).expand(64, 4, 32, 32)
    with fast_dropout("cpu"):
        found = functional.scaled_dot_product_attention(query, key, value, dropout_p=0.1)
    exact = functional.scaled_dot_product_attention(query, key, value)
    zero = found == 0
    assert near(float(zero.sum()), zero.numel(), round(0.1 * VALUES) / VALUES)
    assert torch.allclose(found[~zero], exact[~zero] / 0.9, rtol=1e-3)


def test_a_query_that_sees_nothing_is_a_number() -> None:
    """As a row of padding is, whose gradient must not spoil the weights'."""
    query = torch.randn(1, 1, 2, 4, requires_grad=True)
    seen = torch.tensor([[True, False], [False, False]])
    with fast_dropout("cpu"):
        found = functional.scaled_dot_product_attention(query, query, query, attn_mask=seen, dropout_p=0.5)
    found.sum().backward()
    assert found.isfinite().all()
    assert query.grad is not None
    assert query.grad.isfinite().all()


class Operators(TorchDispatchMode):
    """Notes which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("architecture", "attention"), [("bert", "sdpa"), ("bart", "sdpa"), ("opt", "eager"), ("deberta-v2", "eager")]
)
def test_no_dropout_of_a_backbone_draws_number_by_number(
    architecture: str, attention: str, tiny_model: Callable[[str], Path]
) -> None:
    """Whether it is a module, a call, or inside of attention: torch's own draws are not asked for once."""
    models.quiet_libraries()
    model = AutoModel.from_pretrained(tiny_model(architecture), attn_implementation=attention).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
        for rate in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.1)
    ids = torch.randint(5, 40, (2, 6))
    with Operators() as plain:
        model(input_ids=ids)
    with fast_dropout("cpu"), Operators() as fast:
        model(input_ids=ids)
    draws = {"bernoulli_", "bernoulli", "native_dropout"}
    assert plain.names & draws
    assert not fast.names & draws
    assert "random_" in fast.names


def test_gradient_checkpointing_draws_the_same_masks_again(tiny_model: Callable[[str], Path]) -> None:
    """Gradients are those without it to the bit, though the masks are drawn again in the backward pass."""
    models.quiet_libraries()
    kept = AutoModelForSequenceClassification.from_pretrained(tiny_model("bert")).train()
    again = copy.deepcopy(kept)
    models.set_checkpointing(again, True)
    gradients = []
    for model in (kept, again):
        torch.manual_seed(8)
        with fast_dropout("cpu"):
            loss = model(input_ids=torch.arange(5, 41).view(4, 9), labels=torch.tensor([0, 1, 1, 0])).loss
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    # Behind the context masks are torch's again, both times.
    again.zero_grad()
    torch.manual_seed(8)
    again(input_ids=torch.arange(5, 41).view(4, 9), labels=torch.tensor([0, 1, 1, 0])).loss.backward()
    assert not torch.equal(next(again.parameters()).grad, gradients[0][0])
