"""Methods of equal size: the hyper-parameter that sets a method's size, solved for a number of trained parameters."""

from bisect import bisect_left, bisect_right
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

from harness.config.build import component
from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.methods.size import Knob
from harness.methods.skeleton import skeleton
from harness.models import check_positions
from harness.models.sizes import logical_parameters

if TYPE_CHECKING:
    from harness.models.architectures import Backbone


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
    knob = experiment.method.size()
    if knob is None:
        raise ConfigError(
            f"sweep.budget={given:g}: method={name} has no size to solve for; set it to null for this method"
        )
    backbone = skeleton(experiment)
    heads = sum(p.numel() for parameter, p in backbone.model.named_parameters() if backbone.is_head(parameter))
    budget = int(given if given >= 1 else given * (logical_parameters(backbone.model) - heads))
    own = values.get("config") or values
    sizes = knob.sizes(own, backbone.model.config.hidden_size)

    @cache
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


def sized(values: dict[str, Any], knob: Knob, size: int) -> dict[str, Any]:
    """A copy of a method's values with this size."""
    changed = deepcopy(values)
    own = changed["config"] if changed.get("config") else changed
    own.update({knob.field: size, **knob.beside(size)})
    return changed


def count(values: dict[str, Any], backbone: "Backbone", max_length: int) -> int:
    """Number of parameters that a method trains beside the head.

    Raises:
        ConfigError: The values are not allowed, or not on this backbone, or leave the text no room.
    """
    method = component(values, "method")
    parameters: int = method.expected_parameters(backbone)
    check_positions({"task.max_length": max_length}, backbone.model.config, method.virtual_tokens())
    return parameters
