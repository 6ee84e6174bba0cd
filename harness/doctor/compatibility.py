"""Compatibility of methods and backbones: asked of the methods' own rules, or tried on tiny models."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness import methods
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError, near_misses
from harness.config.mistakes import choices
from harness.config.schema import Experiment, Precision, Quantization
from harness.methods import prepare_trained
from harness.models import (
    choose_precision,
    choose_quantization,
    empty_model,
    load_config,
    load_model,
    model_class,
)
from harness.models.architectures import ARCHITECTURES, Backbone, Kind
from harness.training.batches import plain_inputs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

LABELS = 2
VOCABULARY = 64
STORED = (Quantization.none, Quantization.nf4, Quantization.int8)
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
_GATED = {**_SMALL, "intermediate_size": 128, "num_key_value_heads": 1}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 32,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "decoder_start_token_id": 0,
}
# A tiny model of each architecture. What a method refuses there it refuses at any size, limits of width apart.
TINY: dict[str, dict[str, Any]] = {
    "bert": {**_SMALL, "intermediate_size": 128},
    **{name: {**_SMALL, "intermediate_size": 128} for name in ("roberta", "xlm-roberta")},
    "electra": {**_SMALL, "intermediate_size": 128, "embedding_size": 64},
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": 64,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 128,
        "pad_token_id": 0,
    },
    "deberta-v2": {**_SMALL, "intermediate_size": 128},
    "albert": {**_SMALL, "intermediate_size": 128, "embedding_size": 64},
    "modernbert": {**_SMALL, "intermediate_size": 128, "reference_compile": False},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "pad_token_id": 0},
    "opt": {**_SMALL, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 64},
    **dict.fromkeys(("llama", "qwen2", "mistral"), _GATED),
    **{name: {**_GATED, "head_dim": 32} for name in ("gemma", "qwen3", "gemma2", "gemma3_text")},
    "phi3": _GATED,
    "gpt_neox": {**_SMALL, "intermediate_size": 128},
    "t5": _T5,
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu"},
    "bart": {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        **dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 128),
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 2,
        **dict.fromkeys(("eos_token_id", "decoder_start_token_id"), 3),
    },
}


@dataclass(frozen=True)
class Finding:
    """Finding about one method on one backbone.

    Attributes:
        refusal: Why the method's rules refuse it; null where they allow it.
        failure: How trying it ended where it failed; null where it trained, or was not tried.
        tried: Whether it was.
    """

    method: str
    architecture: str
    kind: Kind
    quantization: Quantization
    refusal: str | None
    failure: str | None = None
    tried: bool = False

    @property
    def works(self) -> bool:
        return (self.failure if self.tried else self.refusal) is None

    @property
    def disagrees(self) -> bool:
        """Whether the rules allow what fails, or refuse what trains."""
        return self.tried and (self.refusal is None) != (self.failure is None)


def experiments(names: list[str] | None) -> dict[str, Experiment]:
    """An experiment for each method of conf/method/, or for those named; one that needs further keys is left out.

    Raises:
        ConfigError: There is no method of a name.
    """
    valid = choices("method")
    for name in names or ():
        if name not in valid:
            raise ConfigError(f"doctor.methods={name}: there is no such method; {near_misses(name, valid)}")
    found = {}
    for name in names or sorted(valid):
        try:
            found[name] = build(compose("config", [f"method={name}"]))
        except ConfigError:
            if names:
                raise
    return found


def backbones() -> Iterator[tuple[str, Kind]]:
    """Every architecture for classification, decoders for language modeling, those beside an encoder for answers."""
    yield from ((name, Kind.classification) for name in TINY)
    yield from ((name, Kind.causal_lm) for name in TINY if ARCHITECTURES[name].decoder)
    yield from ((name, Kind.seq2seq_lm) for name in TINY if ARCHITECTURES[name].pair)


def configuration(architecture: str, kind: Kind) -> "PretrainedConfig":
    """The tiny configuration of an architecture."""
    from transformers import AutoConfig

    labels = {"num_labels": LABELS} if kind is Kind.classification else {}
    return AutoConfig.for_model(architecture, **labels, **TINY[architecture])


def words(rows: int, length: int) -> "Tensor":
    """Token ids of words of the tiny vocabulary, rows x length, the same every time."""
    import torch

    return torch.randint(4, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))


def ask(tasks: dict[str, Experiment]) -> list[Finding]:
    """Ask the rules of every method for every backbone and way to store it: what a run would be told."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        _save_tokenizer(Path(folder))
        for architecture, kind in backbones():
            skeleton = empty_model(configuration(architecture, kind), kind)
            skeleton.model.config.name_or_path = folder  # some methods look at the tokenizer
            for name, experiment in tasks.items():
                for stored in STORED:
                    refusal = _refusal(_with(experiment, kind, stored), skeleton)
                    found.append(Finding(name, architecture, kind, stored, refusal))
    return found


