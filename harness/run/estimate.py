"""Memory and operations of a training step that is not run: its operators are, on tensors that have no data.

torch's fake tensors go through the same operators as real ones and have their shapes, types and lifetimes. So the
same meters that count a real step (harness/measure/meters.py) count this one, with what transformers and peft really
do.
"""

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import measure
from harness.config.errors import ConfigError
from harness.config.schema import Experiment, Quantization
from harness.methods import Adapter, prepare_trained
from harness.methods.optimizer import make_optimizer
from harness.models import (
    choose_precision,
    choose_quantization,
    empty_model,
    fast_dropout,
    never_quantized,
    set_checkpointing,
    settled,
)
from harness.models.architectures import Backbone, Kind
from harness.models.transformers_inner import classify_last, is_converted
from harness.run.gpu_kernels import as_on_a_gpu
from harness.run.stand_ins import stand_ins
from harness.training.batches import Batch, plain_inputs
from harness.training.frozen_front import TEXT, Inseparable, find

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

# Deeper backbones are built with so many layers, and what a layer adds is read off the difference: layers are alike.
# Up to the third the step can still be largest at another moment than it is with all of them. Where kinds of attention
# alternate, or a method needs more layers, the others are taken: multiples of the period in which they alternate. A
# method that these are too few for is counted on all layers.
SAMPLED_LAYERS, SAMPLED_PERIODS = (3, 4), (6, 12)
SHALLOW = 12
# Methods that look at the values of weights are tried on random ones, at most so many bytes of them.
LARGEST_REAL_BYTES = 2 * 2**30
# bitsandbytes' constants: 4-bit weights are scaled in blocks of 64, and these scales in blocks of 256.
BLOCK, NESTED_BLOCK, CODEBOOK_4BIT, CODEBOOK_8BIT = 64, 256, 16, 256
# What CUDA's context and the workspace of its matrix products take before the first tensor: 0.3 to 0.6 GB.
CONTEXT_BYTES = 600 * 10**6


