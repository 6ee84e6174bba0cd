"""Forgetting: the backbone's loss on general text before and after fine-tuning."""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.models import digest, positions_of
from harness.models.architectures import Backbone, Kind
from harness.models.transformers_inner import hidden_states
from harness.tasks import spans
from harness.tasks.files import paragraphs
from harness.training import perplexity
from harness.training.batches import IGNORED, by_length, pad

if TYPE_CHECKING:
    from torch import device as Device
    from torch import dtype as Dtype
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.methods import Adapter
    from harness.training.evaluation import Subject

MICRO = "micro"
# Tokens that a model reads at once, where it has positions for as many: what is measured does not hang on the task's
# length.
WINDOW = 256
# Fewer positions than this hold no text worth reading.
FEWEST = 8
# As many tokens are masked as in BERT's pretraining (Devlin et al. 2019, section 3.1), but always by the mask token.
MASKED_SHARE = 0.15
MASKS_SEED = 0


class CannotMeasure(Exception):
    """Why forgetting can't be measured on a model, in one sentence."""


@dataclass(frozen=True)
class Forgetting:
    """A loss on general text with the adapter switched off and on.

    Attributes:
        metric: `perplexity` of decoders; `masked_loss` (nats per masked token) of encoders; `span_loss` (nats per
            token of a span to fill in) of encoders with decoders.
        before: Of the backbone alone.
        after: With the adapter.
        tokens: Tokens that were predicted.
    """

    metric: str
    before: float
    after: float
    tokens: int


@dataclass(frozen=True)
class MaskedRow:
    """A passage with some of its tokens masked.

    Attributes:
        ids: Token ids, special tokens included.
        targets: What each masked token was; `IGNORED` at all others.
    """

    ids: list[int]
    targets: list[int]


# --- The text -------------------------------------------------------------------------------------------------------


