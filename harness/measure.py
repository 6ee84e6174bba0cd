"""What a run costs, counted on the tensors themselves."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from harness.methods import Adapter


def parameters(adapter: "Adapter", expected: int) -> dict[str, int]:
    """Count what is trained, with the names of `RunRecord.cost`, held against the method's closed form.

    Raises:
        AssertionError: The method did not attach what its paper says.
    """
    own = sum(p.numel() for p in adapter.adapter_parameters().values())
    head = sum(p.numel() for p in adapter.head_parameters().values())
    assert own == expected, f"the method trains {own} parameters, its closed form says {expected}"
    return {
        "adapter_parameters": own,
        "head_parameters": head,
        "trainable_parameters": own + head,
        "total_parameters": adapter.total_parameters(),
    }


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


def weight_bytes(model: "nn.Module") -> int:
    """Bytes of parameters, buffers and quantization state; memory that two of them share counts once."""
    return storage_bytes(_weight_tensors(model))


def _weight_tensors(model: "nn.Module") -> Iterator["Tensor"]:
    import torch

    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter
        # bitsandbytes keeps scales and codebooks beside the packed weights: 4-bit in quant_state, 8-bit in SCB.
        state = getattr(parameter, "quant_state", None)
        nested = [state, getattr(state, "state2", None)]
        tensors = [value for owner in nested if owner is not None for value in vars(owner).values()]
        tensors.append(getattr(parameter, "SCB", None))
        yield from (value for value in tensors if isinstance(value, torch.Tensor))
    for module in model.modules():
        scales = getattr(getattr(module, "state", None), "SCB", None)
        if isinstance(scales, torch.Tensor):
            yield scales


def gradient_bytes(model: "nn.Module") -> int:
    """Bytes of the gradients that are there: call it between backward and zero_grad."""
    return storage_bytes(p.grad for p in model.parameters() if p.grad is not None)


def optimizer_bytes(optimizer: "Optimizer") -> int:
    """Bytes of the optimizer's state tensors: call it after the first step."""
    return storage_bytes(_tensors(list(optimizer.state.values())))


def _tensors(value: Any) -> Iterator["Tensor"]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def storage_bytes(tensors: Iterable["Tensor"]) -> int:
    """Bytes behind tensors; a storage that several of them view counts once."""
    sizes = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        sizes[(str(tensor.device), storage.data_ptr())] = storage.nbytes()
    return sum(sizes.values())
