"""The same experiment without weights: what it will train and hold in memory, counted on the architecture alone."""

import sys
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from harness.config.command import DONE, MISTAKEN, carry_out, interrupted, key_value
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.plan.costs import PLAN_KEYS, PlanSettings, plan_point, read_settings
from harness.plan.display import PAGE, Stream, draw

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
    """Carry out the command and return its exit status."""
    return carry_out(print_plan, USAGE)


def print_plan(arguments: list[str]) -> int:
    """Print the points as they are planned, and return the exit status.

    Raises:
        ConfigError: An argument is wrong, or the only point can't be run.
    """
    if sys.stderr.isatty() and sys.stdout.isatty():
        print("Planning a training step on tensors without data; the first takes some 15 s ...", file=sys.stderr)
    drawn: list[dict[str, Any]] = []
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
                if settings.picture and point["cost"]["train_peak_bytes"] and len(drawn) < PAGE:
                    drawn.append(point)
        if drawn:
            draw(drawn, Path(str(settings.picture)))
    except KeyboardInterrupt:
        return interrupted(f"stopped after {planned + refused} points")
    return MISTAKEN if refused and not planned else DONE


def answer(name: str, overrides: list[str], settings: PlanSettings) -> dict[str, Any]:
    """A point with its cost, or with the reason why it can't be run: the others of a grid are still planned."""
    try:
        return {"overrides": overrides, **plan_point(name, overrides, settings)}
    except ConfigError as error:
        return {"overrides": overrides, "error": str(error)}


def parse(arguments: list[str]) -> tuple[str, list[str], bool, PlanSettings]:
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
            key, value = key_value(argument, PLAN_KEYS)
            given[key.removeprefix("plan.")] = value
        elif argument.startswith("-"):
            raise ConfigError(f"{argument}: no such option; harness-plan --help lists them")
        else:
            overrides.append(argument)
    return name, overrides, grid, read_settings(given)


def expand(name: str, overrides: list[str], grid: bool) -> Iterator[list[str]]:
    """The points of a grid, as Hydra's basic sweeper would make them, the sweep file's own parameters included."""
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


if __name__ == "__main__":
    sys.exit(main())