@dataclass(frozen=True)
class Step:
    """The step that is predicted.

    Attributes:
        rows: Texts of a batch.
        length: Tokens of each of its rows.
        device: cpu or cuda: which kernels run, and in which precision `train.precision=auto` computes.
        target_length: Tokens of each answer, where a decoder beside the encoder writes it.
    """

    rows: int
    length: int
    device: str
    target_length: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens that the step computes."""
        return self.rows * (self.length + (self.target_length or 0))


@dataclass
class Counted:
    """Bytes and operations of one predicted step.

    Its largest moment may lie in the forward pass, where autocast's copies of weights are there; in the backward pass
    through the layers; behind them, when all gradients are there and that of the embeddings is summed up; or in the
    optimizer. Which it is can change with the number of layers, so each is carried on to the full depth by itself.
    """

    weight_bytes: float
    gradient_bytes: float
    optimizer_bytes: float
    activation_bytes: float
    forward_peak_bytes: float
    backward_peak_bytes: float
    embeddings_peak_bytes: float
    optimizer_peak_bytes: float
    adapter_file_bytes: float
    train_flops: float


def predict(experiment: Experiment, configuration: "PretrainedConfig", step: Step) -> dict[str, float]:
    """Predict the cost of a training step of one batch, with the names of `RunRecord.cost`.

    Raises:
        ConfigError: The method can't go with the backbone.
        Unpredictable: The method needs the values of weights, and this backbone is too large to make some up.
    """
    import torch

    experiment, _ = settled(experiment, step.device)
    sampled = depths(experiment, configuration)
    # A plan must not move the generator of whoever asks. Outside of the fake tensors, whose states would be fake.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        counted = [_count(experiment, with_layers(configuration, depth), step) for depth in sampled]
    whole = at_full_depth([vars(each) for each in counted], sampled, configuration.num_hidden_layers)
    figures = {name: round(value) for name, value in whole.items()}
    figures["train_peak_bytes"] = max(figures.pop(name) for name in PEAKS)
    return {**figures, "train_flops_per_token": figures["train_flops"] / step.tokens}


PEAKS = [name for name in Counted.__dataclass_fields__ if name.endswith("_peak_bytes")]


class Unpredictable(Exception):
    """Nothing true can be said beforehand; the message says why."""


def depths(experiment: Experiment, configuration: "PretrainedConfig") -> tuple[int, ...]:
    """Numbers of layers to build: all, or two from which the rest follows; two only where the method goes with both.

    One that names a layer far up, or that was written for so many layers, goes with no shallow backbone.
    """
    if configuration.num_hidden_layers <= SHALLOW or decoder_layers(configuration) is None:
        return (configuration.num_hidden_layers,)
    alternating = len(set(getattr(configuration, "layer_types", None) or ())) > 1
    for sampled in [SAMPLED_PERIODS] if alternating else [SAMPLED_LAYERS, SAMPLED_PERIODS]:
        if all(_takes(experiment, with_layers(configuration, depth)) for depth in sampled):
            return sampled
    return (configuration.num_hidden_layers,)


def _takes(experiment: Experiment, configuration: "PretrainedConfig") -> bool:
    """Whether the method goes with a backbone of this configuration."""
    try:
        experiment.method.expected_parameters(empty_model(configuration, experiment.task.kind))
    except ConfigError:
        return False
    return True


def at_full_depth(counted: Sequence[Mapping[str, float]], sampled: tuple[int, ...], layers: int) -> dict[str, float]:
    """Figures of a backbone with all of its layers, from those of one with each of the `depths`."""
    few, more = counted[0], counted[-1]
    share = (layers - sampled[0]) / (sampled[-1] - sampled[0]) if len(sampled) > 1 else 0
    return {name: value + share * (more[name] - value) for name, value in few.items()}


def with_layers(configuration: "PretrainedConfig", layers: int) -> "PretrainedConfig":
    reduced = copy.deepcopy(configuration)
    kinds = getattr(reduced, "layer_types", None)
    whole = reduced.num_hidden_layers
    if layers != whole and (name := decoder_layers(configuration)):
        setattr(reduced, name, layers)
    reduced.num_hidden_layers = layers
    if kinds:
        reduced.layer_types = kinds[:layers]
    return reduced


def decoder_layers(configuration: "PretrainedConfig") -> str | None:
    """The key of the number of layers of a decoder beside the encoder; null where there are not as many as there.

    Of a model without such a decoder it is empty.
    """
    if not getattr(configuration, "is_encoder_decoder", False):
        return ""
    keys = ("num_decoder_layers", "decoder_layers")
    layers = configuration.num_hidden_layers
    return next((key for key in keys if getattr(configuration, key, None) == layers), None)


def _count(experiment: Experiment, configuration: "PretrainedConfig", step: Step) -> Counted:
    """Count a step on fake tensors, or, where a method looks at the values of weights, on random ones."""
    try:
        return _run(experiment, configuration, step, fake=True)
    except (ConfigError, RuntimeError) as error:
        # A method that reads numbers, to decompose weights or to decide by a draw, says so in one of these ways.
        reason = str(error).split("\n")[0]
    weights = sum(p.numel() for p in empty_model(configuration, experiment.task.kind).model.parameters())
    if 4 * weights > LARGEST_REAL_BYTES:
        raise Unpredictable(
            f"its step needs tensors with values, and the weights are too many to make some up ({reason})"
        )
    return _run(experiment, configuration, step, fake=False)


def _run(experiment: Experiment, configuration: "PretrainedConfig", step: Step, fake: bool) -> Counted:
    """Build, attach, and take one step, as harness/run/pipeline.py does."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    kind, method = experiment.task.kind, experiment.method
    autocast = choose_precision(experiment.train.precision, torch.device(step.device))
    quantization = choose_quantization(experiment)
    backbone = empty_model(configuration, kind, quantization, autocast, "meta" if fake else "cpu")
    model = backbone.model
    if backbone.architecture.pair and kind is Kind.classification:
        classify_last(model, backbone.architecture.head[0])
    set_checkpointing(model, experiment.train.gradient_checkpointing)
    packed = packed_weights(backbone, experiment.model.double_quantization)
    adapter = method.attach(backbone)
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
        if fake:
            # Attached without values, then given tensors that stand for memory on a device.
            _give_memory(adapter.model)
        quantized = backbone.quantization is not Quantization.none
        kernels = as_on_a_gpu(adapter.model, quantized) if step.device == "cuda" else nullcontext()
        with stand_ins(fake), kernels:
            return _one_step(experiment, adapter, backbone, packed, step)


