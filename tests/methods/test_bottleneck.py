"""Bottleneck adapters compute what their papers say, at the places that their papers name, on every architecture."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_methods import backbone_of, inputs, logits, method_of, train
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from harness import methods, models
from harness.config.errors import ConfigError
from harness.config.schema import Quantization
from harness.doctor.compatibility import TINY, backbones
from harness.methods.layers import Bottleneck, linear_bottleneck
from harness.models import sizes
from harness.models.architectures import Backbone, Kind

METHODS = ["houlsby", "pfeiffer", "parallel_adapter", "compacter", "diff_pruning"]


@pytest.mark.parametrize(("architecture", "kind"), list(backbones()))
@pytest.mark.parametrize("name", METHODS)
def test_before_training_the_expected_parameters_are_there_and_change_nothing(
    name: str, architecture: str, kind: Kind
) -> None:
    """Logits are equal bit by bit, on every architecture and on a skeleton without weights."""
    backbone, method = backbone_of(architecture, kind), method_of(name)
    base, total = logits(backbone), sizes.logical_parameters(backbone.model)
    skeleton = models.empty_model(backbone.model.config, kind)
    expected = method.expected_parameters(skeleton)
    adapter = method.attach(backbone)
    counted = methods.parameters(adapter, expected)
    assert counted["total_parameters"] == total + expected
    assert torch.equal(logits(backbone), base)
    methods.parameters(method.attach(skeleton), expected)


@pytest.mark.parametrize(
    ("name", "changes", "parameters"),
    [
        ("pfeiffer", {}, 894_528),
        ("houlsby", {}, 1_789_056),
        ("parallel_adapter", {}, 7_091_712),
        ("parallel_adapter", {"learned_scale": True}, 7_091_724),
        ("compacter", {}, 57_088),
        ("pfeiffer", {"reduction_factor": None, "bottleneck_dim": 64}, 12 * (2 * 64 * 768 + 64 + 768)),
        ("houlsby", {"layer_norms": True}, 1_789_056 + 25 * 2 * 768),
    ],
)
def test_parameters_on_roberta_base_are_the_published_ones(name: str, changes: dict[str, Any], parameters: int) -> None:
    """Counted by the closed form and by attaching to a skeleton."""
    configuration = AutoConfig.for_model("roberta", vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    skeleton, method = models.empty_model(configuration), method_of(name, **changes)
    assert method.expected_parameters(skeleton) == parameters
    methods.parameters(method.attach(skeleton), parameters)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_a_bottleneck_is_its_formula_and_its_gradient_that_of_finite_differences(activation: str) -> None:
    """With each activation and a learned scale, in float64."""
    adapter = random_bottleneck(activation, scale=torch.nn.Parameter(torch.tensor([0.7])))
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    by_hand = {
        "relu": lambda v: v.clamp(min=0),
        "gelu": lambda v: v * (1 + torch.erf(v / 2**0.5)) / 2,
        "silu": lambda v: v / (1 + torch.exp(-v)),
        "tanh": lambda v: (torch.exp(v) - torch.exp(-v)) / (torch.exp(v) + torch.exp(-v)),
    }[activation]
    inner = by_hand(x @ adapter.down.weight.T + adapter.down.bias)
    formula = adapter.scale * (inner @ adapter.up.weight.T + adapter.up.bias)
    assert torch.allclose(adapter(x), formula, atol=1e-12)
    parameters = tuple(adapter.parameters())
    names = [name for name, _ in adapter.named_parameters()]
    assert torch.autograd.gradcheck(
        lambda x, *values: torch.func.functional_call(adapter, dict(zip(names, values, strict=True)), (x,)),
        (x, *parameters),
    )


def random_bottleneck(activation: str, scale: Any = 1.0) -> Bottleneck:
    torch.manual_seed(1)
    function = method_of("houlsby", activation=activation).activation.function()
    adapter = linear_bottleneck(6, 4, function, scale, torch.device("cpu")).double()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return adapter


def randomized(backbone: Backbone, name: str, **changes: Any) -> Any:
    """The method attached to a backbone in float64, its adapters far from zero."""
    adapter = method_of(name, **changes).attach(backbone)
    backbone.model.double()
    for parameter in adapter.adapter_parameters().values():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter


def hidden_states() -> torch.Tensor:
    return torch.randn(2, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_houlsby_adapts_what_leaves_both_blocks_before_the_residual_sum() -> None:
    """Attention and feed-forward outputs equal those computed by hand."""
    backbone = backbone_of("bert")
    randomized(backbone, "houlsby")
    layer, added = backbone.model.bert.encoder.layer[1], backbone.model.adapters
    x, shortcut = torch.randn(2, 5, 128, dtype=torch.float64), hidden_states()
    after_mlp = functional.linear(x, layer.output.dense.weight, layer.output.dense.bias)
    after_mlp = after_mlp + added["bert_encoder_layer_1_output_dense"](after_mlp)
    assert torch.allclose(layer.output(x, shortcut), layer.output.LayerNorm(after_mlp + shortcut), atol=1e-12)
    end = layer.attention.output
    after_attention = functional.linear(shortcut, end.dense.weight, end.dense.bias)
    after_attention = after_attention + added["bert_encoder_layer_1_attention_output_dense"](after_attention)
    assert torch.allclose(end(shortcut, shortcut), end.LayerNorm(after_attention + shortcut), atol=1e-12)


def test_pfeiffer_reads_the_normed_sum_and_adds_to_it_where_the_norm_is_behind() -> None:
    """A BERT layer's output equals the one computed by hand."""
    backbone = backbone_of("bert")
    randomized(backbone, "pfeiffer")
    end, adapter = (
        backbone.model.bert.encoder.layer[0].output,
        backbone.model.adapters["bert_encoder_layer_0_output_LayerNorm"],
    )
    x, shortcut = torch.randn(2, 5, 128, dtype=torch.float64), hidden_states()
    total = functional.linear(x, end.dense.weight, end.dense.bias) + shortcut

    def norm(value: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(value, (64,), end.LayerNorm.weight, end.LayerNorm.bias, end.LayerNorm.eps)

    assert torch.allclose(end(x, shortcut), norm(total + adapter(norm(total))), atol=1e-12)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "modernbert"])
