"""Every method of conf/method/ keeps the contract on every backbone it can go with, or is refused in time."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
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
# An encoder and a decoder in every test run, with a test for each promise; the rest of the table is marked slow.
QUICK = [("bert", Kind.classification), ("llama", Kind.causal_lm)]
QUICK_OF_FEW = [("t5", Kind.seq2seq_lm)]
TABLE = [
    pytest.param((method, model_type, kind), id=f"{method}-{model_type}-{kind.name}")
    for method in METHODS
    for model_type, kind in backbones()
]
# Of an encoder with a decoder, and of architectures that are like another one, so many stand for the rest.
FEW = {
    "full",
    "bitfit",
    "lora",
    "ia3",
    "houlsby",
    "pfeiffer",
    "prompt_tuning",
    "prefix_tuning",
    "prefix_tuning_attention",
}
FEWER = {"full", "lora", "houlsby", "prefix_tuning", "prefix_tuning_attention"}
LIKE_ANOTHER = {"xlm-roberta", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt_neox", "mt5"}
QUICK_TABLE = [
    row
    for row in TABLE
    if row.values[0][1:] in QUICK or (row.values[0][1:] in QUICK_OF_FEW and row.values[0][0] in FEW)
]


def stands_for_itself(method: str, model_type: str, kind: Kind) -> bool:
    """Whether a pair is tried at all."""
    if model_type in LIKE_ANOTHER:
        return method in FEWER
    return method in FEW or not (model_type == "bart" or (model_type == "t5" and kind is Kind.classification))


SLOW_TABLE = [row for row in TABLE if row not in QUICK_TABLE and stands_for_itself(*row.values[0])]
# Methods that can go with every backbone: a refusal of theirs is a mistake. The head needs a head to train.
UNIVERSAL = {"full", "lora", "rslora", "dora", "houlsby", "pfeiffer", "parallel_adapter", "compacter", "diff_pruning"}
LANGUAGE_MODELS_ONLY = {"adaption_prompt", "trainable_tokens"}
# Learned vectors in front of the text, and vectors shared by all layers, change the output before anything is learned.
CHANGED_BY_ATTACHING = {
    "prompt_tuning",
    "p_tuning",
    "prefix_tuning",
    "prefix_tuning_attention",
    "prefix_tuning_projected",
    "vblora",
    "unilora",
}
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


def inputs(kind: Kind = Kind.classification, configuration: Any = None) -> dict[str, torch.Tensor]:
    """Rows with `<s>` in front, for a method may train the special tokens alone.

    Random features hardly differ among rows: what three steps can learn is that one class is the more frequent.
    """
    tokens = words(8, 12)
    tokens[:, 0] = 2
    labels = {"labels": (torch.arange(8) > 1).long()} if kind is Kind.classification else {}
    return {**plain_inputs(tokens, kind, configuration), **labels}


def logits(model: torch.nn.Module, kind: Kind = Kind.classification) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**inputs(kind, model.config)).logits


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
        loss = model(**inputs(kind, model.config)).loss
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
    answer = {"label": 0} if backbone.kind is Kind.classification else {"labels": [20, 21, 22, 3]}
    rows = [
        {"input_ids": [*range(10, 9 + n), 3], "attention_mask": [1] * n, **answer, "length": n, "weight": 1}
        for n in (5, 11)
    ]
    model.eval()
    with torch.no_grad():
        alone = model(**collate(rows, [0]).inputs).logits[0]
        padded = model(**collate(rows, [0, 1]).inputs).logits[0]
    return alone, padded


def test_there_are_methods_to_test() -> None:
    """The four basic methods and nearly all architectures take part in the contract."""
    assert {"full", "head", "bitfit", "lora"} <= set(METHODS)
    assert {architecture for architecture, _ in backbones()} == set(ARCHITECTURES) - {"bloom"}


class Pair:
    """A method on a backbone, taken as far as a promise needs: attached, trained, saved and restored once for all."""

    def __init__(self, folder: Path, name: str, model_type: str, kind: Kind, place: Path) -> None:
        self.folder, self.name, self.model_type, self.kind, self.place = folder, name, model_type, kind, place
        self.experiment = experiment_of(folder, name, kind)
        self.method = self.experiment.method
        self.expected = told_beforehand(folder, self.experiment)

    def logits(self, model: torch.nn.Module) -> torch.Tensor:
        return logits(model, self.kind)

    @cached_property
    def backbone(self) -> Backbone:
        """It is fresh when what it was before is noted."""
        backbone, _ = make_backbone(self.folder, self.name, kind=self.kind)
        self.total = sizes.logical_parameters(backbone.model)
        self.head = sum(p.numel() for n, p in backbone.model.named_parameters() if backbone.is_head(n))
        self.base, self.names = self.logits(backbone.model), {n for n, _ in backbone.model.named_parameters()}
        return backbone

    @cached_property
    def adapter(self) -> Any:
        backbone = self.backbone
        torch.manual_seed(3)
        adapter = self.method.attach(backbone)
        self.attached = self.logits(adapter.model)
        self.requires_grad = {n for n, p in adapter.model.named_parameters() if p.requires_grad}
        return adapter

    @cached_property
    def trained(self) -> torch.Tensor:
        """The logits after three steps; what changed on the way is noted."""
        adapter = self.adapter
        frozen = {n: p.detach().clone() for n, p in adapter.model.named_parameters() if not p.requires_grad}
        own = {n: p.detach().clone() for n, p in adapter.adapter_parameters().items()}
        rate = min(SMALL_RATE_OF.get(self.model_type, SMALL_RATE), *self.method.learning_rates)
        self.losses = train(adapter, self.kind, rate)
        self.stays = not own
        self.learned = [n for n, p in adapter.adapter_parameters().items() if not torch.equal(p, own[n])]
        self.thawed = [
            n
            for n, p in adapter.model.named_parameters()
            if n in frozen and not p.requires_grad and not torch.equal(p, frozen[n])
        ]
        return self.logits(adapter.model)

    @cached_property
    def restored(self) -> Any:
        """The trained adapter, saved, on another fresh backbone."""
        assert self.trained is not None
        self.adapter.save(self.place)
        self.fresh, _ = make_backbone(self.folder, self.name, kind=self.kind)
        restored = self.method.restore(self.fresh, self.place)
        self.restored_logits = self.logits(restored.model)
        return restored


@pytest.fixture(scope="module", params=QUICK_TABLE)
def asked(request: pytest.FixtureRequest, tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair of the table, whether it can work or not."""
    name, model_type, kind = request.param
    place = tmp_path_factory.mktemp("adapter", numbered=True) / "adapter"
    return Pair(tiny_model(model_type), name, model_type, kind, place)


