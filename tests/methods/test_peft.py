"""Peft's classes are all known, checked before a backbone is loaded, and refused in words where they can't work."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import method_of, random_backbone
from torch import nn

from harness import models
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.schema import Quantization
from harness.config.sources import conf_root
from harness.doctor.compatibility import TINY, words
from harness.methods import trained_parameters
from harness.methods.peft import PeftMethod, fits
from harness.methods.peft_rules import LEFT_OUT, RULES
from harness.models.architectures import ARCHITECTURES, Backbone, Kind

TinyModel = Callable[[str], Path]
LANGUAGE_MODELS_ONLY = {"adaption_prompt", "trainable_tokens"}
CATALOGUE = {path.stem: path.read_text() for path in sorted((conf_root() / "conf/method").glob("*.yaml"))}
OF_PEFT = [
    name for name, text in CATALOGUE.items() if name != "peft" and ("methods.lora." in text or "methods.peft." in text)
]
DECODERS = [name for name in TINY if ARCHITECTURES[name].decoder]
PROMPTS = ["prompt_tuning", "p_tuning", "prefix_tuning"]


def by_hand(text: str) -> Any:
    return method_of("peft", f"method.config={{{text}}}")


def skeleton(model_type: str, kind: Kind = Kind.classification, stored: Quantization = Quantization.none) -> Backbone:
    from transformers import AutoConfig

    configuration = AutoConfig.for_model(model_type, num_labels=2, **TINY[model_type])
    return models.empty_model(configuration, kind, stored)


def logits(model: nn.Module, padding: int = 0) -> torch.Tensor:
    """Logits of rows that are padded on the left, as decoders are, with the positions that come with them."""
    ids = words(4, 9)
    blank = torch.zeros(len(ids), padding, dtype=torch.long)
    mask = torch.cat([blank, torch.ones_like(ids)], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.cat([blank, ids], 1), attention_mask=mask, position_ids=positions).logits


def shake(adapter: Any) -> None:
    """Move all trained parameters from where they start, as training would."""
    with torch.no_grad():
        for parameter in trained_parameters(adapter).values():
            parameter += 0.02 * torch.randn(parameter.shape)


def test_every_class_of_peft_is_run_or_left_out_with_a_reason() -> None:
    """A class that a new peft brings fails this test until someone decides on it."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {cls.__name__ for cls in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    assert classes == set(RULES) | set(LEFT_OUT)
    assert not set(RULES) & set(LEFT_OUT)
    assert all(len(reason) > 20 for reason in LEFT_OUT.values())


def test_every_class_that_is_run_has_a_file_in_the_catalog() -> None:
    """LoRA and AdaLoRA have methods of their own."""
    named = {name for name in RULES for text in CATALOGUE.values() if f"peft.{name}\n" in text}
    assert set(RULES) - named == {"LoraConfig", "AdaLoraConfig"}
    assert {"lora", "adalora"} <= set(CATALOGUE)


@pytest.mark.slow
def test_learning_rates_are_three_a_factor_of_four_apart() -> None:
    """The middle one is the default."""
    for name in OF_PEFT:
        method = method_of(name)
        low, middle, high = method.learning_rates
        assert method.learning_rate == middle
        assert middle / low == pytest.approx(4)
        assert high / middle == pytest.approx(4)


