"""Bottleneck adapters: small layers beside or behind the backbone's own, which stay frozen."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.methods import EARLIER
from harness.methods.defaults import MethodDefaults
from harness.methods.selective import SelectedWeights
from harness.methods.size import Knob

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from harness.methods.layers import Bottleneck
    from harness.models.architectures import Backbone

MODULE = "adapters"


class Activation(Enum):
    """Activation between the two projections; functions of torch.nn.functional or torch."""

    relu = "relu"
    gelu = "gelu"
    silu = "silu"
    tanh = "tanh"

    def function(self) -> "Callable[[Tensor], Tensor]":
        import torch
        from torch.nn import functional

        return torch.tanh if self is Activation.tanh else getattr(functional, self.value)


@dataclass(frozen=True)
class BottleneckMethod(MethodDefaults):
    """Common part of bottleneck adapters: they differ in the modules they sit at, and in what they read there.

    Attributes:
        bottleneck_dim: Width between the projections; null to give reduction_factor.
        reduction_factor: The hidden width divided by this, rounded down, is the bottleneck; null to give
            bottleneck_dim.
    """

    bottleneck_dim: int | None
    reduction_factor: int | None
    activation: Activation

    def size(self) -> Knob:
        return Knob("bottleneck_dim", beside=lambda size: {"reduction_factor": None})

    def check(self, key: str) -> None:
        given = {"bottleneck_dim": self.bottleneck_dim, "reduction_factor": self.reduction_factor}
        for name, value in given.items():
            if value is not None and value < 1:
                raise ConfigError(f"{key}.{name}={value}: 1 or more is needed")
        if (self.bottleneck_dim is None) == (self.reduction_factor is None):
            what = "neither is" if self.bottleneck_dim is None else "both are"
            raise ConfigError(
                f"{key}.bottleneck_dim and {key}.reduction_factor: {what} given; give one and set the other to null"
            )

    def bottleneck(self, width: int) -> int:
        """Width between the projections in a backbone of this hidden width.

        Raises:
            ConfigError: There is no such width, or it is above the backbone's.
        """
        if self.bottleneck_dim is not None:
            if self.bottleneck_dim > width:
                raise ConfigError(
                    f"method.bottleneck_dim={self.bottleneck_dim}: the backbone's hidden states are {width} wide, "
                    "and a bottleneck can't be wider"
                )
            return self.bottleneck_dim
        assert self.reduction_factor is not None
        if self.reduction_factor > width:
            raise ConfigError(
                f"method.reduction_factor={self.reduction_factor}: the backbone's hidden states are {width} wide, "
                "which leaves no bottleneck"
            )
        return width // self.reduction_factor

    def sites(self, backbone: "Backbone") -> list[str]:
        """Full names of the modules whose output the adapters change, one adapter at each."""
        raise NotImplementedError

    def connect(self, backbone: "Backbone", site: str, adapter: "nn.Module") -> "list[RemovableHandle]":
        """Hook one adapter into the backbone's computation."""

        def add(_: "nn.Module", inputs: Any, out: Any) -> Any:
            if isinstance(out, tuple):  # a layer that gives attention weights or caches too
                return (out[0] + adapter(out[0]), *out[1:])
            return out + adapter(out)

        return [backbone.model.get_submodule(site).register_forward_hook(add)]

    def selects(self, backbone: "Backbone") -> set[str]:
        """The backbone's own parameters that are trained too."""
        return set()

    def expected_parameters(self, backbone: "Backbone") -> int:
        """At each site 2 width bottleneck + bottleneck + width: two matrices and their biases."""
        width = backbone.model.config.hidden_size
        bottleneck = self.bottleneck(width)
        own = sum(backbone.model.get_parameter(name).numel() for name in self.selects(backbone))
        return len(self.sites(backbone)) * (2 * width * bottleneck + bottleneck + width) + own

    def layers(self, backbone: "Backbone") -> "dict[str, Bottleneck]":
        """A new adapter for each site."""
        from harness.methods.layers import linear_bottleneck

        width, device = backbone.model.config.hidden_size, backbone.model.device
        bottleneck, activation = self.bottleneck(width), self.activation.function()
        return {s: linear_bottleneck(width, bottleneck, activation, 1.0, device) for s in self.sites(backbone)}

    def attach(self, backbone: "Backbone") -> "AddedModules":
        return AddedModules(backbone, self, self.layers(backbone))

    def restore(self, backbone: "Backbone", folder: Path) -> "AddedModules":
        return self.attach(backbone).load(folder)


@dataclass(frozen=True)
class Houlsby(BottleneckMethod):
    """h + up(f(down(h))) on what leaves the attention block and on what leaves the feed-forward block.

    Houlsby et al. 2019, arXiv 1902.00751, section 2.1 and figure 2: after the projection back to the hidden width and
    before the residual sum. The backbone's own dropout comes after the adapter here. In the authors' code
    (google-research/adapter-bert, modeling.py) and in AdapterHub's it comes before: a trained adapter has the same
    logits in both, while training draws its zeros at another place, so that a run is not theirs bit for bit.

    Attributes:
        layer_norms: Whether the backbone's layer norms are trained too, as section 2.1 has it.
    """

    layer_norms: bool

    def sites(self, backbone: "Backbone") -> list[str]:
        return modules(backbone, backbone.architecture.attention_output, backbone.architecture.mlp_output)

    def selects(self, backbone: "Backbone") -> set[str]:
        if not self.layer_norms:
            return set()
        norms = [name for name, module in backbone.model.named_modules() if type(module).__name__.endswith("Norm")]
        owned = {name for name, _ in backbone.model.named_parameters() if name.rpartition(".")[0] in norms}
        return {name for name in owned if not backbone.is_head(name)}


