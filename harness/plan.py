"""The same experiment without weights: what it will train and hold in memory, counted on the architecture alone."""

import json
import sys
from collections.abc import Iterator
from enum import Enum
from itertools import product
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from harness.config import ConfigError, Experiment, Quantization, build, conf_root, register_resolvers
from harness.record import empty_cost

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from harness.architectures import Backbone
    from harness.methods import Method

USAGE = """harness-plan: what a run will cost, before anything is downloaded.

  harness-plan                                         the default run
  harness-plan model=llama_2_7b method=lora method.rank=16
  harness-plan -m method=full,bitfit,lora model=roberta_large
  harness-plan plan.format=json                        for programs

Takes the overrides of `harness`; -m makes a grid of values separated by commas, -cn NAME takes a sweep's.
Prints trainable parameters and bytes by category, in float32 training with AdamW.
"""
FLOAT32_BYTES = 4
ADAM_MOMENTS = 2
# AdamW keeps its step count as a float32 tensor for every parameter tensor.
ADAM_STEP_BYTES = 4


class Format(Enum):
    table = "table"
    json = "json"


def main() -> int:
    """Parse the command line, print, and return the exit status."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    try:
        name, overrides, grid, form = parse(arguments)
        points = [answer(name, point) for point in expand(name, overrides, grid)]
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    planned = [point for point in points if "cost" in point]
    refused = [point for point in points if "error" in point]
    if form is Format.json:
        print(json.dumps({"points": points}, indent=2))
    elif planned:
        print_table(planned)
    for point in refused:
        name = " ".join(point["overrides"])
        print(f"{name}: {point['error']}" if grid else point["error"], file=sys.stderr)
    return 2 if refused and not planned else 0


def answer(name: str, overrides: list[str]) -> dict[str, Any]:
    """A point with its cost, or with the reason why it can't be run: the others of a grid are still planned."""
    try:
        return {"overrides": overrides, "cost": plan_point(name, overrides)}
    except ConfigError as error:
        return {"overrides": overrides, "error": str(error)}


def parse(arguments: list[str]) -> tuple[str, list[str], bool, Format]:
    """Config name, overrides, whether values separated by commas make a grid, and how to print."""
    name, overrides, grid, form = "config", [], False, Format.table
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-m", "--multirun"):
            grid = True
        elif argument in ("-cn", "--config-name"):
            name, grid = next(rest, ""), True
        elif argument.startswith("plan.format="):
            value = argument.partition("=")[2]
            if value not in Format.__members__:
                raise ConfigError(f"plan.format={value}: {' or '.join(Format.__members__)} is allowed")
            form = Format[value]
        elif argument.startswith("-"):
            raise ConfigError(f"{argument}: no such option; harness-plan --help lists them")
        else:
            overrides.append(argument)
    return name, overrides, grid, form


def expand(name: str, overrides: list[str], grid: bool) -> Iterator[list[str]]:
    """The points of a grid, as Hydra's basic sweeper would make them, the sweep file's own parameters included."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    if not grid:
        yield overrides
        return
    try:
        parser = OverridesParser.create()
        given = {o.key_or_group: o for o in parser.parse_overrides(overrides)}
        cfg = compose(name, [text for text in overrides if "," not in text], keep_hydra=True)
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


def compose(name: str, overrides: list[str], keep_hydra: bool = False) -> DictConfig:
    """Compose a configuration as `harness` would.

    Raises:
        ConfigError: A name or key is wrong.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from harness.__main__ import register_plugins
    from harness.mistakes import MISTAKES, explain

    register_plugins()
    register_resolvers()
    # Inside of a Hydra job there is a Hydra already, and only one at a time is allowed.
    there = GlobalHydra.instance()
    outer, there.hydra = there.hydra, None
    try:
        with initialize_config_dir(config_dir=str(conf_root() / "conf"), version_base="1.3"):
            try:
                return hydra_compose(name, overrides=overrides, return_hydra_config=keep_hydra)
            except MISTAKES as error:
                sentence = explain(error, overrides, lambda rest: hydra_compose(name, overrides=rest))
                raise ConfigError(sentence) from error
    finally:
        GlobalHydra.instance().hydra = outer


def plan_point(name: str, overrides: list[str]) -> dict[str, Any]:
    """The costs of one point, with the names of `RunRecord.cost`."""
    return plan(build(compose(name, overrides)))


def plan(experiment: Experiment) -> dict[str, Any]:
    """The costs that follow from the architecture, with the names of `RunRecord.cost`; null where nothing is predicted.

    Raises:
        ConfigError: The method can't go with the backbone, its kind of head or its quantization.
    """
    return empty_cost() | count(experiment.method, skeleton(experiment))


