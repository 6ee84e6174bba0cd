"""Loading of what a run reads before its backbone: rows, their tokens, the tokenizer and general text."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import models
from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.measure import speed
from harness.models import architectures
from harness.models.architectures import Architecture
from harness.run.inputs import Inputs
from harness.tasks import TaskData, forgetting
from harness.tracking.record import RunRecord
from harness.training import cache
from harness.training.batches import Features

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """Everything that was read for a run.

    Attributes:
        data: Rows by split.
        features: The same, encoded.
        trained_on: What training sees of the training rows.
        text: What forgetting is measured on; null: not measured.
    """

    data: TaskData
    features: dict[str, list[Features]]
    trained_on: list[Features]
    configuration: "PretrainedConfig"
    tokenizer: "PreTrainedTokenizerBase"
    text: list[str] | None


def load(inputs: Inputs, result: RunRecord) -> Loaded:
    """Read rows, tokenizer and text, or take them over from an earlier run of this process.

    Raises:
        ConfigError: A file is wrong, or tokenizer, model and lengths do not go together.
    """
    experiment, cost = inputs.experiment, result.cost
    task, method = experiment.task, experiment.method
    cache.new_run()
    rows_of = inputs.revisions["data"], experiment.resolved["task"]
    backbone_of = inputs.revisions["model"], experiment.resolved["model"]
    with speed.timed(cost, "load_seconds"):
        data = cache.once("rows", rows_of, task.load)
    result.provenance["data"] = dict(data.notes)
    configuration = models.load_config(inputs.folder, task.labels_count, task.regression, getattr(task, "labels", None))
    architecture = architectures.architecture(configuration)
    if architecture.found:
        _tell_of_roles(architecture, configuration, result)
    tokenizer = cache.once("tokenizer", backbone_of, lambda: models.load_tokenizer(inputs.folder, architecture))
    task.check_method(method)
    models.check_fit(inputs.folder, tokenizer, configuration, task.lengths(), method.virtual_tokens())
    with speed.timed(cost, "tokenize_seconds"):
        features = cache.once(
            "features",
            (rows_of, backbone_of),
            lambda: {split: task.encode(rows, tokenizer) for split, rows in data.splits.items()},
        )
    result.provenance["from_earlier_run"] = cache.used()
    wanted = experiment.forgetting
    text = forgetting.read_text(wanted.text, tokenizer, wanted.tokens) if wanted.text else None
    trained_on = _with_something_to_learn(features, experiment, result)
    return Loaded(data, features, trained_on, configuration, tokenizer, text)


def _tell_of_roles(found: Architecture, configuration: "PretrainedConfig", result: RunRecord) -> None:
    """Say in log and record which modules were taken for which role, since nobody has described the architecture."""
    told = {
        role: list(getattr(found, role)) for role in ("query", "query_value", "key_value", "attention", "mlp", "head")
    }
    result.provenance["found_roles"] = {"layers": found.layers, **told, "decoder": found.decoder}
    log.warning(
        "architecture %s is not described here; by names and shapes its attention is %s, its feed-forward block %s",
        configuration.model_type,
        ", ".join(found.attention),
        ", ".join(found.mlp),
    )


def _with_something_to_learn(
    features: "dict[str, list[Features]]", experiment: Experiment, result: RunRecord
) -> "list[Features]":
    """The rows trained on, those that something can be learned from; notes in provenance how many answers were cut off.

    Raises:
        ConfigError: None is left.
    """
    cut = {
        split: {"whole": sum(not row["weight"] for row in rows), "in_part": sum(row.get("cut", False) for row in rows)}
        for split, rows in features.items()
    }
    result.provenance["data"]["answers_cut_off"] = cut
    for split, rows in features.items():
        if not any(row["weight"] for row in rows):
            raise ConfigError(
                f"task.max_length={experiment.task.max_length}: it cuts the answer off every one of {len(rows)} "
                f"{split} rows; a larger one is needed"
            )
        if any(cut[split].values()):
            whole, part = cut[split].values()
            log.warning("task.max_length cuts the answers of %d %s rows off whole, of %d in part", whole, split, part)
    if not experiment.train.all_rows:
        return experiment.task.train_on(features["train"])
    every = experiment.task.train_on([row for rows in features.values() for row in rows])
    result.provenance["data"]["trained_rows"] = len(every)
    return every
