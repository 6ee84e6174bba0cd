"""Every method of conf/method/ keeps the contract on every backbone it can go with, or is refused in time."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import measure, methods, models
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.schema import Experiment, Quantization
from harness.config.sources import conf_root
from harness.doctor.compatibility import backbones, words
from harness.methods import trained_parameters
from harness.models import sizes
from harness.models.architectures import ARCHITECTURES, Backbone, Kind
from harness.training.batches import collator_for, plain_inputs

METHODS = sorted(
    str(p.relative_to(conf_root() / "conf/method").with_suffix(""))
    for p in (conf_root() / "conf/method").rglob("*.yaml")
    if p.stem != "peft"  # any configuration of peft, which the others stand for
)
# One of each sort in every test run; the rest of the table is marked slow.
QUICK = [("bert", Kind.classification), ("gpt2", Kind.classification), ("llama", Kind.causal_lm)]
TABLE = [
    pytest.param(method, model_type, kind, marks=() if (model_type, kind) in QUICK else (pytest.mark.slow,))
    for method in METHODS
    for model_type, kind in backbones()
]
# Methods that can go with every backbone: a refusal of theirs is a mistake. The head needs a head to train.
UNIVERSAL = {"full", "lora", "rslora", "dora", "houlsby", "pfeiffer", "parallel_adapter", "compacter", "diff_pruning"}
LANGUAGE_MODELS_ONLY = {"adaption_prompt", "trainable_tokens"}
# Learned vectors in front of the text, and vectors shared by all layers, change the output before anything is learned.
CHANGED_BY_ATTACHING = {"prompt_tuning", "p_tuning", "prefix_tuning", "prefix_tuning_projected", "vblora", "unilora"}
# Small enough for a step to lead downhill: AdamW's are as long whatever the gradient. ModernBERT's head, which every
# method trains, norms its features anew, and those of a random model are near zero, so that any step is a long one.
SMALL_RATE = 1e-3
SMALL_RATE_OF = {"modernbert": 1e-4}

TinyModel = Callable[[str], Path]


@cache
def _composed(name: str, overrides: tuple[str, ...]) -> Experiment:
    return build(compose("config", [f"method={name}", "task=glue/sst2", *overrides]))


def experiment_of(folder: Path, name: str, kind: Kind, *overrides: str) -> Experiment:
    experiment = _composed(name, overrides)
    task = SimpleNamespace(kind=kind, name=experiment.task.name)
    return replace(experiment, model=replace(experiment.model, path=str(folder)), task=task)


def told_beforehand(folder: Path, experiment: Experiment) -> int | str:
    """What the method will train beside the head, or why it can't go with the backbone; nothing is loaded for it."""
    configuration = models.load_config(folder, labels=2, regression=False)
    try:
        skeleton = models.empty_model(configuration, experiment.task.kind, models.choose_quantization(experiment))
        return experiment.method.expected_parameters(skeleton)
    except ConfigError as refusal:
        return str(refusal)


def make_backbone(folder: Path, name: str, *overrides: str, kind: Kind = Kind.classification) -> tuple[Backbone, Any]:
    """A fresh backbone with the same head every time, and the method's object."""
    experiment = experiment_of(folder, name, kind, *overrides)
    if models.choose_quantization(experiment) is Quantization.none:
        backbone = _unquantized(folder, kind)
        return replace(backbone, model=copy.deepcopy(backbone.model)), experiment.method
    return _load(folder, experiment), experiment.method


@cache
def _unquantized(folder: Path, kind: Kind) -> Backbone:
    return _load(folder, experiment_of(folder, "full", kind))


def _load(folder: Path, experiment: Experiment) -> Backbone:
    configuration = models.load_config(folder, labels=2, regression=False)
    torch.manual_seed(7)
    backbone = models.load_model(folder, configuration, experiment, torch.float32)
    backbone.model.config.pad_token_id = 0
    backbone.model.eval()
    return backbone


def inputs(kind: Kind = Kind.classification) -> dict[str, torch.Tensor]:
    """Rows with `<s>` in front, for a method may train the special tokens alone.

    Random features hardly differ among rows: what three steps can learn is that one class is the more frequent.
    """
    tokens = words(8, 12)
    tokens[:, 0] = 2
    labels = {"labels": (torch.arange(8) > 1).long()} if kind is Kind.classification else {}
    return {**plain_inputs(tokens, kind), **labels}


def logits(model: torch.nn.Module, kind: Kind = Kind.classification) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**inputs(kind)).logits


