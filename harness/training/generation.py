"""Answers of a language model: generation, and the likelihood of each of some given answers.

An encoder with a decoder reads the prompt in the one and writes in the other; a decoder alone goes on from the prompt.

Both take a transformers model, changed in place or not, or a `peft.PeftModel` around one. Where peft puts virtual
tokens in front, generation puts them between the padding and the prompt, and counts positions from the first of them,
as in training. peft's own `generate` leaves the padding of prompt and P-tuning between the two, and drops position ids:
there a prompt's answer depends on what else is in its batch.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.models.transformers_inner import cache_argument
from harness.training.batches import by_length

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class End:
    """What ends an answer beside the tokenizer's own end of sequence.

    Attributes:
        token: One token; null where it takes several.
        text: The text of those; null where it is one token.
    """

    token: int | None
    text: str | None


@dataclass(frozen=True)
class Generated:
    """Answers of a model.

    Attributes:
        tokens: New token ids of each prompt, in the order of the prompts, without the end of sequence.
        new_tokens: Tokens that were generated, ends of sequences counted.
        seconds: What it took.
    """

    tokens: list[list[int]]
    new_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Zero where nothing was generated."""
        return self.new_tokens / self.seconds if self.new_tokens else 0.0


def generate(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[list[int]],
    max_new_tokens: int,
    batch_size: int,
    end: End | None = None,
    num_beams: int = 1,
) -> Generated:
    """Answer each prompt with the likeliest token at every step, or by a beam; leaves the model in evaluation mode.

    The model's own generation settings (sampling, penalties, further end tokens) are set aside meanwhile.

    Args:
        model: A language model of transformers, or peft's wrapper of one.
        tokenizer: Gives the tokens that end a sequence and that pad it; without an end, all prompts get
            `max_new_tokens`.
        prompts: Token ids, unpadded.
        max_new_tokens: Most tokens of an answer, its end of sequence counted.
        batch_size: Prompts that are continued side by side, the longest first.
        end: What a chat template ends an answer with; null: the tokenizer's end of sequence alone does. An end that
            takes several tokens stays in `Generated.tokens`.
        num_beams: Answers that are kept side by side, of which the likeliest per token is given; 1 is greedy.

    Raises:
        ValueError: A prompt is empty, or the longest leaves too few of the model's positions.
    """
    import torch
    from tqdm import tqdm

    plain: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    encoder_decoder = bool(plain.config.is_encoder_decoder)
    _check_room(plain, prompts, (0 if encoder_decoder else max_new_tokens) + _virtual_count(model))
    ends = [token for token in (tokenizer.eos_token_id, end.token if end else None) if token is not None]
    text = end.text if end else None
    settings = _settings(plain, max_new_tokens, num_beams, ends, tokenizer.pad_token_id)
    answers: list[list[int]] = [[] for _ in prompts]
    new_tokens = 0
    model.eval()
    start = time.perf_counter()
    batches = by_length([len(prompt) for prompt in prompts], batch_size)
    with torch.inference_mode(), _without_own_settings(plain):
        for indices in tqdm(batches, desc="generate", unit="batch", disable=None, leave=False):
            inputs = _inputs(model, plain, [prompts[index] for index in indices], tokenizer.pad_token_id)
            # Prompts given as vectors do not come back, nor what an encoder read: its decoder's start does.
            given = 1 if encoder_decoder else inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
            stops = [_Written(text, tokenizer, given)] if text else None
            rows = _writer(model, plain).generate(**inputs, generation_config=settings, stopping_criteria=stops)
            for index, row in zip(indices, rows[:, given:].tolist(), strict=True):
                length = next((place for place, token in enumerate(row) if token in ends), len(row))
                if text:
                    length = _through(text, row[:length], tokenizer)
                answers[index] = row[:length]
                new_tokens += length if text and length < len(row) else min(length + 1, len(row))
    return Generated(answers, new_tokens, time.perf_counter() - start)


@dataclass(frozen=True)
class _Written:
    """Stops a row that has written a text; transformers' own needs a vocabulary that can write any text.

    Attributes:
        given: Tokens in front that were not generated.
    """

    text: str
    tokenizer: "PreTrainedTokenizerBase"
    given: int

    def __call__(self, rows: "Tensor", scores: "Tensor", **_: Any) -> "Tensor":
        import torch

        # A token writes a character or more, but for parts of one.
        last = rows[:, max(self.given, rows.shape[1] - 4 * len(self.text)) :].tolist()
        return torch.tensor([self.text in self.tokenizer.decode(row) for row in last], device=rows.device)