def test_pfeiffer_reads_the_residual_stream_behind_a_layer_where_norms_are_before(architecture: str) -> None:
    """A layer's output plus its adapter's is what comes out."""
    backbone = backbone_of(architecture)
    names = method_of("pfeiffer").sites(backbone)
    assert names == backbone.layers()
    plain: list[torch.Tensor] = []
    layer = backbone.model.get_submodule(names[0])
    layer.register_forward_hook(lambda _, given, out: plain.append(out))
    adapter = randomized(backbone, "pfeiffer")
    changed: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _, given, out: changed.append(out))
    adapter.model(**inputs(Kind.classification))
    own = backbone.model.adapters[names[0].replace(".", "_")]
    assert torch.allclose(changed[0], plain[0] + own(plain[0]), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("gated", [False, True])
def test_an_encoder_with_a_decoder_is_adapted_in_both(name: str, gated: bool, tmp_path: Path) -> None:
    """Every adapter has a gradient, training helps, and saving and restoring give the same bits."""
    configuration = AutoConfig.for_model(
        "t5", vocab_size=64, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )  # fmt: skip
    torch.manual_seed(0)
    backbone = models.empty_model(configuration, Kind.seq2seq_lm, device="cpu")
    base, method = logits(backbone), method_of(name)
    expected = method.expected_parameters(backbone)
    adapter = method.attach(backbone)
    methods.parameters(adapter, expected)
    assert torch.equal(logits(backbone), base)
    before, after = train(adapter, Kind.seq2seq_lm)
    assert after < before
    gradients = [p.grad for p in adapter.adapter_parameters().values()]
    assert all(gradient is not None for gradient in gradients)
    trained = logits(backbone)
    adapter.save(tmp_path)
    adapter.detach()
    assert torch.equal(logits(backbone), base)
    method.restore(backbone, tmp_path)
    assert torch.equal(logits(backbone), trained)


def test_layers_that_return_more_than_hidden_states_are_adapted() -> None:
    """BLOOM's tuples pass through, and training helps."""
    configuration = AutoConfig.for_model("bloom", vocab_size=64, hidden_size=64, n_layer=2, n_head=2)
    torch.manual_seed(0)
    backbone = models.empty_model(configuration, Kind.causal_lm, device="cpu")
    for name in METHODS[:4]:
        base = logits(backbone)
        adapter = method_of(name).attach(backbone)
        assert torch.equal(logits(backbone), base)
        before, after = train(adapter, Kind.causal_lm)
        assert after < before
        adapter.detach()


def test_opt_with_the_norm_behind_is_treated_so() -> None:
    """The adapter sits behind the final norm of the layer."""
    configuration = AutoConfig.for_model("opt", **TINY["opt"], do_layer_norm_before=False)
    assert method_of("pfeiffer").sites(models.empty_model(configuration))[0].endswith("layers.0.final_layer_norm")


@pytest.mark.parametrize("learned", [False, True])
def test_a_parallel_adapter_reads_the_blocks_input_and_adds_to_its_output(learned: bool) -> None:
    """The block's output equals the one computed by hand, with a fixed scale and with a learned one."""
    backbone = backbone_of("llama")
    block, x = backbone.model.model.layers[0].mlp, hidden_states()
    plain = copy.deepcopy(block).double()(x)
    randomized(backbone, "parallel_adapter", learned_scale=learned, scale=2.5)
    adapter = backbone.model.adapters["model_layers_0_mlp_down_proj"]
    scale = adapter.scale.detach() if learned else 2.5
    inner = (x @ adapter.down.weight.T + adapter.down.bias).relu()
    formula = plain + scale * (inner @ adapter.up.weight.T + adapter.up.bias)
    assert torch.allclose(block(x), formula, atol=1e-12)


def test_a_learned_scale_starts_from_the_fixed_one_and_is_trained() -> None:
    """It begins at 4 in every layer and has moved after a few steps."""
    backbone = backbone_of("bert")
    adapter = method_of("parallel_adapter", learned_scale=True).attach(backbone)
    scales = [p for name, p in adapter.adapter_parameters().items() if name.endswith(".scale")]
    assert [scale.item() for scale in scales] == [4.0, 4.0]
    train(adapter, Kind.classification)
    assert all(scale.item() != 4.0 for scale in scales)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # renamed by transformers 5
@pytest.mark.parametrize("name", METHODS[:4])
def test_layers_computed_again_in_the_backward_pass_give_the_same_gradients(name: str) -> None:
    """Gradient checkpointing changes none of them."""
    gradients = []
    for checkpointing in (False, True):
        backbone = backbone_of("bert")
        models.set_checkpointing(backbone.model, checkpointing)
        torch.manual_seed(0)
        adapter = randomized(backbone, name)
        backbone.model.train()
        torch.manual_seed(0)
        adapter.model(**inputs(Kind.classification)).loss.backward()
        gradients.append([p.grad for p in adapter.adapter_parameters().values()])
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", METHODS[:4])
def test_adapters_train_under_autocast(name: str) -> None:
    """The loss falls in bfloat16 too."""
    backbone = backbone_of("bert")
    adapter = method_of(name).attach(backbone)
    before, after = train(adapter, Kind.classification, steps=10, autocast=True)
    assert after < before


@pytest.mark.parametrize("name", METHODS[:4])
def test_adapters_that_are_not_linear_say_why_they_can_not_be_merged(name: str) -> None:
    """The error names the method and the reason."""
    with pytest.raises(ValueError, match=f"{name} can't be merged: its adapters are not linear"):
        method_of(name).attach(backbone_of("bert")).merge()


@pytest.mark.parametrize("name", METHODS[:4])
def test_two_adapters_take_turns_on_one_backbone(name: str, tmp_path: Path) -> None:
    """Each gives its own logits bit by bit, in whatever order they are put on."""
    backbone, method = backbone_of("bert"), method_of(name)
    wanted = []
    for number in range(2):
        torch.manual_seed(number)
        adapter = method.attach(backbone)
        train(adapter, Kind.classification, steps=number + 1)
        wanted.append(logits(backbone))
        adapter.save(tmp_path / str(number))
        adapter.detach()
    for number in (0, 1, 0):
        adapter = method.restore(backbone, tmp_path / str(number))
        assert torch.equal(logits(backbone), wanted[number])
        adapter.detach()


def test_an_adapter_of_another_size_is_refused(tmp_path: Path) -> None:
    """Restoring it names the tensor that does not fit."""
    method_of("pfeiffer").attach(backbone_of("bert")).save(tmp_path)
    with pytest.raises(ValueError, match="was saved for another backbone or method: tensor adapters"):
        method_of("pfeiffer", reduction_factor=8).restore(backbone_of("bert"), tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("houlsby", {"bottleneck_dim": 8}, "method.bottleneck_dim and method.reduction_factor: both are given"),
        ("houlsby", {"reduction_factor": None}, "method.bottleneck_dim and method.reduction_factor: neither is given"),
        ("pfeiffer", {"reduction_factor": 0}, "method.reduction_factor=0: 1 or more"),
        ("pfeiffer", {"bottleneck_dim": -1, "reduction_factor": None}, "method.bottleneck_dim=-1: 1 or more"),
        ("pfeiffer", {"activation": "step"}, "method.activation: Invalid value 'step'"),
        ("parallel_adapter", {"scale": 0}, "method.scale=0.0: a positive number"),
    ],
)
def test_impossible_sizes_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    """Each is one sentence that begins with the key."""
    with pytest.raises(ConfigError) as error:
        method_of(name, **changes)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottleneck_dim": 65, "reduction_factor": None}, r"method\.bottleneck_dim=65: .* 64 wide"),
        ({"reduction_factor": 65}, r"method\.reduction_factor=65: .* 64 wide"),
    ],
)
def test_a_bottleneck_that_the_backbone_has_no_room_for_is_refused(changes: dict[str, Any], message: str) -> None:
    """It may not be wider than the hidden states."""
    with pytest.raises(ConfigError, match=message):
        method_of("pfeiffer", **changes).expected_parameters(backbone_of("bert"))


def test_quantization_is_left_to_the_model() -> None:
    """Bottlenecks take any weights, diff pruning only unquantized ones."""
    assert all(method_of(name).quantization() is None for name in METHODS[:4])
    assert method_of("diff_pruning").quantization() is Quantization.none


class Operators(TorchDispatchMode):
    """Counts what is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_switched_off_nothing_of_it_is_computed(name: str) -> None:
    """Not even zeros to add: the latency of the backbone alone is measured so, and it is computed again afterwards."""
    backbone = backbone_of("bert")
    given = inputs(backbone.kind, backbone.model.config)
    backbone.model.eval()

    def operators() -> int:
        with torch.no_grad(), Operators() as counted:
            backbone.model(**given)
        return counted.count

    alone = operators()
    adapter = method_of(name).attach(backbone)
    attached = operators()
    with adapter.disabled():
        assert operators() == alone
    assert operators() == attached > alone
