"""Methods of equal size: the hyper-parameter that sets a method's size, solved for a number of trained parameters."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.config.build import component
from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.methods.skeleton import skeleton
from harness.models import check_positions
from harness.models.sizes import logical_parameters

if TYPE_CHECKING:
    from harness.models.architectures import Backbone

# No method asks for more of anything: a bank of vectors or a list of frequencies comes nearest.
LARGEST = 2**24


def whole(values: dict[str, Any], width: int) -> Sequence[int]:
    """Every whole number."""
    return range(1, LARGEST)


def from_two(values: dict[str, Any], width: int) -> Sequence[int]:
    """Every whole number but 1."""
    return range(2, LARGEST)


def multiples_of(key: str) -> Callable[[dict[str, Any], int], Sequence[int]]:
    """Multiples of another hyper-parameter of the method."""
    return lambda values, width: range(values[key], LARGEST, values[key])


def divisors(values: dict[str, Any], width: int) -> Sequence[int]:
    """What divides the backbone's hidden width."""
    return [size for size in range(1, width + 1) if width % size == 0]


def falling_divisors(values: dict[str, Any], width: int) -> Sequence[int]:
    """The same, where a larger block trains less."""
    return divisors(values, width)[::-1]


@dataclass(frozen=True)
class Knob:
    """The hyper-parameter that sets a method's size.

    Attributes:
        field: Its name, beside `target_modules` and the like.
        sizes: The values it can have, in the order of what they train, given the others and the hidden width.
        beside: What else follows from it.
    """

    field: str
    sizes: Callable[[dict[str, Any], int], Sequence[int]] = whole
    beside: Callable[[int], dict[str, Any]] = lambda size: {}


BOTTLENECK = Knob("bottleneck_dim", beside=lambda size: {"reduction_factor": None})
RANK, FREQUENCIES, TOKENS = Knob("r"), Knob("n_frequency"), Knob("num_virtual_tokens")
# By the class that a method's YAML names: one of this package, or of peft.
KNOBS = {
    "harness.methods.selective.LastLayers": Knob("layers"),
    "harness.methods.bottleneck.Houlsby": BOTTLENECK,
    "harness.methods.bottleneck.Pfeiffer": BOTTLENECK,
    "harness.methods.bottleneck.ParallelAdapter": BOTTLENECK,
    "harness.methods.compacter.Compacter": Knob("bottleneck_dim", multiples_of("phm_dim"), BOTTLENECK.beside),
    "harness.methods.lora.Lora": Knob("rank"),
    # Half as much again as in the end, as its paper has it; at rank 1 there is nothing to take away.
    "harness.methods.lora.AdaLora": Knob("initial_rank", from_two, lambda size: {"target_rank": max(1, 2 * size // 3)}),
    "peft.AdaptionPromptConfig": Knob("adapter_len"),
    "peft.BOFTConfig": Knob("boft_block_size", divisors),
    "peft.C3AConfig": Knob("block_size", falling_divisors),
    "peft.DeftConfig": RANK,
    "peft.DeloraConfig": RANK,
    "peft.FourierFTConfig": FREQUENCIES,
    "peft.GloraConfig": RANK,
    "peft.GraloraConfig": Knob("r", multiples_of("gralora_k")),
    "peft.HRAConfig": RANK,
    "peft.HiraConfig": RANK,
    "peft.LoHaConfig": RANK,
    "peft.LoKrConfig": RANK,
    "peft.MissConfig": RANK,
    "peft.OFTConfig": Knob("oft_block_size", divisors),
    "peft.PeanutConfig": RANK,
    "peft.PrefixTuningConfig": TOKENS,
    "peft.PromptEncoderConfig": Knob("encoder_hidden_size"),
    "peft.PromptTuningConfig": TOKENS,
    "peft.PsoftConfig": RANK,
    "peft.PveraConfig": RANK,
    "peft.ShiraConfig": RANK,
    "peft.TinyLoraConfig": Knob("u"),
    "peft.UniLoraConfig": Knob("theta_d_length"),
    "peft.VBLoRAConfig": Knob("num_vectors", lambda values, width: range(values["topk"], LARGEST)),
    "peft.VeraConfig": RANK,
    "peft.WaveFTConfig": FREQUENCIES,
}
# A prefix that a network makes is as large as the network.
PROJECTED_PREFIX = Knob("encoder_hidden_size")


def solve(experiment: Experiment, values: dict[str, Any]) -> dict[str, Any]:
    """A method's values with the size that trains the most within `sweep.budget`, the head apart.

    Nothing is attached and no weights are read: the sizes are tried on the method's closed form.

    Args:
        experiment: The experiment with the size as its YAML has it.
        values: The method's values as they were composed, `_target_` among them.

    Raises:
        ConfigError: The method has no size, can't go with the backbone, or none of its sizes comes near the budget.
    """
    given, name = experiment.sweep.budget, values["name"]
    assert given is not None
    backbone = skeleton(experiment)
    knob = knob_of(values, given)
    heads = sum(p.numel() for parameter, p in backbone.model.named_parameters() if backbone.is_head(parameter))
    budget = int(given if given >= 1 else given * (logical_parameters(backbone.model) - heads))
    own = values.get("config") or values
    sizes = knob.sizes(own, backbone.model.config.hidden_size)

    def parameters(size: int) -> int:
        try:
            return count(sized(values, knob, size), backbone, experiment.task.max_length)
        except ConfigError:
            return budget + 1  # above a width, or above the context

    position = bisect_right(sizes, budget, key=parameters)
    if position == 0:
        smallest = count(sized(values, knob, sizes[0]), backbone, experiment.task.max_length)
        raise ConfigError(
            f"sweep.budget={given:g}: method={name} trains {smallest:,} parameters at the least, with "
            f"{knob.field}={sizes[0]}, and the budget is {budget:,}"
        )
    most = parameters(sizes[position - 1])
    if 2 * most < budget:
        raise ConfigError(
            f"sweep.budget={given:g}: method={name} comes no nearer to {budget:,} parameters than {most:,}"
        )
    # Some sizes add nothing, such as ranks above a matrix's own: of equals the smallest.
    return sized(values, knob, sizes[bisect_left(sizes, most, key=parameters)])


def knob_of(values: dict[str, Any], given: float) -> Knob:
    """The hyper-parameter that sets a method's size.

    Raises:
        ConfigError: There is none: what the method trains follows from the backbone.
    """
    config = values.get("config") or {}
    knob = KNOBS.get(str(config.get("_target_", values["_target_"])))
    if knob is None:
        raise ConfigError(
            f"sweep.budget={given:g}: method={values['name']} has no size to solve for; set it to null for this method"
        )
    return PROJECTED_PREFIX if config.get("prefix_projection") else knob


def sized(values: dict[str, Any], knob: Knob, size: int) -> dict[str, Any]:
    """A copy of a method's values with this size."""
    changed = deepcopy(values)
    own = changed["config"] if changed.get("config") else changed
    own.update({knob.field: size, **knob.beside(size)})
    return changed


def count(values: dict[str, Any], backbone: "Backbone", max_length: int) -> int:
    """What a method trains beside the head.

    Raises:
        ConfigError: The values are not allowed, or not on this backbone, or leave the text no room.
    """
    method = component(values, "method")
    parameters: int = method.expected_parameters(backbone)
    check_positions({"task.max_length": max_length}, backbone.model.config, method.virtual_tokens())
    return parameters
