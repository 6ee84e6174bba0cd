"""Backbones: how they are found, fingerprinted and loaded."""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial, wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.config.schema import Experiment, Quantization
from harness.models import checkpoints, tokenization
from harness.models.architectures import Architecture, Backbone, Kind, architecture
from harness.models.dropout import as_in_the_forward_pass
from harness.models.precision import (
    attend_without_plans,
    choose_quantization,
    keep_trainable,
    quantization_config,
)
from harness.models.transformers_inner import has_class

if TYPE_CHECKING:
    from torch import dtype as Dtype
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


log = logging.getLogger(__name__)

# Their positions are counted from behind the padding's.
BEHIND_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert")
MODEL_CLASSES = {
    Kind.classification: "AutoModelForSequenceClassification",
    Kind.causal_lm: "AutoModelForCausalLM",
    Kind.seq2seq_lm: "AutoModelForSeq2SeqLM",
}
MASKED = "AutoModelForMaskedLM"


def load_config(
    folder: Path, labels: int | None, regression: bool, names: list[str] | None = None
) -> "PretrainedConfig":
    """Read a backbone's configuration; nothing in it may run code from the folder.

    Args:
        names: What the classes of a new head are called, in their order; not as an earlier task's head called them.

    Raises:
        ConfigError: transformers knows no such architecture, or the file is damaged.
    """
    from transformers import AutoConfig

    options: dict[str, Any] = {}
    if labels is not None:
        options = {
            "num_labels": labels,
            "problem_type": "regression" if regression else "single_label_classification",
        }
        names = names or [f"LABEL_{number}" for number in range(labels)]
        options |= {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}
    try:
        return with_start(AutoConfig.from_pretrained(folder, trust_remote_code=False, **options))
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(f"model.path={folder}: config.json can't be used: {first}") from error


def with_start(config: "PretrainedConfig") -> "PretrainedConfig":
    """The configuration, with the token that a decoder beside an encoder begins to write from.

    T5's is the padding token, and its configurations need not say so.
    """
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id
    return config


def load_tokenizer(folder: Path, arch: Architecture) -> "PreTrainedTokenizerBase":
    """Load a tokenizer; decoders are padded on the left, so that the last position is the last real token.

    Raises:
        ConfigError: The folder has no usable tokenizer, or it has no token to pad with.
    """
    tokenizer = tokenization.load(folder)
    tokenizer.padding_side = "left" if arch.decoder else "right"
    return tokenizer


def check_fit(
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    config: "PretrainedConfig",
    lengths: dict[str, int],
    virtual_tokens: int,
) -> None:
    """A tokenizer, and lengths of text that together with the method's virtual tokens the model has embeddings for.

    Args:
        lengths: Configuration keys -> tokens, which add up.

    Raises:
        ConfigError: Token ids or positions would fall outside the model's tables.
    """
    tokenization.fit(folder, tokenizer, config)
    check_positions(lengths, config, virtual_tokens)


