"""Backbones: how they are found, fingerprinted and loaded."""

import hashlib
import logging
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import checkpoints, tokenization
from harness.architectures import Architecture, Backbone, Kind, architecture
from harness.config import ConfigError, EarlierAdapter, Experiment, ModelConfig, Precision, Quantization

if TYPE_CHECKING:
    from torch import device as Device
    from torch import dtype as Dtype
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from harness.methods.saved import SavedAdapter

log = logging.getLogger(__name__)

WEIGHTS = "*.safetensors"
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
NEEDED_FILES = ["*.json", "*.txt", "*.model", "*.jinja", WEIGHTS]
MODEL_CLASSES = {
    Kind.classification: "AutoModelForSequenceClassification",
    Kind.causal_lm: "AutoModelForCausalLM",
    Kind.seq2seq_lm: "AutoModelForSeq2SeqLM",
}


def resolve(model: ModelConfig) -> Path:
    """The local folder of a backbone, downloaded from the Hub when it is a Hub name; of an adapter its backbone's.

    Raises:
        ConfigError: There is no such folder or Hub name, no network, no weights, or only pickled ones.
    """
    if (earlier := earlier_adapter(model)) is not None:
        return resolve(earlier.model)
    if model.path is None:
        raise ConfigError(
            f"model={model.name}: this architecture has no weights here; set model.path to a folder or Hub name"
        )
    folder = Path(model.path).expanduser()
    looks_local = folder.is_absolute() or model.path.startswith((".", "~")) or model.path.count("/") > 1
    if not folder.is_dir():
        if folder.exists() or looks_local:
            raise ConfigError(f"model.path={model.path}: there is no such folder")
        folder = _download(model)
    checkpoints.check_folder(model, folder)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.path={model.path}: the folder has no config.json; a transformers model is needed")
    if model.pretrained and not any(folder.glob(WEIGHTS)):
        pickled = sorted(path.name for pattern in PICKLED_WEIGHTS for path in folder.glob(pattern))
        if pickled:
            raise ConfigError(
                f"model.path={model.path}: {pickled[0]} is a pickle, which can run code when it is loaded; "
                "only safetensors are read: convert it with model.save_pretrained() where you trust it"
            )
        raise ConfigError(
            f"model.path={model.path}: the folder has no {WEIGHTS} weights; "
            "model.pretrained=false starts from random ones"
        )
    checkpoints.check_architecture(model, folder)
    return folder


def earlier_adapter(model: ModelConfig) -> "SavedAdapter | None":
    """The adapter of an earlier run that `model.path` names; null where it names a backbone.

    Raises:
        ConfigError: It is damaged.
    """
    from harness.methods import saved

    if model.path is None or not (Path(model.path).expanduser() / saved.MANIFEST_FILE).is_file():
        return None
    try:
        return saved.read(model.path)
    except ValueError as error:
        raise ConfigError(f"model.path={model.path}: {error}") from error


