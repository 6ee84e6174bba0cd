"""Perplexity of a causal language model on running text, by strided windows."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

from harness.models.tokens import beginning, token_ids
from harness.training.batches import by_length, pad

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch import device as Device
    from torch import dtype as Dtype
    from transformers import PreTrainedTokenizerBase

    from harness.measure import ForwardMeter


@dataclass(frozen=True)
class Window:
    """Tokens that the model reads at once.

    Attributes:
        ids: Token ids, the context of the scored ones first.
        first_scored: Place in `ids` of the first token that is scored; all from there on are.
    """

    ids: list[int]
    first_scored: int

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return len(self.ids) - self.first_scored


@dataclass(frozen=True)
class TextScore:
    """Score of a model on texts.

    Where the model has no beginning-of-sequence token, the first token of a document is not scored, while its word and
    its bytes are counted. Documents without any scored token are left out.

    Attributes:
        window_nll: Negative log-likelihood (nats) of each window's scored tokens, in the order of the text.
        window_tokens: Scored tokens of each window.
        window_document: Place among the given texts of the one that the window is from.
        words: Whitespace-separated words.
        bytes: Length of the text in UTF-8.
    """

    window_nll: list[float]
    window_tokens: list[int]
    window_document: list[int]
    words: int
    bytes: int

    @property
    def nll(self) -> float:
        """Negative log-likelihood (nats) of all scored tokens."""
        return math.fsum(self.window_nll)

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return sum(self.window_tokens)

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self._each(self.tokens, "token")

    @property
    def perplexity(self) -> float:
        """exp(nll / tokens); infinite where it is above what a float holds."""
        return exponential(self.loss)

    @property
    def word_perplexity(self) -> float:
        """exp(nll / words), which models of different tokenizers can be compared by."""
        return exponential(self._each(self.words, "word"))

    @property
    def bits_per_byte(self) -> float:
        """Bits a byte, nll / ln 2 / bytes, which models of different tokenizers can be compared by."""
        return self._each(self.bytes, "byte") / math.log(2)

    def scores(self) -> dict[str, float]:
        """All four by name.

        Raises:
            ValueError: No token was scored; so do the single figures.
        """
        names = ("loss", "perplexity", "word_perplexity", "bits_per_byte")
        return {name: getattr(self, name) for name in names}

    def _each(self, number: int, what: str) -> float:
        if not self.tokens or not number:
            raise ValueError(
                f"the text has {self.tokens} tokens to score and {number} {what}s, so it has no loss per {what}; a "
                "text of two tokens has one to score"
            )
        return self.nll / number


def exponential(loss: float) -> float:
    """exp(loss), infinite where it is above what a float holds."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def windows(ids: list[int], window: int, stride: int) -> list[Window]:
    """Cut a document so that every token but the first is scored once.

    Each window starts `stride` tokens after the one before and scores the tokens that no earlier window held: they have
    `window - stride` tokens or more of context, or all there are.

    Args:
        ids: Token ids of one document; its first token has no context and is not scored.
        window: Tokens that the model reads at once, at most.
        stride: From 1, most context and most work, to `window - 1`, least of both.

    Raises:
        ValueError: A window of this stride would leave tokens without context.
    """
    if not 0 < stride < window:
        raise ValueError(
            f"windows of {window} tokens can't be {stride} tokens apart: from 1 to {window - 1} is allowed, so that "
            "every scored token has context"
        )
    cut: list[Window] = []
    end = 1
    for start in range(0, len(ids), stride):
        if end >= len(ids):
            break
        cut.append(Window(ids[start : start + window], end - start))
        end = start + window
    return cut


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of running text: a beginning-of-sequence token in front where the model has one, nothing behind."""
    return beginning(tokenizer) + token_ids(text, tokenizer)


def score(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    texts: list[str],
    window: int,
    stride: int,
    batch_size: int,
    device: "Device",
    autocast: "Dtype | None" = None,
    meter: "ForwardMeter | None" = None,
) -> TextScore:
    """Score texts with a causal language model; leaves it in evaluation mode.

    Args:
        model: Gives logits of batch x (virtual tokens +) sequence x vocabulary.
        texts: Documents; no window reaches over the end of one.
        window: Tokens that the model reads at once; with the method's virtual tokens it must fit the model's positions.
        stride: Tokens from one window to the next.
        batch_size: Windows that are computed side by side.
        device: Where the model is.
        autocast: What to compute in where that is less than float32; the likelihoods are computed in float32.
        meter: Counts the first batch, which has the longest windows.

    Raises:
        ValueError: The stride does not fit the window.
    """
    import torch

    cut = [windows(encode(tokenizer, text), window, stride) for text in texts]
    flat = [(document, one) for document, ones in enumerate(cut) for one in ones]
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=autocast is not None):
        nll = score_windows(model, [one for _, one in flat], batch_size, device, meter)
    read = [text for text, ones in zip(texts, cut, strict=True) if ones]
    return TextScore(
        window_nll=nll,
        window_tokens=[one.scored for _, one in flat],
        window_document=[document for document, _ in flat],
        words=sum(len(text.split()) for text in read),
        bytes=sum(len(text.encode()) for text in read),
    )


def score_windows(
    model: "nn.Module",
    cut: list[Window],
    batch_size: int,
    device: "Device",
    meter: "ForwardMeter | None" = None,
    shown: str | None = None,
) -> list[float]:
    """Negative log-likelihood (nats) of each window's scored tokens, in the order of the windows.

    Computes as it is called: the model in evaluation mode, gradients and autocast as they are set. Windows are padded
    on the right, where a causal model's real tokens neither see the padding nor are moved by it.

    Args:
        model: Gives logits of batch x (virtual tokens +) sequence x vocabulary.
        meter: Counts the first batch, which has the longest windows.
        shown: What a progress bar calls the work; null shows none.
    """
    nll = [0.0] * len(cut)
    batches = by_length([len(one.ids) for one in cut], batch_size)
    quiet = None if shown else True
    for number, indices in enumerate(tqdm(batches, desc=shown, unit="batch", disable=quiet, leave=False)):
        batch = [cut[index] for index in indices]
        with meter.counting(sum(len(one.ids) for one in batch)) if meter and number == 0 else nullcontext():
            found = _score_batch(model, batch, device)
        for index, value in zip(indices, found, strict=True):
            nll[index] = value
    return nll


def _score_batch(model: "nn.Module", batch: list[Window], device: "Device") -> list[float]:
    from torch.nn import functional

    # What padding holds does not matter; 0 is a token of every vocabulary.
    ids = pad([one.ids for one in batch], 0).to(device)
    mask = pad([[1] * len(one.ids) for one in batch], 0).to(device)
    logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    # Virtual tokens stand in front.
    logits = logits[:, logits.shape[1] - ids.shape[1] :]
    sums = []
    for row, one in enumerate(batch):
        # A row at a time: float32 logits over a large vocabulary are larger than anything else here.
        predicted = logits[row, one.first_scored - 1 : len(one.ids) - 1].float()
        losses = functional.cross_entropy(predicted, ids[row, one.first_scored : len(one.ids)], reduction="none")
        sums.append(float(losses.double().sum()))
    return sums
