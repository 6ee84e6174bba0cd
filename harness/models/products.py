"""Products of bfloat16 matrices on a CPU without instructions for them: computed in float32 and rounded once.

Such a processor takes 20 to 30 times as long for them as for products in float32. One with the instructions multiplies
two bfloat16 numbers exactly and adds up in float32, which is what a product of the same numbers in float32 does; the
order of the sum is each kernel's own, so that results agree but for the last place of some.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from harness.config.schema import Experiment, Precision
from harness.models import cpu_precision
from harness.models.precision import device_type


def computed_in(device: str, precision: Precision) -> Precision:
    """What products of matrices are computed in where a run computes in this precision.

    Args:
        device: cpu or cuda.
        precision: Of the run, as it was settled.
    """
    here = cpu_precision.processor()
    without = here is not None and not here.flags & cpu_precision.INSTRUCTIONS
    return Precision.float32 if device == "cpu" and without else precision


def fast_products(device: str, precision: Precision) -> AbstractContextManager[Any]:
    """Have every product of bfloat16 matrices inside of this context, of the backward pass too, computed in float32.

    Where the processor has instructions for bfloat16, on a GPU and for runs in float32 nothing changes. Fused attention
    stays the processor's own.

    Args:
        device: cpu or cuda, of the tensors.
        precision: To compute in, as it was settled.
    """
    return nullcontext() if computed_in(device, precision) is precision else _class()()


def products_of(experiment: Experiment) -> AbstractContextManager[Any]:
    """`fast_products` for a run, around all that it computes."""
    train = experiment.train
    return fast_products(device_type(train.device.value), train.precision)


@cache
def _class() -> type:
    """The class is made on first use, because its base class needs torch, which start-up does not."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only

    kernels = torch.ops.aten
    # Without gradients the last three arrive whole.
    products = {
        *(kernels.mm.default, kernels.addmm.default, kernels.bmm.default, kernels.baddbmm.default),
        *(kernels.linear.default, kernels.matmul.default, kernels.einsum.default),
    }

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function not in products or not _all_lower(args):
                return function(*args, **kwargs)
            wide = tree_map_only(torch.Tensor, torch.Tensor.float, args)
            return function(*wide, **kwargs).to(torch.bfloat16)

    def _all_lower(args: Any) -> bool:
        """Whether all tensors are bfloat16 on a CPU: another mixture is left to torch to compute or to refuse."""
        found: list[Any] = []
        tree_map_only(torch.Tensor, found.append, args)
        return all(tensor.dtype is torch.bfloat16 and tensor.device.type == "cpu" for tensor in found)

    return Products
