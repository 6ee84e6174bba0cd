"""Every method of conf/method/ keeps the contract on every kind of backbone it can go with."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import measure, models
from harness.architectures import Backbone
from harness.config import ConfigError, build, conf_root
from harness.plan import compose

METHODS = sorted(
    str(p.relative_to(conf_root() / "conf/method").with_suffix(""))
    for p in (conf_root() / "conf/method").rglob("*.yaml")
)
BACKBONES = ["bert", "gpt2", "llama"]
NO_BIASES = {("bitfit", "llama")}
PAIRS = [(method, backbone) for method in METHODS for backbone in BACKBONES if (method, backbone) not in NO_BIASES]

TinyModel = Callable[[str], Path]


def test_there_are_methods_to_test() -> None:
    assert {"full", "head", "bitfit", "lora"} <= set(METHODS)


def make_backbone(folder: Path, method_name: str, *overrides: str) -> tuple[Backbone, object]:
    """A fresh backbone with the same head every time, and the method's object."""
    options = [f"model.path={folder}", f"method={method_name}", "task=glue/sst2", *overrides]
    experiment = build(compose("config", options))
    configuration = models.load_config(folder, labels=2, regression=False)
    torch.manual_seed(7)
    backbone = models.load_model(folder, configuration, experiment, torch.float32)
    backbone.model.config.pad_token_id = 0
    return backbone, experiment.method


