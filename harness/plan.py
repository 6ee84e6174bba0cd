"""The same experiment without weights: what it will train and hold in memory, counted on the architecture alone."""

import os
import sys
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.methods.skeleton import architecture_of, skeleton
from harness.planning import PAGE, PLANNED, Settings, Stream, draw, fits, read_settings, steps, storage
from harness.tracking.record import empty_cost

if TYPE_CHECKING:
    from harness.methods import Method
    from harness.models.architectures import Backbone
    from harness.run.estimate import Step

USAGE = """harness-plan: what a run will cost, before anything is downloaded.

  harness-plan                                         the default run
  harness-plan model=llama_2_7b method=qlora plan.device=cuda train.gradient_checkpointing=true
  harness-plan -m method=full,bitfit,lora model=roberta_large plan.picture=memory.png
  harness-plan plan.format=json                        for programs; also csv, markdown

Takes the overrides of `harness`; -m makes a grid of values separated by commas, -cn NAME takes a sweep's.
Prints parameters, memory of a training step by category, operations, the saved file, and which devices it fits on.

  plan.batch_size=N   rows of the step (train.batch_size)       plan.length=N        tokens of each (task.max_length)
  plan.device=cpu     or cuda: its kernels and precision         plan.tasks=N         tasks to store (10)
  plan.picture=FILE   memory as stacked bars, .png or .svg       plan.format=table    or json, csv, markdown
"""


def main() -> int:
    """Parse the command line, print the points as they are planned, and return the exit status."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    kept: list[dict[str, Any]] = []
    refused = planned = 0
    try:
        name, overrides, grid, settings = parse(arguments)
        points = (answer(name, point, settings) for point in expand(name, overrides, grid))
        first = next(points)
        if not grid and "error" in first and settings.format != "json":
            raise ConfigError(first["error"])
        with Stream(settings.format) as stream:
            for point in chain([first], points):
                stream.add(point)
                if "error" in point:
                    refused += 1
                    own = " ".join(point["overrides"])
                    print(f"{own}: {point['error']}" if grid else point["error"], file=sys.stderr)
                    continue
                planned += 1
                if settings.picture and point["cost"]["train_peak_bytes"] and len(kept) < PAGE:
                    kept.append(point)
        if kept:
            draw(kept, Path(str(settings.picture)))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever reads has read enough; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"stopped after {planned + refused} points", file=sys.stderr)
        return 130
    return 2 if refused and not planned else 0


def answer(name: str, overrides: list[str], settings: Settings) -> dict[str, Any]:
    """A point with its cost, or with the reason why it can't be run: the others of a grid are still planned."""
    try:
        return {"overrides": overrides, **plan_point(name, overrides, settings)}
    except ConfigError as error:
        return {"overrides": overrides, "error": str(error)}


def parse(arguments: list[str]) -> tuple[str, list[str], bool, Settings]:
    """Config name, overrides, whether values separated by commas make a grid, and the keys of the plan itself."""
    name, overrides, grid = "config", [], False
    given: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-m", "--multirun"):
            grid = True
        elif argument in ("-cn", "--config-name"):
            name, grid = next(rest, ""), True
        elif argument.startswith("plan."):
            key, _, value = argument.removeprefix("plan.").partition("=")
            given[key] = value
        elif argument.startswith("-"):
            raise ConfigError(f"{argument}: no such option; harness-plan --help lists them")
        else:
            overrides.append(argument)
    return name, overrides, grid, read_settings(given)


def expand(name: str, overrides: list[str], grid: bool) -> Iterator[list[str]]:
    """The points of a grid, as Hydra's basic sweeper would make them, the sweep file's own parameters included."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    if not grid:
        yield overrides
        return
    try:
        parser = OverridesParser.create()
        parsed = parser.parse_overrides(overrides)
        given = {override.key_or_group: override for override in parsed}
        single = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
        cfg = compose(name, single, keep_hydra=True)
        declared = cfg.hydra.sweeper.get("params") or {}
        own = parser.parse_overrides([f"{key}={value}" for key, value in declared.items() if key not in given])
    except OverrideParseException as error:
        raise ConfigError(str(error).split("\n")[0]) from error
    axes = [*own, *given.values()]
    choices = [
        list(axis.sweep_string_iterator()) if axis.is_sweep_override() else [axis.get_value_string()] for axis in axes
    ]
    for values in product(*choices):
        yield [f"{axis.get_key_element()}={value}" for axis, value in zip(axes, values, strict=True)]


def plan_point(name: str, overrides: list[str], settings: Settings | None = None) -> dict[str, Any]:
    """What `harness-plan` says of one point: `step`, `cost` with the names of `RunRecord.cost`, and what follows.

    Raises:
        ConfigError: It can't be run.
    """
    settings = settings or Settings()
    experiment = build(compose(name, overrides))
    step = step_of(experiment, settings)
    cost, unmeasured = costs(experiment, step)
    return {
        "step": vars(step),
        "cost": cost,
        "unmeasured": unmeasured,
        "fits": fits(cost, step.rows // experiment.task.sequences()),
        "storage": storage(cost, backbone_parameters(experiment), settings.tasks),
    }


def backbone_parameters(experiment: Experiment) -> int:
    """Parameters that all tasks share: those of the backbone without its head."""
    model = (backbone := skeleton(experiment)).model
    return sum(p.numel() for name, p in model.named_parameters() if not backbone.is_head(name))


def step_of(experiment: Experiment, settings: Settings) -> "Step":
    """The training step that is planned.

    Raises:
        ConfigError: The text and the method's own positions are longer than the model reads.
    """
    from harness.models import check_positions, choose_device
    from harness.run.estimate import Step

    device = settings.device or experiment.train.device.value
    if device == "auto":
        device = choose_device(device).type
    batch = settings.batch_size or experiment.train.batch_size
    step = Step(batch * experiment.task.sequences(), settings.length or experiment.task.max_length, device)
    key = "plan.length" if settings.length else "task.max_length"
    check_positions({key: step.length}, architecture_of(experiment), experiment.method.virtual_tokens())
    return step


def plan(experiment: Experiment) -> dict[str, Any]:
    """The costs that follow from the architecture, with the names of `RunRecord.cost`; null where nothing is predicted.

    Raises:
        ConfigError: The method can't go with the backbone, its kind of head or its quantization.
    """
    return costs(experiment, step_of(experiment, Settings()))[0]


def costs(experiment: Experiment, step: "Step") -> tuple[dict[str, Any], dict[str, str]]:
    """The costs of an experiment, and the reason for each of a plan's figures that is null."""
    from harness.run.estimate import Unpredictable, predict

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
        tokens = total * texts * step.length
        cost["train_flops"] = round(predicted["train_flops_per_token"] * tokens)
    return cost, unmeasured


def parameters(experiment: Experiment) -> dict[str, int]:
    """Parameters of a method on all layers by its closed form, which is held against what attaching to a few adds."""
    from harness.models.sizes import logical_parameters
    from harness.run.estimate import at_full_depth, depths, with_layers

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
    from harness.models.sizes import logical_parameters

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


if __name__ == "__main__":
    sys.exit(main())
