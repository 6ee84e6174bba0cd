"""Layers that methods add to a backbone. Imported where a method is attached, since torch is heavy."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """scale * up(activation(down(x))): what an adapter adds to a hidden state; zero at the start, for `up` is.

    Args:
        down: From the hidden width to the bottleneck.
        up: Back, with a bias.
        scale: A number, or a parameter if it is learned.
    """

    def __init__(
        self, down: nn.Module, activation: Callable[[Tensor], Tensor], up: nn.Module, scale: "float | nn.Parameter"
    ) -> None:
        super().__init__()
        self.down = down
        self.activation = activation
        self.up = up
        self.scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        """From and to ... x hidden, in the precision that comes in."""
        own = hidden.to(next(self.up.parameters()).dtype)
        return (self.scale * self.up(self.activation(self.down(own)))).to(hidden.dtype)


def linear_bottleneck(
    width: int,
    bottleneck: int,
    activation: Callable[[Tensor], Tensor],
    scale: "float | nn.Parameter",
    device: torch.device,
) -> Bottleneck:
    """Two dense layers: torch's own start for the one down, as He et al. take from LoRA, and zero for the one up.

    Houlsby et al. start both near zero and so near the identity; zero makes it the identity to the last bit, which
    can be tested, and its gradient is not zero.
    """
    down = nn.Linear(width, bottleneck, device=device, dtype=torch.float32)
    up = nn.Linear(bottleneck, width, device=device, dtype=torch.float32)
    nn.init.zeros_(down.bias)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    return Bottleneck(down, activation, up, scale)


class PHMLinear(nn.Module):
    """x W + b with W = sum_i A_i (x) (s_i t_i), Kronecker products of small matrices, the second of rank one.

    Args:
        rule: The matrices A, n x n x n, which all layers share.
        inputs: Width of x, a multiple of n.
        outputs: Width of the result, a multiple of n.
    """

    def __init__(self, rule: nn.Parameter, inputs: int, outputs: int) -> None:
        super().__init__()
        n = len(rule)
        self.rule = rule
        self.left = nn.Parameter(torch.empty(n, inputs // n, device=rule.device))
        self.right = nn.Parameter(torch.empty(n, outputs // n, device=rule.device))
        self.bias = nn.Parameter(torch.zeros(outputs, device=rule.device))
        for factor in (self.left, self.right):
            # Glorot's bound for each s_i (inputs / n x 1) and t_i (1 x outputs / n).
            bound = (6 / (factor.shape[1] + 1)) ** 0.5
            nn.init.uniform_(factor, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """From ... x inputs to ... x outputs."""
        weight = torch.einsum("iab,ip,iq->bqap", self.rule, self.left, self.right)
        return functional.linear(x, weight.reshape(self.right.numel(), self.left.numel()), self.bias)


class PrefixNetwork(nn.Module):
    """tanh(E W + b): the first layer of a network that makes prefixes, which all layers of a backbone share.

    Args:
        tokens: Rows of E.
        hidden: Columns of E.
        inner: Width of what comes out.
    """

    def __init__(self, tokens: int, hidden: int, inner: int, device: torch.device) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(tokens, hidden, device=device))
        self.inner = nn.Linear(hidden, inner, device=device, dtype=torch.float32)

    def forward(self) -> Tensor:
        """Tokens x inner."""
        return self.inner(self.tokens).tanh()


class Prefix(nn.Module):
    """Learned keys and values of one attention module.

    Args:
        tokens: How many.
        width: Width of each, all heads side by side.
        network: What makes them from; null where they are parameters.
    """

    def __init__(self, tokens: int, width: int, network: PrefixNetwork | None, device: torch.device) -> None:
        super().__init__()
        self.network = network
        if network is None:
            self.states = nn.Parameter(torch.randn(2, tokens, width, device=device))
        else:
            inner = network.inner.out_features
            self.outer = nn.Linear(inner, 2 * width, device=device, dtype=torch.float32)

    def forward(self) -> Tensor:
        """Keys and values, 2 x tokens x width."""
        if self.network is None:
            return self.states
        return self.outer(self.network()).unflatten(1, (2, -1)).transpose(0, 1)