def inputs() -> dict[str, torch.Tensor]:
    tokens = torch.randint(4, 64, (8, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 2
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**inputs()).logits


def train(adapter: object, steps: int = 3) -> tuple[float, float]:
    """A few steps on one batch without dropout; returns the loss before and after."""
    model = adapter.model
    model.eval()
    trained = {**adapter.adapter_parameters(), **adapter.head_parameters()}
    optimizer = torch.optim.AdamW(trained.values(), lr=5e-3)
    losses = []
    for _ in range(steps + 1):
        loss = model(**inputs()).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses[0], losses[-1]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_exactly_the_expected_parameters_are_trained(name: str, kind: str, tiny_model: TinyModel) -> None:
    backbone, method = make_backbone(tiny_model(kind), name)
    total = measure.logical_parameters(backbone.model)
    head = {n: p.numel() for n, p in backbone.model.named_parameters() if backbone.is_head(n)}
    skeleton = models.empty_model(backbone.model.config)
    expected = method.expected_parameters(replace(skeleton, head=backbone.head))
    adapter = method.attach(backbone)
    counted = measure.parameters(adapter, expected)
    assert counted["head_parameters"] == sum(head.values())
    requires_grad = {n for n, p in adapter.model.named_parameters() if p.requires_grad}
    assert requires_grad == set(adapter.adapter_parameters()) | set(adapter.head_parameters())
    added = counted["total_parameters"] - total
    assert added == (expected if name == "lora" else 0)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_frozen_weights_stay_and_the_loss_falls(name: str, kind: str, tiny_model: TinyModel) -> None:
    backbone, method = make_backbone(tiny_model(kind), name)
    adapter = method.attach(backbone)
    frozen = {n: p.detach().clone() for n, p in adapter.model.named_parameters() if not p.requires_grad}
    before, after = train(adapter)
    assert after < before
    for parameter_name, parameter in adapter.model.named_parameters():
        if parameter_name in frozen:
            assert torch.equal(parameter, frozen[parameter_name]), parameter_name


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_model_computes_what_the_backbone_does_before_training(name: str, kind: str, tiny_model: TinyModel) -> None:
    backbone, method = make_backbone(tiny_model(kind), name)
    base = logits(backbone.model)
    assert torch.equal(logits(method.attach(backbone).model), base)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_switched_off_the_backbone_is_back_and_switched_on_the_adapter(
    name: str, kind: str, tiny_model: TinyModel
) -> None:
    backbone, method = make_backbone(tiny_model(kind), name)
    base = logits(backbone.model)
    adapter = method.attach(backbone)
    train(adapter)
    trained = logits(adapter.model)
    assert not torch.allclose(trained, base)
    with adapter.disabled():
        assert torch.equal(logits(adapter.model), base)
    assert torch.equal(logits(adapter.model), trained)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_saved_and_loaded_the_logits_are_the_same(name: str, kind: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    backbone, method = make_backbone(tiny_model(kind), name)
    adapter = method.attach(backbone)
    train(adapter)
    trained = logits(adapter.model)
    adapter.save(tmp_path / "adapter")
    assert {path.suffix for path in (tmp_path / "adapter").iterdir()} <= {".safetensors", ".json", ".md"}
    fresh, _ = make_backbone(tiny_model(kind), name)
    assert torch.equal(logits(method.restore(fresh, tmp_path / "adapter").model), trained)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_merged_the_logits_agree(name: str, kind: str, tiny_model: TinyModel) -> None:
    backbone, method = make_backbone(tiny_model(kind), name)
    adapter = method.attach(backbone)
    train(adapter)
    trained = logits(adapter.model)
    assert torch.allclose(logits(adapter.merge()), trained, atol=1e-5)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other backbone"])
@pytest.mark.parametrize("name", METHODS)
def test_a_damaged_or_foreign_adapter_is_refused(name: str, damage: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    backbone, method = make_backbone(tiny_model("bert"), name)
    method.attach(backbone).save(tmp_path / "adapter")
    weights = tmp_path / "adapter/adapter_model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        tensors = load_file(weights)
        save_file({key: torch.zeros(*(size + 1 for size in value.shape)) for key, value in tensors.items()}, weights)
    fresh, _ = make_backbone(tiny_model("bert"), name)
    with pytest.raises(ValueError, match="adapter"):
        method.restore(fresh, tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore")  # bitsandbytes and torch deprecations on the way to 4 bits
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["head", "bitfit", "lora"])
def test_a_quantized_backbone_trains(name: str, quantization: str, tiny_model: TinyModel) -> None:
    backbone, method = make_backbone(tiny_model("bert"), name, f"model.quantization={quantization}")
    plain, _ = make_backbone(tiny_model("bert"), name)
    assert measure.weight_bytes(backbone.model) < measure.weight_bytes(plain.model)
    assert measure.logical_parameters(backbone.model) == measure.logical_parameters(plain.model)
    adapter = method.attach(backbone)
    before, after = train(adapter, steps=5)
    assert math.isfinite(after)
    assert after < before


def test_full_fine_tuning_of_a_quantized_backbone_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(ConfigError, match=r"model\.quantization=nf4: method=full needs none weights"):
        make_backbone(tiny_model("bert"), "full", "model.quantization=nf4")


def test_bitfit_refuses_a_backbone_without_biases(tiny_model: TinyModel) -> None:
    backbone, method = make_backbone(tiny_model("llama"), "bitfit")
    with pytest.raises(ConfigError, match="method=bitfit: the llama backbone has no bias terms"):
        method.expected_parameters(backbone)


def test_lora_is_the_formula_of_its_paper(tiny_model: TinyModel) -> None:
    """Y = W x + b + alpha / rank * B A x, in float64."""
    backbone, method = make_backbone(tiny_model("bert"), "lora")
    before = copy.deepcopy(backbone.model.get_submodule("bert.encoder.layer.0.attention.self.query")).double()
    adapter = method.attach(backbone)
    layer = adapter.model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query").double()
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(up)
    x = torch.randn(3, 64, dtype=torch.float64)
    formula = x @ before.weight.T + before.bias + method.alpha / method.rank * (x @ down.T) @ up.T
    assert torch.allclose(layer(x), formula, atol=1e-12)


def test_lora_above_the_width_of_a_layer_is_refused(tiny_model: TinyModel) -> None:
    backbone, method = make_backbone(tiny_model("bert"), "lora", "method.rank=65")
    with pytest.raises(ConfigError, match=r"method\.rank=65: .* is 64 x 64"):
        method.expected_parameters(backbone)


def test_lora_without_a_matching_module_is_refused_with_near_misses(tiny_model: TinyModel) -> None:
    backbone, method = make_backbone(tiny_model("bert"), "lora", "method.target_modules=[qeury]")
    with pytest.raises(ConfigError, match=r"method\.target_modules=qeury: .*did you mean query\?"):
        method.expected_parameters(backbone)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers")
def test_lora_counts_the_biases_it_trains(bias: str, kind: str, tiny_model: TinyModel) -> None:
    backbone, method = make_backbone(tiny_model(kind), "lora", f"method.bias={bias}")
    expected = method.expected_parameters(backbone)
    measure.parameters(method.attach(backbone), expected)
