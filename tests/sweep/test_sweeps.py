"""Every shipped sweep composes, its points can be built, and its header says how many runs it makes."""

import os
import re
from math import prod

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from harness.config.build import build
from harness.config.compose import compose
from harness.config.sources import conf_root
from harness.methods.skeleton import skeleton
from harness.plan.__main__ import expand

SWEEPS = sorted(path.stem for path in (conf_root() / "sweeps").glob("*.yaml"))
# What builds on the shipped architectures alone: published dimensions, and no data.
SOLVED = "matched_budget"


def sweeper(name: str) -> DictConfig:
    return compose(name, [], keep_hydra=True).hydra.sweeper


def axes(name: str) -> list[list[str]]:
    """The values of each parameter of a sweep, as overrides."""
    given = [f"{key}={value}" for key, value in sweeper(name).params.items()]
    parsed = OverridesParser.create().parse_overrides(given)
    return [
        [f"{axis.get_key_element()}={value}" for value in axis.sweep_string_iterator()]
        if axis.is_sweep_override()
        else [f"{axis.get_key_element()}={axis.get_value_string()}"]
        for axis in parsed
    ]


def header(name: str) -> str:
    text = (conf_root() / f"sweeps/{name}.yaml").read_text()
    return " ".join(line.removeprefix("#").strip() for line in text.partition("defaults:")[0].splitlines())


def test_there_are_sweeps() -> None:
    """The shipped folder holds those that the tests and the README rely on."""
    named = {"all_methods", "lora_rank", "lora_targets", "adapter_size", "prompt_length", "prefix_length", SOLVED}
    named |= {"glue_methods", "glue_tuned", "learning_rate", "seed_noise"}
    assert named <= set(SWEEPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glue_methods", "glue_tuned", "learning_rate", "seed_noise"])
def test_a_comparison_gives_every_method_the_same_rows_steps_and_batches(name: str) -> None:
    """No axis touches them, and no method's own file does."""
    fixed = {"task.max_train_rows", "train.epochs", "train.max_steps", "train.batch_size"}
    methods, *others = axes(name)
    assert not {override.partition("=")[0] for values in others for override in values} & fixed
    seen = set()
    for method in methods:
        cfg = compose(name, [method])
        seen.add((cfg.task.max_train_rows, cfg.train.epochs, cfg.train.max_steps, cfg.train.batch_size))
    assert len(methods) > 1
    assert len(seen) == 1


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_opens_with_its_question_its_command_its_runs_and_their_cost(name: str) -> None:
    """The number of runs is what the parameters expand to, times the trials and seeds of each."""
    text, chosen = header(name), sweeper(name)
    assert "?" in text.partition("harness -cn")[0]
    assert re.search(rf"harness -cn {name}\b", text)
    assert "two cores" in text
    each = chosen.trials + len(chosen.seeds) if "trials" in chosen else 1
    (said,) = re.findall(r"(\d+) runs\b", text)
    assert int(said) == each * prod(len(values) for values in axes(name)) == each * len(list(expand(name, [], True)))


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.slow
def test_every_value_of_a_sweep_builds(name: str) -> None:
    """Each value beside the first ones of the other parameters; what is solved for has its own test."""
    if name == "forgetting" and not os.environ.get("HARNESS_REAL_DATA"):
        pytest.skip("its texts are real ones: set HARNESS_REAL_DATA")
    first = [values[0] for values in axes(name)]
    points = {tuple(first)}
    for position, values in enumerate(axes(name)):
        points |= {(*first[:position], value, *first[position + 1 :]) for value in values}
    for point in points:
        told = [override for override in point if not (name == SOLVED and override.startswith("sweep.budget"))]
        assert build(compose(name, told)).method.name


@pytest.mark.slow
def test_every_point_of_the_matched_budgets_is_solved_within_and_near_its_budget() -> None:
    """From half of the budget up to it."""
    sizes = {0.001: 22_713, 0.005: 113_566, 0.02: 454_264}

    for point in expand(SOLVED, [], True):
        experiment = build(compose(SOLVED, point))
        assert experiment.sweep.budget is not None
        allowed = sizes[experiment.sweep.budget]
        assert allowed / 2 <= experiment.method.expected_parameters(skeleton(experiment)) <= allowed, point


@pytest.mark.slow
def test_lora_s_places_train_about_as_many_parameters() -> None:
    """Within a sixth of each other where the rank is solved for, on MiniLM."""
    places, budgets = axes("lora_targets")
    solved = [build(compose("lora_targets", [place, budgets[1]])) for place in places]
    counts = [experiment.method.expected_parameters(skeleton(experiment)) for experiment in solved]
    assert max(counts) == 82_944
    assert min(counts) > 5 / 6 * max(counts) - 1
    assert [experiment.method.rank for experiment in solved] == [18, 9, 4, 3, 2]
