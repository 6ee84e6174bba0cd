"""Dropout on a CPU, its masks drawn as whole words: torch draws number by number, which takes a fifth of a step."""

import math
from collections.abc import Callable, Iterator
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
    """Put ours in the place of torch's two functions: a mode that sees every function costs 1 to 5% of a step."""
    from torch.nn import functional

    _of_torch()
    before = functional.dropout, functional.scaled_dot_product_attention
    functional.dropout, functional.scaled_dot_product_attention = _dropout, _attention
    try:
        yield
    finally:
        functional.dropout, functional.scaled_dot_product_attention = before


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

    share = round(rate * VALUES)
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
