"""Pairs of texts for tokenizers that put nothing between the two, as decoders' mostly do."""

from typing import TYPE_CHECKING

from harness.config.errors import ConfigError
from harness.models.tokens import around, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def are_glued(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer puts the second text right behind the first, so that their border is lost."""
    first, second = token_ids("a", tokenizer), token_ids("b", tokenizer)
    pair = tokenizer("a", "b")["input_ids"]
    return any(pair[start : start + len(first + second)] == first + second for start in range(len(pair)))


def encode(
    first: list[str], second: list[str], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> dict[str, list[list[int]]]:
    """Pairs with a separator in between, cut to a length from the end of the longer text.

    Raises:
        ConfigError: The tokenizer has no token that could part the two.
    """
    separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if separator is None:
        raise ConfigError(
            f"model.path={tokenizer.name_or_path}: the tokenizer has neither a separator nor an end of sequence, and "
            "the task's two texts need something between them"
        )
    begin, end = around(tokenizer)
    room = max(2, max_length - len(begin) - len(end) - 1)
    rows = []
    for one, other in zip(first, second, strict=True):
        left, right = token_ids(one, tokenizer), token_ids(other, tokenizer)
        # Of both as much as the shorter one leaves the longer.
        kept = max(room - len(right), min(len(left), room // 2))
        left = left[:kept]
        rows.append([*begin, *left, separator, *right[: room - len(left)], *end])
    return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