def read_text(source: str, tokenizer: "PreTrainedTokenizerBase", tokens: int) -> list[str]:
    """Passages of general text that hold about so many tokens in all.

    Args:
        source: `micro` for text that the micro backbones were not pretrained on, else a text file in UTF-8, whose
            passages are separated by blank lines.
        tokens: The last passage is cut to end about there.

    Raises:
        ConfigError: The file is missing, empty, not UTF-8, or holds fewer tokens.
    """
    from harness.tasks.micro import corpus

    chosen: list[str] = []
    left = tokens
    for passage in corpus("heldout", tokens) if source == MICRO else _read_passages(source):
        count = len(tokenizer(passage, add_special_tokens=False, verbose=False)["input_ids"])
        chosen.append(passage if count <= left else passage[: len(passage) * left // count])
        left -= count
        if left <= 0:
            return chosen
    raise ConfigError(
        f"forgetting.text={source}: the file has {tokens - left} tokens and forgetting.tokens={tokens} are to be read; "
        "give a longer text or a smaller number"
    )


def revision(source: str | None) -> str:
    """Fingerprint of the text in a run's identity: the hash of a file, wherever it lies; `micro` or `none`.

    Raises:
        ConfigError: There is no such file.
    """
    if source is None or source == MICRO:
        return source or "none"
    return digest([_file(source)])


def _file(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        raise ConfigError(f"forgetting.text={source}: there is no such file; {MICRO} or a text file is allowed")
    return path


def _read_passages(source: str) -> list[str]:
    try:
        content = _file(source).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"forgetting.text={source}: the file is not UTF-8") from error
    except OSError as error:
        raise ConfigError(f"forgetting.text={source}: the file can't be read: {error.strerror}") from error
    found = paragraphs(content.strip())
    if not found:
        raise ConfigError(f"forgetting.text={source}: the file is empty")
    return found


def mask(text: list[str], tokenizer: "PreTrainedTokenizerBase", length: int) -> list[MaskedRow]:
    """Rows of up to `length` tokens with their masks, the same ones at every call; longer passages give several rows.

    Raises:
        CannotMeasure: The tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise CannotMeasure("the tokenizer has no mask token")
    rng = Random(f"masks {MASKS_SEED}")
    rows = []
    for passage in text:
        cut = tokenizer(
            passage,
            truncation=True,
            max_length=length,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        for ids, special in zip(cut["input_ids"], cut["special_tokens_mask"], strict=True):
            places = [place for place, is_special in enumerate(special) if not is_special]
            chosen = set(rng.sample(places, min(len(places), max(1, round(MASKED_SHARE * len(places))))))
            shown = [tokenizer.mask_token_id if place in chosen else token for place, token in enumerate(ids)]
            targets = [token if place in chosen else IGNORED for place, token in enumerate(ids)]
            rows.append(MaskedRow(shown, targets))
    return rows


# --- A language model that reads what an adapted classification model computes --------------------------------------


class BorrowedHead:
    """The checkpoint's language-model head on the hidden states of a classification model.

    The whole adapted model is run, so that the method's hooks, virtual tokens and changed weights are all at work; its
    own head's answer is thrown away.
    """

    def __init__(self, adapter: "Adapter", backbone: Backbone, folder: Path, device: "Device") -> None:
        """Load the head.

        Raises:
            CannotMeasure: The checkpoint has none, or transformers knows of none for this architecture.
        """
        self.adapter = adapter
        self.inner: nn.Module = backbone.model.base_model
        self.language_model = load_language_model(folder, backbone.architecture.decoder)
        self.caught = caught_states(self.language_model)
        self.language_model.to(device)

    def eval(self) -> None:
        self.adapter.model.eval()
        self.language_model.eval()

    def __call__(self, input_ids: Any, attention_mask: Any) -> Any:
        """Logits of batch x sequence x vocabulary; virtual tokens, which stand in front, are left out."""

        def catch(module: Any, args: Any, output: Any) -> None:
            self.caught.hidden = output[0][:, -input_ids.shape[1] :].float()

        hook = self.inner.register_forward_hook(catch)
        try:
            self.adapter.model(input_ids=input_ids, attention_mask=attention_mask)
            return self.language_model(input_ids=input_ids, attention_mask=attention_mask)
        finally:
            hook.remove()
            self.caught.hidden = None


def load_language_model(folder: Path, decoder: bool) -> Any:
    """The checkpoint with its language-model head, in float32.

    Raises:
        CannotMeasure: The checkpoint has no such head, or transformers knows of none for this architecture.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    factory: Any = AutoModelForCausalLM if decoder else AutoModelForMaskedLM
    try:
        model, report = factory.from_pretrained(
            folder, dtype="float32", use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise CannotMeasure(f"the checkpoint can't be loaded with a language-model head: {first}") from error
    named, missing = dict(model.named_parameters(remove_duplicate=False)), set(report["missing_keys"])
    # The head's matrix is mostly that of the embeddings, and the checkpoint holds it by one name.
    held = {id(parameter) for name, parameter in named.items() if name not in missing}
    head = (name for name in named if not name.startswith(f"{model.base_model_prefix}."))
    lacking = sorted(name for name in head if id(named[name]) not in held)
    if lacking:
        raise CannotMeasure(f"the checkpoint has no language-model head: it lacks {lacking[0]}")
    return model


def caught_states(language_model: "PreTrainedModel") -> Any:
    """Put in place of a language model's backbone a module that returns hidden states computed elsewhere.

    The backbone's memory is given back, apart from embeddings, which mostly are the head's matrix too.

    Returns:
        The module; its `hidden` (batch x sequence x hidden) is what it returns.
    """
    from torch import Tensor, nn

    class CaughtStates(nn.Module):
        hidden: Tensor | None = None
        embeddings: Any

        @property
        def decoder(self) -> "CaughtStates":
            """OPT's language model asks its backbone's inner decoder."""
            return self

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return hidden_states(self.hidden)

    states = CaughtStates()
    # DeBERTa-v2's newer head multiplies by the embeddings that it finds here.
    states.embeddings = getattr(language_model.base_model, "embeddings", None)
    language_model.set_submodule(language_model.base_model_prefix, states)
    return states


# --- The measurement ------------------------------------------------------------------------------------------------


def measure(subject: "Subject", backbone: Backbone, folder: Path, text: list[str], virtual_tokens: int) -> Forgetting:
    """Measure a trained adapter; leaves the model in evaluation mode.

    Args:
        subject: The adapter with its tokenizer, and how it is evaluated; as many passages, or windows of them, are read
            side by side as it evaluates rows.
        backbone: The model that the adapter is attached to.
        folder: The files that the backbone was loaded from, where a classification model's language-model head is read.
            It stays as it was pretrained, also where the method trains the embeddings that it shares weights with.
        text: Passages of general text, as `read_text` gives them.
        virtual_tokens: Positions that the method takes.

    Raises:
        CannotMeasure: There is no language-model head, or no room for text.
    """
    pair = backbone.kind is Kind.seq2seq_lm
    if backbone.model.config.is_encoder_decoder and not pair:
        raise CannotMeasure("a classifier on an encoder with a decoder has no output layer to fill in spans with")
    window = room(backbone, virtual_tokens)
    adapter, tokenizer, device = subject.adapter, subject.tokenizer, subject.collate.device
    batch_size, autocast = subject.batch_size, subject.autocast
    decoder = backbone.architecture.decoder
    rows = [] if decoder or pair else mask(text, tokenizer, window)
    try:
        filled = spans.rows(text, tokenizer, window) if pair else []
    except spans.NoSpans as reason:
        raise CannotMeasure(str(reason)) from None
    own = backbone.kind is not Kind.classification
    model: Any = adapter.model if own else BorrowedHead(adapter, backbone, folder, device)

    def look() -> tuple[float, int]:
        if decoder:
            read = perplexity.score(model, tokenizer, text, window, window // 2, batch_size, device, autocast)
            if not read.tokens:
                raise CannotMeasure("the text has no token to score")
            return read.perplexity, read.tokens
        if pair:
            return spans.span_loss(model, filled, tokenizer.pad_token_id, batch_size, device, autocast)
        return masked_loss(model, rows, tokenizer.pad_token_id, batch_size, device, autocast)

    with adapter.disabled():
        before, tokens = look()
    after, _ = look()
    metric = "perplexity" if decoder else "span_loss" if pair else "masked_loss"
    return Forgetting(metric, before, after, tokens)


def room(backbone: Backbone, virtual_tokens: int) -> int:
    """Tokens of text that the model can read at once beside the method's virtual ones, `WINDOW` at most.

    Raises:
        CannotMeasure: There are too few.
    """
    positions = positions_of(backbone.model.config)
    if positions is None:
        return WINDOW
    left = min(WINDOW, positions - virtual_tokens)
    if left < FEWEST:
        raise CannotMeasure(f"the method's {virtual_tokens} virtual tokens leave {left} of {positions} positions")
    return left


def masked_loss(
    model: Any,
    rows: list[MaskedRow],
    pad_token_id: int,
    batch_size: int,
    device: "Device",
    autocast: "Dtype | None" = None,
) -> tuple[float, int]:
    """Nats a masked token, and the number of them; leaves the model in evaluation mode.

    Raises:
        CannotMeasure: No token is masked.
    """
    import torch
    from torch.nn import functional

    masked = sum(target != IGNORED for row in rows for target in row.targets)
    if not masked:
        raise CannotMeasure("the text has no token to mask")
    nll = 0.0
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=autocast is not None):
        for indices in by_length([len(row.ids) for row in rows], batch_size):
            batch = [rows[index] for index in indices]
            ids = pad([row.ids for row in batch], pad_token_id).to(device)
            seen = pad([[1] * len(row.ids) for row in batch], 0).to(device)
            targets = pad([row.targets for row in batch], IGNORED).to(device)
            asked = targets != IGNORED
            predicted = model(input_ids=ids, attention_mask=seen).logits[asked].float()
            losses = functional.cross_entropy(predicted, targets[asked], reduction="none")
            nll += float(losses.double().sum())
    return nll / masked, masked
