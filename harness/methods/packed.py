"""Packed LoRA: several adapters on one frozen backbone, trained on the same rows in one forward and backward pass.

Every adapter has a model of its own, as peft makes it, whose frozen weights are those of the first (`SharedWeights`).
The pack is one further model on the same frozen weights. Its batch is the rows once for each adapter, one adapter's
below the other's: what is frozen computes on all of them at once, and beside each adapted matrix stand two batched
products over A (adapters x rank x in) and B (adapters x out x rank), smaller ranks padded by zeros and absent targets
zero. A and B are made of the adapters' own parameters in each pass, so that every gradient arrives where the adapter's
own optimizer, checkpoint and file look for it.

Random numbers are each adapter's own: dropout is computed one adapter at a time, in its stream. A backbone that draws
otherwise, for the whole batch, can't be packed.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.methods.peft_inner import adapted_layer, copied_module, low_rank_parts
from harness.models.architectures import Backbone
from harness.models.dropout import dropout_apart, dropout_places, layer_numbers_apart
from harness.models.streams import Stream
from harness.models.transformers_inner import loss_of, run_attention_apart

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.methods import Adapter


class CannotPack(Exception):
    """The adapters, or their backbone, can't be computed together; the message says why."""


class SharedWeights:
    """The frozen weights of several models of one backbone, kept once."""

    def __init__(self) -> None:
        self._first: dict[str, nn.Parameter] = {}

    def share(self, backbone: Backbone) -> None:
        """Put the first backbone's weights in the place of this one's, which are the same; heads stay its own.

        Raises:
            CannotPack: They are not the same.
        """
        import torch

        found = dict(backbone.model.named_parameters(remove_duplicate=False))
        if not self._first:
            self._first = {name: weight for name, weight in found.items() if not backbone.is_head(name)}
            return
        for name, weight in self._first.items():
            other = found.get(name)
            if other is None or other.shape != weight.shape or not torch.equal(other.to(weight.device), weight):
                raise CannotPack(f"the points' backbones differ in {name}")
            owner, _, leaf = name.rpartition(".")
            # Not by register_parameter, which a quantized layer may not allow.
            backbone.model.get_submodule(owner)._parameters[leaf] = weight


