"""Configurations in peft's own files run as they are: defaults in them say nothing, and the rest is checked."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import AutoConfig

from harness.config.build import build, component
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.identity import identity
from harness.config.sources import TRAINING_FILE, conf_root
from harness.methods.peft_files import read
from harness.models import empty_model
from harness.models.architectures import Backbone, Kind
from harness.plan.costs import PlanSettings, count, parameters, plan_point
from harness.run import estimate, prepare, run

# As peft 0.21 saves it: every key, and two that other versions have.
SAVED = {
    "auto_mapping": None, "base_model_name_or_path": "somebody/model", "bias": "none", "fan_in_fan_out": False,
    "inference_mode": True, "peft_type": "VERA", "peft_version": "0.99.0", "r": 4, "projection_prng_key": 0,
    "save_projection": True, "target_modules": ["query", "value"], "task_type": "SEQ_CLS", "vera_dropout": 0.0,
    "d_initial": 0.3, "layers_pattern": None, "of_a_later_version": None, "also_later": {}, "and_this": False,
}  # fmt: skip

# Published configurations that no run here takes as they are -> the sentence that says why.
NOT_TAKEN = {
    "lily--llama-3.2-3B-rank140-mlp-a2-b2-s8.0": "a row's score depends on the rows beside it",
    "lily--llama-3.2-3B-rank896-a2-b2-s2.0": "a row's score depends on the rows beside it",
    "lora--llama-3.2-3B-rank14-target-mlp-bdlora": "use_bdlora=.* what it adds is not counted here",
    "lora--llama-3.2-3B-rank32-mica": "init_lora_weights=mica: .* others change the frozen weights",
    "lora--llama-3.2-3B-rank32-kasa": "kasa_config=.* what it adds is not counted here",
    "lora--llama-3.2-3B-rank32-riemannian": "optimizer_type=riemannian: no run here has this optimizer",
    "lora--llama-3.2-3B-rank32-lorafa": "optimizer_type=lora-fa: method=lora_fa trains so",
    "prefixtuning--llama-3.2-3B-tokens50-init_prefix-lr_0.005": "init_kv_cache_prefix: no run here follows this",
}


def write(folder: Path, content: Any, training: Any = None) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    if training is not None:
        (folder / TRAINING_FILE).write_text(json.dumps(training))
    return path


def method(path: Path, name: str = "peft") -> Any:
    loaded: Any = OmegaConf.to_container(OmegaConf.load(conf_root() / f"conf/method/{name}.yaml"))
    return component({**loaded, "learning_rate": 1e-3, "config_file": str(path)}, "method")


def test_what_is_left_of_a_saved_configuration_is_what_somebody_chose(tmp_path: Path) -> None:
    """Neither defaults nor what tells of the library, and no empty key of another version."""
    chosen = {"r": 4, "d_initial": 0.3, "target_modules": ["query", "value"]}
    assert read(str(write(tmp_path, SAVED)), "x") == {"_target_": "peft.VeraConfig", **chosen}


def test_a_file_and_its_content_are_one_run(tmp_path: Path) -> None:
    """Where the file lies does not count, nor that there is one; another rank does."""
    path = write(tmp_path, SAVED)

    def of(*overrides: str) -> str:
        experiment = build(compose("config", ["method=peft", *overrides]))
        assert experiment.resolved["method"]["config_file"] is None
        return identity(experiment, {})

    content = "{_target_: peft.VeraConfig, r: 4, d_initial: 0.3, target_modules: [query, value]}"
    assert of(f"method.config_file={path}") == of(f"method.config={content}")
    assert of(f"method.config_file={path}") != of(f"method.config={content.replace('r: 4', 'r: 5')}")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({**SAVED, "of_a_later_version": 3}, "of_a_later_version: VeraConfig has no such key"),
        ({**SAVED, "bias": "all"}, "bias=all: can't be set"),
        ({**SAVED, "r": 0}, "r=0: a whole number from 1"),
        ({**SAVED, "peft_type": "VERO"}, "peft_type=VERO names no method of peft; did you mean VERA"),
        ({"r": 4}, "peft_type=None names no method"),
        ([1], "an object with keys is needed"),
        ("{", "this is no JSON"),
        (None, "the file can't be read"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    """With the key, and before a model is loaded."""
    path = tmp_path / "adapter_config.json" if content is None else write(tmp_path, content)
    with pytest.raises(ConfigError, match=sentence):
        method(path)


def test_a_file_beside_a_configuration_of_ones_own_is_refused(tmp_path: Path) -> None:
    """One of them would be ignored."""
    path = write(tmp_path, SAVED)
    with pytest.raises(ConfigError, match=r"method.config: method.config_file brings it"):
        build(
            compose(
                "config", ["method=peft", f"method.config_file={path}", "method.config={_target_: peft.LoHaConfig}"]
            )
        )


def test_training_parameters_beside_it_are_followed(tmp_path: Path) -> None:
    """The learning rate always; with train=peft_comparison the rest too, and the comparison's defaults."""
    path = write(tmp_path, SAVED, {"optimizer_kwargs": {"lr": 0.03, "weight_decay": 0.2}, "max_steps": 70})
    given = ["method=peft", f"method.config_file={path}"]
    train = build(compose("config", given)).train
    assert (train.learning_rate, train.weight_decay, train.max_steps) == (0.03, 0.01, None)
    train = build(compose("config", [*given, "train=peft_comparison"])).train
    assert (train.learning_rate, train.weight_decay, train.max_steps, train.batch_size) == (0.03, 0.2, 70, 4)
    (tmp_path / TRAINING_FILE).unlink()
    train = build(compose("config", [*given, "train=peft_comparison"])).train
    assert (train.learning_rate, train.weight_decay, train.max_steps) == (1e-4, 0.1, 5000)
    assert (
        build(compose("config", ["method=peft", "method.config={_target_: peft.LoHaConfig}"])).train.learning_rate
        == 2e-3
    )


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        ({"optimizer_type": "SGD"}, "optimizer_type=SGD: no run here has this optimizer"),
        ({"optimizer_type": "lora+"}, "optimizer_type=lora[+]: method=lora_plus trains so"),
        ({"optimizer_kwargs": {"lr": 1, "amsgrad": True}}, "optimizer_kwargs.amsgrad: no run here follows this"),
        ({"compile": True}, "compile: no run here follows this"),
    ],
)
def test_training_parameters_that_no_run_follows_are_refused(tmp_path: Path, training: Any, sentence: str) -> None:
    """Rather than to train otherwise without a word."""
    with pytest.raises(ConfigError, match=sentence):
        method(write(tmp_path, SAVED, training))