def train(adapter: Any, kind: Kind = Kind.classification, rate: float = 1e-3, steps: int = 3) -> tuple[float, float]:
    """A few steps on one batch without dropout; returns the loss before and after."""
    model = adapter.model
    model.eval()
    settings = SimpleNamespace(learning_rate=rate, weight_decay=0.0)
    trained = trained_parameters(adapter)
    optimizer = adapter.optimizer(trained, settings) or torch.optim.AdamW(trained.values(), lr=rate)
    adapter.start(steps)
    losses = []
    for step in range(1, steps + 2):
        loss = model(**inputs(kind)).loss
        losses.append(loss.item())
        if step > steps:
            break
        optimizer.zero_grad()
        loss.backward()
        penalty = adapter.penalty()
        if penalty is not None:
            penalty.backward()
        optimizer.step()
        adapter.after_step(step)
    return losses[0], losses[-1]


def alone_and_padded(backbone: Backbone, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a short row by itself, and beside a longer one that makes it padded."""
    collate = collator_for(backbone, SimpleNamespace(pad_token_id=0), torch.device("cpu"))  # type: ignore[arg-type]
    rows = [
        {"input_ids": list(range(10, 10 + n)), "attention_mask": [1] * n, "label": 0, "length": n, "weight": 1}
        for n in (5, 11)
    ]
    model.eval()
    with torch.no_grad():
        alone = model(**collate(rows, [0]).inputs).logits[0]
        padded = model(**collate(rows, [0, 1]).inputs).logits[0]
    return alone, padded


def test_there_are_methods_to_test() -> None:
    assert {"full", "head", "bitfit", "lora"} <= set(METHODS)
    assert {architecture for architecture, _ in backbones()} == set(ARCHITECTURES) - {"bloom", "t5", "mt5"}


@pytest.mark.filterwarnings("ignore")  # peft warns in many ways about what is asked of it on purpose here
@pytest.mark.parametrize(("name", "model_type", "kind"), TABLE)
def test_the_contract(name: str, model_type: str, kind: Kind, tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tiny_model(model_type)
    experiment = experiment_of(folder, name, kind)
    method, expected = experiment.method, told_beforehand(folder, experiment)
    if isinstance(expected, str):
        assert name not in UNIVERSAL
        assert expected.startswith("method"), "a refusal names the key"
        return

    backbone, _ = make_backbone(folder, name, kind=kind)
    total = sizes.logical_parameters(backbone.model)
    head = {n: p.numel() for n, p in backbone.model.named_parameters() if backbone.is_head(n)}
    base, names = logits(backbone.model, kind), {n for n, _ in backbone.model.named_parameters()}

    # Exactly the expected parameters require gradients.
    torch.manual_seed(3)
    adapter = method.attach(backbone)
    counted = methods.parameters(adapter, expected)
    assert counted["head_parameters"] == sum(head.values())
    requires_grad = {n for n, p in adapter.model.named_parameters() if p.requires_grad}
    assert requires_grad == set(adapter.adapter_parameters()) | set(adapter.head_parameters())
    assert counted["total_parameters"] >= total

    # Before training the model computes what the backbone does.
    if name not in CHANGED_BY_ATTACHING:
        assert torch.allclose(logits(adapter.model, kind), base, atol=1e-5)

    # Frozen weights are bit-identical after three steps and the loss fell.
    frozen = {n: p.detach().clone() for n, p in adapter.model.named_parameters() if not p.requires_grad}
    own = {n: p.detach().clone() for n, p in adapter.adapter_parameters().items()}
    before, after = train(adapter, kind, min(SMALL_RATE_OF.get(model_type, SMALL_RATE), *method.learning_rates))
    assert math.isfinite(after)
    assert after < before
    assert not own or any(not torch.equal(p, own[n]) for n, p in adapter.adapter_parameters().items())
    for parameter_name, parameter in adapter.model.named_parameters():
        if parameter_name in frozen and not parameter.requires_grad:
            assert torch.equal(parameter, frozen[parameter_name]), parameter_name
    trained = logits(adapter.model, kind)
    assert not torch.equal(trained, base)

    # A row's score does not depend on how its batch is padded.
    if kind is Kind.classification:
        alone, padded = alone_and_padded(backbone, adapter.model)
        assert torch.allclose(alone, padded, atol=1e-4)

    # Switched off the backbone is back, switched on again the adapter.
    with adapter.disabled():
        assert torch.allclose(logits(adapter.model, kind), base, atol=1e-6)
    assert torch.equal(logits(adapter.model, kind), trained)

    # Saved and loaded into a fresh backbone the logits are the same; nothing but tensors and text is written.
    adapter.save(tmp_path / "adapter")
    assert {path.suffix for path in (tmp_path / "adapter").iterdir()} <= {".safetensors", ".json", ".md"}
    fresh, _ = make_backbone(folder, name, kind=kind)
    restored = method.restore(fresh, tmp_path / "adapter")
    assert torch.allclose(logits(restored.model, kind), trained, atol=1e-6)

    # Taken off, nothing of it stays.
    restored.detach()
    assert torch.allclose(logits(fresh.model, kind), base, atol=1e-6)
    assert {parameter_name for parameter_name, _ in fresh.model.named_parameters()} == names

    # Merged, where the mathematics allows it, the logits agree.
    try:
        merged = adapter.merge()
    except ValueError as error:
        reason = str(error)
    else:
        assert torch.allclose(logits(merged, kind), trained, atol=merge_tolerance(backbone))
        return
    assert len(reason) > 20, "a merge that is impossible says why"


def merge_tolerance(backbone: Backbone) -> float:
    """1e-5 in float32; folding into 4- or 8-bit weights rounds them again."""
    return 1e-5 if backbone.quantization.value == "none" else 1.0


@pytest.mark.parametrize("damage", ["missing", "truncated", "other backbone"])
@pytest.mark.parametrize("name", METHODS)
def test_a_damaged_or_foreign_adapter_is_refused(name: str, damage: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    model_type, kind = ("llama", Kind.causal_lm) if name in LANGUAGE_MODELS_ONLY else ("bert", Kind.classification)
    backbone, method = make_backbone(tiny_model(model_type), name, kind=kind)
    method.attach(backbone).save(tmp_path / "adapter")
    weights = tmp_path / "adapter/adapter_model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        tensors = load_file(weights)
        save_file({key: torch.zeros(*(size + 1 for size in value.shape)) for key, value in tensors.items()}, weights)
    fresh, _ = make_backbone(tiny_model(model_type), name, kind=kind)
    with pytest.raises(ValueError, match="adapter"):
        method.restore(fresh, tmp_path / "adapter")


QUICK_QUANTIZED = {"head", "bitfit", "lora", "houlsby", "ia3"}


@pytest.mark.filterwarnings("ignore")  # bitsandbytes and torch deprecations on the way to 4 bits
@pytest.mark.parametrize(("model_type", "kind"), [("bert", Kind.classification), ("llama", Kind.causal_lm)])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK_QUANTIZED else (pytest.mark.slow,)) for name in METHODS]
)
def test_a_quantized_backbone_trains_or_is_refused(
    name: str, quantization: str, model_type: str, kind: Kind, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """The contract's parts that stored weights could break; merging is not among them, since it rounds again."""
    folder, override = tiny_model(model_type), f"model.quantization={quantization}"
    experiment = experiment_of(folder, name, kind, override)
    method, expected = experiment.method, told_beforehand(folder, experiment)
    if isinstance(expected, str):
        assert name not in {"lora", "ia3", "houlsby"}
        assert expected.startswith(("method", override)), "a refusal names the key"
        return
    backbone, _ = make_backbone(folder, name, override, kind=kind)
    plain, _ = make_backbone(folder, "lora", kind=kind)
    assert measure.weight_bytes(backbone.model) < measure.weight_bytes(plain.model)
    assert sizes.logical_parameters(backbone.model) == sizes.logical_parameters(plain.model)
    base = logits(backbone.model, kind)
    torch.manual_seed(3)
    adapter = method.attach(backbone)
    methods.parameters(adapter, expected)
    frozen = {n: p.detach().clone() for n, p in adapter.model.named_parameters() if not p.requires_grad}
    before, after = train(adapter, kind, min(SMALL_RATE, *method.learning_rates))
    assert math.isfinite(after)
    assert after < before
    assert all(torch.equal(p, frozen[n]) for n, p in adapter.model.named_parameters() if n in frozen)
    trained = logits(adapter.model, kind)
    with adapter.disabled():
        assert torch.allclose(logits(adapter.model, kind), base, atol=1e-6)
    adapter.save(tmp_path / "adapter")
    fresh, _ = make_backbone(folder, name, override, kind=kind)
    restored = method.restore(fresh, tmp_path / "adapter")
    assert torch.allclose(logits(restored.model, kind), trained, atol=1e-6)


def test_full_fine_tuning_of_a_quantized_backbone_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(ConfigError, match=r"model\.quantization=nf4: method=full needs unquantized weights"):
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
    methods.parameters(method.attach(backbone), expected)
