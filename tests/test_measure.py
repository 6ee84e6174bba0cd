"""Bytes and parameters are counted on the tensors, each storage once, quantization state included."""

import pytest
import torch

from harness import measure


def test_shared_storage_counts_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert measure.weight_bytes(model) == 64
    assert measure.logical_parameters(model) == 16


def test_gradients_and_optimizer_state_of_a_known_model() -> None:
    """10 x 5 weights and 10 biases: 60 numbers; Adam keeps two moments and a step count for each tensor."""
    model = torch.nn.Linear(5, 10)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 5)).sum().backward()
    assert measure.gradient_bytes(model) == 60 * 4
    optimizer.step()
    assert measure.optimizer_bytes(optimizer) == 2 * 60 * 4 + 2 * 4


def test_frozen_weights_have_no_gradient_bytes() -> None:
    model = torch.nn.Linear(5, 10)
    model.weight.requires_grad = False
    model(torch.ones(1, 5)).sum().backward()
    assert measure.gradient_bytes(model) == 40


def test_parameters_that_differ_from_the_closed_form_are_refused() -> None:
    class Wrong:
        def adapter_parameters(self) -> dict:
            return {"a": torch.nn.Parameter(torch.ones(3))}

        def head_parameters(self) -> dict:
            return {}

    with pytest.raises(AssertionError, match="trains 3 parameters, its closed form says 4"):
        measure.parameters(Wrong(), 4)  # type: ignore[arg-type]


def test_four_bit_weights_count_unpacked_and_their_state_counts() -> None:
    """64 x 64 weights at NF4: half a byte each, a float32 scale for each block of 64, and the codebook of 16."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compress_statistics=False)
    layer.weight = bitsandbytes.nn.Params4bit(
        torch.randn(64, 64), requires_grad=False, quant_type="nf4", compress_statistics=False
    )
    layer = layer.to("cpu")
    assert measure.logical_parameters(layer) == 64 * 64
    assert measure.weight_bytes(layer) == 64 * 64 // 2 + 64 * 4 + 16 * 4