def test_any_class_is_reached_by_hand() -> None:
    """A class with its options in `method.config` is counted by its closed form."""
    method = by_hand("_target_: peft.VeraConfig, r: 16")
    assert method.expected_parameters(skeleton("bert")) == 4 * (64 + 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["method=peft"], r"method\.config=None: name a class of peft, as in"),
        (
            ["method=vera", "method.config._target_=os.system"],
            r"method\.config\._target_=os\.system: not a configuration",
        ),
        (["method=vera", "method.config._target_=peft.VeraConfg"], r"did you mean VeraConfig"),
        (["method=vera", "method.config._target_=peft.LoraModel"], r"not a configuration class of peft"),
        (["method=vera", "method.config._target_=peft.PolyConfig"], r"not run here: it routes among skills"),
        (["method=vera", "method.config._target_=peft.AdaLoraConfig"], r"method=adalora has it"),
        (["method=vera", "+method.config.d_inital=1"], r"method\.config\.d_inital: .* did you mean d_initial\?"),
        (["method=vera", "method.config.r=four"], r"method\.config\.r=four: a whole number is needed"),
        (["method=vera", "method.config.r=2.5"], r"method\.config\.r=2\.5: a whole number is needed"),
        (["method=vera", "method.config.r=0"], r"method\.config\.r=0: a whole number from 1 on is needed"),
        (["method=vera", "method.config.target_modules=3"], r"method\.config\.target_modules=3: "),
        (["method=vera", "+method.config.bias=all"], r"method\.config\.bias=all: .*only method=lora"),
        (["method=vera", "+method.config.auto_mapping={a: b}"], r"auto_mapping=.*: can't be set: it names code"),
        (["method=vera", "+method.config.modules_to_save=[x]"], r"can't be set: it follows from the backbone"),
        (
            ["method=prompt_tuning", "method.config.prompt_tuning_init=WORDS"],
            r"TEXT or SAMPLE_VOCAB or RANDOM is needed",
        ),
        (
            ["method=prompt_tuning", "method.config.num_virtual_tokens=0"],
            r"num_virtual_tokens=0: a whole number from 1",
        ),
        (["method=prompt_tuning", "+method.config.tokenizer_name_or_path=x"], r"the backbone's own tokenizer is used"),
        (["method=oft", "method.config.r=4"], r"method\.config: .*r \(4\) or oft_block_size \(32\)"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_loaded(overrides: list[str], sentence: str) -> None:
    """Unknown classes, unknown options, wrong types and options that can't be set have sentences of their own."""
    with pytest.raises(ConfigError, match=sentence):
        build(compose("config", overrides))


@pytest.mark.parametrize("start", ["eva", "corda", "loftq", "olora", "pissa"])
def test_a_start_that_needs_data_or_changes_weights_is_refused(start: str) -> None:
    """The allowed starts are named."""
    with pytest.raises(ConfigError, match=rf"init_lora_weights={start}: .* is allowed"):
        by_hand(f"_target_: peft.LoraConfig, init_lora_weights: {start}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model_type", "overrides", "sentence"),
    [
        ("prefix_tuning", "distilbert", [], "method=prefix_tuning: peft has it for .*, not for distilbert"),
        ("adaption_prompt", "qwen2", [], "method=adaption_prompt: peft has it for llama, mistral, gpt2"),
        ("adaption_prompt", "llama", [], "can't train a new head"),
        ("oft", "gpt2", [], "method=oft: peft can't put it on the Conv1D modules of gpt2"),
        (
            "c3a",
            "bert",
            ["method.config.block_size=48"],
            r"method\.config\.block_size=48 does not divide the sides: .* is 64 x 64",
        ),
        ("road", "bert", ["method.config.group_size=48"], r"method\.config\.group_size=48 does not divide"),
        ("loha", "bert", ["method.config.r=65"], r"method\.config\.r=65 is too much: .* is 64 x 64"),
        ("miss", "bert", ["method.config.r=65"], r"method\.config\.r=65 is too much"),
        (
            "fourierft",
            "bert",
            ["method.config.n_frequency=5000"],
            r"method\.config\.n_frequency=5000 is more than the entries",
        ),
        ("osf", "bert", ["method.config.effective_rank=64"], "leaves nothing to train"),
        ("shira", "bert", ["method.config.r=40"], r"method\.config\.r=40 asks for 5120 entries"),
        ("boft", "bert", ["method.config.boft_n_butterfly_factor=2"], "needs peft's CUDA extension"),
        ("vblora", "bert", ["method.config.topk=91"], r"method\.config\.topk=91 is more than num_vectors=90"),
        ("vera", "bert", ["method.config.target_modules=[qeury]"], r"target_modules=qeury: .* did you mean query"),
        ("adalora", "bert", ["method.initial_rank=65"], r"method\.initial_rank=65: .* is 64 x 64"),
        (
            "prompt_tuning",
            "bert",
            ["method.config.prompt_tuning_init=TEXT", "+method.config.prompt_tuning_init_text=a"],
            "there is no folder",
        ),
    ],
)
def test_what_can_not_work_is_refused_by_shapes_alone(
    name: str, model_type: str, overrides: list[str], sentence: str
) -> None:
    """Sizes and architectures that do not go together are named before anything is attached."""
    with pytest.raises(ConfigError, match=sentence):
        method_of(name, *overrides).expected_parameters(skeleton(model_type))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["delora", "osf", "psoft", "c3a", "hra", "pissa"])
