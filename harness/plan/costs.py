"""Costs of a run before it is started: parameters, memory, operations, storage."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.build import assemble, locate, resolved
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.schema import Experiment, Stage, TrainConfig
from harness.methods.skeleton import architecture_of, on_its_backbone, skeleton
from harness.models import check_positions, choose_device, choose_quantization, settled
from harness.models.sizes import logical_parameters
from harness.run.estimate import CONTEXT_BYTES, Step, Unpredictable, at_full_depth, depths, predict, with_layers
from harness.run.pack_size import MOST, footprint_of, how_many
from harness.run.packing import why_alone
from harness.tracking.record import empty_cost

if TYPE_CHECKING:
    from harness.methods import Method
    from harness.models.architectures import Backbone
    from harness.run.estimate import Step

# Makers count in powers of ten or of two; the smaller of the two readings promises less.
DEVICE_GIGABYTES = (8, 16, 24, 40, 80, 141)
GIGABYTE = 10**9
PICTURES = ("png", "svg")
# Tokens that real texts are usually cut at.
USUAL_LENGTH = 256
FORMATS = ("table", "json", "csv", "markdown")
COLUMNS = {
    "adapter": "adapter_parameters",
    "head": "head_parameters",
    "total": "total_parameters",
    "weights": "weight_bytes",
    "gradients": "gradient_bytes",
    "optimizer": "optimizer_bytes",
    "activations": "activation_bytes",
    "peak": "train_peak_bytes",
    "file": "adapter_file_bytes",
}
PLANNED = (*COLUMNS.values(), "trainable_parameters", "train_flops_per_token", "train_flops")


@dataclass(frozen=True)
class PlanSettings:
    """The keys `plan.` of the command line.

    Attributes:
        batch_size: Rows of the step; null for `train.batch_size`.
        length: Tokens of each row; null for `task.max_length`.
        device: cpu or cuda; null for what `train.device` takes here.
        tasks: Adapters that are kept for one backbone.
        format: How the points are printed.
        picture: A file to draw the memory into; null for none.
    """

    batch_size: int | None = None
    length: int | None = None
    device: str | None = None
    tasks: int = 10
    format: str = "table"
    picture: str | None = None


PLAN_KEYS = [f"plan.{field.name}" for field in fields(PlanSettings)]


def read_settings(given: dict[str, str]) -> PlanSettings:
    """Check the values of `plan.` keys.

    Raises:
        ConfigError: A value is not allowed.
    """
    values: dict[str, Any] = {}
    for key, text in given.items():
        if key in ("batch_size", "length", "tasks"):
            if not text.isdecimal() or int(text) < 1:
                raise ConfigError(f"plan.{key}={text}: a whole number from 1 on is needed")
            values[key] = int(text)
            continue
        allowed = {"device": ("cpu", "cuda"), "format": FORMATS}.get(key)
        if allowed and text not in allowed:
            raise ConfigError(f"plan.{key}={text}: {' or '.join(allowed)} is allowed")
        if key == "picture" and Path(text).suffix[1:] not in PICTURES:
            raise ConfigError(f"plan.picture={text}: a file that ends in .png or .svg is needed")
        values[key] = text
    return PlanSettings(**values)


def fits(cost: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """For each size of device, whether the step fits, and the largest batch of which all is known to.

    Weights, gradients and optimizer state do not grow with the rows, all else does by as much for each.
    """
    if cost["train_peak_bytes"] is None:
        return []
    fixed = cost["weight_bytes"] + cost["gradient_bytes"] + cost["optimizer_bytes"]
    # Where weights are trained their gradients come while activations go: the peak can lie below the two together.
    a_row = max(cost["train_peak_bytes"] - fixed, cost["activation_bytes"], 1) / rows
    answers = []
    for size in DEVICE_GIGABYTES:
        room = size * GIGABYTE - CONTEXT_BYTES
        fit = cost["train_peak_bytes"] <= room
        most = max(int((room - fixed) // a_row), 0)
        answers.append({"gigabytes": size, "fits": fit, "largest_batch": max(most, rows) if fit else min(most, rows)})
    return answers


def with_packs(
    answers: list[dict[str, Any]], cost: dict[str, Any], experiment: Experiment, device: str
) -> list[dict[str, Any]]:
    """What `fits` says, with the points of the packs that `sweep.pack=auto` makes of such trials on an empty device.

    Null where it makes none: on a CPU, of what never trains in a pack, and where the step alone does not fit.
    """
    trial = replace(experiment, sweep=replace(experiment.sweep, stage=Stage.tune))
    if not answers or device == "cpu" or why_alone(trial):
        return [{**answer, "largest_pack": None} for answer in answers]
    points = [footprint_of(cost, choose_quantization(experiment))] * MOST
    sizes = [how_many(answer["gigabytes"] * GIGABYTE, points) if answer["fits"] else None for answer in answers]
    return [{**answer, "largest_pack": size} for answer, size in zip(answers, sizes, strict=True)]


def storage(cost: dict[str, Any], backbone_parameters: int, tasks: int) -> dict[str, int | None]:
    """Bytes of files for so many tasks: an adapter each beside one float32 backbone, or a whole model each."""
    backbone = 4 * backbone_parameters
    file = cost["adapter_file_bytes"]
    return {
        "tasks": tasks,
        "adapters_bytes": None if file is None else backbone + tasks * file,
        "copies_bytes": tasks * (backbone + 4 * cost["head_parameters"]),
    }


def steps(experiment: Experiment) -> tuple[int | None, str]:
    """Optimizer steps of the whole training, or the reason why they are not known beforehand."""
    train, task = experiment.train, experiment.task
    if train.max_steps is not None:
        return train.max_steps, ""
    made = getattr(task, "generator_rows", None)
    if train.all_rows:
        rows = sum(made.values()) if made and task.max_train_rows is None and task.max_validation_rows is None else None
        return _steps_of(rows, train)
    rows = task.max_train_rows
    if made and "train" in made:
        there = made["train"]
        if "development" not in made:
            there -= min(task.max_development_rows, round(task.development_share * there))
        rows = min(rows or there, there)
    return _steps_of(rows, train)


def _steps_of(rows: int | None, train: TrainConfig) -> tuple[int | None, str]:
    if rows is None:
        known = "train.max_steps" if train.all_rows else "task.max_train_rows or train.max_steps"
        return None, f"the number of rows is not known without the data; {known} tells it"
    return math.ceil(train.epochs * math.ceil(rows / (train.batch_size * train.gradient_accumulation_steps))), ""


# Of a record's costs, those that a plan has.


def plan_point(name: str, overrides: list[str], settings: PlanSettings | None = None) -> dict[str, Any]:
    """Plan of one point: `step`, `cost` with the names of `RunRecord.cost`, and what follows from them.

    Raises:
        ConfigError: It can't be run.
    """
    settings = settings or PlanSettings()
    plain, assumed = without_rows(resolved(compose(name, overrides)))
    experiment = on_its_backbone(assemble(plain))
    if settings.length is None and not any(
        override.lstrip("+").startswith("task.max_length=") for override in overrides
    ):
        settings = replace(settings, length=suited_length(experiment))
    step = step_of(experiment, settings)
    experiment, why = settled(experiment, step.device)
    cost, unmeasured = costs(experiment, step)
    return {
        "step": vars(step),
        "precision": {"taken": experiment.train.precision.name, "why": why},
        "cost": cost,
        "unmeasured": unmeasured,
        "assumed": assumed,
        "fits": with_packs(fits(cost, step.rows // experiment.task.sequences()), cost, experiment, step.device),
        "storage": storage(cost, backbone_parameters(experiment), settings.tasks),
    }


def without_rows(plain: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A resolved configuration whose task needs no rows, and what is assumed in their place."""
    task = plain.get("task")
    target = task.get("_target_") if isinstance(task, dict) else None
    made = getattr(locate(target, "task._target_"), "without_rows", None) if isinstance(target, str) else None
    if made is None:
        return plain, []
    values, assumed = made(task)
    return {**plain, "task": values}, assumed


