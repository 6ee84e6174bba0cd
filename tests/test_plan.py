"""The plan counts on the architecture alone what others published and what a run then measures."""

import json
import subprocess
import sys
from functools import cache

import pytest
from omegaconf import OmegaConf
from transformers import PretrainedConfig

from harness import plan as planner
from harness.architectures import Kind
from harness.config import ConfigError, Quantization, build, component, conf_root
from harness.measure import logical_parameters
from harness.models import empty_model

MODELS = sorted(path.stem for path in (conf_root() / "conf/model").glob("*.yaml"))
# method=peft has no class until one is given.
METHODS = sorted({path.stem for path in (conf_root() / "conf/method").glob("*.yaml")} - {"peft"})
BACKBONES = [
    ("micro_encoder", Kind.classification),
    ("minilm", Kind.classification),
    ("micro_decoder", Kind.classification),
    ("micro_decoder", Kind.causal_lm),
]
# Counts that others published, reproduced from dimensions alone: (overrides, figure, count).
PUBLISHED = [
    # huggingface/peft method_comparison, lora--llama-3.2-3B-rank32 and -rank64; their totals have no score head.
    (["model=llama_3_2_3b", "method.rank=32"], "adapter_parameters", 9175040),
    (["model=llama_3_2_3b", "method.rank=64"], "adapter_parameters", 18350080),
    (["model=llama_3_2_3b", "method.rank=32"], "total_parameters", 3221924864 + 2 * 3072),
    # peft's example for bert-base-cased, r=8 on query and key with the head: as many as on query and value.
    (["model=bert_base"], "trainable_parameters", 296450),
    # GPT-3's query, key and value are one matrix here: 12,288 in and 36,864 out, rank 4, 96 layers. Hu et al. 2021,
    # table 4, adapt query and value apart at rank 4: as many again, 18.9 million.
    (["model=gpt3_175b", "method.rank=4"], "adapter_parameters", 96 * 4 * 4 * 12288),
    # Ben Zaken et al. 2022, table 1: 0.08% of BERT-large; eleven widths of bias a layer, the embedding's and pooler's.
    (["model=bert_large", "method=bitfit"], "adapter_parameters", 24 * 11 * 1024 + 2 * 1024),
]


def cost(*overrides: str) -> dict:
    return planner.plan_point("config", ["task=glue/sst2", *overrides])


@pytest.mark.parametrize(("overrides", "figure", "count"), PUBLISHED)
def test_a_published_count_is_reproduced_from_the_architecture(overrides: list[str], figure: str, count: int) -> None:
    assert cost(*overrides)[figure] == count


def test_lora_cuts_gpt3_by_ten_thousand_at_rank_one_of_two_matrices() -> None:
    """Hu et al. 2021, section 1: 10,000 times fewer trainable parameters."""
    one = cost("model=gpt3_175b", "method.rank=1")
    assert one["total_parameters"] / one["adapter_parameters"] > 10_000


@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_conf_is_planned_with_lora(model: str) -> None:
    planned = cost(f"model={model}")
    assert 0 < planned["adapter_parameters"] < 0.05 * planned["total_parameters"]
    assert planned["gradient_bytes"] == 4 * planned["trainable_parameters"]


def test_full_fine_tuning_trains_every_weight() -> None:
    planned = cost("model=roberta_base", "method=full")
    assert planned["trainable_parameters"] == planned["total_parameters"]


@cache
def dimensions(model: str) -> PretrainedConfig:
    return planner.architecture_of(build(planner.compose("config", [f"model={model}", "task=glue/sst2"])))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_planned_or_refused_in_a_sentence(name: str) -> None:
    """On an encoder and a decoder that come with the package, on a published encoder, and for both kinds of head."""
    method = component(OmegaConf.to_container(OmegaConf.load(conf_root() / f"conf/method/{name}.yaml")), "method")
    refusals = []
    for model, kind in BACKBONES:
        backbone = empty_model(dimensions(model), kind, method.quantization() or Quantization.none)
        bare = logical_parameters(backbone.model)
        try:
            counted = planner.count(method, backbone)
        except ConfigError as error:
            refusals.append(str(error))
            continue
        assert counted["trainable_parameters"] == (counted["adapter_parameters"] or 0) + (
            counted["head_parameters"] or 0
        )
        assert (counted["total_parameters"] or 0) >= bare
        assert bool(counted["head_parameters"]) == (kind is Kind.classification)
    assert len(refusals) < len(BACKBONES)
    assert all(text.startswith("method") and "\n" not in text for text in refusals)


