"""Methods that train a selection of the backbone's own weights: all, none, the top layers, or the bias terms."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.config.errors import ConfigError
from harness.config.schema import Quantization
from harness.methods import CONFIG_FILE, EARLIER, WEIGHTS_FILE, TrainingHooks, prepare_trained, trained_parameters
from harness.methods.defaults import MethodDefaults
from harness.methods.size import Knob
from harness.models.sizes import logical_parameters, logical_size
from harness.tracking.record import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.models.architectures import Backbone


@dataclass(frozen=True)
class _Selection(MethodDefaults):
    """Common part of selective methods: they differ in the weights they select, and so only in `selects`."""

    def selects(self, backbone: "Backbone") -> Callable[[str], bool]:
        """Which parameters of the backbone are trained, by name.

        Raises:
            ConfigError: The backbone has none of them.
        """
        raise NotImplementedError

    def expected_parameters(self, backbone: "Backbone") -> int:
        """The sum of the sizes of what is selected."""
        selected = self.selects(backbone)
        named = backbone.model.named_parameters()
        return sum(logical_size(p) for name, p in named if selected(name) and not backbone.is_head(name))

    def attach(self, backbone: "Backbone") -> "SelectedWeights":
        return SelectedWeights(backbone, self, self.selects(backbone))

    def restore(self, backbone: "Backbone", folder: Path) -> "SelectedWeights":
        return self.attach(backbone).load(folder)


@dataclass(frozen=True)
class Full(_Selection):
    """Every weight of the backbone is trained."""

    def quantization(self) -> Quantization | None:
        # Quantized weights are integers: they have no gradient.
        return Quantization.none

    def selects(self, backbone: "Backbone") -> Callable[[str], bool]:
        return lambda name: True


@dataclass(frozen=True)
class Head(_Selection):
    """A linear probe: only the new head is trained."""

    def selects(self, backbone: "Backbone") -> Callable[[str], bool]:
        if not backbone.head:
            raise ConfigError(
                f"method={self.name}: a language model has no new head to train; choose a method that adapts the "
                "backbone, such as lora"
            )
        return lambda name: False


@dataclass(frozen=True)
class LastLayers(_Selection):
    """The top layers are trained whole, the others frozen (Lee, Tang and Lin 2019, arXiv 1911.03090).

    Attributes:
        layers: How many, counted from the output.
    """

    layers: int

    def size(self) -> Knob:
        return Knob("layers")

    def check(self, key: str) -> None:
        if self.layers < 1:
            raise ConfigError(f"{key}.layers={self.layers}: at least one layer is needed")

    def quantization(self) -> Quantization | None:
        return Quantization.none

    def selects(self, backbone: "Backbone") -> Callable[[str], bool]:
        lists = backbone.layers()
        total = len(lists)
        if total == 1:
            raise ConfigError(
                f"method={self.name}: the {backbone.model.config.model_type} backbone has one set of layer weights, "
                "so there are no top layers apart from the others; choose method=full"
            )
        if self.layers > total:
            raise ConfigError(f"method.layers={self.layers}: the backbone has {total} layers")
        top = tuple(f"{name}." for name in lists[-self.layers :])
        return lambda name: name.startswith(top)


class Biases(Enum):
    """Which bias terms BitFit trains: all, or those of the query and of the first feed-forward projection."""

    all = "all"
    query_mlp = "query_mlp"


@dataclass(frozen=True)
class BitFit(_Selection):
    """Bias terms are trained (Ben Zaken et al. 2022, arXiv 2106.10199).

    Attributes:
        only: all (section 3), or query_mlp, the half of them that the paper finds to be enough (section 4.2, the
            biases of the query and of the projection into the feed-forward block).
    """

    only: Biases

    def selects(self, backbone: "Backbone") -> Callable[[str], bool]:
        kind = backbone.model.config.model_type
        chosen = {name for name, _ in backbone.model.named_parameters() if is_bias(name) and not backbone.is_head(name)}
        if chosen and self.only is Biases.query_mlp:
            arch = backbone.architecture
            if set(arch.query) & set(arch.key_value):
                raise ConfigError(
                    f"method.only=query_mlp: {kind} holds query, key and value in one projection, so the query's bias "
                    "can't be trained apart; method.only=all trains them together"
                )
            wanted = re.compile(rf"{arch.layer_modules((*arch.query, arch.mlp_input))}\.bias")
            chosen = {name for name in chosen if wanted.fullmatch(name)}
        if not chosen:
            raise ConfigError(
                f"method={self.name}: the {kind} backbone has no bias terms to train; "
                "choose another method, such as lora"
            )
        return chosen.__contains__


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """The tensors of a file.

    Raises:
        ValueError: It is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias by its name: `bias`, or `Wqkv_bias` and the like."""
    return name.rpartition(".")[2].endswith("bias")


class SelectedWeights(TrainingHooks):
    """Trained weights that are the backbone's own; the values they had are kept on the CPU, to switch back to."""

    def __init__(self, backbone: "Backbone", method: Any, selects: Callable[[str], bool]) -> None:
        self.model: nn.Module = backbone.model
        self.method = method
        self._is_head = backbone.is_head
        for name, parameter in self.model.named_parameters():
            earlier = name.startswith(EARLIER)
            parameter.requires_grad = backbone.is_head(name) or (selects(name) and not earlier)
        self.original: dict[str, Tensor] = {
            name: p.detach().to("meta" if p.is_meta else "cpu", copy=True)
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }

    def adapter_parameters(self) -> "dict[str, nn.Parameter]":
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and not self._is_head(n)}

    def head_parameters(self) -> "dict[str, nn.Parameter]":
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and self._is_head(n)}

    def reference_bytes(self) -> int:
        return sum(copy.nbytes for copy in self.original.values())

    def total_parameters(self) -> int:
        return logical_parameters(self.model)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        trained = {name: p.detach().clone() for name, p in self.model.named_parameters() if name in self.original}
        self._set(self.original)
        try:
            yield
        finally:
            self._set(trained)

    def _set(self, values: "dict[str, Tensor]") -> None:
        import torch

        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)

    def detach(self) -> None:
        self._set(self.original)

    def saved_bytes(self) -> int:
        # Trained weights are float32, whatever the backbone's are.
        return 4 * sum(p.numel() for p in trained_parameters(self).values())

    def save(self, folder: Path) -> None:
        self._write(folder, trained_parameters(self))

    def _write(self, folder: Path, tensors: "Mapping[str, Tensor]", **figures: float) -> None:
        """Write tensors, and the method's hyper-parameters with what it came to."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        cls = type(self.method)
        content = {"_target_": f"{cls.__module__}.{cls.__qualname__}", **asdict(self.method), **figures}
        write_atomically(folder / CONFIG_FILE, json.dumps(content, indent=2, default=lambda value: value.value) + "\n")

    def load(self, folder: Path) -> Self:
        """Read what `save` wrote into this model.

        Raises:
            ValueError: The file is missing or damaged, or its tensors are not this model's.
        """
        path = folder / WEIGHTS_FILE
        saved = read_tensors(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.original.items()}
        found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
        if shapes != found:
            different = min(set(shapes.items()) ^ set(found.items()))[0]
            raise ValueError(f"{path} was saved for another backbone or method: tensor {different} differs")
        # What was trained is stored in float32, and would lose digits in the precision of a backbone below that.
        prepare_trained(self)
        self._set(saved)
        return self

    def merge(self) -> "nn.Module":
        # The trained weights already are the backbone's.
        return self.model

    def stay(self) -> "nn.Module":
        raise ValueError(f"{self.method.name} changes the backbone's own weights, so nothing stands beside them")