@pytest.fixture
def pair(asked: Pair) -> Pair:
    """A pair that can work."""
    if isinstance(asked.expected, str):
        pytest.skip(f"refused: {asked.expected}")
    return asked


@pytest.mark.filterwarnings("ignore")  # peft warns in many ways about what is asked of it on purpose here
class TestContract:
    """The promises of a method, one test each."""

    def test_it_is_allowed_or_refused_in_a_sentence_with_its_key(self, asked: Pair) -> None:
        """Before anything is loaded; some methods go with every backbone."""
        if isinstance(asked.expected, str):
            assert asked.name not in UNIVERSAL
            assert asked.expected.startswith("method"), "a refusal names the key"
        else:
            assert asked.expected >= 0

    def test_exactly_the_expected_parameters_require_gradients(self, pair: Pair) -> None:
        """As many as the closed form says, the head apart."""
        assert isinstance(pair.expected, int)
        adapter = pair.adapter
        counted = methods.parameters(adapter, pair.expected)
        assert counted["head_parameters"] == pair.head
        assert pair.requires_grad == set(adapter.adapter_parameters()) | set(adapter.head_parameters())
        assert counted["total_parameters"] >= pair.total

    def test_before_training_the_model_computes_what_the_backbone_does(self, pair: Pair) -> None:
        """But for methods whose vectors are in the way from the start."""
        assert pair.adapter is not None
        if pair.name not in CHANGED_BY_ATTACHING:
            assert torch.allclose(pair.attached, pair.base, atol=1e-5)

    def test_frozen_weights_stay_bit_identical_while_the_loss_falls(self, pair: Pair) -> None:
        """Three steps change the adapter, if it has weights, and the output."""
        trained = pair.trained
        before, after = pair.losses
        assert math.isfinite(after)
        assert after < before
        assert pair.stays or pair.learned
        assert pair.thawed == []
        assert not torch.equal(trained, pair.base)

    def test_a_score_does_not_depend_on_how_its_batch_is_padded(self, pair: Pair) -> None:
        """A short row beside a long one."""
        assert pair.trained is not None
        if pair.kind is not Kind.causal_lm:
            alone, padded = alone_and_padded(pair.backbone, pair.adapter.model)
            assert torch.allclose(alone, padded, atol=1e-4)

    def test_switched_off_the_backbone_is_back(self, pair: Pair) -> None:
        """Switched on again, so is the adapter."""
        trained = pair.trained
        with pair.adapter.disabled():
            assert torch.allclose(pair.logits(pair.adapter.model), pair.base, atol=1e-6)
        assert torch.equal(pair.logits(pair.adapter.model), trained)

    def test_restored_into_a_fresh_backbone_it_computes_the_same(self, pair: Pair) -> None:
        """Nothing but tensors and text is written."""
        assert pair.restored is not None
        assert {path.suffix for path in pair.place.iterdir()} <= {".safetensors", ".json", ".md"}
        assert torch.allclose(pair.restored_logits, pair.trained, atol=1e-6)

    def test_taken_off_nothing_of_it_stays(self, pair: Pair) -> None:
        """Neither in what the backbone computes nor in its parameters."""
        pair.restored.detach()
        assert torch.allclose(pair.logits(pair.fresh.model), pair.base, atol=1e-6)
        assert {name for name, _ in pair.fresh.model.named_parameters()} == pair.names

    def test_merged_it_computes_the_same_or_says_why_it_cannot_be(self, pair: Pair) -> None:
        """Last, for it takes the adapter apart."""
        trained = pair.trained
        try:
            merged = pair.adapter.merge()
        except ValueError as error:
            reason = str(error)
        else:
            assert torch.allclose(pair.logits(merged), trained, atol=merge_tolerance(pair.backbone))
            return
        assert len(reason) > 20, "a merge that is impossible says why"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", SLOW_TABLE)