def _with(experiment: Experiment, kind: Kind, stored: Quantization) -> Experiment:
    return replace(experiment, model=replace(experiment.model, quantization=stored), task=SimpleNamespace(kind=kind))


def _refusal(experiment: Experiment, skeleton: Backbone) -> str | None:

    try:
        stored = choose_quantization(experiment)
        experiment.method.expected_parameters(replace(skeleton, quantization=stored))
    except ConfigError as error:
        return str(error)
    return None


def attempt(
    findings: list[Finding], tasks: dict[str, Experiment], folder: Path, precision: Precision = Precision.float32
) -> Iterator[Finding]:
    """Train a step of every pair on a tiny random model, whatever the rules say; yields each as it is done.

    Args:
        folder: An empty one for the tiny models.
        precision: What to store weights and compute in, as runs do.
    """
    import warnings

    for finding in findings:
        where = folder / f"{finding.architecture}-{finding.kind.name}"
        if not where.exists():
            _save_tiny(where, finding.architecture, finding.kind)
        experiment = _with(tasks[finding.method], finding.kind, finding.quantization)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                _train_a_step(experiment, where, precision)
                failure = None
            except Exception as error:  # whatever a method or a library raises is what is looked for
                failure = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        yield replace(finding, failure=failure, tried=True)


def _save_tiny(folder: Path, architecture: str, kind: Kind) -> None:
    import torch
    from transformers import AutoModel

    torch.manual_seed(0)
    # A classifier's checkpoint is the backbone alone: its head is new.
    factory = AutoModel if kind is Kind.classification else model_class(kind)
    factory.from_config(configuration(architecture, kind)).save_pretrained(folder)
    _save_tokenizer(folder)


def _save_tokenizer(folder: Path) -> None:
    """Words for every token of the tiny vocabulary."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<s>", "</s>", *(f"word{number}" for number in range(4, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def _train_a_step(experiment: Experiment, folder: Path, precision: Precision) -> None:
    """Attach, count, train a step, and look which weights moved.

    Raises:
        AssertionError: Frozen weights moved, or trained ones did not.
    """
    import torch

    kind, method = experiment.task.kind, experiment.method
    torch.manual_seed(0)
    own = load_config(folder, LABELS if kind is Kind.classification else None, regression=False)
    lower = choose_precision(precision, torch.device("cpu"))
    backbone = load_model(folder, own, experiment, lower or torch.float32)
    expected = method.expected_parameters(backbone)
    adapter = method.attach(backbone)
    methods.parameters(adapter, expected)
    trained = prepare_trained(adapter)
    before = {name: parameter.detach().clone() for name, parameter in adapter.model.named_parameters()}
    optimizer = adapter.optimizer(trained, experiment.train) or torch.optim.AdamW(trained.values(), lr=1e-3)
    adapter.start(total_steps=100)
    adapter.model.train()
    with torch.autocast("cpu", lower, enabled=lower is not None):
        loss = adapter.model(**plain_inputs(words(4, 8), kind, own)).loss
    penalty = adapter.penalty()
    loss = loss if penalty is None else loss + penalty
    assert torch.isfinite(loss), f"the loss is {loss.item()}"
    loss.backward()
    optimizer.step()
    adapter.after_step(1)
    moved = {name for name, p in adapter.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved, "no weight moved"
    assert moved <= set(trained), f"{min(moved - set(trained))} is frozen and moved"
