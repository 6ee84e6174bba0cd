"""The frozen front of a model: the first layers, where nothing that is trained changes what they give.

Which layers these are is read off the graph that autograd makes of a pass: up to the last of them no hidden state needs
a gradient. So it holds for whatever a method trains, by any mechanism, and for a method that nobody has thought of.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.models.architectures import Backbone

# What a text is to a model; of all else that it may be given, these change nothing in the front.
TEXT = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
BESIDE = ("labels", "logits_to_keep", "use_cache", "return_dict")
# How far scores from hidden states that were computed apart may lie from those of a whole pass, as a share of the
# largest: batches of other sizes are summed in another order.
TOLERANCE = {"torch.float32": 1e-3, "torch.bfloat16": 5e-2, "torch.float16": 1e-2}

Inputs = dict[str, Any]


class Inseparable(Exception):
    """A model has no front that can be computed apart; the message says why."""


class _Reached(Exception):
    """Carries the hidden states out of a pass that is wanted no further."""


@dataclass
class FrozenFront:
    """The first layers of a model, which may be left out of a pass where their hidden states are known.

    Between `begin` and `end` each pass over texts whose hidden states `known` gives starts behind the front. In
    training those of other texts are computed with the front's dropout off, so that a text's are the same in all epochs
    whether or not they are known. In evaluation other passes are whole, and so is everything inside of `off()`.

    Attributes:
        model: The backbone with its head.
        layers: Full names of the front's layers.
        of: How many layers there are.
        beside: Nulls that a layer gives behind its hidden states, in a tuple; null where it gives them alone.
        calls: How often the last of them is called in a pass; more than once where layers share their weights.
        sample: Hidden states of one pass, for their shape and type.
        passes, computed, whole: Passes from known hidden states, from such as were computed for them, and others.
    """

    model: "nn.Module"
    layers: list[str]
    of: int
    beside: int | None
    calls: int
    sample: "Tensor"
    known: "Callable[[Inputs], Tensor | None]" = lambda inputs: None
    passes: int = 0
    computed: int = 0
    whole: int = 0
    _given: "Tensor | None" = None
    _off: int = 0
    _forwards: dict[Any, Any] = field(default_factory=dict)

    def begin(self, known: "Callable[[Inputs], Tensor | None]") -> None:
        """Start passes from hidden states.

        Args:
            known: Those behind the front for a pass's texts (batch x sequence x width, zeros for padding); null where
                it does not know all of them.
        """
        from functools import wraps

        self.known = known
        whole, front = self.model.forward, [self.model.get_submodule(name) for name in self.layers]
        self._forwards = {module: vars(module).get("forward") for module in (self.model, *front)}

        @wraps(whole)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._given = None if self._off else self._hidden(args, kwargs)
            try:
                return whole(*args, **kwargs)
            finally:
                self._given = None

        self.model.forward = forward
        for module in front:
            module.forward = self._passing(module.forward)

    def _passing(self, computing: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's forward pass that gives what the pass was given, if anything."""
        from functools import wraps

        @wraps(computing)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._given is None:
                return computing(*args, **kwargs)
            return self._given if self.beside is None else (self._given, *[None] * self.beside)

        return forward

    def end(self) -> None:
        """Have every pass be whole again."""
        for module, own in self._forwards.items():
            if own is None:
                del module.forward
            else:
                module.forward = own
        self._forwards = {}

    @contextmanager
    def off(self) -> Iterator[None]:
        """Whole passes inside: what is measured there is a model's that knows none of its texts."""
        self._off += 1
        try:
            yield
        finally:
            self._off -= 1

    def _hidden(self, args: tuple[Any, ...], kwargs: Inputs) -> "Tensor | None":
        """What the front gives for a pass's texts; null for a pass that must be whole."""
        plain = not args and all(
            name in TEXT or name in BESIDE or value is None or value is False for name, value in kwargs.items()
        )
        inputs = {name: kwargs[name] for name in TEXT if kwargs.get(name) is not None}
        if not plain or "input_ids" not in inputs:
            self.whole += 1
            return None
        hidden = self.known(inputs)
        if hidden is not None:
            self.passes += 1
        elif self.model.training:
            self.computed += 1
            hidden = self.compute(inputs)
        else:
            self.whole += 1
        return hidden

    def compute(self, inputs: Inputs) -> "Tensor":
        """Hidden states behind the front (batch x sequence x width), dropout off, without a gradient.

        Raises:
            Inseparable: The pass does not go through the front.
        """
        import torch

        left = self.calls

        def reached(module: Any, given: Any, output: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise _Reached(_hidden_states(output))

        handle = self.model.get_submodule(self.layers[-1]).register_forward_hook(reached)
        training = [module for module in self.model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with self.off(), torch.no_grad():
                self.model(**inputs)
        except _Reached as arrived:
            hidden: Tensor = arrived.args[0]
            return hidden
        finally:
            handle.remove()
            for module in training:
                module.training = True
        raise Inseparable("a pass does not go through its layers in their order")

    def check(self, model: "nn.Module", inputs: Inputs) -> None:
        """Hold a pass that starts from hidden states against a whole one.

        Args:
            model: The model with the method on it, in evaluation mode.

        Raises:
            Inseparable: The two give different scores.
        """
        import torch

        mask = inputs.get("attention_mask")
        hidden = self.compute(inputs)
        if mask is not None:
            hidden = hidden * mask.unsqueeze(-1).to(hidden.dtype)
        with torch.no_grad():
            expected = model(**inputs).logits
            self.begin(lambda given: hidden)
            try:
                found = model(**inputs).logits
            finally:
                self.end()
                self.passes = 0
        if mask is not None and expected.ndim == mask.ndim + 1:
            expected, found = expected[mask.bool()], found[mask.bool()]
        allowed = TOLERANCE.get(str(hidden.dtype), TOLERANCE["torch.bfloat16"]) * expected.abs().max()
        if not (found - expected).abs().max() <= allowed:
            raise Inseparable("what it answers does not follow from the hidden states behind its frozen layers alone")


def find(backbone: "Backbone", model: "nn.Module", inputs: Inputs) -> FrozenFront:
    """Find the frozen front of a model.

    Args:
        model: The model with the method on it, in evaluation mode, so that no random numbers are drawn.
        inputs: Some texts.

    Raises:
        Inseparable: There is none, or it can't be computed apart.
    """
    import torch

    if backbone.architecture.pair:
        raise Inseparable("an encoder with a decoder has two lists of layers, and the second reads the first's end")
    names = backbone.layers()
    seen: dict[str, list[Any]] = {name: [] for name in names}
    handles = [
        backbone.model.get_submodule(name).register_forward_hook(
            lambda module, given, output, calls=seen[name]: calls.append(output)
        )
        for name in names
    ]
    try:
        with torch.enable_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    front: list[str] = []
    for name in names:
        if not seen[name] or any(_hidden_states(output).requires_grad for output in seen[name]):
            break
        front.append(name)
    if not front:
        raise Inseparable("it trains in front of its first layer, or in it")
    outputs = seen[front[-1]]
    last = outputs[-1]
    sample = _hidden_states(last).detach()
    beside = None if isinstance(last, torch.Tensor) else len(last) - 1
    return FrozenFront(backbone.model, front, len(names), beside, len(outputs), sample)


def _hidden_states(output: Any) -> "Tensor":
    """What a layer gives, alone or as the first of a tuple whose others are null.

    Raises:
        Inseparable: It gives more than hidden states.
    """
    import torch

    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, tuple) and output and all(one is None for one in output[1:]):
        first: Tensor = output[0]
        return first
    raise Inseparable("its layers hand on more than hidden states")