@pytest.mark.parametrize("stored", [Quantization.int8, Quantization.nf4])
def test_a_method_that_computes_with_the_weights_refuses_quantized_ones(name: str, stored: Quantization) -> None:
    """Stored in eight bits or in four."""
    with pytest.raises(ConfigError, match=rf"method={name}: "):
        method_of(name).expected_parameters(skeleton("bert", stored=stored))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers renames what switches it on
def test_prefixes_refuse_gradient_checkpointing(tiny_model: TinyModel) -> None:
    """It would switch off the cache that holds them."""
    plain = random_backbone("bert", folder=tiny_model("bert"))
    plain.model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ConfigError, match=r"method=prefix_tuning: .* gradient checkpointing switches off"):
        method_of("prefix_tuning").expected_parameters(plain)


def test_a_method_that_starts_from_the_weights_can_not_be_attached_to_a_plan() -> None:
    """A skeleton has no values to start from."""
    with pytest.raises(ConfigError, match="method=frod: it starts from the weights' values, and a plan has none"):
        method_of("frod").attach(skeleton("bert"))


def test_virtual_tokens_are_told() -> None:
    """Prompts and prefixes have them, other methods none."""
    assert [method_of(name).virtual_tokens() for name in [*PROMPTS, "vera"]] == [20, 20, 30, 0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Kind.classification, Kind.causal_lm])
@pytest.mark.parametrize("model_type", ["gpt2", "opt", "llama", "gemma"])
@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_leaves_logits_as_they_are_whatever_the_padding(
    name: str, model_type: str, kind: Kind, tiny_model: TinyModel
) -> None:
    """The shape is that of the text alone, and padding on the left changes no logit."""
    plain = random_backbone(model_type, kind, tiny_model(model_type))
    plain.model.config.pad_token_id = 0
    base = logits(plain.model)
    adapter = method_of(name).attach(plain)
    alone, padded = logits(adapter.model), logits(adapter.model, padding=5)
    assert alone.shape == base.shape
    assert torch.allclose(alone, padded if kind is Kind.classification else padded[:, 5:], atol=1e-5)


def test_a_prompt_may_start_as_a_text(tiny_model: TinyModel) -> None:
    """The virtual tokens are the embeddings of its words."""
    plain = random_backbone("bert", folder=tiny_model("bert"))
    start = ["method.config.prompt_tuning_init=TEXT", "+method.config.prompt_tuning_init_text=word3 word5"]
    adapter = method_of("prompt_tuning", "method.config.num_virtual_tokens=2", *start).attach(plain)
    (prompt,) = adapter.adapter_parameters().values()
    words = plain.model.get_input_embeddings().weight[[7, 9]]  # four special tokens come first
    assert torch.equal(prompt, words)