def suited_length(experiment: Experiment) -> int | None:
    """Tokens of a step where the task is the micro world's and the backbone is none that grew up there; else null.

    The texts of the micro world are short: with a large backbone they only stand in for a task of one's own.
    """
    positions = getattr(architecture_of(experiment), "max_position_embeddings", None) or 0
    if not experiment.task.name.startswith("micro/") or positions < USUAL_LENGTH:
        return None
    return USUAL_LENGTH


def backbone_parameters(experiment: Experiment) -> int:
    """Parameters that all tasks share: those of the backbone without its head."""
    model = (backbone := skeleton(experiment)).model
    return sum(p.numel() for name, p in model.named_parameters() if not backbone.is_head(name))


def step_of(experiment: Experiment, settings: PlanSettings) -> "Step":
    """The training step that is planned.

    Raises:
        ConfigError: The text and the method's own positions are longer than the model reads.
    """
    device = settings.device or experiment.train.device.value
    if device == "auto":
        device = choose_device(device).type
    batch = settings.batch_size or experiment.train.batch_size
    task = experiment.task
    step = Step(batch * task.sequences(), settings.length or task.max_length, device, task.target_length())
    key = "plan.length" if settings.length else "task.max_length"
    check_positions({key: step.length}, architecture_of(experiment), experiment.method.virtual_tokens())
    return step


