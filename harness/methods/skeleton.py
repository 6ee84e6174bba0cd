"""Backbone without weights, for counting."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.methods.earlier import resolve
from harness.models import (
    choose_quantization,
    empty_model,
    load_config,
    quiet_libraries,
    set_checkpointing,
    with_start,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from harness.models.architectures import Backbone


def skeleton(experiment: Experiment, configuration: "PretrainedConfig | None" = None) -> "Backbone":
    """The experiment's backbone without weights."""
    quiet_libraries()
    configuration = configuration or architecture_of(experiment)
    task = experiment.task.on(configuration)
    backbone = empty_model(configuration, task.kind, choose_quantization(experiment))
    set_checkpointing(backbone.model, experiment.train.gradient_checkpointing)
    return backbone


def on_its_backbone(experiment: Experiment) -> Experiment:
    """The experiment with its task as the backbone is given it.

    Raises:
        ConfigError: The backbone can't learn the task.
    """
    return replace(experiment, task=experiment.task.on(architecture_of(experiment)))


def architecture_of(experiment: Experiment) -> "PretrainedConfig":
    """The backbone's configuration: the YAML's published dimensions, or a local folder's.

    Raises:
        ConfigError: There are neither.
    """
    from transformers import AutoConfig

    model, task = experiment.model, experiment.task
    if model.path is not None and Path(model.path).expanduser().is_dir():
        return load_config(resolve(model), task.labels_count, task.regression)
    if model.architecture is None:
        raise ConfigError(
            f"model.path={model.path}: not a local folder, and there is no model.architecture to plan with"
        )
    dimensions = dict(model.architecture)
    kind = dimensions.pop("model_type", None)
    head = {} if task.labels_count is None else {"num_labels": task.labels_count}
    try:
        return with_start(AutoConfig.for_model(kind, pad_token_id=0, **head, **dimensions))
    except (ValueError, TypeError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(f"model.architecture: {first}") from error
