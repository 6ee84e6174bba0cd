"""Batches and losses of language modeling: the next word, masked words, which part follows which, holes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any

from harness.tasks import spans
from harness.tasks.micro import corpus
from harness.training.batches import IGNORED, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

# BART's share of hidden words.
HIDDEN_SHARE = 0.3


@dataclass(frozen=True)
class Passage:
    """A passage as token ids, cut at the end of one of its sentences."""

    first: list[int]
    second: list[int]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)


def read_passages(split: str, number: int, seed: int, tokenizer: "PreTrainedTokenizerFast") -> Iterator[Passage]:
    """Yields passages of the corpus as token ids."""
    ids = tokenizer.get_vocab()
    rng = Random(f"cuts {split} {seed}")
    for text in corpus(split, number, seed):
        tokens = text.split()
        ends = [place + 1 for place, token in enumerate(tokens[:-1]) if token in (".", "?")]
        cut = rng.choice(ends)
        yield Passage([ids[token] for token in tokens[:cut]], [ids[token] for token in tokens[cut:]])


def batches(passages: Iterator[Passage], size: int, seed: int) -> Iterator[list[Passage]]:
    """Yields batches of passages of similar length, in an order that the seed decides."""
    rng = Random(f"batches {seed}")
    while pool := sorted(islice(passages, 16 * size), key=len):
        chunks = [pool[start : start + size] for start in range(0, len(pool), size)]
        rng.shuffle(chunks)
        yield from chunks


def with_strangers(batch: list[Passage], rng: Random) -> tuple[list[Passage], list[int]]:
    """Gives every second passage another's second part, one that shares words with its own.

    A second part drawn at random would be told by its topic; one that shares words has to be told by its meaning.

    Returns:
        The passages, and for each 1 where the second part is another's (BERT's convention) else 0.
    """
    shown, strange = [], []
    for passage in batch:
        if rng.random() < 0.5:
            shown.append(passage)
            strange.append(0)
            continue
        own = set(passage.second)
        others = [other.second for other in rng.sample(batch, min(24, len(batch))) if other.second != passage.second]
        closest = max(others or [passage.first], key=lambda second: len(own & set(second)) / len(own | set(second)))
        shown.append(Passage(passage.first, closest))
        strange.append(1)
    return shown, strange


def encoder_inputs(batch: list[Passage], tokenizer: "PreTrainedTokenizerFast") -> dict[str, "torch.Tensor"]:
    """Returns `[CLS] first [SEP] second [SEP]`, its segments and its mask (each batch x sequence)."""
    cls, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    ids = pad([cls + passage.first + sep + passage.second + sep for passage in batch], tokenizer.pad_token_id)
    segments = pad([[0] * (len(passage.first) + 2) + [1] * (len(passage.second) + 1) for passage in batch], 0)
    return {"input_ids": ids, "token_type_ids": segments, "attention_mask": (ids != tokenizer.pad_token_id).long()}


# --- Losses ---------------------------------------------------------------------------------------------------------


def causal_loss(inputs: dict[str, "torch.Tensor"], logits: "torch.Tensor") -> "torch.Tensor":
    """Returns the mean negative log-likelihood (nats) of each next word; padding does not count."""
    import torch

    targets = inputs["input_ids"][:, 1:].masked_fill(inputs["attention_mask"][:, 1:] == 0, IGNORED)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def encoder_causal_loss(model: Any, batch: list[Passage], tokenizer: Any) -> "torch.Tensor":
    """Returns the loss of an encoder that reads from left to right."""
    import torch

    inputs = encoder_inputs(batch, tokenizer)
    width = inputs["input_ids"].shape[1]
    # Padding lies on the right, where a causal mask hides it already. batch x 1 x sequence x sequence.
    visible = torch.ones(width, width, dtype=torch.bool).tril().expand(len(batch), 1, width, width)
    outputs = model(**{**inputs, "attention_mask": visible})
    return causal_loss(inputs, outputs.prediction_logits)


def encoder_masked_loss(
    model: Any, batch: list[Passage], tokenizer: Any, rng: Random, generator: Any
) -> tuple[Any, ...]:
    """Returns BERT's two losses (nats): masked words, and whether the second part belongs to the first.

    As in Devlin et al. (2019, section 3.1), 15% of the words are to be predicted, of which 80% are masked and 10%
    replaced by any other word.
    """
    import torch

    shown, strange = with_strangers(batch, rng)
    inputs = encoder_inputs(shown, tokenizer)
    ids = inputs["input_ids"]
    first_word = len(tokenizer.all_special_ids)
    words = ids >= first_word
    chance = torch.rand(ids.shape, generator=generator)
    chosen = words & (chance < 0.15)
    masked = ids.masked_fill(chosen & (chance < 0.12), tokenizer.mask_token_id)
    other = torch.randint(first_word, len(tokenizer), ids.shape, generator=generator)
    masked = torch.where(chosen & (chance >= 0.135), other, masked)
    outputs = model(**{**inputs, "input_ids": masked})
    word_loss = torch.nn.functional.cross_entropy(outputs.prediction_logits[chosen], ids[chosen])
    pair_loss = torch.nn.functional.cross_entropy(outputs.seq_relationship_logits, torch.tensor(strange))
    return word_loss, pair_loss


def encoder_summary_loss(model: Any, batch: list[Passage], tokenizer: Any, generator: Any) -> "torch.Tensor":
    """Returns the loss (nats) of half of the second part's words, told from [CLS] and the rest of that part alone.

    The first part is read in full by [CLS], but the second part sees of it only [CLS], so that [CLS] has to sum it up
    (after Gao and Callan 2021, Condenser, arXiv 2104.08253). It is what makes a frozen encoder of any use.
    """
    import torch

    inputs = encoder_inputs(batch, tokenizer)
    ids, segments, present = inputs["input_ids"], inputs["token_type_ids"], inputs["attention_mask"].bool()
    # batch x 1 x sequence x sequence: each part sees itself, and everything sees [CLS].
    visible = (segments[:, None, :, None] == segments[:, None, None, :]) & present[:, None, None, :]
    visible[..., 0] = True
    words = (segments == 1) & (ids >= len(tokenizer.all_special_ids))
    chosen = words & (torch.rand(ids.shape, generator=generator) < 0.5)
    masked = ids.masked_fill(chosen, tokenizer.mask_token_id)
    outputs = model(**{**inputs, "input_ids": masked, "attention_mask": visible})
    return torch.nn.functional.cross_entropy(outputs.prediction_logits[chosen], ids[chosen])


def decoder_loss(model: Any, batch: list[Passage], tokenizer: Any) -> "torch.Tensor":
    """Returns the loss of a decoder on `<s> passage </s>`."""
    rows = [[tokenizer.bos_token_id, *passage.first, *passage.second, tokenizer.eos_token_id] for passage in batch]
    ids = pad(rows, tokenizer.pad_token_id)
    inputs = {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long()}
    return causal_loss(inputs, model(**inputs).logits)


def infilling_loss(model: Any, batch: list[Passage], tokenizer: Any, rng: Random) -> "torch.Tensor":
    """Returns the loss of a decoder that writes `<s> passage </s>`, of which its encoder was shown the ruins.

    As in Lewis et al. (2020, section 2.2), three tenths of the words are hidden in spans, one mask for each, and the
    parts may have changed places.
    """
    read = []
    for passage in batch:
        parts = [passage.first, passage.second]
        words = [word for part in (parts if rng.random() < 0.5 else parts[::-1]) for word in part]
        shown, place = [tokenizer.bos_token_id], 0
        for first, last in spans.draw(rng, len(words), HIDDEN_SHARE):
            shown += [*words[place:first], tokenizer.mask_token_id]
            place = last
        read.append([*shown, *words[place:], tokenizer.eos_token_id])
    written = [[tokenizer.bos_token_id, *passage.first, *passage.second, tokenizer.eos_token_id] for passage in batch]
    ids = pad(read, tokenizer.pad_token_id)
    mask = (ids != tokenizer.pad_token_id).long()
    return model(input_ids=ids, attention_mask=mask, labels=pad(written, IGNORED)).loss