def plan(experiment: Experiment) -> dict[str, Any]:
    """The costs that follow from the architecture, with the names of `RunRecord.cost`; null where nothing is predicted.

    Raises:
        ConfigError: The method can't go with the backbone, its kind of head or its quantization.
    """
    experiment = on_its_backbone(experiment)
    return costs(experiment, step_of(experiment, PlanSettings()))[0]


def costs(experiment: Experiment, step: "Step") -> tuple[dict[str, Any], dict[str, str]]:
    """The costs of an experiment, and the reason for each of a plan's figures that is null."""
    cost, unmeasured = empty_cost() | parameters(experiment), {}
    try:
        predicted = predict(experiment, architecture_of(experiment), step)
    except Unpredictable as reason:
        return cost, {name: str(reason) for name in PLANNED if cost[name] is None}
    cost |= predicted
    total, unknown = steps(experiment)
    if total is None:
        cost["train_flops"] = None
        unmeasured["train_flops"] = unknown
    else:
        train = experiment.train
        texts = train.gradient_accumulation_steps * train.batch_size * experiment.task.sequences()
        tokens = total * texts * step.tokens // step.rows
        cost["train_flops"] = round(predicted["train_flops_per_token"] * tokens)
    return cost, unmeasured


def parameters(experiment: Experiment) -> dict[str, int]:
    """Parameters of a method on all layers by its closed form, which is held against what attaching to a few adds."""
    experiment = on_its_backbone(experiment)
    configuration = architecture_of(experiment)
    backbone = skeleton(experiment, configuration)
    expected = experiment.method.expected_parameters(backbone)
    sampled = depths(experiment, configuration)
    counts = [count(experiment.method, skeleton(experiment, with_layers(configuration, depth))) for depth in sampled]
    total = round(at_full_depth(counts, sampled, configuration.num_hidden_layers)["total_parameters"])
    assert total >= logical_parameters(backbone.model)
    head = counts[0]["head_parameters"]
    return {
        "adapter_parameters": expected,
        "head_parameters": head,
        "trainable_parameters": expected + head,
        "total_parameters": total,
    }


def count(method: "Method", backbone: "Backbone") -> dict[str, int]:
    """Parameters of a method on a backbone without weights, to which it is then attached.

    The skeleton is never packed: the counts of a quantized backbone are those of the numbers it stands for.

    Raises:
        ConfigError: The two can't go together.
    """
    expected = method.expected_parameters(backbone)
    head = sum(p.numel() for name, p in backbone.model.named_parameters() if backbone.is_head(name))
    total = logical_parameters(backbone.model) + expected
    try:
        adapter = method.attach(backbone)
    except ConfigError:
        # It begins with a decomposition or a choice of the weights' values. The closed form has said that the two go
        # together, and such a method adds what it trains.
        pass
    else:
        own, new = adapter.adapter_parameters(), adapter.head_parameters()
        assert expected == sum(p.numel() for p in own.values()), "the closed form and the attached method differ"
        assert head == sum(p.numel() for p in new.values()), "the method does not train the head alone beside its own"
        total = adapter.total_parameters()
    return {
        "adapter_parameters": expected,
        "head_parameters": head,
        "trainable_parameters": expected + head,
        "total_parameters": total,
    }
