"""Diff pruning: a sparse difference to the backbone's weights, its places found in training."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.config.errors import ConfigError
from harness.config.schema import Quantization, TrainConfig
from harness.methods import WEIGHTS_FILE
from harness.methods.defaults import MethodDefaults
from harness.methods.optimizer import make_optimizer
from harness.methods.selective import SelectedWeights, read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from harness.models.architectures import Backbone

MODULE = "adapters"
# Between which a gate is stretched before it is cut to 0 and 1: what the authors' scripts give. With them a gate is
# open with probability sigmoid(logit). Louizos et al. take -0.1 and 1.1.
LOWER, UPPER = -1.5, 1.5
# Gates computed at a time: what is in between then stays in a processor's cache, which takes a third of the time.
CHUNK = 2**18


def hard_concrete(logit: "Tensor", noise: "Tensor | float") -> "Tensor":
    """Gates from 0 to 1, both ends included, with a gradient (Louizos et al. 2018, arXiv 1712.01312).

    Args:
        logit: The larger, the more open.
        noise: The logit of a uniform draw, or 0 for the gate that is used without training.
    """
    import torch

    return (torch.sigmoid(logit + noise) * (UPPER - LOWER) + LOWER).clamp(0, 1)


def expected_l0(logit: "Tensor") -> "Tensor":
    """The number of gates that are expected not to be zero (Louizos et al. 2018, at temperature 1)."""
    import torch

    return torch.sigmoid(logit - math.log(-LOWER / UPPER)).sum()


@dataclass(frozen=True)
class DiffPruning(MethodDefaults):
    """theta + z * w: each weight of the backbone has a difference w and a gate z (Guo et al. 2021, arXiv 2012.07463).

    The expected number of open gates is penalized. After a share of the steps the differences largest in magnitude are
    kept, exactly the target share of them, and these alone are trained on. Each weight has a gate of its own: the
    paper's unstructured variant.

    Attributes:
        target_share: Share of the weights that differ in the end.
        l0_weight: What the loss grows by for each gate that is expected to be open.
        gate_init: Logit that gates start from.
        gate_learning_rate: Learning rate of the gates' logits; of the differences it is the method's.
        prune_at_share: Share of the steps after which the places are fixed.
        fixed_rate_factor: What the learning rate is multiplied by from then on, when few weights are left to learn.
        embeddings: Whether embedding tables, and an output layer tied to one, may differ, as in the paper.
    """

    target_share: float
    l0_weight: float
    gate_init: float
    gate_learning_rate: float
    prune_at_share: float
    fixed_rate_factor: float
    embeddings: bool

    def check(self, key: str) -> None:
        for name in ("target_share", "prune_at_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{key}.{name}={getattr(self, name)}: a share above 0, at most 1, is allowed")
        if not 0 <= self.l0_weight < math.inf:
            raise ConfigError(f"{key}.l0_weight={self.l0_weight}: zero or a positive number is allowed")
        for name in ("gate_learning_rate", "fixed_rate_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{key}.{name}={getattr(self, name)}: a positive number is needed")
        if not math.isfinite(self.gate_init):
            raise ConfigError(f"{key}.gate_init={self.gate_init}: a finite number is needed")

    def quantization(self) -> Quantization | None:
        # A difference can't be added to packed integers.
        return Quantization.none

    def selected(self, backbone: "Backbone") -> "dict[str, nn.Parameter]":
        """The weights that may differ, tied ones once."""
        from torch import nn

        tables = [module for module in backbone.model.modules() if isinstance(module, nn.Embedding)]
        left_out = set() if self.embeddings else {id(p) for table in tables for p in table.parameters()}
        named = backbone.model.named_parameters()
        return {name: p for name, p in named if not backbone.is_head(name) and id(p) not in left_out}

    def expected_parameters(self, backbone: "Backbone") -> int:
        """Two for each weight of the backbone: difference and gate. `DiffPrunedWeights.changed_parameters` remain."""
        if backbone.quantization is not Quantization.none:
            raise ConfigError(
                f"method={self.name}: a difference can't be added to {backbone.quantization.value} weights; "
                "model.quantization=none is needed"
            )
        if backbone.model.is_gradient_checkpointing:
            raise ConfigError(
                f"method={self.name}: weights with their difference are made once for a step, so layers can't be "
                "computed again in the backward pass; train.gradient_checkpointing=false is needed"
            )
        return 2 * sum(p.numel() for p in self.selected(backbone).values())

    def attach(self, backbone: "Backbone") -> "DiffPrunedWeights":
        return DiffPrunedWeights(backbone, self)

    def restore(self, backbone: "Backbone", folder: Path) -> "DiffPrunedWeights":
        return self.attach(backbone).load(folder)


class DiffPrunedWeights(SelectedWeights):
    """Differences and gates of all selected weights in two flat vectors, in the submodule `adapters`.

    While the model computes, its weights are replaced by the sums.
    """

    def __init__(self, backbone: "Backbone", method: DiffPruning) -> None:
        import torch
        from torch import nn

        super().__init__(backbone, method, lambda name: False)  # the head alone; the rest is frozen
        self.method: DiffPruning = method
        self.selected = method.selected(backbone)
        self.places = places(self.model, self.selected)
        self.size = sum(p.numel() for p in self.selected.values())
        device = backbone.model.device
        self.difference = nn.Parameter(torch.zeros(self.size, device=device))
        self.gate_logit = nn.Parameter(torch.full((self.size,), method.gate_init, device=device))
        self.vectors = nn.Module()
        self.vectors.difference, self.vectors.gate_logit = self.difference, self.gate_logit
        # Where weights may differ, once that is fixed; it moves with the model and is in no file.
        self.vectors.register_buffer("mask", None, persistent=False)
        self.prune_step: int | None = None
        self._optimizer: Optimizer | None = None
        self._install()

    @property
    def mask(self) -> "Tensor | None":
        return self.vectors._buffers["mask"]

    def _install(self) -> None:
        self.model.add_module(MODULE, self.vectors)
        self._handles = [
            self.model.register_forward_pre_hook(lambda module, inputs: self._put(self._sums())),
            self.model.register_forward_hook(lambda *_: self._put(self.selected), always_call=True),
        ]

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        delattr(self.model, MODULE)

    def _put(self, weights: "Mapping[str, Tensor]") -> None:
        for name, places in self.places.items():
            for module, leaf in places:
                module._parameters[leaf] = weights[name]  # type: ignore[assignment]

    def _difference(self, draw: bool) -> "Tensor":
        """Gate times difference of all selected weights; gates are drawn in training and without noise else."""
        import torch

        if self.mask is not None:
            return self.difference * self.mask
        gated = []
        for logit, difference in zip(self.gate_logit.split(CHUNK), self.difference.split(CHUNK), strict=True):
            noise = torch.logit(torch.rand_like(logit)) if draw else 0.0
            gated.append(hard_concrete(logit, noise) * difference)
        return torch.cat(gated)

    def _by_weight(self, flat: "Tensor") -> "dict[str, Tensor]":
        parts = flat.split([p.numel() for p in self.selected.values()])
        return {name: part.view_as(p) for (name, p), part in zip(self.selected.items(), parts, strict=True)}

    def _sums(self) -> "dict[str, Tensor]":
        differences = self._by_weight(self._difference(self.model.training))
        return {name: p + differences[name] for name, p in self.selected.items()}

    def _final(self) -> "Tensor":
        """The difference that is used without training."""
        import torch

        with torch.no_grad():
            return self._difference(draw=False)

    def optimizer(self, trained: "dict[str, nn.Parameter]", settings: TrainConfig) -> "Optimizer":
        """The harness's AdamW with groups for differences and gates, which do not decay."""
        optimizer = make_optimizer({MODULE: self.difference}, settings)
        head = {name: p for name, p in trained.items() if p is not self.difference and p is not self.gate_logit}
        for group in make_optimizer(head, settings).param_groups if head else ():
            optimizer.add_param_group(group)
        # The penalty's gradient of a gate is near 1e-9: with the usual epsilon, 1e-8, gates would hardly move.
        gates = {"params": [self.gate_logit], "lr": self.method.gate_learning_rate, "weight_decay": 0.0, "eps": 1e-12}
        optimizer.add_param_group(gates)

        def scale(factor: float) -> "Callable[[Optimizer, Any, Any], None]":
            def of_differences(optimizer: "Optimizer", *_: Any) -> None:
                optimizer.param_groups[0]["lr"] *= factor if self.settled() else 1.0

            return of_differences

        # Around the step, since the schedule sets the rate anew after each.
        optimizer.register_step_pre_hook(scale(self.method.fixed_rate_factor))
        optimizer.register_step_post_hook(scale(1 / self.method.fixed_rate_factor))
        self._optimizer = optimizer
        return optimizer

    def start(self, total_steps: int) -> None:
        self.prune_step = max(1, round(self.method.prune_at_share * total_steps))

    def penalty(self) -> "Tensor | None":
        if self.settled():
            return None
        return self.method.l0_weight * expected_l0(self.gate_logit)

    def after_step(self, step: int) -> None:
        if not self.settled() and self.prune_step is not None and step >= self.prune_step:
            self.prune()

    def settled(self) -> bool:
        return self.mask is not None

    def prune(self) -> None:
        """Keep the largest differences, the target share of all, and fix their places."""
        final = self._final()
        kept = final.abs().topk(max(1, round(self.method.target_share * self.size))).indices
        self._fix(kept, final[kept])
        if self._optimizer is not None:
            self._optimizer.state.pop(self.difference, None)  # moments of another problem, with gates in it

    def _fix(self, places: "Tensor", differences: "Tensor") -> None:
        import torch

        mask = torch.zeros_like(self.difference, dtype=torch.bool)
        mask[places] = True
        self.vectors.mask = mask
        with torch.no_grad():
            self.difference.zero_()[places] = differences.to(mask.device)

    def state(self) -> "dict[str, Tensor]":
        return {} if self.mask is None else {"places": self.mask.nonzero().squeeze(1)}

    def load_state(self, state: "dict[str, Tensor]") -> None:
        if state:
            self._fix(state["places"], self.difference.detach()[state["places"]])

    def changed_parameters(self) -> int:
        """Weights of the backbone that the difference really changes; the head is not among them."""
        return int(self._final().count_nonzero())

    def kept_whole(self) -> "Iterable[nn.Parameter]":
        return self.selected.values()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self._remove()
        try:
            with super().disabled():
                yield
        finally:
            self._install()

    def detach(self) -> None:
        super().detach()
        self._remove()

    def merge(self) -> "nn.Module":
        """A copy of the model with the sums for its weights, in the sums' precision."""
        final = self._by_weight(self._final())
        self._remove()
        try:
            merged = copy.deepcopy(self.model)
        finally:
            self._install()
        parameters = dict(merged.named_parameters())
        for name, p in self.selected.items():
            parameters[name].data = p.data + final[name]
        return merged

    def saved_bytes(self) -> int:
        head = sum(p.numel() for p in self.head_parameters().values())
        places = 4 if max(p.numel() for p in self.selected.values()) < 2**31 else 8
        return 4 * head + (4 + places) * max(1, round(self.method.target_share * self.size))

    def save(self, folder: Path) -> None:
        """Write the head, and of each weight where it differs, as places in the flattened weight, and by how much."""
        import torch

        tensors: dict[str, Tensor] = {**self.head_parameters()}
        for name, difference in self._by_weight(self._final().cpu()).items():
            flat = difference.flatten()
            places = flat.nonzero().squeeze(1)
            small = flat.numel() <= torch.iinfo(torch.int32).max
            tensors[f"{name}.places"] = places.to(torch.int32) if small else places
            tensors[f"{name}.differences"] = flat[places]
        changed = self.changed_parameters()
        share = changed / self.size
        self._write(folder, tensors, selected_parameters=self.size, changed_parameters=changed, changed_share=share)

    def load(self, folder: Path) -> Self:
        """Read what `save` wrote into this model; its places are fixed.

        Raises:
            ValueError: The file is missing or damaged, or its tensors are not this model's.
        """
        import torch

        path = folder / WEIGHTS_FILE
        saved = read_tensors(path)
        head = {name: tuple(tensor.shape) for name, tensor in self.original.items()}
        expected = {*head, *(f"{name}.{kind}" for name in self.selected for kind in ("places", "differences"))}
        wrong = sorted(expected ^ set(saved)) + [
            n for n, s in head.items() if n in saved and tuple(saved[n].shape) != s
        ]
        places, differences, start = [], [], 0
        for name, p in self.selected.items() if not wrong else ():
            where, values = saved[f"{name}.places"].long(), saved[f"{name}.differences"]
            ordered = where.ndim == 1 and where.shape == values.shape and bool((where.diff() > 0).all())
            if not ordered or (len(where) and not 0 <= int(where[0]) <= int(where[-1]) < p.numel()):
                wrong.append(f"{name}.places")
            places.append(where + start)
            differences.append(values)
            start += p.numel()
        if wrong:
            raise ValueError(f"{path} was saved for another backbone or method: tensor {wrong[0]} differs")
        self._set({name: saved[name] for name in head})
        self._fix(torch.cat(places).to(self.difference.device), torch.cat(differences))
        return self


def places(model: "nn.Module", parameters: "dict[str, nn.Parameter]") -> "dict[str, list[tuple[nn.Module, str]]]":
    """Where each parameter sits: module and attribute, several of them for tied ones."""
    names = {id(p): name for name, p in parameters.items()}
    found: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in parameters}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if id(parameter) in names:
                found[names[id(parameter)]].append((module, leaf))
    return found
