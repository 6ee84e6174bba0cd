"""What stands in for values while a step is rehearsed: only its memory and its operations are wanted."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any


@contextmanager
def stand_ins(fake: bool) -> Iterator[None]:
    """Rehearse without values.

    Args:
        fake: Whether the tensors have none. Those that have are multiplied with the result zero: a product in bfloat16
            takes a CPU without instructions for it minutes, and its values are of no matter here.
    """
    draws, products = _modes()
    with ExitStack() as stack:
        stack.enter_context(draws())
        if not fake:
            stack.enter_context(products())
        yield


@cache
def _modes() -> tuple[type, type]:
    """The classes are made on first use, because their base classes need torch, which start-up does not."""
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    kernels = torch.ops.aten
    multiplied = {kernels.mm.default, kernels.addmm.default, kernels.bmm.default, kernels.baddbmm.default}

    class Draws(TorchFunctionMode):
        """A single number that is drawn to switch a module off for this step leaves it on."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.rand and args == (1,):
                # Made from a number, it is known also where tensors are without values.
                return torch.tensor([1.0])
            return function(*args, **(kwargs or {}))

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function not in multiplied:
                return function(*args, **(kwargs or {}))
            # What is added comes before the two factors.
            *_, left, right = args
            return left.new_zeros((*left.shape[:-1], right.shape[-1]))

    return Draws, Products
