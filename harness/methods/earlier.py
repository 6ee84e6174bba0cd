"""Backbones that carry the adapter of an earlier run: found, fingerprinted and loaded with it."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness import models
from harness.config.errors import ConfigError
from harness.config.schema import EarlierAdapter, Experiment, ModelConfig
from harness.methods import CONFIG_FILE
from harness.methods.saved import MANIFEST_FILE, SavedAdapter, drawn_from, read
from harness.models import checkpoints, tokenization
from harness.models.architectures import Backbone, Kind
from harness.tracking.record import write_atomically

if TYPE_CHECKING:
    from torch import dtype as Dtype
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def earlier_adapter(model: ModelConfig) -> SavedAdapter | None:
    """The adapter of an earlier run that `model.path` names; null where it names a backbone.

    Raises:
        ConfigError: It is damaged.
    """
    if model.path is None or not (Path(model.path).expanduser() / MANIFEST_FILE).is_file():
        return None
    try:
        return read(model.path)
    except ValueError as error:
        raise ConfigError(f"model.path={model.path}: {error}") from error


def resolve(model: ModelConfig) -> Path:
    """The local folder of a backbone, downloaded from the Hub when it is a Hub name; of an adapter its backbone's.

    Raises:
        ConfigError: There is no such folder or Hub name, no network, no weights, or only pickled ones.
    """
    earlier = earlier_adapter(model)
    return models.resolve(model) if earlier is None else resolve(earlier.model)


def revision(model: ModelConfig, folder: Path, read: tuple[str, ...] = checkpoints.READ_FILES) -> str:
    """SHA-256 over the files that decide what the backbone computes, an earlier adapter's too; not over their place.

    Args:
        read: Patterns of the files that count beside the configuration and the weights.
    """
    earlier = earlier_adapter(model)
    if earlier is None:
        return models.revision(model, folder, read)
    own = " ".join([revision(earlier.model, folder, read), *map(str, sorted(earlier.manifest.files.items()))])
    return hashlib.sha256(own.encode()).hexdigest()


def name_base(folder: Path, model: ModelConfig) -> None:
    """Have an adapter's own configuration say that its backbone is one with an earlier adapter in it.

    Peft would name the backbone below, load that, and give other answers without a word; of this name it says that
    there is no such model.
    """
    path = folder / CONFIG_FILE
    earlier = earlier_adapter(model)
    if earlier is None or not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("base_model_name_or_path"):
        content["base_model_name_or_path"] = f"{earlier.model.path} with the adapter {model.path} in it"
        write_atomically(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def load_model(folder: Path, config: "PretrainedConfig", experiment: Experiment, dtype: "Dtype") -> Backbone:
    """Load a backbone with the head that its task needs. Draws a new head's weights from torch's generator.

    Raises:
        ConfigError: The weights are damaged or of another architecture, or the earlier adapter and the task disagree.
    """
    earlier = earlier_adapter(experiment.model)
    if earlier is None:
        return models.load_model(folder, config, experiment, dtype)
    return _on_top_of(earlier, folder, config, experiment, dtype)


def load_backbone(
    saved: SavedAdapter, model: str | None, dtype: "Dtype | None" = None
) -> "tuple[Backbone, PreTrainedTokenizerBase]":
    """The backbone that an adapter was trained on, and its tokenizer.

    Args:
        model: Where it is now; null for where it was.
        dtype: What its weights are stored in, but for those of the head; null for float32.

    Raises:
        ValueError: It is not there, or is another.
    """
    import torch

    where = saved.model if model is None else replace(saved.model, path=model)
    folder = resolve(where)
    found = revision(where, folder)
    if saved.manifest.backbone not in (found, revision(where, folder, checkpoints.EARLIER_READ_FILES)):
        raise ValueError(
            f"{saved.folder} was saved for the backbone {saved.model.path} (SHA-256 {saved.manifest.backbone[:12]}), "
            f"and {where.path} is another one ({found[:12]})"
        )
    models.quiet_libraries()
    configuration = models.load_config(folder, saved.task.labels_count, saved.task.regression, saved.task.labels)
    with drawn_from(saved.manifest.seed):
        stored = dtype or torch.float32
        backbone = load_model(folder, configuration, replace(saved, model=where), stored)  # type: ignore[arg-type]
    for name in backbone.head:
        backbone.model.get_submodule(name).float()
    tokenizer = models.load_tokenizer(folder, backbone.architecture)
    tokenization.fit(folder, tokenizer, configuration)
    backbone.model.config.pad_token_id = tokenizer.pad_token_id
    return backbone, tokenizer


def _on_top_of(
    earlier: SavedAdapter, folder: Path, config: "PretrainedConfig", experiment: Experiment, dtype: "Dtype"
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
