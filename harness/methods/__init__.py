"""What a fine-tuning method is; each file beside this one is a family of them."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from harness.config import Quantization

if TYPE_CHECKING:
    from torch import nn

    from harness.architectures import Backbone


class Method(Protocol):
    """The hyper-parameters of a method, as a frozen dataclass, and what it does to a backbone."""

    name: str
    learning_rate: float
    learning_rates: list[float]

    def check(self, key: str) -> None:
        """Refuse hyper-parameters that can't be right; `key` is the configuration key to name."""

    def quantization(self) -> Quantization | None:
        """How the backbone must be stored; null leaves it to `model.quantization`."""

    def expected_parameters(self, backbone: "Backbone") -> int:
        """Trainable parameters apart from the head, by a closed form over the backbone's shapes.

        The backbone may be on the meta device.

        Raises:
            ConfigError: The method can't go with this backbone.
        """

    def attach(self, backbone: "Backbone") -> "Adapter":
        """Change the model in place so that just the adapter and the head are trained."""

    def restore(self, backbone: "Backbone", folder: Path) -> "Adapter":
        """Attach what `Adapter.save` wrote to a fresh backbone.

        Raises:
            ValueError: The files are missing, damaged, or of another backbone.
        """


class Adapter(Protocol):
    """A method attached to a model."""

    model: "nn.Module"

    def adapter_parameters(self) -> "dict[str, nn.Parameter]":
        """The trained parameters apart from the head."""

    def head_parameters(self) -> "dict[str, nn.Parameter]":
        """The trained parameters of the head."""

    def total_parameters(self) -> int:
        """Parameters of the model with adapter and head, each once, 4-bit weights unpacked."""

    def disabled(self) -> AbstractContextManager[None]:
        """Switch the adapter off: inside the context the model computes what the backbone does."""

    def save(self, folder: Path) -> None:
        """Write adapter and head: safetensors and JSON only."""

    def merge(self) -> "nn.Module":
        """The model with the adapter folded into the backbone's weights.

        Raises:
            ValueError: The mathematics does not allow it; the message says why.
        """
