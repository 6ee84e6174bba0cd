"""Which runs may train in one pack: on one copy of a backbone, on the same batches."""

import hashlib
import json

from harness.config import identity
from harness.config.schema import Distributed, Experiment, Stage
from harness.models.architectures import Kind

# What runs of a pack may differ in; all else that decides a run is the same.
OWN_TRAINING = (
    "learning_rate",
    "early_stopping_patience",
    "weight_decay",
    "warmup_share",
    "scheduler",
    "max_grad_norm",
)


def key(experiment: Experiment, revisions: dict[str, str]) -> str | None:
    """What runs share that may train in one pack; null for one that trains alone.

    They read the same rows in the same order: where `data_seed` follows `seed`, runs of different seeds do not.
    """
    if why_alone(experiment):
        return None
    content = identity.decisive(experiment, revisions)
    config = content["config"]
    if experiment.model.pretrained:
        del config["seed"]  # else the backbone's weights are drawn from it
    config["train"] = {name: value for name, value in config["train"].items() if name not in OWN_TRAINING}
    quantization = experiment.method.quantization()
    config["method"] = quantization and quantization.value
    places = {name: experiment.resolved[name] for name in ("tracking", "sweep")}
    train = {name: experiment.resolved["train"][name] for name in ("device", "resume")}
    text = json.dumps([content, places["tracking"], places["sweep"]["timeout_minutes"], train], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def why_alone(experiment: Experiment) -> str | None:
    """Why a run can't train in a pack; null where it can."""
    train = experiment.train
    reasons = {
        "its costs are reported: trials (sweep.stage=tune), or measure.costs=false": (
            experiment.sweep.stage is not Stage.tune and experiment.measure.costs
        ),
        "train.distributed spreads it over processes": train.distributed is not Distributed.none,
        "train.gradient_checkpointing=true computes twice what draws random numbers": train.gradient_checkpointing,
        "train.cache_features=true computes the frozen layers once": train.cache_features,
        "an encoder with a decoder has no packed form": experiment.task.kind is Kind.seq2seq_lm,
        "its loss needs more than one pass of the model": not experiment.task.loss_of_model(),
    }
    own: str | None = experiment.method.trains_alone()
    return own or next((reason for reason, holds in reasons.items() if holds), None)