@dataclass(frozen=True)
class Pfeiffer(BottleneckMethod):
    """One adapter per layer, after the feed-forward block (Pfeiffer et al. 2021, arXiv 2005.00247).

    It reads the residual sum behind the block, normed where the architecture norms it, and what it adds joins that
    sum: norm(s + up(f(down(norm(s))))) with s = block(x) + x, or s + up(f(down(s))) where norms come first.
    """

    def sites(self, backbone: "Backbone") -> list[str]:
        names = {name for name, _ in backbone.model.named_modules()}
        # What follows the sum in architectures with the norm behind it.
        norms = ["output.LayerNorm", "output_layer_norm", "full_layer_layer_norm"]
        before = getattr(backbone.model.config, "do_layer_norm_before", True)
        if backbone.architecture.norm_last or before is False:
            norms.append("final_layer_norm")  # BART, OPT-350m; the other sizes of OPT have it before
        closing = {layer: [norm for norm in norms if f"{layer}.{norm}" in names] for layer in backbone.layers()}
        return [".".join([layer, *found]) for layer, found in closing.items()]

    def connect(self, backbone: "Backbone", site: str, adapter: "nn.Module") -> "list[RemovableHandle]":
        if site in backbone.layers():
            return super().connect(backbone, site, adapter)
        # `forward`, since calling the norm would come back to this hook.
        norm = backbone.model.get_submodule(site)
        return [norm.register_forward_hook(lambda _, inputs, out: norm.forward(inputs[0] + adapter(out)))]


@dataclass(frozen=True)
class ParallelAdapter(BottleneckMethod):
    """mlp(x) + scale * up(f(down(x))): beside the feed-forward block (He et al. 2022, arXiv 2110.04366, section 3.3).

    Attributes:
        scale: The factor; where it is learned, the one to start from.
        learned_scale: Whether each layer learns its own.
    """

    scale: float
    learned_scale: bool

    def check(self, key: str) -> None:
        super().check(key)
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"{key}.scale={self.scale}: a positive number is needed")

    def sites(self, backbone: "Backbone") -> list[str]:
        return modules(backbone, backbone.architecture.mlp_output)

    def connect(self, backbone: "Backbone", site: str, adapter: "nn.Module") -> "list[RemovableHandle]":
        layer = next(name for name in backbone.layers() if site.startswith(f"{name}."))
        entries = modules(backbone, backbone.architecture.mlp_input)
        entry = backbone.model.get_submodule(next(name for name in entries if name.startswith(f"{layer}.")))
        given: list[Tensor] = []

        def keep(_: "nn.Module", inputs: "tuple[Tensor, ...]") -> None:
            given[:] = inputs[:1]

        def add(_: "nn.Module", inputs: "tuple[Tensor, ...]", out: "Tensor") -> "Tensor":
            return out + adapter(given.pop())

        return [entry.register_forward_pre_hook(keep), backbone.model.get_submodule(site).register_forward_hook(add)]

    def expected_parameters(self, backbone: "Backbone") -> int:
        """As the others, and one more at each site for a learned scale."""
        return super().expected_parameters(backbone) + len(self.sites(backbone)) * self.learned_scale

    def layers(self, backbone: "Backbone") -> "dict[str, Bottleneck]":
        import torch

        adapters = super().layers(backbone)
        for adapter in adapters.values():
            adapter.scale = self.scale
            if self.learned_scale:
                adapter.scale = torch.nn.Parameter(torch.full((1,), self.scale, device=backbone.model.device))
        return adapters


def modules(backbone: "Backbone", *names: str) -> list[str]:
    """Full names of the modules that the architecture names so in a layer, in the backbone's order."""
    pattern = re.compile(backbone.architecture.layer_modules(names))
    return [name for name, _ in backbone.model.named_modules() if pattern.fullmatch(name)]


class AddedModules(SelectedWeights):
    """Modules hooked into a frozen backbone, as its submodule `adapters`; they and the head are trained.

    Switched off, they are unhooked: the backbone's own latency must not hold theirs.
    """

    def __init__(self, backbone: "Backbone", method: Any, modules: "Mapping[str, nn.Module]") -> None:
        from torch import nn

        # Names of modules can't hold dots.
        added = nn.ModuleDict({site.replace(".", "_"): module for site, module in modules.items()})
        backbone.model.add_module(MODULE, added)
        own = method.selects(backbone)
        super().__init__(backbone, method, lambda name: name.startswith(f"{MODULE}.") or name in own)
        self._connect = lambda: [h for site, module in modules.items() for h in method.connect(backbone, site, module)]
        self._handles = self._connect()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        with super().disabled():
            self._disconnect()
            try:
                yield
            finally:
                self._handles = self._connect()

    def _disconnect(self) -> None:
        for handle in self._handles:
            handle.remove()

    def reference_bytes(self) -> int:
        # Of the added modules no copy is needed: switched off they add nothing.
        return sum(copy.nbytes for name, copy in self.original.items() if not name.startswith(f"{MODULE}."))

    def merge(self) -> "nn.Module":
        raise ValueError(
            f"{self.method.name} can't be merged: its adapters are not linear, so no weights of the backbone's "
            "compute the same"
        )

    def stay(self) -> "nn.Module":
        # Under a name of its own, as the next method may add modules too.
        earlier = sum(name.startswith(EARLIER) for name, _ in self.model.named_children())
        added = self.model.get_submodule(MODULE)
        delattr(self.model, MODULE)
        self.model.add_module(f"{EARLIER}{earlier + 1}", added)
        return self.model.requires_grad_(False)

    def detach(self) -> None:
        super().detach()
        self._disconnect()
        delattr(self.model, MODULE)