class Pack:
    """Adapters that train together.

    Args:
        adapters: Each on a model of its own, the frozen weights shared.
        streams: The random numbers of each.

    Raises:
        CannotPack: One of them has a layer that has no packed form.
    """

    def __init__(self, adapters: "Sequence[Adapter]", streams: Sequence[Stream]) -> None:
        self.adapters, self.streams = list(adapters), list(streams)
        self.bases: list[Any] = [adapter.model.get_base_model() for adapter in adapters]  # type: ignore[operator]
        self.model = self._build()
        self.model.train()
        self._dropouts = dropout_places(self.model)
        dropped = [module.layerdrop for module in self.model.modules() if hasattr(module, "layerdrop")]
        self._keeps_layers = bool(dropped) and not any(dropped)
        # Of a batch, and its tokens.
        self._rows = self._tokens = 0
        # While one adapter's part is computed, in its stream.
        self._is_apart = False
        self._asked: dict[str, Any] = {}
        self._logits: tuple[Tensor, ...] = ()

    def _build(self) -> "nn.Module":
        """A copy of the first model's structure on the same weights, with packed modules where adapters have theirs."""
        shared = [*self.bases[0].parameters(), *self.bases[0].buffers()]
        model = copy.deepcopy(self.bases[0], {id(tensor): tensor for tensor in shared})
        modules = [dict(base.named_modules()) for base in self.bases]
        adapted = {n for found in modules for n, module in found.items() if isinstance(module, adapted_layer())}
        for name in sorted(adapted):
            own = [found[name] for found in modules]
            layers = [module if isinstance(module, adapted_layer()) else None for module in own]
            plain = next(layer for layer in layers if layer is not None).get_base_layer()
            model.set_submodule(name, _linear()(self, plain, layers))
        for name, module in modules[0].items():
            if isinstance(module, copied_module()):
                model.set_submodule(name, _copied()(self, [found[name] for found in modules]))
        run_attention_apart(model, self.apart)
        return model

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Inside, a forward pass of any of the adapters' models is the pack's, computed at the first one's."""
        for number, adapter in enumerate(self.adapters):
            adapter.model.forward = partial(self._answer, number)
        try:
            yield
        finally:
            self._asked, self._logits = {}, ()
            for adapter in self.adapters:
                del adapter.model.forward

    def _answer(self, number: int, **inputs: Any) -> Any:
        """One adapter's part of the pack's output for a batch, and its own loss."""
        if not self._logits:
            self._asked, self._logits = inputs, self._forward(inputs)
        if any(inputs.get(name) is not value for name, value in self._asked.items()):
            raise CannotPack("the points' batches differ")
        logits, labels = self._logits[number], inputs.get("labels")
        loss = None if labels is None else loss_of(self.bases[number], logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)

    def _forward(self, inputs: dict[str, Any]) -> "tuple[Tensor, ...]":
        import torch

        batch = len(inputs["input_ids"])
        self._rows = batch * len(self.adapters)
        self._tokens = self._rows * inputs["input_ids"].shape[1]
        repeated = {
            name: value.repeat(len(self.adapters), *[1] * (value.ndim - 1))
            if isinstance(value, torch.Tensor)
            else value
            for name, value in inputs.items()
            if name != "labels"
        }
        layers = layer_numbers_apart(self.each) if self._keeps_layers else nullcontext()
        with dropout_apart(self._dropouts, self.apart), layers:
            output = self.model(**repeated)
        return output.logits.split(batch)

    def check(self, inputs: dict[str, Any], tolerance: float) -> None:
        """Hold the pack's answers to a batch in training against those of each adapter's own model.

        Both draw from where the adapters' streams are, which stay there.

        Args:
            tolerance: Largest difference of logits and loss that is rounding, as a share of the largest logit.

        Raises:
            CannotPack: They differ, or the pack draws other random numbers.
        """
        import torch

        begun, outside = [stream.state for stream in self.streams], Stream(inputs["input_ids"].device)
        before, alone = outside.state, []
        try:
            with torch.no_grad():
                for adapter, stream in zip(self.adapters, self.streams, strict=True):
                    with stream:
                        alone.append(adapter.model(**inputs))
                drawn = self._go_back(begun)
                with outside, self.answering():
                    together = [adapter.model(**inputs) for adapter in self.adapters]
        finally:
            drawn_together = self._go_back(begun)
        if not _same([before, *drawn], [outside.state, *drawn_together]):
            raise CannotPack("the backbone draws random numbers in training that are not each point's own")
        for own, packed in zip(alone, together, strict=True):
            allowed = tolerance * max(1.0, float(own.logits.abs().max()))
            different = own.logits.shape != packed.logits.shape
            pairs = ((own.logits, packed.logits), (own.loss, packed.loss))
            # Not "greater than": what is not a number is no agreement.
            if different or not all(float((a - b).abs().max()) <= allowed for a, b in pairs):
                raise CannotPack("together, the backbone answers otherwise than alone")

    def _go_back(self, states: list[Any]) -> list[Any]:
        """Put the streams to these states; returns where they were."""
        left = [stream.state for stream in self.streams]
        for stream, state in zip(self.streams, states, strict=True):
            stream.state = state
        return left

    def parts(self, states: "Tensor") -> "tuple[Tensor, ...]":
        """The rows of each adapter among those of a batch, or its tokens where they all stand below each other.

        Raises:
            CannotPack: The backbone does not compute here on the rows of the batch.
        """
        if states.shape[0] not in (self._rows, self._tokens):
            raise CannotPack(f"a module of the backbone computes on {states.shape[0]} rows, of {self._rows} in a batch")
        return states.split(len(states) // len(self.adapters))

    def apart(self, states: "Sequence[Tensor]", compute: "Callable[..., Tensor]") -> "Tensor":
        """Compute on each adapter's rows in its own stream; on all that there is where it is one adapter's already.

        Args:
            states: Tensors of the batch's rows, as `parts` takes them; behind the first, also of 1 that all rows share.
            compute: Takes one adapter's rows of each.
        """
        import torch

        if self._is_apart:
            return compute(*states)
        shared = len(self.adapters)
        further = [(one,) * shared if one.shape[0] == 1 else self.parts(one) for one in states[1:]]
        return torch.cat(self.each(compute, self.parts(states[0]), *further))

    def each(self, compute: "Callable[..., Tensor]", *parts: "Sequence[Tensor]") -> "list[Tensor]":
        """What is computed for each adapter in its own stream; once where it is one adapter's already.

        Args:
            compute: Takes one adapter's part of each.
        """
        if self._is_apart:
            return [compute()]
        results = []
        self._is_apart = True
        try:
            for number, stream in enumerate(self.streams):
                with stream:
                    results.append(compute(*(one[number] for one in parts)))
        finally:
            self._is_apart = False
        return results


def _same(states: list[Any], others: list[Any]) -> bool:
    """Whether generators stand where others do."""
    import torch

    return all(
        torch.equal(a, b) for one, other in zip(states, others, strict=True) for a, b in zip(one, other, strict=True)
    )


# Classes are made on first use, because their base class needs torch, which start-up does not.


@cache
def _linear() -> Any:
    import torch
    from torch import nn

    class Linear(nn.Module):
        """An adapted matrix: the frozen one over all rows, each adapter's difference over its own."""

        scales: "Tensor"

        def __init__(self, pack: Pack, plain: "nn.Module", layers: list[Any]) -> None:
            super().__init__()
            self.plain = plain
            # Not as submodules: they are the adapters' models'.
            self._of = pack, [layer and low_rank_parts(layer) for layer in layers]
            found = [one for one in self._of[1] if one]
            if any(one is None for one in found):
                raise CannotPack("an adapted module has no matrices A and B")
            self.rank = max(len(one.a) for one in found)
            self.draws = any(one.dropout.p for one in found if isinstance(one.dropout, nn.Dropout))
            device = found[0].a.device
            scales = [one.scale if one else 0.0 for one in self._of[1]]
            self.register_buffer("scales", torch.tensor(scales, device=device).view(-1, 1, 1), persistent=False)
            self.absent = [torch.zeros(self.rank, s, device=device) for s in (found[0].a.shape[1], found[0].b.shape[0])]

        def forward(self, states: "Tensor") -> "Tensor":
            pack, layers = self._of
            output = self.plain(states)
            pack.parts(states)
            wide = self.draws or not torch.is_autocast_enabled(states.device.type)
            rows = states.float() if wide else states
            if self.draws:
                rows = self._dropped(rows)
            rows = rows.reshape(len(layers), -1, states.shape[-1])
            down = torch.stack([self.absent[0] if one is None else self._padded(one.a) for one in layers])
            up = torch.stack([self.absent[1] if one is None else self._padded(one.b.T) for one in layers])
            difference = torch.bmm(torch.bmm(rows, down.mT) * self.scales, up)
            return output + difference.view(output.shape).to(output.dtype)

        def _padded(self, matrix: "Tensor") -> "Tensor":
            missing = self.rank - len(matrix)
            return nn.functional.pad(matrix, (0, 0, 0, missing)) if missing else matrix

        def _dropped(self, rows: "Tensor") -> "Tensor":
            pack, layers = self._of
            dropouts = iter([layer.dropout if layer else nn.Identity() for layer in layers])
            return pack.apart([rows], lambda own: next(dropouts)(own))

    return Linear


@cache
def _copied() -> Any:
    from torch import nn

    class Copied(nn.Module):
        """A head of which each adapter trains a copy."""

        def __init__(self, pack: Pack, heads: list[Any]) -> None:
            super().__init__()
            self._of = pack, heads

        def forward(self, states: "Tensor") -> "Tensor":
            pack, heads = self._of
            each = iter(heads)
            return pack.apart([states], lambda own: next(each)(own))

    return Copied