def test_every_promise_is_kept_elsewhere_too(row: tuple[str, str, Kind], tiny_model: TinyModel, tmp_path: Path) -> None:
    """One test per method and backbone, whose failure names each promise that is broken, not the first alone."""
    name, model_type, kind = row
    pair, contract, broken = (
        Pair(tiny_model(model_type), name, model_type, kind, tmp_path / "adapter"),
        TestContract(),
        [],
    )
    promises = [promise for promise in vars(TestContract) if promise.startswith("test_")]
    assert promises[0] == "test_it_is_allowed_or_refused_in_a_sentence_with_its_key"
    for promise in promises[:1] if isinstance(pair.expected, str) else promises:
        try:
            getattr(contract, promise)(pair)
        except Exception as error:
            error.add_note(promise)
            broken.append(error)
    if broken:
        raise ExceptionGroup(f"{name} on {model_type} breaks {len(broken)} promises", broken)


def merge_tolerance(backbone: Backbone) -> float:
    """1e-5 in float32; folding into 4- or 8-bit weights rounds them again."""
    return 1e-5 if backbone.quantization.value == "none" else 1.0


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "truncated", "other backbone"])
@pytest.mark.parametrize("name", METHODS)
def test_a_damaged_or_foreign_adapter_is_refused(name: str, damage: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    """A missing, shortened or differently shaped file raises ValueError, with every method."""
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
    """The sentence names both keys."""
    with pytest.raises(ConfigError, match=r"model\.quantization=nf4: method=full needs unquantized weights"):
        make_backbone(tiny_model("bert"), "full", "model.quantization=nf4")


def test_bitfit_refuses_a_backbone_without_biases(tiny_model: TinyModel) -> None:
    """LLaMA has none to train."""
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
    """The sentence has the layer's shape."""
    backbone, method = make_backbone(tiny_model("bert"), "lora", "method.rank=65")
    with pytest.raises(ConfigError, match=r"method\.rank=65: .* is 64 x 64"):
        method.expected_parameters(backbone)


def test_lora_without_a_matching_module_is_refused_with_near_misses(tiny_model: TinyModel) -> None:
    """A misspelled role is answered with its correction."""
    backbone, method = make_backbone(tiny_model("bert"), "lora", "method.target_modules=[qeury]")
    with pytest.raises(ConfigError, match=r"method\.target_modules=qeury: .*did you mean query\?"):
        method.expected_parameters(backbone)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers")
def test_lora_counts_the_biases_it_trains(bias: str, kind: str, tiny_model: TinyModel) -> None:
    """The closed form holds for each choice of biases."""
    backbone, method = make_backbone(tiny_model(kind), "lora", f"method.bias={bias}")
    expected = method.expected_parameters(backbone)
    methods.parameters(method.attach(backbone), expected)
