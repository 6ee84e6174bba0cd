"""Methods: the contract of a fine-tuning method; each file beside this one is a family of them, or what they share.

May import `models`, `tracking` and `config`.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.config.schema import Experiment, Quantization, TrainConfig
from harness.methods.size import Knob

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from harness.models.architectures import Backbone

__all__ = [
    "CONFIG_FILE",
    "EARLIER",
    "WEIGHTS_FILE",
    "Adapter",
    "Method",
    "TrainingHooks",
    "parameters",
    "prepare_trained",
    "trained_parameters",
]

# What peft names the files of an adapter, and so every method here.
WEIGHTS_FILE = "adapter_model.safetensors"
# Modules of earlier runs that stay beside the backbone, frozen, are called so, and a number.
EARLIER = "earlier_adapters_"
CONFIG_FILE = "adapter_config.json"


class Method(Protocol):
    """The hyper-parameters of a method, as a frozen dataclass, and what it does to a backbone."""

    name: str
    learning_rate: float
    learning_rates: list[float]
    second_range: dict[str, Any]

    def check(self, key: str) -> None:
        """Refuse hyper-parameters that can't be right; `key` is the configuration key to name."""

    def quantization(self) -> Quantization | None:
        """How the backbone must be stored; null leaves it to `model.quantization`."""

    def size(self) -> Knob | None:
        """The hyper-parameter that sets what the method trains, which an equal-parameter budget solves for.

        Null where what it trains follows from the backbone.
        """

    def virtual_tokens(self) -> int:
        """Positions that the method takes from the context, beside the text's."""

    def trains_alone(self) -> str | None:
        """Why runs of this method can't share a backbone with other runs while they train; null where they can."""

    def within_budget(self, experiment: Experiment, values: dict[str, Any]) -> dict[str, Any]:
        """The method's values with the size that trains the most within `sweep.budget`, the head apart.

        Args:
            experiment: The experiment with the size as its YAML has it.
            values: The method's values as they were composed, `_target_` among them.

        Raises:
            ConfigError: The method has no size, or none that fits.
        """

    def expected_parameters(self, backbone: "Backbone") -> int:
        """Trainable parameters apart from the head, by a closed form over the backbone's shapes.

        The backbone may be on the meta device: this runs before any weights are read, and what it refuses is the
        table of what works.

        Raises:
            ConfigError: The method can't go with this backbone, its kind of head or its quantization.
        """

    def attach(self, backbone: "Backbone") -> "Adapter":
        """Change the model in place so that just the adapter and the head are trained."""

    def restore(self, backbone: "Backbone", folder: Path) -> "Adapter":
        """Attach what `Adapter.save` wrote to a fresh backbone.

        Raises:
            ValueError: The files are missing, damaged, or of another backbone.
        """


class TrainingHooks:
    """Hooks by which a method may add to training; these defaults add nothing."""

    def optimizer(self, trained: "dict[str, nn.Parameter]", settings: TrainConfig) -> "Optimizer | None":
        """The method's own optimizer over the trained parameters; null for the harness's AdamW."""
        return None

    def start(self, total_steps: int) -> None:
        """Told once, before the first step."""

    def penalty(self) -> "Tensor | None":
        """A scalar added to the loss of every step."""
        return None

    def after_step(self, step: int) -> None:
        """Called after the optimizer's step, while gradients are still there; `step` counts from 1."""

    def settled(self) -> bool:
        """Whether the method's own schedule has ended; before that no weights are taken as the best."""
        return True

    def kept_whole(self) -> "Iterable[nn.Parameter]":
        """Frozen parameters that are read or set outside of their layer's forward pass."""
        return ()

    def reference_bytes(self) -> int:
        """Bytes of what is kept so that the backbone can be computed with while the adapter is trained."""
        return 0

    def state(self) -> "dict[str, Tensor]":
        """State that a checkpoint must hold beside the trained parameters."""
        return {}

    def load_state(self, state: "dict[str, Tensor]") -> None:
        """Take back what `state` gave."""