def _one_step(
    experiment: Experiment, adapter: Adapter, backbone: Backbone, packed: dict[str, tuple[int, int]], step: Step
) -> Counted:
    """Count a step's passes and the optimizer's step.

    Args:
        packed: What `packed_weights` says of the backbone before the adapter came.
    """
    import torch

    autocast = choose_precision(experiment.train.precision, torch.device(step.device))
    file_bytes = adapter.saved_bytes()
    trained = prepare_trained(adapter)
    optimizer = adapter.optimizer(trained, experiment.train) or make_optimizer(trained, experiment.train)
    adapter.start(total_steps=100)
    if experiment.train.cache_features:
        _start_behind_front(adapter, backbone, step, autocast)
    adapter.model.train()
    batch = Batch(_inputs(backbone, step), list(range(step.rows)), step.tokens, step.tokens, step.rows)
    costs = measure.StepCosts(step.rows, step.tokens, step.length, step.tokens)
    if backbone.quantization is Quantization.int8:
        _keep_inputs(backbone.model, packed)
    with measure.StepMeter(adapter.model, optimizer, costs) as meter:
        _watch_embeddings(backbone.model, meter)
        meter.forward_begins()
        with torch.autocast("cpu", autocast, enabled=autocast is not None), fast_dropout(step.device):
            loss = experiment.task.rehearse(adapter, batch)
        meter.forward_ended()
        _backward(loss)
        penalty = adapter.penalty()
        if penalty is not None:
            _backward(penalty)
        gradients = measure.gradient_bytes(adapter.model)
    # The first step makes the optimizer's state, the second shows what it takes beside it.
    optimizer.step()
    state = measure.optimizer_bytes(optimizer)
    with measure.live_bytes([]) as beside:
        optimizer.step()
    weights = measure.weight_bytes(adapter.model)
    saved = sum(plain - small for plain, small in packed.values())
    forward, *backward = meter.peaks
    # A packed matrix is unpacked for the while that it is multiplied with.
    unpacked = max((plain for plain, _ in packed.values()), default=0)
    return Counted(
        weight_bytes=weights - saved,
        gradient_bytes=gradients,
        optimizer_bytes=state,
        activation_bytes=costs.activation_bytes,
        forward_peak_bytes=forward + unpacked - saved + state,
        backward_peak_bytes=max(backward[:-1] or backward) + unpacked - saved + state,
        embeddings_peak_bytes=backward[-1] - saved + state,
        optimizer_peak_bytes=weights + gradients + beside.peak - saved + state,
        adapter_file_bytes=file_bytes,
        train_flops=costs.flops,
    )


def _start_behind_front(adapter: Adapter, backbone: Backbone, step: Step, autocast: Any) -> None:
    """Have passes start behind the frozen front, as those of a run with cached features, where there is one."""
    import torch

    inputs = {name: tensor for name, tensor in _inputs(backbone, step).items() if name in TEXT}
    adapter.model.eval()
    try:
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            front = find(backbone, adapter.model, inputs)
    except Inseparable:
        return
    front.begin(lambda inputs: torch.zeros_like(front.sample))


def _backward(loss: "Tensor") -> None:
    """The engine behind `loss.backward()`, in which torch switches off what replaces functions.

    What checkpointing computes again must be computed as it was the first time.
    """
    import torch

    engine: Any = torch.autograd.Variable._execution_engine
    ways = {"keep_graph": False, "create_graph": False, "allow_unreachable": True, "accumulate_grad": True}
    engine.run_backward((loss,), (torch.ones_like(loss),), inputs=(), **ways)