def skeleton(experiment: Experiment) -> "Backbone":
    """The experiment's backbone without weights."""
    from harness.models import choose_quantization, empty_model, quiet_libraries, set_checkpointing

    quiet_libraries()
    backbone = empty_model(architecture_of(experiment), experiment.task.kind, choose_quantization(experiment))
    set_checkpointing(backbone.model, experiment.train.gradient_checkpointing)
    return backbone


def count(method: "Method", backbone: "Backbone") -> dict[str, int | None]:
    """Parameters and bytes of a method on a backbone without weights, to which it is then attached.

    The skeleton is never packed: the counts of a quantized backbone are those of the numbers it stands for.

    Raises:
        ConfigError: The two can't go together.
    """
    from harness.measure import logical_parameters

    expected = method.expected_parameters(backbone)
    head = sum(p.numel() for name, p in backbone.model.named_parameters() if backbone.is_head(name))
    without = logical_parameters(backbone.model)
    counted: dict[str, int | None] = {
        "adapter_parameters": expected,
        "head_parameters": head,
        "trainable_parameters": expected + head,
        "total_parameters": without + expected,
        "gradient_bytes": FLOAT32_BYTES * (expected + head),
    }
    try:
        adapter = method.attach(backbone)
    except ConfigError:
        # It begins with a decomposition or a choice of the weights' values. The closed form has said that the two go
        # together, and such a method adds what it trains; how many tensors and buffers that takes is left open.
        return counted
    own, new = adapter.adapter_parameters(), adapter.head_parameters()
    assert expected == sum(p.numel() for p in own.values()), "the closed form and the attached method differ"
    assert head == sum(p.numel() for p in new.values()), "the method does not train the head alone beside its own"
    counted["total_parameters"] = adapter.total_parameters()
    if backbone.quantization is Quantization.none:
        held = [*adapter.model.parameters(), *adapter.model.buffers()]
        counted["weight_bytes"] = sum(tensor.numel() * tensor.element_size() for tensor in held)
    moments = FLOAT32_BYTES * ADAM_MOMENTS * (expected + head)
    counted["optimizer_bytes"] = moments + ADAM_STEP_BYTES * (len(own) + len(new))
    return counted


def architecture_of(experiment: Experiment) -> "PretrainedConfig":
    """The backbone's configuration: the YAML's published dimensions, or a local folder's.

    Raises:
        ConfigError: There are neither.
    """
    from pathlib import Path

    from transformers import AutoConfig

    from harness.models import load_config, resolve

    model, task = experiment.model, experiment.task
    if model.path is not None and Path(model.path).expanduser().is_dir():
        return load_config(resolve(model), task.labels_count, task.regression)
    if model.architecture is None:
        raise ConfigError(
            f"model.path={model.path}: not a local folder, and there is no model.architecture to plan with"
        )
    dimensions = dict(model.architecture)
    kind = dimensions.pop("model_type", None)
    try:
        return AutoConfig.for_model(kind, num_labels=task.labels_count, pad_token_id=0, **dimensions)
    except (ValueError, TypeError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(f"model.architecture: {first}") from error


def print_table(points: list[dict[str, Any]]) -> None:
    """Print a row a point that can be run; the overrides name it."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shared = [text for text in points[0]["overrides"] if all(text in point["overrides"] for point in points)]
    title = " ".join(["Parameters, and bytes in a training step:", *shared]) if shared else "Parameters and bytes"
    # Tight, so that figures fit into 80 columns; a pipe or a file has no width to keep to.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run" if len(points) == 1 else "point", no_wrap=True)
    columns = {
        "adapter": "adapter_parameters",
        "head": "head_parameters",
        "total": "total_parameters",
        "weights": "weight_bytes",
        "gradients": "gradient_bytes",
        "optimizer": "optimizer_bytes",
    }
    for column in [*columns, "trained"]:
        table.add_column(column, justify="right", no_wrap=True)
    for point in points:
        cost = point["cost"]
        cells = [readable(cost[key], key.endswith("_bytes")) for key in columns.values()]
        share = 100 * cost["trainable_parameters"] / cost["total_parameters"]
        own = [text for text in point["overrides"] if text not in shared]
        table.add_row("\n".join(own) or "this", *cells, f"{share:.3g}%")
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def readable(value: int | None, is_bytes: bool) -> str:
    """Three figures of a count in thousands, millions ..., or of bytes in binary units; json has every digit."""
    if value is None:
        return "-"
    base, units = (1024, ["B", "KiB", "MiB", "GiB", "TiB"]) if is_bytes else (1000, ["", "K", "M", "B", "T"])
    amount = float(value)
    while amount >= 999.5 and len(units) > 1:
        amount, units = amount / base, units[1:]
    return f"{amount:.3g} {units[0]}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