def _through(text: str, row: list[int], tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens up to and with those that write a text; all where none do. What follows is padding."""
    return next((count for count in range(1, len(row) + 1) if text in tokenizer.decode(row[:count])), len(row))


def option_log_likelihoods(
    model: "nn.Module",
    prompts: list[list[int]],
    options: list[list[list[int]]],
    batch_size: int,
) -> list[list[tuple[float, int]]]:
    """Log-probability (nats) of each option's tokens after its prompt, summed, and their number.

    The likeliest option by the sum favors short ones; by the sum over the number it is normalized for length.
    Leaves the model in evaluation mode.

    Args:
        model: A causal language model; its logits may have virtual positions in front.
        prompts: Token ids, unpadded.
        options: For each prompt, the token ids of each of its options.
        batch_size: Options that are scored side by side, the longest with their prompts first.

    Raises:
        ValueError: A prompt or an option is empty, or the longest do not fit the model's positions.
    """
    import torch

    from harness.training.perplexity import Window, score_windows

    if not all(option for of_one in options for option in of_one):
        raise ValueError("an option has no tokens: it has no likelihood")
    cut = [
        Window(prompt + option, len(prompt))
        for prompt, of_one in zip(prompts, options, strict=True)
        for option in of_one
    ]
    _check_room(model, prompts, 0)
    _check_room(model, [one.ids for one in cut], _virtual_count(model))
    model.eval()
    with torch.inference_mode():
        nll = score_windows(model, cut, batch_size, next(model.parameters()).device, shown="score options")
    scored = iter([(-value, one.scored) for value, one in zip(nll, cut, strict=True)])
    return [[next(scored) for _ in of_one] for of_one in options]


def _virtual_count(model: "nn.Module") -> int:
    """Virtual tokens that peft puts in front of a prompt; 0 without any, or switched off."""
    config = getattr(model, "active_peft_config", None)
    # Switched off, the wrapper's forward is that of the model inside.
    if config is None or not config.is_prompt_learning or model.forward == model.base_model.forward:  # type: ignore[union-attr]
        return 0
    return int(config.num_virtual_tokens)


def _settings(plain: "PreTrainedModel", max_new_tokens: int, num_beams: int, ends: list[int], padding: int) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        num_beams=num_beams,
        decoder_start_token_id=plain.config.decoder_start_token_id if plain.config.is_encoder_decoder else None,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=padding,
        use_cache=True,
    )


def _writer(model: "nn.Module", plain: "PreTrainedModel") -> Any:
    """The plain model, or peft's own, whose `generate` puts a prefix before the decoder beside an encoder."""
    return model if plain.config.is_encoder_decoder and _is_prefix(model) else plain


def _is_prefix(model: "nn.Module") -> bool:
    """Whether peft puts keys and values in front of what the model reads."""
    return bool(_virtual_count(model)) and model.active_peft_config.peft_type.value == "PREFIX_TUNING"  # type: ignore[union-attr]


def _check_room(model: "nn.Module", rows: list[list[int]], further: int) -> None:
    if not all(rows):
        raise ValueError("a prompt has no tokens: nothing stands before its answer")
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, rows), default=0)
    if positions is not None and longest + further > positions:
        raise ValueError(f"{longest} tokens and {further} further ones are more than the model's {positions} positions")


@contextmanager
def _without_own_settings(plain: "PreTrainedModel") -> Iterator[None]:
    """Set aside a checkpoint's generation settings, which fill in what `generate` was not told."""
    from transformers import GenerationConfig

    own: GenerationConfig = plain.generation_config
    plain.generation_config = GenerationConfig()
    try:
        yield
    finally:
        plain.generation_config = own


def _inputs(model: "nn.Module", plain: "PreTrainedModel", prompts: list[list[int]], padding: int) -> dict[str, Any]:
    """Prompts padded on the left, with peft's virtual tokens: arguments of the plain model's `generate`."""
    import torch

    rows = [torch.tensor(prompt, device=plain.device) for prompt in prompts]
    if plain.config.is_encoder_decoder:
        return _sources(model, plain, rows, padding)
    if not _virtual_count(model):
        return {"input_ids": _pad(rows, padding), "attention_mask": _mask(rows)}
    virtual: Tensor | Cache = model.get_prompt(len(rows))  # type: ignore[operator]
    if isinstance(virtual, torch.Tensor):
        embedded = [plain.get_input_embeddings()(row) for row in rows]
        vectors = [torch.cat([soft.to(row.dtype), row]) for soft, row in zip(virtual, embedded, strict=True)]
        return {"inputs_embeds": _pad(vectors, 0), "attention_mask": _mask(vectors)}
    # A prefix is keys and values of tokens before the first, padding included: it stays in front of that.
    mask = _mask(rows)
    seen = mask.new_ones(len(rows), virtual.get_seq_length())
    inputs = {"input_ids": _pad(rows, padding), "attention_mask": torch.cat([seen, mask], 1)}
    return inputs | {str(cache_argument(plain)): virtual}


def _sources(model: "nn.Module", plain: "PreTrainedModel", rows: "list[Tensor]", padding: int) -> dict[str, Any]:
    """What an encoder reads, padded on the right, with peft's virtual tokens in front: arguments of `generate`."""
    import torch

    if not _virtual_count(model) or _is_prefix(model):
        return {"input_ids": _pad(rows, padding, "right"), "attention_mask": _mask(rows, "right")}
    virtual: Tensor = model.get_prompt(len(rows))  # type: ignore[operator]
    embedded = [plain.get_input_embeddings()(row) for row in rows]
    vectors = [torch.cat([soft.to(row.dtype), row]) for soft, row in zip(virtual, embedded, strict=True)]
    return {"inputs_embeds": _pad(vectors, 0, "right"), "attention_mask": _mask(vectors, "right")}


def _pad(rows: "list[Tensor]", value: int, side: str = "left") -> "Tensor":
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


def _mask(rows: "list[Tensor]", side: str = "left") -> "Tensor":
    """1 where a row has a token or a vector, 0 where it is padded: batch x sequence."""
    import torch

    return _pad([torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows], 0, side)
