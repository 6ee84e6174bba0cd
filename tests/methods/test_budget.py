"""The size of a method is solved for a number of parameters, by its closed form and before the run is identified."""

import re

import pytest

from harness.config.build import build, component, locate
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.config.sources import conf_root
from harness.methods.budget import sized
from harness.methods.defaults import MethodDefaults
from harness.methods.peft import PeftMethod
from harness.methods.peft_rules import RULES
from harness.methods.skeleton import architecture_of, skeleton
from harness.models import empty_model
from harness.models.architectures import Kind
from harness.plan.costs import plan

POINT = ["model=minilm", "task=glue/sst2"]
# MiniLM apart from its head, the pooler among its weights.
BACKBONE = 22_713_216
TARGET = re.compile(r"^ *_target_: (\S+)$", re.M)


def has_size(targets: list[str]) -> bool:
    """Whether the class that a method's file names, or the class of peft that it gives options of, has a size."""
    own, *of_peft = (locate(target, "method") for target in targets)
    rules = [RULES[cls.__name__] for cls in of_peft if cls.__name__ in RULES]
    return any(rule.size for rule in rules) if of_peft else own.size not in (MethodDefaults.size, PeftMethod.size)


# The methods of conf/method that have a size.
FILES = sorted((conf_root() / "conf/method").glob("*.yaml"))
WITH_SIZE = [path.stem for path in FILES if has_size(TARGET.findall(path.read_text()))]


def experiment(*overrides: str) -> Experiment:
    return build(compose("config", [*POINT, *overrides]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key", "budget"),
    [
        ("lora", "rank", 0.001),
        ("lora", "rank", 0.02),
        ("houlsby", "bottleneck_dim", 0.001),
        ("houlsby", "bottleneck_dim", 0.005),
        ("compacter", "bottleneck_dim", 0.001),
        ("prefix_tuning", "config.num_virtual_tokens", 0.02),
        ("fourierft", "config.n_frequency", 0.005),
    ],
)
def test_the_solved_size_is_the_largest_within_the_budget(name: str, key: str, budget: float) -> None:
    """The next size is above it: for Compacter the next multiple of the number of its products."""
    solved = experiment(f"method={name}", f"sweep.budget={budget}")
    allowed = int(budget * BACKBONE)
    values = solved.resolved["method"]
    size = values["config"][key.partition(".")[2]] if "config" in values else values[key]
    assert allowed / 2 < solved.method.expected_parameters(skeleton(solved)) <= allowed
    further = size + (values["phm_dim"] if name == "compacter" else 1)
    none = ["method.reduction_factor=null"] if key == "bottleneck_dim" else []
    more = experiment(f"method={name}", f"method.{key}={further}", *none)
    assert more.method.expected_parameters(skeleton(more)) > allowed


def test_the_solved_size_is_recorded_and_decides_the_identity_alone() -> None:
    """A run with a budget is the same run as one that was given the size."""
    solved, typed = experiment("sweep.budget=73728"), experiment("method.rank=8")
    assert solved.resolved["method"] == typed.resolved["method"]
    assert solved.resolved["sweep"]["budget"] == 73728


def test_the_same_budget_gives_the_same_size_again() -> None:
    """Solving twice gives one resolved configuration."""
    first, second = (experiment("method=p_tuning", "sweep.budget=0.02") for _ in range(2))
    assert first.resolved == second.resolved


@pytest.mark.slow
def test_a_budget_of_a_plan_is_kept() -> None:
    """The planned adapter has no more parameters than it allows."""
    assert plan(experiment("method=vblora", "sweep.budget=50000"))["adapter_parameters"] <= 50000


def test_the_backbone_of_a_share_has_no_head() -> None:
    """A count of the whole share gives the same size as the share."""
    share = experiment("method=unilora", "sweep.budget=0.001").resolved["method"]["config"]["theta_d_length"]
    assert share == int(0.001 * BACKBONE)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["method=bitfit", "sweep.budget=0.005"], "method=bitfit has no size to solve for"),
        (["method=full", "sweep.budget=0.005"], "method=full has no size to solve for"),
        (["sweep.budget=100"], "method=lora trains 9,216 parameters at the least, with rank=1, and the budget is 100"),
        # 384 virtual tokens and 128 of text fill the context.
        (["method=prompt_tuning", "sweep.budget=0.02"], "comes no nearer to 454,264 parameters than 147,456"),
        (["sweep.budget=0"], "sweep.budget=0.*: a positive number"),
        (["model=llama_3_2_1b", "method=compacter", "method.phm_dim=3", "sweep.budget=0.01"], "phm_dim=3: it does not"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_one_sentence(overrides: list[str], sentence: str) -> None:
    """The sentence says what the method trains at the least or at the most."""
    with pytest.raises(ConfigError, match=sentence) as error:
        experiment(*overrides)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_SIZE)
def test_a_method_with_a_size_trains_more_of_it_the_larger_it_is(name: str) -> None:
    """So that the largest size within a budget is found by halving, from the least to the most."""
    given = build(compose("config", ["model=micro_decoder", "task=glue/sst2", f"method={name}"]))
    values = dict(given.resolved["method"])
    knob = given.method.size()
    backbone = empty_model(architecture_of(given), Kind.causal_lm)
    sizes = knob.sizes(values.get("config") or values, backbone.model.config.hidden_size)[:4]
    counts = [component(sized(values, knob, size), "method").expected_parameters(backbone) for size in sizes]
    assert counts == sorted(set(counts))


@pytest.mark.slow
def test_every_size_of_a_class_of_peft_belongs_to_a_method_that_can_be_chosen() -> None:
    """No entry is left over from a method that is gone."""
    methods = (
        build(compose("config", ["model=micro_decoder", "task=glue/sst2", f"method={name}"])).resolved["method"]
        for name in WITH_SIZE
    )
    chosen = {values["config"]["_target_"].removeprefix("peft.") for values in methods if values.get("config")}
    assert chosen == {name for name, rules in RULES.items() if rules.size}