def prompt(**values: Any) -> dict[str, Any]:
    shape = {"num_layers": 3, "num_attention_heads": 4, "token_dim": 32, "num_transformer_submodules": 1}
    return {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_CLS", "num_virtual_tokens": 5, **shape, **values}


@pytest.fixture
def bert() -> Backbone:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    return empty_model(AutoConfig.for_model("bert", vocab_size=50, **sizes), Kind.classification)


def test_a_prompts_shape_is_held_against_the_backbone(tmp_path: Path, bert: Backbone) -> None:
    """Where it follows from it, it says nothing; a configuration of another backbone is refused."""
    assert method(write(tmp_path, prompt())).expected_parameters(bert) == 5 * 32
    for key, own in (("num_layers", 3), ("num_attention_heads", 4), ("token_dim", 32)):
        with pytest.raises(ConfigError, match=f"method.config.{key}=7: .* the backbone, which has {own}"):
            method(write(tmp_path, prompt(**{key: 7}))).expected_parameters(bert)


def test_ranks_by_module_are_counted(tmp_path: Path) -> None:
    """OSF with other ranks for queries and values: the closed form is what is attached, to the tensor."""
    content = {"peft_type": "OSF", "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 28, "v_": 10}}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=50, intermediate_size=64, **sizes)
    found = method(write(tmp_path, content))
    wanted = 2 * ((32 - 28) * (32 + 32 + 1) + (16 - 10) * (16 + 32 + 1))
    assert found.expected_parameters(empty_model(config, Kind.causal_lm)) == wanted
    assert count(found, empty_model(config, Kind.causal_lm))["adapter_parameters"] == wanted


def test_adaloras_steps_become_shares(tmp_path: Path) -> None:
    """method=adalora takes its file, with peft's defaults where the file has them; method=peft says so."""
    content = {"peft_type": "ADALORA", "init_r": 20, "total_step": 200, "tinit": 20, "tfinal": 50, "beta1": 0.85}
    path = write(tmp_path, {**content, "r": 8, "task_type": None, "rank_pattern": None})
    found = method(path, "adalora")
    assert (found.initial_rank, found.target_rank, found.warmup_share, found.final_share) == (20, 8, 0.1, 0.25)
    assert (found.orthogonality, found.interval, found.target_modules) == (0.5, 1, ["attention_qv"])
    with pytest.raises(ConfigError, match=r"method=adalora has it, .* it takes method.config_file too"):
        method(path)
    with pytest.raises(ConfigError, match=r"it is of peft.VeraConfig; method=peft takes it"):
        method(write(tmp_path, SAVED), "adalora")
    with pytest.raises(ConfigError, match="total_step=None: a whole number"):
        method(write(tmp_path, {"peft_type": "ADALORA"}), "adalora")


def test_a_published_configuration_trains(tiny_experiment: list[str], tmp_path: Path) -> None:
    """From its file to a finished run, whose record holds the content."""
    path = write(tmp_path, SAVED, {"optimizer_kwargs": {"lr": 0.02}, "max_steps": 6})
    told = [one for one in tiny_experiment if not one.startswith(("train.epochs", "train.learning_rate"))]
    cfg = compose("config", [*told, "method=peft", f"method.config_file={path}", "train=peft_comparison"])
    result = run(prepare(cfg), tmp_path / "run")
    assert result.status == "finished"
    assert result.config["method"]["config"]["r"] == 4
    assert result.config["train"]["learning_rate"] == 0.02


def test_a_run_that_is_trained_is_not_lost_to_a_step_that_cannot_be_planned(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record says why nothing was predicted, and has all else."""

    def refuse(*_: Any) -> None:
        raise ConfigError("method.config.num_layers=2: it follows from the backbone")

    monkeypatch.setattr(estimate, "predict", refuse)
    cfg = compose("config", [*tiny_experiment, "train.max_steps=2", "measure.predict=true"])
    result = run(prepare(cfg), tmp_path / "run")
    assert (result.status, result.cost["predicted"]) == ("finished", None)
    assert result.unmeasured["cost.predicted"] == "method.config.num_layers=2: it follows from the backbone"
    assert result.scores["validation"]["accuracy"] > 0


@pytest.fixture(scope="session")
def llama() -> Backbone:
    dimensions: Any = OmegaConf.to_container(OmegaConf.load(conf_root() / "conf/model/llama_3_2_3b.yaml"))
    return empty_model(AutoConfig.for_model(**dimensions["architecture"], pad_token_id=0), Kind.causal_lm)


def published(real_data: Path) -> dict[str, Path]:
    """Names of peft's published experiments -> their adapter_config.json."""
    root = real_data / "peft_method_comparison/experiments"
    if not root.is_dir():
        pytest.skip("the data folder has no peft_method_comparison")
    return {
        f"{path.parents[1].name}--{path.parent.name}": path for path in sorted(root.glob("*/*/adapter_config.json"))
    }


def test_every_published_configuration_plans_as_it_is_with_the_published_count(
    real_data: Path, llama: Backbone
) -> None:
    """All of peft's method comparison but those that no run here follows, which are refused with their reason."""
    counted, refused, planned = 0, {}, 0
    for name, path in published(real_data).items():
        kind = "adalora" if name.startswith("adalora") else "peft"
        if name in NOT_TAKEN:
            with pytest.raises(ConfigError, match=NOT_TAKEN[name]):
                method(path, kind).expected_parameters(llama)
            refused[name] = path
            continue
        found, planned = method(path, kind).expected_parameters(llama), planned + 1
        result = path.parents[3] / "results" / f"{name}.json"
        if result.is_file():
            assert found == json.loads(result.read_text())["train_info"]["num_trainable_params"], name
            counted += 1
    assert (counted, planned, refused.keys()) == (56, 62, NOT_TAKEN.keys())


def as_published(path: Path) -> list[str]:
    """The overrides that plan a published configuration on the backbone that it was published for."""
    name = "adalora" if path.parents[1].name == "adalora" else "peft"
    point = [f"method={name}", f"method.config_file={path}", "model=llama_3_2_3b", "task=lm/wikitext2"]
    return [*point, "train=peft_comparison"]


@pytest.mark.parametrize("name", ["adaptionprompt--llama-3.2-3B-lr_5e-3", "prompt_tuning--llama-3.2-3B-default"])
def test_a_configuration_for_28_layers_is_planned_on_28(real_data: Path, name: str) -> None:
    """Though none of the shallow backbones that others are counted on goes with it."""
    path = published(real_data)[name]
    said = json.loads((path.parents[3] / "results" / f"{name}.json").read_text())["train_info"]
    counted = parameters(build(compose("config", as_published(path))))
    assert counted["adapter_parameters"] == said["num_trainable_params"]
    assert counted["total_parameters"] == said["num_total_params"]


@pytest.mark.slow
def test_every_published_configuration_is_planned_as_the_command_plans_it(real_data: Path) -> None:
    """Counts of all that are not refused; each with the published number of trained weights, where there is one."""
    planned = 0
    for name, path in published(real_data).items():
        if name in NOT_TAKEN:
            continue
        planned += 1
        found = parameters(build(compose("config", as_published(path))))["adapter_parameters"]
        result = path.parents[3] / "results" / f"{name}.json"
        if result.is_file():
            assert found == json.loads(result.read_text())["train_info"]["num_trainable_params"], name
    assert planned == 62


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adaptionprompt", "prefixtuning", "prompt_tuning", "ptuning"])
def test_the_step_of_a_configuration_for_28_layers_is_predicted(real_data: Path, kind: str) -> None:
    """Memory and operations too, of each kind that says how many layers there are."""
    name, path = next((name, path) for name, path in published(real_data).items() if name.startswith(f"{kind}--"))
    point = plan_point("config", as_published(path), PlanSettings(batch_size=1, length=32, device="cpu"))
    assert point["cost"]["train_peak_bytes"] > point["cost"]["weight_bytes"] > 6e9, name
    assert not point["unmeasured"], name


DEEP = {"num_hidden_layers": 14, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


def deep(path: Path) -> list[str]:
    """The overrides of a configuration on a narrow backbone of 14 layers."""
    shape = [f"model.architecture.{key}={value}" for key, value in DEEP.items()]
    return ["method=peft", f"method.config_file={path}", "model=bert_base", "task=micro/sentiment", *shape]


def test_a_prompt_for_a_deep_backbone_is_counted_on_all_of_its_layers(tmp_path: Path) -> None:
    """As one is that leaves out how many there are, whose counts are carried on from shallow backbones."""
    counts = [
        parameters(build(compose("config", deep(write(tmp_path, prompt(num_layers=layers)))))) for layers in (14, None)
    ]
    assert counts[0]["adapter_parameters"] == 5 * 32
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_a_prompt_for_a_deep_backbone_is_predicted_on_all_of_its_layers(tmp_path: Path) -> None:
    """The same memory as carried on from shallow backbones."""
    settings = PlanSettings(batch_size=2, length=16, device="cpu")
    told, left_out = (
        plan_point("config", deep(write(tmp_path, prompt(num_layers=layers))), settings)["cost"]
        for layers in (14, None)
    )
    assert told["train_peak_bytes"] == pytest.approx(left_out["train_peak_bytes"], rel=0.001)
    assert told["weight_bytes"] == left_out["weight_bytes"]


def test_two_more_published_counts_follow_without_their_training_parameters(
    real_data: Path, llama: Backbone, tmp_path: Path
) -> None:
    """A prefix that starts from a text is as large as one that does not, and LoRA-FA is B alone."""
    found = published(real_data)
    name = "prefixtuning--llama-3.2-3B-tokens50-init_prefix-lr_0.005"
    alone = Path(shutil.copy(found[name], tmp_path))
    results = found[name].parents[3] / "results"

    def said(name: str) -> int:
        return int(json.loads((results / f"{name}.json").read_text())["train_info"]["num_trainable_params"])

    assert method(alone).expected_parameters(llama) == said(name)
    values: Any = OmegaConf.to_container(OmegaConf.load(conf_root() / "conf/method/lora_fa.yaml"))
    name = "lora--llama-3.2-3B-rank32-lorafa"
    rank = json.loads(found[name].read_text())["r"]
    assert component({**values, "rank": rank}, "method").expected_parameters(llama) == said(name)