def test_a_method_that_starts_from_the_weights_values_is_counted_by_its_closed_form() -> None:
    """Nothing is attached: as many entries of the queries and values as LoRA of rank 8 has; the tensors stay open."""
    planned = cost("model=minilm", "method=shira")
    assert planned["adapter_parameters"] == 12 * 8 * (384 + 384)
    assert planned["total_parameters"] == cost("model=minilm")["total_parameters"]
    assert planned["optimizer_bytes"] is None


def test_a_quantized_backbone_is_counted_by_the_numbers_it_stands_for() -> None:
    packed, plain = cost("model=minilm", "model.quantization=nf4"), cost("model=minilm")
    assert packed["total_parameters"] == plain["total_parameters"]
    assert packed["weight_bytes"] is None


def test_a_pair_that_cannot_work_is_one_sentence_alone_and_does_not_spoil_a_grid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ["model=micro_decoder", "method=bitfit"]
    monkeypatch.setattr(sys, "argv", ["harness-plan", *pair])
    assert planner.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("method=bitfit: the llama backbone has no bias terms")
    monkeypatch.setattr(sys, "argv", ["harness-plan", "-m", "model=micro_decoder", "method=bitfit,lora"])
    assert planner.main() == 0
    printed = capsys.readouterr()
    assert "lora" in printed.out
    assert "method=bitfit: the llama backbone has no bias terms" in printed.err
    monkeypatch.setattr(sys, "argv", [*sys.argv, "plan.format=json"])
    planner.main()
    refused, planned = json.loads(capsys.readouterr().out)["points"]
    assert "no bias terms" in refused["error"]
    assert planned["cost"]["adapter_parameters"] > 0


def test_a_grid_is_the_product_of_the_values_with_the_sweeps_own(monkeypatch: pytest.MonkeyPatch) -> None:
    points = list(planner.expand("config", ["method=full,lora", "seed=0,1", "task=glue/sst2"], True))
    assert len(points) == 4
    assert points[0] == ["method=full", "seed=0", "task=glue/sst2"]
    assert len(list(planner.expand("demo", ["method=head"], True))) == 1
    assert len(list(planner.expand("demo", [], True))) == 4


def plan_all(arguments: list[str]) -> list[dict]:
    name, overrides, grid, _ = planner.parse(arguments)
    return [planner.plan(build(planner.compose(name, point))) for point in planner.expand(name, overrides, grid)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["plan.format=xml"], r"plan\.format=xml: table or json"),
        (["--frobnicate"], "no such option"),
        (["method=lroa"], "did you mean .*lora"),
        (["model=bert_base", "model.path=null", "model.architecture=null"], "no model.architecture to plan with"),
        (["model.path=null", "model.architecture={model_type: nothing}"], "model.architecture: "),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        plan_all(arguments)


def test_json_holds_every_point_with_the_names_of_a_record() -> None:
    command = [sys.executable, "-m", "harness.plan", "-m", "method=head,bitfit", "model=minilm", "plan.format=json"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [point["overrides"] for point in printed["points"]] == [
        ["method=head", "model=minilm"],
        ["method=bitfit", "model=minilm"],
    ]
    assert printed["points"][0]["cost"]["adapter_parameters"] == 0


@pytest.mark.parametrize(
    ("value", "is_bytes", "text"),
    [(None, False, "-"), (0, False, "0"), (999, False, "999"), (9175040, False, "9.18 M"), (1536, True, "1.5 KiB")],
)
def test_figures_are_short_in_the_table(value: int | None, is_bytes: bool, text: str) -> None:
    assert planner.readable(value, is_bytes) == text
