"""Checks of a checkpoint's folder: what it holds, and whether the backbone becomes what it says."""

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.config.schema import ModelConfig, Quantization
from harness.models.architectures import Architecture

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
PEFT_FILE = "adapter_config.json"
# Files beside config.json and the weights that decide what the backbone is given.
READ_FILES = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)
# Those of them that counted in the hashes of earlier versions, whose adapters still load.
EARLIER_READ_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "spiece.model")
# Tables that earlier versions of architectures stored beside the weights, and that follow from the configuration.
TABLES = re.compile(r"(^|\.)(position_ids|inv_freq|masked_bias|attn\.bias|attention\.bias)$")


def check_folder(model: ModelConfig, folder: Path) -> None:
    """Refuse a folder that is a peft adapter, and one where an adapter lies beside a model.

    Raises:
        ConfigError: transformers would put the adapter on unasked, or there is no model to put it on.
    """
    if not (folder / PEFT_FILE).is_file():
        return
    if (folder / CONFIG_FILE).is_file():
        raise ConfigError(
            f"model.path={model.path}: {PEFT_FILE} lies beside the model, and transformers would put that adapter on "
            "unasked; move the adapter's files elsewhere, whether or not it is merged into the weights"
        )
    try:
        base = json.loads((folder / PEFT_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    raise ConfigError(
        f"model.path={model.path}: this is a peft adapter of {base or 'a model that it does not name'}, not a model; "
        "name that model, or merge the two first with peft's merge_and_unload() and save_pretrained()"
    )


def check_architecture(model: ModelConfig, folder: Path) -> None:
    """Refuse a folder that holds another architecture than the chosen YAML describes.

    Raises:
        ConfigError: The two differ in a dimension that the YAML gives.
    """
    told = model.architecture
    if not told or "model_type" not in told:
        return
    # As written: a configuration leaves out little but what is the same for every model.
    content = _content(folder)
    given = [
        (name, value, content[name])
        for name, value in told.items()
        if name in content and name not in LEFT_OPEN and content[name] != value
    ]
    if given:
        name, expected, other = given[0]
        raise ConfigError(
            f"model.path={model.path}: its {name} is {other}, and model={model.name} is of {expected}; "
            f"write model={model.path}, which is then named after its folder"
        )


# Vocabularies are padded and positions extended without making another model of it.
LEFT_OPEN = ("vocab_size", "max_position_embeddings", "type_vocab_size")


def stored_quantization(folder: Path) -> Quantization:
    """Storage of a checkpoint's weights.

    Raises:
        ConfigError: By a method that is not one of bitsandbytes'.
    """
    told = _content(folder).get("quantization_config")
    if not told:
        return Quantization.none
    method = told.get("quant_method")
    if method != "bitsandbytes":
        raise ConfigError(
            f"model.path={folder}: its weights are stored by {method}; weights that are not quantized, and those of "
            "bitsandbytes (int8, nf4, fp4), are read"
        )
    if told.get("load_in_8bit"):
        return Quantization.int8
    return Quantization(told.get("bnb_4bit_quant_type", "fp4")) if told.get("load_in_4bit") else Quantization.none


def as_stored(model: ModelConfig, folder: Path) -> dict[str, Any]:
    """The keys of `model` that a checkpoint which is quantized already decides; empty for any other.

    Raises:
        ConfigError: Another way to quantize was asked for.
    """
    stored = stored_quantization(folder) if model.pretrained else Quantization.none
    if stored is Quantization.none:
        return {}
    if model.quantization not in (Quantization.none, stored):
        raise ConfigError(
            f"model.quantization={model.quantization.value}: the weights of model.path={model.path} are stored in "
            f"{stored.value} already"
        )
    double = bool(_content(folder)["quantization_config"].get("bnb_4bit_use_double_quant", False))
    return {"quantization": stored, "double_quantization": double}


def keep_head_whole(config: "PretrainedConfig", arch: Architecture) -> None:
    """Have a new head stay in full precision on a checkpoint that is quantized already."""
    told = getattr(config, "quantization_config", None)
    if isinstance(told, dict):
        told["llm_int8_skip_modules"] = sorted({*(told.get("llm_int8_skip_modules") or ["lm_head"]), *arch.head})


def check_used(folder: Path, model: "PreTrainedModel", unexpected: set[str]) -> None:
    """Weights that found no place belong to a head or a pooler, not to the backbone.

    Args:
        unexpected: Names of the checkpoint's weights that the model has no place for.

    Raises:
        ConfigError: The backbone is not the one that was saved.
    """
    prefix = f"{model.base_model_prefix}."
    parts = {name for name, _ in model.base_model.named_children()} - {"pooler"}
    unused = sorted(
        name for name in unexpected if name.removeprefix(prefix).split(".")[0] in parts and not TABLES.search(name)
    )
    if unused:
        raise ConfigError(
            f"model.path={folder}: the checkpoint has {len(unused)} weights of the backbone that this architecture, "
            f"{model.config.model_type}, does not use, {unused[0]} for one; config.json names another architecture"
        )


def renew(model: "PreTrainedModel", head: tuple[str, ...], missing: set[str]) -> tuple[str, ...]:
    """Draw a head anew that came with the checkpoint: it was trained for another task, with classes in its own order.

    Args:
        missing: Names of the weights that were drawn already, as the checkpoint has none for them.

    Returns:
        The modules that were drawn anew.
    """
    renewed = []
    for name in head:
        module = model.get_submodule(name)
        if all(f"{name}.{weight}" in missing for weight, _ in module.named_parameters()):
            continue
        for part in module.modules():
            _forget_weights(part)
            model._initialize_weights(part)
        renewed.append(name)
        log.warning("the checkpoint's %s is of an earlier task; a new one is drawn in its place", name)
    return tuple(renewed)


def _forget_weights(module: "nn.Module") -> None:
    """Undo transformers' marks of what was loaded, which keep weights from being drawn."""
    for marked in (module, *module.parameters(recurse=False)):
        if hasattr(marked, "_is_hf_initialized"):
            del marked._is_hf_initialized


def _content(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path={folder}: {CONFIG_FILE} can't be used: {error}") from error
    return content if isinstance(content, dict) else {}
