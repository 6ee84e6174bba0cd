"""Methods that train a selection of the backbone's own weights: all, none, or the bias terms."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import ConfigError, Quantization

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.architectures import Backbone

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


@dataclass(frozen=True)
class Full:
    """Every weight of the backbone is trained."""

    name: str
    learning_rate: float
    learning_rates: list[float]

    def check(self, key: str) -> None:
        """Nothing to refuse."""

    def quantization(self) -> Quantization | None:
        # Quantized weights are integers: they have no gradient.
        return Quantization.none

    def expected_parameters(self, backbone: "Backbone") -> int:
        return sum(p.numel() for name, p in backbone.model.named_parameters() if not backbone.is_head(name))

    def attach(self, backbone: "Backbone") -> "SelectedWeights":
        return SelectedWeights(backbone, self, lambda name: True)

    def restore(self, backbone: "Backbone", folder: Path) -> "SelectedWeights":
        return self.attach(backbone).load(folder)


@dataclass(frozen=True)
class Head:
    """A linear probe: only the new classification head is trained."""

    name: str
    learning_rate: float
    learning_rates: list[float]

    def check(self, key: str) -> None:
        """Nothing to refuse."""

    def quantization(self) -> Quantization | None:
        return None

    def expected_parameters(self, backbone: "Backbone") -> int:
        return 0

    def attach(self, backbone: "Backbone") -> "SelectedWeights":
        return SelectedWeights(backbone, self, lambda name: False)

    def restore(self, backbone: "Backbone", folder: Path) -> "SelectedWeights":
        return self.attach(backbone).load(folder)


@dataclass(frozen=True)
class BitFit:
    """The bias terms are trained (Ben Zaken et al. 2022, arXiv 2106.10199, section 3: all of them)."""

    name: str
    learning_rate: float
    learning_rates: list[float]

    def check(self, key: str) -> None:
        """Nothing to refuse."""

    def quantization(self) -> Quantization | None:
        return None

    def expected_parameters(self, backbone: "Backbone") -> int:
        biases = [p for name, p in backbone.model.named_parameters() if is_bias(name) and not backbone.is_head(name)]
        if not biases:
            raise ConfigError(
                f"method={self.name}: the {backbone.model.config.model_type} backbone has no bias terms to train; "
                "choose another method, such as lora"
            )
        return sum(p.numel() for p in biases)

    def attach(self, backbone: "Backbone") -> "SelectedWeights":
        return SelectedWeights(backbone, self, is_bias)

    def restore(self, backbone: "Backbone", folder: Path) -> "SelectedWeights":
        return self.attach(backbone).load(folder)


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias by its name: `bias`, or `Wqkv_bias` and the like."""
    return name.rpartition(".")[2].endswith("bias")


class SelectedWeights:
    """Trained weights that are the backbone's own; the values they had are kept on the CPU, to switch back to."""

    def __init__(self, backbone: "Backbone", method: Any, selects: Callable[[str], bool]) -> None:
        self.model: nn.Module = backbone.model
        self.method = method
        self._is_head = backbone.is_head
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = backbone.is_head(name) or selects(name)
        self.original: dict[str, Tensor] = {
            name: p.detach().to("meta" if p.is_meta else "cpu", copy=True)
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }

    def adapter_parameters(self) -> "dict[str, nn.Parameter]":
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and not self._is_head(n)}

    def head_parameters(self) -> "dict[str, nn.Parameter]":
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and self._is_head(n)}

    def total_parameters(self) -> int:
        from harness.measure import logical_parameters

        return logical_parameters(self.model)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        import torch

        trained = {name: p.detach().clone() for name, p in self.model.named_parameters() if name in self.original}
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in self.original.items():
                parameters[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in trained.items():
                    parameters[name].copy_(value)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        from harness.record import write_atomically

        folder.mkdir(parents=True, exist_ok=True)
        trained = {**self.adapter_parameters(), **self.head_parameters()}
        tensors = {name: p.detach().cpu().contiguous() for name, p in trained.items()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        cls = type(self.method)
        content = {"_target_": f"{cls.__module__}.{cls.__qualname__}", **asdict(self.method)}
        write_atomically(folder / CONFIG_FILE, json.dumps(content, indent=2) + "\n")

    def load(self, folder: Path) -> "SelectedWeights":
        """Read what `save` wrote into this model.

        Raises:
            ValueError: The file is missing or damaged, or its tensors are not this model's.
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / WEIGHTS_FILE
        try:
            saved = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} can't be read: {error}") from error
        parameters = dict(self.model.named_parameters())
        shapes = {name: tuple(parameters[name].shape) for name in self.original}
        found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
        if shapes != found:
            different = min(set(shapes.items()) ^ set(found.items()))[0]
            raise ValueError(f"{path} was saved for another backbone or method: tensor {different} differs")
        with torch.no_grad():
            for name, tensor in saved.items():
                parameters[name].copy_(tensor)
        return self

    def merge(self) -> "nn.Module":
        # The trained weights already are the backbone's.
        return self.model