def _watch_embeddings(model: Any, meter: measure.StepMeter) -> None:
    """Have the meter count anew from where the backward pass has come through all layers."""

    def watch(module: Any, inputs: Any, output: Any) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: meter.part_ended())

    model.get_input_embeddings().register_forward_hook(watch)


def packed_weights(backbone: Backbone, double: bool) -> dict[str, tuple[int, int]]:
    """Linear layers that bitsandbytes would pack: name -> bytes plain and packed, quantization state included."""
    from torch import nn

    if backbone.quantization is Quantization.none:
        return {}
    int8, sizes = backbone.quantization is Quantization.int8, {}
    skip = [*never_quantized(backbone.architecture.head), *(backbone.model._keep_in_fp32_modules or [])]
    for name, module in backbone.model.named_modules():
        if not isinstance(module, nn.Linear) or not is_converted(name, skip):
            continue
        weight = module.weight
        small = int8_bytes(*weight.shape) if int8 else four_bit_bytes(weight.numel(), double)
        sizes[name] = (weight.numel() * weight.element_size(), small)
    return sizes


def int8_bytes(rows: int, columns: int) -> int:
    """Bytes of an int8 matrix: one byte per weight and one float32 scale per row."""
    return rows * columns + 4 * rows


def four_bit_bytes(weights: int, double: bool) -> int:
    """Bytes of 4-bit weights with their scales and codebooks (Dettmers et al. 2023, arXiv 2305.14314, section 3)."""
    packed, scales = math.ceil(weights / 2), math.ceil(weights / BLOCK)
    if not double:
        return packed + 4 * scales + 4 * CODEBOOK_4BIT
    nested = 4 * math.ceil(scales / NESTED_BLOCK) + 4 * CODEBOOK_8BIT
    return packed + scales + nested + 4 + 4 * CODEBOOK_4BIT


def _give_memory(model: Any) -> None:
    """Replace parameters and buffers without data by fake ones on a device; what was shared stays shared."""
    import torch
    from torch import nn

    given: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = given.get(id(parameter))
                if made is None:
                    empty = torch.empty_like(parameter, device="cpu")
                    made = given[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                    for hook in (parameter._backward_hooks or {}).values():
                        made.register_hook(hook)
                module._parameters[name] = made
        for name, buffer in module._buffers.items():
            if buffer is not None:
                made = given.setdefault(id(buffer), torch.empty_like(buffer, device="cpu"))
                module._buffers[name] = made


def _keep_inputs(model: Any, packed: dict[str, tuple[int, int]]) -> None:
    """Have int8 layers keep what they are given for the backward pass, as bitsandbytes does and a plain layer does not.

    Kept by the node of the graph, as there: what gradient checkpointing computes again goes with the layer's nodes.
    """

    def keep(module: Any, inputs: Any, output: Any) -> None:
        if inputs[0].requires_grad:
            output.register_hook(lambda gradient, kept=inputs[0]: None)

    for name, module in model.named_modules():
        # A method may have wrapped the layer, whose weights then lie deeper.
        if name.removesuffix(".base_layer") in packed and not hasattr(module, "base_layer"):
            module.register_forward_hook(keep)


def _inputs(backbone: Backbone, step: Step) -> "dict[str, Tensor]":
    import torch

    inputs = plain_inputs(torch.zeros(step.rows, step.length, dtype=torch.long), backbone.kind, backbone.model.config)
    if step.target_length is not None:
        inputs["labels"] = torch.zeros(step.rows, step.target_length, dtype=torch.long)
        inputs["decoder_input_ids"] = inputs["labels"].clone()
    # Without any padding transformers would leave the mask away; batches rarely are.
    inputs["attention_mask"][:, 0 if backbone.architecture.decoder else -1] = 0
    if "token_type_ids" in inspect.signature(backbone.model.forward).parameters:
        inputs["token_type_ids"] = inputs["input_ids"].clone()
    return inputs