def test_modernberts_head_is_not_sought_in_a_prompt_encoder(tiny_model: TinyModel) -> None:
    """Peft goes by the ends of names, and the network that makes a prompt has an `mlp_head`."""
    plain = random_backbone("modernbert", folder=tiny_model("modernbert"))
    adapter = method_of("p_tuning").attach(plain)
    heads = {name.partition(".modules_to_save.")[0].rpartition(".")[2] for name in adapter.head_parameters()}
    assert heads == {"head", "classifier"}
    assert sum(p.numel() for p in adapter.adapter_parameters().values()) == method_of("p_tuning").expected_parameters(
        random_backbone("modernbert", folder=tiny_model("modernbert"))
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OF_PEFT)
def test_what_is_saved_loads_with_peft_alone(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    """The loader of peft alone gives the same logits, for every class."""
    from peft import PeftModel

    kind = Kind.causal_lm if name in LANGUAGE_MODELS_ONLY else Kind.classification
    model_type = "llama" if name in LANGUAGE_MODELS_ONLY else "bert"
    torch.manual_seed(3)
    adapter = method_of(name).attach(random_backbone(model_type, kind, tiny_model(model_type)))
    shake(adapter)
    adapter.save(tmp_path / "adapter")
    alone = PeftModel.from_pretrained(
        random_backbone(model_type, kind, tiny_model(model_type)).model, str(tmp_path / "adapter")
    )
    with torch.no_grad():
        ours, theirs = (model.eval()(input_ids=words(4, 9)).logits for model in (adapter.model, alone))
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["lora", "vera", "prompt_tuning", "prefix_tuning_projected"])
@pytest.mark.parametrize("damage", ["missing tensor", "truncated", "pickled", "other method", "other backbone"])
def test_a_damaged_or_foreign_adapter_is_refused(name: str, damage: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    """Missing tensors, cut files, pickles and other methods' files raise ValueError."""
    plain, folder = random_backbone("bert", folder=tiny_model("bert")), tmp_path / "adapter"
    method = method_of(name)
    method.attach(plain).save(folder)
    weights, configuration = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(weights)
    if damage == "missing tensor":
        tensors.pop(min(tensors))
        save_file(tensors, weights)
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "pickled":
        torch.save(tensors, folder / "adapter_model.bin")
        weights.unlink()
    elif damage == "other method":
        configuration.write_text(json.dumps({**json.loads(configuration.read_text()), "peft_type": "OFT"}))
    else:
        save_file({key: torch.zeros(*(size + 1 for size in value.shape)) for key, value in tensors.items()}, weights)
    with pytest.raises(ValueError, match="adapter"):
        method.restore(random_backbone("bert", folder=tiny_model("bert")), folder)


@pytest.mark.parametrize("name", ["prompt_tuning", "fourierft", "pissa"])
def test_a_merge_leaves_the_adapter_alone(name: str, tiny_model: TinyModel) -> None:
    """The merged model has its logits, and it has them still; a prompt can't be merged."""
    adapter = method_of(name).attach(random_backbone("bert", folder=tiny_model("bert")))
    shake(adapter)
    before = adapter.model(input_ids=words(4, 9)).logits
    if name == "prompt_tuning":
        with pytest.raises(ValueError, match="virtual tokens are part of the input"):
            adapter.merge()
    else:
        merged = adapter.merge()(input_ids=words(4, 9)).logits
        assert torch.allclose(merged, before, atol=1e-5)
    assert torch.equal(adapter.model(input_ids=words(4, 9)).logits, before)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_ia3_is_the_formula_of_its_paper(model_type: str, tiny_model: TinyModel) -> None:
    """Keys, values and inner feed-forward values are multiplied by vectors that start at one, in float64."""
    plain = random_backbone(model_type, folder=tiny_model(model_type))
    names = {"bert": ("attention.self.key", "output.dense"), "gpt2": ("attn.c_attn", "mlp.c_proj")}[model_type]
    modules = dict(plain.model.named_modules())
    before = {
        name: [p.detach().double() for p in modules[name].parameters()] for name in modules if name.endswith(names)
    }
    adapter = method_of("ia3").attach(plain)
    attached = dict(adapter.model.get_base_model().named_modules())
    checked = 0
    for name, (weight, bias) in before.items():
        layer = attached[name].double()
        if not hasattr(layer, "ia3_l"):  # BERT's attention has an output.dense too
            continue
        weight = weight if model_type == "gpt2" else weight.T
        x = torch.randn(3, weight.shape[0], dtype=torch.float64)
        scale = layer.ia3_l["default"]
        assert torch.equal(scale, torch.ones_like(scale))
        with torch.no_grad():
            scale.copy_(torch.randn(scale.shape))
        inner, outer = (scale.flatten(), 1) if layer.is_feedforward else (1, scale.flatten())
        formula = ((x * inner) @ weight + bias) * outer
        assert torch.allclose(layer(x), formula, atol=1e-12)
        checked += 1
    assert checked == 4


def test_types_are_those_of_the_annotations() -> None:
    """A whole number is a number, true is neither, and unions and enums are understood."""
    from peft.tuners.prompt_tuning import PromptTuningInit

    assert fits(1, float)
    assert not fits(True, int)
    assert not fits(1, bool)
    assert fits(["a"], list[str] | None)
    assert not fits([1], list[str] | None)
    assert fits("TEXT", PromptTuningInit | str)
    assert not fits("WORDS", PromptTuningInit | str)


def test_the_catalog_has_no_class_by_another_path() -> None:
    """A file of the catalog makes a `PeftMethod` with its options."""
    assert isinstance(method_of("vera"), PeftMethod)
    assert SimpleNamespace(**method_of("vera").options()).r == 256
