"""Compacter's layers are sums of Kronecker products, and share their rule."""

import pytest
import torch
from tiny_methods import backbone_of, method_of

from harness.config.errors import ConfigError
from harness.methods.layers import PHMLinear


def test_a_layer_is_a_sum_of_kronecker_products_with_the_gradient_of_finite_differences() -> None:
    """Computed by hand in float64."""
    torch.manual_seed(0)
    layer = PHMLinear(torch.nn.Parameter(torch.randn(3, 3, 3)), inputs=6, outputs=12).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = sum(torch.kron(layer.rule[i], torch.outer(layer.left[i], layer.right[i])) for i in range(3))
    assert weight.shape == (6, 12)
    assert torch.allclose(layer(x), x @ weight + layer.bias, atol=1e-12)
    named = dict(layer.named_parameters())
    assert set(named) == {"rule", "left", "right", "bias"}
    assert torch.autograd.gradcheck(
        lambda x, *values: torch.func.functional_call(layer, dict(zip(named, values, strict=True)), (x,)),
        (x, *named.values()),
    )


def test_all_layers_share_one_rule_which_counts_once() -> None:
    """Eight layers hold the same tensor, and it is one trained parameter."""
    backbone = backbone_of("bert")
    adapter = method_of("compacter").attach(backbone)
    layers = [module for module in backbone.model.modules() if isinstance(module, PHMLinear)]
    assert len(layers) == 8
    assert len({id(layer.rule) for layer in layers}) == 1
    assert len([name for name in adapter.adapter_parameters() if name.endswith("rule")]) == 1


def test_at_the_start_the_projection_down_has_the_scale_of_a_dense_one() -> None:
    """The standard deviation of its output is of the order of one."""
    torch.manual_seed(0)
    configured = method_of("compacter", reduction_factor=4)
    layer = next(iter(configured.layers(backbone_of("bert")).values())).down
    out = layer(torch.randn(1000, 64))
    assert 0.2 < out.std().item() < 5


@pytest.mark.parametrize(("factor", "bottleneck"), [(32, 4), (8, 8), (6, 12)])
def test_a_reduced_width_is_rounded_up_to_what_the_products_need(factor: int, bottleneck: int) -> None:
    """The bottleneck is a multiple of the number of products."""
    assert method_of("compacter", reduction_factor=factor).bottleneck(64) == bottleneck


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phm_dim": 4, "bottleneck_dim": 6, "reduction_factor": None}, "does not divide the bottleneck 6"),
        ({"phm_dim": 6}, "does not divide the hidden width 64"),
    ],
)
def test_a_number_of_products_that_does_not_divide_is_refused(changes: dict, message: str) -> None:
    """The sentence names the width that it does not divide."""
    with pytest.raises(ConfigError, match=rf"method\.phm_dim=.*{message}"):
        method_of("compacter", **changes).expected_parameters(backbone_of("bert"))


def test_less_than_one_product_is_refused() -> None:
    """Zero products are named with what is allowed."""
    with pytest.raises(ConfigError, match=r"method\.phm_dim=0: 1 or more"):
        method_of("compacter", phm_dim=0)
