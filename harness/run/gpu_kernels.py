"""What a GPU's kernels keep and a CPU's don't, and the other way round, for a plan that is made without a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def as_on_a_gpu(model: Any, quantized: bool) -> Iterator[None]:
    """Have a step on CPU tensors hold the memory that it holds on a GPU.

    What differs was found by comparing the two operator by operator on an H200 (torch 2.11, peft 0.21).

    Args:
        model: With the method attached.
        quantized: Whether its frozen weights are packed by bitsandbytes: peft's layers then trust autocast with their
            input on a GPU and don't cast it themselves, of which the backward pass would keep a copy a layer.
    """
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(model, active=quantized), _kernels()():
        yield


@cache
def _kernels() -> type:
    """The class is made on first use, because its base class needs torch, which start-up does not."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode
    from torch.utils._pytree import tree_map

    # What autocast leaves in the small type on a CPU and computes in float32 on a GPU
    # (https://docs.pytorch.org/docs/stable/amp.html).
    float32 = {functional.layer_norm, functional.group_norm, functional.softmax, functional.log_softmax, torch.softmax}

    class Kernels(TorchFunctionMode):
        """Attention drops inside of its fused kernel, dropout keeps one byte a number, norms are float32."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if function is functional.scaled_dot_product_attention:
                # A CPU's fused kernel has no dropout: with any, every probability would be kept for it.
                kwargs["dropout_p"] = 0.0
            elif function is functional.dropout:
                return _dropout(*args, **kwargs)
            elif function in float32 and torch.is_autocast_enabled("cpu"):
                args, kwargs = tree_map(_float32, (args, kwargs))
                with torch.autocast("cpu", enabled=False):
                    return function(*args, **kwargs)
            return function(*args, **kwargs)

    def _float32(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def _dropout(states: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if not training or p == 0.0:
            return states
        return torch.native_dropout(states, p, True)[0]

    return Kernels