def positions_of(config: "PretrainedConfig") -> int | None:
    """Tokens that a model has positions for; null where their number has no bound."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in BEHIND_PADDING:
        positions -= config.pad_token_id + 1
    return positions


def check_positions(lengths: dict[str, int], config: "PretrainedConfig", virtual_tokens: int) -> None:
    """Lengths of text that leave the method's own positions room; the keys are those of the configuration to name.

    Raises:
        ConfigError: The two together are longer than the model reads.
    """
    positions = positions_of(config)
    if positions is not None and sum(lengths.values()) + virtual_tokens > positions:
        method = f", of which the method takes {virtual_tokens}" if virtual_tokens else ""
        told = " and ".join(f"{key}={length}" for key, length in lengths.items())
        raise ConfigError(f"{told}: the model has {positions} positions{method}")


def load_model(folder: Path, config: "PretrainedConfig", experiment: Experiment, dtype: "Dtype") -> Backbone:
    """Load a backbone with the head that its task needs. Draws a new head's weights from torch's generator.

    Raises:
        ConfigError: The weights are damaged, or are not this architecture's.
    """
    attend_without_plans()
    arch, quantization, kind = architecture(config), choose_quantization(experiment), experiment.task.kind
    factory = model_class(kind)
    if not experiment.model.pretrained:
        model = factory.from_config(config, dtype=dtype)
        return Backbone(model, arch, _head_of(model, arch, kind), kind, quantization)
    # Weights that are quantized already say themselves how.
    already = checkpoints.stored_quantization(folder) is not Quantization.none
    if already:
        checkpoints.keep_head_whole(config, arch)
        how = None
    else:
        how = quantization_config(quantization, arch, dtype, experiment.model.double_quantization)
    try:
        model, report = factory.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            quantization_config=how,
            # A head of another size: what does not fit elsewhere is refused below.
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # safetensors' own exception class has no public base
        first = str(error).strip().split("\n")[0]
        raise ConfigError(f"model.path={folder}: the weights can't be loaded: {first}") from error
    keep_trainable(model)
    checkpoints.check_used(folder, model, set(report["unexpected_keys"]))
    missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    head = _new_modules(folder, model, _head_of(model, arch, kind), missing)
    renewed = checkpoints.renew(model, _head_of(model, arch, kind), set(report["missing_keys"]))
    return Backbone(model, arch, head, kind, quantization, renewed)


def empty_model(
    config: "PretrainedConfig",
    kind: Kind = Kind.classification,
    quantization: Quantization = Quantization.none,
    dtype: "Dtype | None" = None,
    device: str = "meta",
) -> Backbone:
    """The same model without its weights, for counting.

    Args:
        dtype: Null for float32.
        device: On meta there are names and shapes without memory; elsewhere the weights are random.
    """
    import torch

    arch = architecture(config)
    with torch.device(device):
        model = model_class(kind).from_config(config, dtype=dtype or torch.float32)
    return Backbone(model, arch, _head_of(model, arch, kind), kind, quantization)


def check_head(config: "PretrainedConfig", kind: Kind, key: str) -> None:
    """Refuse a kind of head that transformers has none of for an architecture.

    Args:
        key: The task as it was given, to name.

    Raises:
        ConfigError: The two do not go together.
    """
    name, pair = config.model_type, bool(getattr(config, "is_encoder_decoder", False))
    if kind is Kind.causal_lm and pair:
        raise ConfigError(
            f"{key}: it is learned by decoders, and {name} is an encoder with a decoder; for those are task=text2text, "
            "instruct/..., summarize/... and glue_text/..."
        )
    if kind is Kind.seq2seq_lm and not pair:
        raise ConfigError(
            f"{key}: it is learned by an encoder with a decoder, such as t5 and bart, and {name} is none; "
            "task=instruction takes the same columns to a decoder"
        )
    # What predicts masked words sees both sides of each, unless its configuration makes it a decoder.
    if kind is Kind.causal_lm and has_class(config, MASKED) and not getattr(config, "is_decoder", False):
        raise ConfigError(
            f"{key}: it is learned by decoders, such as gpt2 and llama, and {name} is an encoder, which sees the words "
            "that it would have to predict; task=glue/..., task=table and other tasks of classes are for it"
        )
    if not has_class(config, MODEL_CLASSES[kind]):
        raise ConfigError(f"{key}: transformers has no {MODEL_CLASSES[kind].removeprefix('AutoModelFor')} of {name}")


def model_class(kind: Kind) -> Any:
    """The class of transformers that puts the right head on a backbone."""
    import transformers

    return getattr(transformers, MODEL_CLASSES[kind])


def _head_of(model: "PreTrainedModel", arch: Architecture, kind: Kind) -> tuple[str, ...]:
    """New modules on top; a language model's output layer comes with the backbone."""
    if kind is not Kind.classification:
        return ()
    return tuple(name for name, _ in model.named_children() if name in arch.head)


def _new_modules(folder: Path, model: "PreTrainedModel", head: tuple[str, ...], missing: set[str]) -> tuple[str, ...]:
    """The head, and a pooler that the checkpoint lacks, as after masked language modeling alone.

    Such a pooler starts random. Frozen it would spoil every method but full fine-tuning, so it is trained too.
    """
    pooler = f"{model.base_model_prefix}.pooler"
    if any(name.startswith(f"{pooler}.") for name in missing):
        log.warning("the checkpoint has no pooler; it is trained as a part of the head")
        head = (*head, pooler)
    lacking = sorted(name for name in missing if not name.startswith(tuple(f"{module}." for module in head)))
    if lacking:
        raise ConfigError(
            f"model.path={folder}: the checkpoint lacks {len(lacking)} weights of the backbone, or has them in another "
            f"size, {lacking[0]} for one; is it of another architecture? model.pretrained=false starts from random "
            "weights"
        )
    return head


def set_checkpointing(model: "PreTrainedModel", wanted: bool) -> None:
    """Have activations computed again in the backward pass instead of kept."""
    if wanted:
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": as_in_the_forward_pass})


def import_bitsandbytes() -> None:
    """Import bitsandbytes, which peft does as well, without torch's compiler.

    Four of its functions are decorated with `torch.compile`, for which the compiler is imported: an eighth of the time
    in which a run with an adapter of peft starts. They are compiled when they are first called.
    """
    import torch

    now = torch.compile
    torch.compile = partial(_compile_when_called, now)
    try:
        with suppress(ImportError):
            import_module("bitsandbytes")
    finally:
        torch.compile = now


def _compile_when_called(
    compiler: Callable[..., Any], function: Callable[..., Any] | None = None, **options: Any
) -> Any:
    """`torch.compile` of a function, or with options alone the decorator, that does its work at the first call."""
    if function is None:
        return partial(_compile_when_called, compiler, **options)

    @cache
    def compiled() -> Callable[..., Any]:
        return compiler(function, **options)

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return called


def quiet_libraries() -> None:
    """Keep libraries from writing over the progress bar; what they would say is said by errors of ours."""
    import warnings

    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    # A line for every int8 layer called on a CPU, and one for a kernel that only some CPUs have.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import_bitsandbytes()
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
