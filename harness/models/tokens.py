"""Token ids of texts, and a tokenizer's own tokens."""

from typing import TYPE_CHECKING

from harness.config.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def beginning(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The beginning-of-sequence token, where the tokenizer puts it in front or the model has one for that alone.

    Some tokenizers leave it to whoever trains; GPT-2 and its like know only of a token that ends a sequence.
    """
    begin = tokenizer.bos_token_id
    if begin is None or (begin == tokenizer.eos_token_id and tokenizer("")["input_ids"][:1] != [begin]):
        return []
    return [begin]


def token_ids(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of text alone, whatever the tokenizer would put around it."""
    # Cut by who asks, so the tokenizer's warning that a model could not read it whole does not apply.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def end_of_sequence(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that ends an answer.

    Raises:
        ConfigError: There is none.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model.path={tokenizer.name_or_path}: the tokenizer has no end-of-sequence token, so no answer could end"
        )
    return tokenizer.eos_token_id


def around(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Token ids that the tokenizer puts in front of a text and behind it."""
    probe = token_ids("a", tokenizer)
    whole = list(tokenizer("a")["input_ids"])
    place = next(start for start in range(len(whole)) if whole[start : start + len(probe)] == probe)
    return whole[:place], whole[place + len(probe) :]
