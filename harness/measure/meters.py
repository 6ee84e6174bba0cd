"""Meters of a run's costs, counted on the tensors themselves."""

import math
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, UntypedStorage, nn
    from torch.optim import Optimizer


def weight_bytes(model: "nn.Module") -> int:
    """Bytes of parameters, buffers and quantization state; memory that two of them share counts once."""
    return storage_bytes(_weight_tensors(model))


def _weight_tensors(model: "nn.Module") -> Iterator["Tensor"]:
    yield from model.buffers()
    yield from model.parameters()
    for module in model.modules():
        yield from quantization_state(module)


def quantization_state(module: "nn.Module") -> "Iterator[Tensor]":
    """Scales and codebooks that bitsandbytes keeps beside a module's own packed weights, in the same order each time.

    They are neither parameters nor buffers: of 4 bits they lie in the weight's quant_state, of 8 in its SCB, and from
    the first pass on in the module's state.
    """
    import torch

    for parameter in module.parameters(recurse=False):
        state = getattr(parameter, "quant_state", None)
        nested = [state, getattr(state, "state2", None)]
        tensors = [value for owner in nested if owner is not None for value in vars(owner).values()]
        tensors.append(getattr(parameter, "SCB", None))
        yield from (value for value in tensors if isinstance(value, torch.Tensor))
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
    for storage in storages(tensors):
        # Not the address of its data: tensors without data all have the same.
        sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


def storages(tensors: "Iterable[Tensor]") -> "Iterator[UntypedStorage]":
    """Storages behind tensors; a sparse one has one for its indices and one for its values."""
    import torch

    for tensor in tensors:
        # Of weights that are spread over processes, this one's.
        tensor = getattr(tensor, "_local_tensor", tensor)
        if tensor.layout is torch.sparse_coo:
            yield tensor._indices().untyped_storage()
            yield tensor._values().untyped_storage()
        else:
            yield tensor.untyped_storage()


def live_bytes(known: "Iterable[Tensor]") -> "LiveBytes":
    """Make a tracker of the tensor memory that comes to life inside its context; `known` tensors do not count."""
    return _live_bytes_class()(known)


class LiveBytes(Protocol):
    """Bytes of the tensors that operators made and that are still referenced, by any operator on any device.

    Attributes:
        live: Now.
        peak: The most there were at once.
    """

    live: int
    peak: int

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: Any) -> Any: ...


@cache
def _live_bytes_class() -> type:
    """The class is made on first use, because its base class needs torch, which start-up does not."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Tracker(TorchDispatchMode):
        def __init__(self, known: "Iterable[Tensor]") -> None:
            super().__init__()
            self.live = self.peak = 0
            # Torch keeps one Python object a storage, which views share, as long as anything refers to it.
            self._seen: dict[int, weakref.ref[Any]] = {}
            for storage in storages(known):
                self._see(storage, 0)

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = function(*args, **(kwargs or {}))
            for storage in storages(leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)):
                self._see(storage, storage.nbytes())
            return output

        def _see(self, storage: Any, size: int) -> None:
            key = id(storage)
            if key in self._seen:
                return
            self._seen[key] = weakref.ref(storage, lambda gone: self._free(key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

        def _free(self, key: int, size: int) -> None:
            del self._seen[key]
            self.live -= size

    return Tracker


def flop_counter() -> Any:
    """Make torch's counter of floating-point operations, taught the kernels of CPU attention and of bitsandbytes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kw: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    kernels = torch.ops.aten
    taught = {
        kernels._scaled_dot_product_flash_attention_for_cpu: forward,
        kernels._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    if "bitsandbytes" in sys.modules:
        packed = torch.ops.bitsandbytes
        taught |= dict.fromkeys((packed.gemm_4bit, packed.gemv_4bit), _times_4bit)
        taught |= {packed.int8_scaled_mm: _times_int8, packed.int8_mixed_scaled_mm: _times_mixed}
    counter = FlopCounterMode(display=False, custom_mapping=taught)
    counter.mod_tracker = _Whole()  # type: ignore[assignment]
    return counter


class _Whole:
    """In the place of torch's tracker of modules: only the total is wanted, and operations are of nothing smaller.

    The tracker's hooks on every module's tensors take time, and keep what gradient checkpointing computed again alive.
    """

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *exception: Any) -> None: ...