def _download(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    assert model.path is not None
    patterns = NEEDED_FILES if model.pretrained else [p for p in NEEDED_FILES if p != WEIGHTS]
    try:
        return Path(snapshot_download(model.path, revision=model.revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise ConfigError(f"model.path={model.path}: neither a folder nor a Hub name") from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "no answer"
        raise ConfigError(
            f"model.path={model.path}: the Hub refused it ({code}); check the name, model.revision and your HF_TOKEN"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"model.path={model.path}: there is no such folder, and the Hugging Face Hub can't be reached; "
            "give model.path=FOLDER with a copy of the model, or try again with a network"
        ) from error
    except Exception as error:
        # httpx's connection errors share no base class with OSError.
        if type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise ConfigError(
                f"model.path={model.path}: there is no such folder, and the Hugging Face Hub can't be reached; "
                "give model.path=FOLDER with a copy of the model, or try again with a network"
            ) from error
        raise


def revision(model: ModelConfig, folder: Path, read: tuple[str, ...] = checkpoints.READ_FILES) -> str:
    """SHA-256 over the files that decide what the backbone computes, an earlier adapter's too; not over their place.

    Args:
        read: Patterns of the files that count beside the configuration and the weights.
    """
    if (earlier := earlier_adapter(model)) is not None:
        own = " ".join([revision(earlier.model, folder, read), *map(str, sorted(earlier.manifest.files.items()))])
        return hashlib.sha256(own.encode()).hexdigest()
    patterns = [checkpoints.CONFIG_FILE, *read]
    if model.pretrained:
        patterns.append(WEIGHTS)
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return digest(files)


def digest(files: list[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    whole = hashlib.sha256()
    for path in files:
        status = path.stat()
        whole.update(f"{path.name} {_file_digest(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return whole.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, modified: int) -> str:
    """Size and time are part of the cache's key, so that a changed file is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(f"model.path={folder}: config.json can't be used: {first}") from error


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
    if positions is not None and config.model_type == "roberta":
        # Its positions begin behind the padding's.
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
    if (earlier := earlier_adapter(experiment.model)) is not None:
        return _on_top_of(earlier, folder, config, experiment, dtype)
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


def _on_top_of(
    earlier: "SavedAdapter", folder: Path, config: "PretrainedConfig", experiment: Experiment, dtype: "Dtype"
) -> Backbone:
    """Load the backbone of an earlier run's adapter, and put that on."""
    path, kind, how = experiment.model.path, experiment.task.kind, experiment.model.earlier_adapter
    if earlier.task.kind is not kind or kind is Kind.classification:
        raise ConfigError(
            f"model.path={path}: the adapter answers {earlier.task.name}, and only language models are trained on from "
            f"an earlier adapter; {experiment.task.name} is no such task, or that one is not"
        )
    below = replace(
        earlier.model,
        quantization=experiment.model.quantization,
        double_quantization=experiment.model.double_quantization,
    )
    backbone = load_model(folder, config, replace(experiment, model=below), dtype)
    try:
        adapter = earlier.restore(backbone)
        model = adapter.merge() if how is EarlierAdapter.merged else adapter.stay()
    except ValueError as error:
        other = next(one.value for one in EarlierAdapter if one is not how)
        raise ConfigError(
            f"model.earlier_adapter={how.value}: {error}; model.earlier_adapter={other} may do"
        ) from error
    return replace(backbone, model=model)  # type: ignore[arg-type]


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
    """The head, and a pooler that the checkpoint lacks, as after masked language modelling alone.

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


def quantization_config(quantization: Quantization, arch: Architecture, dtype: "Dtype", double: bool) -> Any:
    """Options of bitsandbytes for a kind of quantization; null for none. Heads stay in full precision."""
    if quantization is Quantization.none:
        return None
    from transformers import BitsAndBytesConfig

    skip = never_quantized(arch)
    if quantization is Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.value,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def never_quantized(arch: Architecture) -> list[str]:
    """The modules that stay in full precision, as transformers' `should_convert_module` reads them."""
    # A pooler lies inside of the backbone: names are matched from their start.
    return [*arch.head, "lm_head", r".*\bpooler"]


def keep_trainable(model: "nn.Module") -> None:
    """Keep 4-bit layers in the layout that has a gradient.

    On a CPU with bfloat16 instructions bitsandbytes repacks the weights at the first evaluation, for good, and
    training can't go on after it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def set_checkpointing(model: "PreTrainedModel", wanted: bool) -> None:
    """Have activations computed again in the backward pass instead of kept."""
    if wanted:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def choose_device(wanted: str) -> "Device":
    """The device to compute on.

    Raises:
        ConfigError: A GPU was asked for and there is none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda: torch sees no GPU here; train.device=auto takes what there is")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def choose_precision(precision: Precision, device: "Device") -> "Dtype | None":
    """What to compute in where that is less than float32; null for float32.

    bfloat16 is 20 to 30 times slower than float32 on a CPU without instructions for it. A GPU that is not here, as a
    plan may ask for, is taken for one that has it.
    """
    import torch

    if precision is Precision.float32:
        return None
    if precision is Precision.bfloat16:
        return torch.bfloat16
    able = device.type == "cuda" and (not torch.cuda.is_available() or torch.cuda.is_bf16_supported())
    return torch.bfloat16 if able else None


def choose_quantization(experiment: Experiment) -> Quantization:
    """The method's wish, else `model.quantization`.

    Raises:
        ConfigError: The two exclude each other, or the backbone has no pretrained weights to quantize.
    """
    wanted, given = experiment.method.quantization(), experiment.model.quantization
    if wanted is not None and given not in (Quantization.none, wanted):
        needed = "unquantized" if wanted is Quantization.none else wanted.value
        raise ConfigError(f"model.quantization={given.value}: method={experiment.method.name} needs {needed} weights")
    quantization = wanted or given
    if quantization is not Quantization.none and not experiment.model.pretrained:
        raise ConfigError(f"model.quantization={quantization.value}: only pretrained weights are quantized")
    return quantization


def quiet_libraries() -> None:
    """Keep libraries from writing over the progress bar; what they would say is said by errors of ours."""
    import warnings

    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    # A line for every int8 layer called on a CPU, and one for a kernel that only some CPUs have.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
