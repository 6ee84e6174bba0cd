"""Spans to fill in: how encoders with decoders were pretrained, and what they are asked before and after training.

T5 reads a text in which each span is replaced by a sentinel of its own, and writes the spans behind their sentinels
(Raffel et al. 2020, arXiv 1910.10683, section 3.1.4). BART reads a text in which each span is replaced by one mask, and
writes the whole text (Lewis et al. 2020, arXiv 1910.13461, section 2.2). Here both are asked about the same spans, and
only the tokens in them count.
"""

from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

from harness.models.tokens import around, token_ids
from harness.training.batches import by_length, pad, shifted_right

if TYPE_CHECKING:
    from torch import device as Device
    from torch import dtype as Dtype
    from transformers import PreTrainedTokenizerBase

# T5's: so many of the tokens, in spans of so many on average.
SHARE, MEAN_SPAN = 0.15, 3
SEED = 0
SENTINEL = "<extra_id_{}>"


class NoSpans(Exception):
    """Why there is nothing to fill in, in one sentence."""


@dataclass(frozen=True)
class SpanRow:
    """A passage with spans to fill in.

    Attributes:
        read: Token ids for the encoder.
        written: Token ids for the decoder to write.
        asked: For each of those, whether it is a token of a span.
    """

    read: list[int]
    written: list[int]
    asked: list[bool]


def rows(text: list[str], tokenizer: "PreTrainedTokenizerBase", length: int) -> list[SpanRow]:
    """Rows of up to `length` tokens with their spans, the same ones at every call; longer passages give several rows.

    Raises:
        NoSpans: The tokenizer has neither sentinels nor a mask, or the text nothing to hide.
    """
    sentinels = _sentinels(tokenizer)
    if not sentinels and tokenizer.mask_token_id is None:
        raise NoSpans("the tokenizer has neither sentinels (<extra_id_0>) nor a mask token to stand for a span")
    rng = Random(f"spans {SEED}")
    begin, end = around(tokenizer)
    room = length - len(begin) - len(end)
    found = []
    for passage in text:
        ids = token_ids(passage, tokenizer)
        for start in range(0, len(ids), room):
            piece = ids[start : start + room]
            if len(piece) > 1:
                found.append(_row(piece, draw(rng, len(piece)), begin, end, sentinels, tokenizer.mask_token_id))
    if not found:
        raise NoSpans("the text has no two tokens, of which one could be filled in")
    return found


def _sentinels(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while (name := SENTINEL.format(len(found))) in vocabulary:
        found.append(vocabulary[name])
    return found


def draw(rng: Random, tokens: int, share: float = SHARE) -> list[tuple[int, int]]:
    """Where spans begin and end: a text begins with what is kept and ends with a span, as T5's are drawn."""
    masked = min(tokens - 1, max(1, round(share * tokens)))
    count = min(max(1, round(masked / MEAN_SPAN)), tokens - masked)
    place, spans = 0, []
    for kept, hidden in zip(_parts(rng, tokens - masked, count), _parts(rng, masked, count), strict=True):
        spans.append((place + kept, place + kept + hidden))
        place += kept + hidden
    return spans


def _parts(rng: Random, total: int, count: int) -> list[int]:
    """A number as so many positive ones."""
    borders = [0, *sorted(rng.sample(range(1, total), count - 1)), total]
    return [after - before for before, after in pairwise(borders)]


def _row(
    ids: list[int],
    spans: list[tuple[int, int]],
    begin: list[int],
    end: list[int],
    sentinels: list[int],
    mask: int | None,
) -> SpanRow:
    read, written, asked, place = (
        list(begin),
        [] if sentinels else list(begin),
        [False] * (0 if sentinels else len(begin)),
        0,
    )
    for number, (first, last) in enumerate(spans):
        # With more spans than sentinels, as no text of a few hundred tokens has, the last one stands for the rest.
        stand_in = sentinels[min(number, len(sentinels) - 1)] if sentinels else mask
        assert stand_in is not None
        kept, hidden = ids[place:first], ids[first:last]
        read += [*kept, stand_in]
        before = [stand_in] if sentinels else kept
        written += [*before, *hidden]
        asked += [False] * len(before) + [True] * len(hidden)
        place = last
    return SpanRow([*read, *end], [*written, *end], [*asked, *[False] * len(end)])


def span_loss(
    model: Any,
    found: list[SpanRow],
    padding: int,
    batch_size: int,
    device: "Device",
    autocast: "Dtype | None" = None,
) -> tuple[float, int]:
    """Nats per token of the spans, and the number of those; leaves the model in evaluation mode."""
    import torch
    from torch.nn import functional

    count = sum(map(sum, (row.asked for row in found)))
    nll = 0.0
    model.eval()
    start = model.config.decoder_start_token_id
    with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=autocast is not None):
        for indices in by_length([len(row.read) for row in found], batch_size):
            batch = [found[index] for index in indices]
            written = pad([row.written for row in batch], padding)
            asked = pad([list(map(int, row.asked)) for row in batch], 0).bool().to(device)
            output = model(
                input_ids=pad([row.read for row in batch], padding).to(device),
                attention_mask=pad([[1] * len(row.read) for row in batch], 0).to(device),
                decoder_input_ids=shifted_right(written, start, padding).to(device),
            )
            losses = functional.cross_entropy(output.logits[asked].float(), written.to(device)[asked], reduction="none")
            nll += float(losses.double().sum())
    return nll / count, count