def _times_4bit(x: Any, packed: Any, shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Operations of a product with 4-bit weights of `shape`, rows x columns; unpacking them does not count."""
    return 2 * math.prod(x) // x[-1] * math.prod(shape)


def _times_int8(x: Any, weights: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(x) // x[-1] * math.prod(weights)


def _times_mixed(x: Any, quantized: Any, weights: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _times_int8(quantized, weights)


@dataclass
class StepCosts:
    """Costs of one training step, counted on its tensors.

    Attributes:
        rows: Texts of the batch.
        tokens: Its real tokens.
        length: Its longest row.
        padded_tokens: Tokens that were computed, padding and accumulated batches included.
        target_length: Its longest answer, where a decoder beside the encoder writes it.
        gradient_bytes: Gradients after the backward pass.
        optimizer_bytes: Optimizer state after the step.
        activation_bytes: What the forward pass left for the backward pass, the largest of accumulated batches.
        train_peak_bytes: Weights, optimizer state, and the most that lived beside them at once.
        flops: Of forward, backward and optimizer.
        cuda_allocated_bytes: Peak of the allocator, on a GPU.
        cuda_reserved_bytes: What the allocator had taken from the device.
    """

    rows: int
    tokens: int
    length: int
    padded_tokens: int
    target_length: int | None = None
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    activation_bytes: int = 0
    train_peak_bytes: int = 0
    flops: int = 0
    cuda_allocated_bytes: int | None = None
    cuda_reserved_bytes: int | None = None


class StepMeter:
    """Counts one real step in passing: it computes the same bits as without.

    Args:
        model: What is trained.
        optimizer: Its state is there before the step.
        costs: Filled in.

    Attributes:
        peaks: Weights, optimizer state, and the most that lived beside them at once, in each part of the step.
    """

    def __init__(self, model: "nn.Module", optimizer: "Optimizer", costs: StepCosts) -> None:
        self.model, self.optimizer, self.costs = model, optimizer, costs
        self.peaks: list[int] = []
        self._held = [*_weight_tensors(model), *_tensors(list(optimizer.state.values()))]
        self._live = live_bytes(self._held)
        self._flops = flop_counter()
        self._before = 0

    def __enter__(self) -> "StepMeter":
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._flops.__enter__()
        self._live.__enter__()
        return self

    def forward_begins(self) -> None:
        self._before = self._live.live

    def forward_ended(self) -> None:
        self.costs.activation_bytes = max(self.costs.activation_bytes, self._live.live - self._before)
        self.part_ended()

    def part_ended(self) -> None:
        """Count the largest moment of what follows by itself."""
        self.peaks.append(storage_bytes(self._held) + self._live.peak)
        self._live.peak = self._live.live

    def step_ended(self) -> None:
        """Call while the gradients are still there."""
        self.costs.gradient_bytes = gradient_bytes(self.model)
        self.costs.optimizer_bytes = optimizer_bytes(self.optimizer)

    def __exit__(self, *exception: Any) -> None:
        import torch

        self._live.__exit__(*exception)
        self._flops.__exit__(*exception)
        self.part_ended()
        self.costs.train_peak_bytes = max(self.peaks)
        self.costs.flops = self._flops.get_total_flops()
        if torch.cuda.is_available():
            self.costs.cuda_allocated_bytes = torch.cuda.max_memory_allocated()
            self.costs.cuda_reserved_bytes = torch.cuda.max_memory_reserved()


class ForwardMeter:
    """Counts one forward pass of an evaluation in passing.

    Args:
        whole: Has the pass inside of it be one on texts that nothing is known of beforehand.

    Attributes:
        peak_bytes: Weights, and the most that lived beside them at once.
        flops_per_token: Operations a real token.
    """

    def __init__(self, model: "nn.Module", whole: "Callable[[], AbstractContextManager[None]]" = nullcontext) -> None:
        self.model, self.whole = model, whole
        self.peak_bytes: int | None = None
        self.flops_per_token: float | None = None

    @contextmanager
    def counting(self, tokens: int) -> Iterator[None]:
        """Count what happens inside; `tokens` are the batch's real ones."""
        held = list(_weight_tensors(self.model))
        live, flops = live_bytes(held), flop_counter()
        with self.whole(), flops, live:
            yield
        self.peak_bytes = storage_bytes(held) + live.peak
        self.flops_per_token = flops.get_total_flops() / tokens