class Adapter(Protocol):
    """A method attached to a model; implementations inherit `TrainingHooks` for what they do not need."""

    model: "nn.Module"

    def optimizer(self, trained: "dict[str, nn.Parameter]", settings: TrainConfig) -> "Optimizer | None": ...

    def start(self, total_steps: int) -> None: ...

    def penalty(self) -> "Tensor | None": ...

    def after_step(self, step: int) -> None: ...

    def settled(self) -> bool: ...

    def kept_whole(self) -> "Iterable[nn.Parameter]": ...

    def reference_bytes(self) -> int: ...

    def state(self) -> "dict[str, Tensor]": ...

    def load_state(self, state: "dict[str, Tensor]") -> None: ...

    def adapter_parameters(self) -> "dict[str, nn.Parameter]":
        """The trained parameters apart from the head."""

    def head_parameters(self) -> "dict[str, nn.Parameter]":
        """The trained parameters of the head."""

    def total_parameters(self) -> int:
        """Parameters of the model with adapter and head, each once, 4-bit weights unpacked."""

    def disabled(self) -> AbstractContextManager[None]:
        """Switch the adapter off: inside the context the model computes what the backbone does."""

    def saved_bytes(self) -> int:
        """Bytes of the tensors that `save` writes at the end of training; the file's header comes on top."""

    def save(self, folder: Path) -> None:
        """Write adapter and head: safetensors and JSON only."""

    def merge(self) -> "nn.Module":
        """The model with the adapter folded into the backbone's weights.

        Raises:
            ValueError: The mathematics does not allow it; the message says why.
        """

    def stay(self) -> "nn.Module":
        """The model with the adapter left where it is, frozen, so that another method can come on top.

        Raises:
            ValueError: The two would get into each other's way; the message says why.
        """

    def detach(self) -> None:
        """Take the adapter off: the backbone computes what it did before `attach`; this object is of no more use."""


def trained_parameters(adapter: Adapter) -> "dict[str, nn.Parameter]":
    """Trained parameters: the adapter's, then the head's."""
    return {**adapter.adapter_parameters(), **adapter.head_parameters()}


def parameters(adapter: "Adapter", expected: int) -> dict[str, int]:
    """Count what is trained, with the names of `RunRecord.cost`, held against the method's closed form.

    Raises:
        AssertionError: The method did not attach what its paper says.
    """
    own = sum(p.numel() for p in adapter.adapter_parameters().values())
    head = sum(p.numel() for p in adapter.head_parameters().values())
    assert own == expected, f"the method trains {own} parameters, its closed form says {expected}"
    return {
        "adapter_parameters": own,
        "head_parameters": head,
        "trainable_parameters": own + head,
        "total_parameters": adapter.total_parameters(),
    }


def prepare_trained(adapter: Adapter) -> "dict[str, nn.Parameter]":
    """What training changes, in float32, which small steps need; frozen weights stay in what is computed in.

    A head computes in it too, so that scores and numbers have all of their digits.

    A norm of which a part is trained is in float32 as a whole: a CPU takes no weight and bias of two types.
    """
    import torch

    trained = trained_parameters(adapter)
    changed = {id(parameter) for parameter in trained.values()}
    whole = [*trained.values()]
    for module in adapter.model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm)) and changed.intersection(map(id, own)):
            whole += own
    for parameter in whole:
        if parameter.dtype is not torch.float32:
            parameter.data = parameter.data.float()
    heads = {id(parameter) for parameter in adapter.head_parameters().values()}
    for module in adapter.model.modules():
        # A class in the place of its own, so that copies of the module are of it too.
        if type(module) is torch.nn.Linear and id(module.weight) in heads:
            module.__class__ = _head_layer()
    return trained


@cache
def _head_layer() -> "type[nn.Linear]":
    """A linear layer that computes in float32 whatever the backbone computes in.

    bfloat16 has 8 bits of a number: a regression would answer 2,490 and 2,503 alike, and the 1,500 answers of a model
    that had learned little were 13 numbers, which no rank correlation tells apart.
    """
    import torch

    class HeadLayer(torch.nn.Linear):
        def forward(self, hidden: "Tensor") -> "Tensor":
            with torch.autocast(hidden.device.type, enabled=False):
                return super().forward(hidden.to(self.weight.dtype))

    return HeadLayer
