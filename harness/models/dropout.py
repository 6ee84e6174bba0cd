"""Functions in the place of torch's dropout.

On a CPU masks are drawn as whole words: torch draws number by number, which takes a fifth of a step. Where several runs
share a batch, masks are drawn for each of them apart.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

# A number of a mask is dropped where 16 random bits lie below the rate's share of their values.
BITS = 16
VALUES = 2**BITS


def fast_dropout(device: str) -> AbstractContextManager[Any]:
    """Have every dropout of a forward pass inside of this context draw whole words, that of attention too.

    The rate is the asked one to 1/65,536, what stays is scaled by what the rate then is, and the numbers come from
    torch's generator. A GPU draws fast already: there nothing changes. What gradient checkpointing computes again, in
    the backward pass and so outside of the context, needs `as_in_the_forward_pass`.

    Args:
        device: cpu or cuda, of the tensors; a plan for a GPU does not enter.
    """
    return _whole_words() if device == "cpu" else nullcontext()


def as_in_the_forward_pass() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The `context_fn` of `torch.utils.checkpoint`: what is computed again draws the masks that were drawn before."""
    from torch.nn import functional

    return nullcontext(), _whole_words() if functional.dropout is _dropout else nullcontext()


@contextmanager
def _whole_words() -> Iterator[None]:
    from torch.nn import functional

    _of_torch()
    ours: list[Any] = [(functional, "dropout", _dropout), (functional, "scaled_dot_product_attention", _attention)]
    with _replaced(ours):
        yield


@contextmanager
def _replaced(ours: Sequence[tuple[Any, str, Callable[..., Any]]]) -> Iterator[None]:
    """Put functions of ours under names in modules: a mode that sees every function costs 1 to 5% of a step."""
    before = [getattr(module, name) for module, name, _ in ours]
    for module, name, function in ours:
        setattr(module, name, function)
    try:
        yield
    finally:
        for (module, name, _), function in zip(ours, before, strict=True):
            setattr(module, name, function)


def dropout_places(model: Any) -> list[tuple[Any, str]]:
    """Where the code of a model finds torch's dropout: module and name there, those that imported it among them."""
    from torch.nn import functional

    of_torch, _ = _of_torch()
    files = {sys.modules.get(kind.__module__) for module in model.modules() for kind in type(module).__mro__}
    found = [(file, name) for file in files if file for name, value in vars(file).items() if value is of_torch]
    return [(functional, "dropout"), *found]


def dropout_apart(places: Sequence[tuple[Any, str]], apart: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Have dropout inside of this context be drawn on parts of a batch, one after the other, as it is drawn now.

    Args:
        places: See `dropout_places`.
        apart: Takes tensors whose first dimension is the batch's rows and a function of some rows of each, and puts
            together what that gives.
    """

    def of(plain: Callable[..., Any]) -> Callable[..., Any]:
        def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
            if not training or not 0 < p < 1:
                return plain(input, p, training, inplace)
            # A clone, since torch changes no part of a tensor in place whose gradient is wanted.
            dropped = apart([input], lambda rows: plain(rows.clone() if inplace else rows, p, training, inplace))
            return input.copy_(dropped) if inplace else dropped

        return dropout

    return _replaced([(module, name, of(getattr(module, name))) for module, name in places])


def layer_numbers_apart(each: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Have the number that a backbone draws for a layer, to leave it out or not, be drawn for each part of a batch.

    It is given the first of them, so this is for a backbone that keeps every layer and draws nevertheless.

    Args:
        each: Calls a function once for each part, and lists what that gives.
    """
    import torch

    plain = torch.rand

    def rand(*size: Any, **options: Any) -> Any:
        return each(lambda: plain(*size, **options))[0] if size == ([],) else plain(*size, **options)

    return _replaced([(torch, "rand", rand)])


@cache
def _of_torch() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Torch's own dropout and attention, as they were before the first context."""
    from torch.nn import functional

    return functional.dropout, functional.scaled_dot_product_attention


def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if not training or inplace or not 0 < p < 1:
        return _of_torch()[0](input, p, training, inplace)
    return drop(input, p)


def drop(states: Any, rate: float) -> Any:
    """States of any shape with each number zero at the rate, and the others scaled so that their mean stays.

    The backward pass keeps one byte a number.
    """
    import torch

    # Of the highest rates something stays too: none at all could not be scaled.
    share = min(round(rate * VALUES), VALUES - 1)
    words = torch.empty(math.ceil(states.numel() * BITS / 64), dtype=torch.int64, device=states.device)
    # From the smallest on without an upper end: all 64 bits. Left out, the first bit would be none.
    words.random_(torch.iinfo(torch.int64).min, None)
    dropped = (words.view(torch.int16)[: states.numel()] < share - VALUES // 2).view(states.shape)
    return torch.where(dropped, 0.0, states).mul_(VALUES / (VALUES - share))


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Scaled dot-product attention; a CPU's fused kernel has no dropout, so that with any it is computed step by step.

    Args:
        query: Batch x heads x queries x width.
        key: Batch x heads x keys x width, or with fewer heads, each of which then serves several; `value` too.
        attn_mask: What broadcasts to batch x heads x queries x keys; true where a query sees a key, or numbers to add.
    """
    import torch

    if not 0 < dropout_p < 1:
        further: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        return _of_torch()[1](query, key, value, attn_mask, dropout_p, **further)
    if enable_gqa:
        key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], dim=1) for states in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scores = torch.matmul(query * (scale or query.shape[-1] ** -0.5), key.transpose(-2, -1))
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        # Not infinite: a query that sees nothing, as of padding, would give what is no number.
        scores = scores.masked_fill_(attn_mask.logical_not(), torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(drop(scores.softmax(dim=-1), dropout_p), value)
