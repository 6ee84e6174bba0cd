"""Numbers of parameters, packed ones as what they stand for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def logical_parameters(model: "nn.Module", skip: str | None = None) -> int:
    """Parameters of a model, each once; packed 4-bit weights count as the numbers they stand for.

    Args:
        skip: Parameters with this in their name do not count.
    """
    named = model.named_parameters()  # tied weights come once
    return sum(logical_size(p) for name, p in named if skip is None or skip not in name)


def logical_size(parameter: "Tensor") -> int:
    """Numbers that a parameter stands for: two to a byte where bitsandbytes packed them."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()
