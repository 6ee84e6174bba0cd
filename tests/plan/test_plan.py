"""The plan counts on the architecture alone what others published and what a run then measures."""

import json
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import PretrainedConfig

from harness.config.build import build, component
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.schema import Quantization
from harness.config.sources import conf_root
from harness.methods import skeleton
from harness.models import empty_model, load_model
from harness.models.architectures import Kind
from harness.models.sizes import logical_parameters
from harness.plan import __main__ as planner
from harness.plan import costs, display
from harness.run import estimate
from harness.run.estimate import Step
from harness.run.pack_size import MOST

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
    return costs.parameters(build(compose("config", ["task=glue/sst2", *overrides])))


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "figure", "count"), PUBLISHED)
def test_a_published_count_is_reproduced_from_the_architecture(overrides: list[str], figure: str, count: int) -> None:
    """No weights are downloaded."""
    assert cost(*overrides)[figure] == count


def test_lora_cuts_gpt3_by_ten_thousand_at_rank_one_of_two_matrices() -> None:
    """Hu et al. 2021, section 1: 10,000 times fewer trainable parameters."""
    one = cost("model=gpt3_175b", "method.rank=1")
    assert one["total_parameters"] / one["adapter_parameters"] > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_conf_is_planned_with_lora(model: str) -> None:
    """The adapter is less than a twentieth of the model."""
    planned = cost(f"model={model}")
    assert 0 < planned["adapter_parameters"] < 0.05 * planned["total_parameters"]


def test_full_fine_tuning_trains_every_weight() -> None:
    """The trained and the total count are equal."""
    planned = cost("model=roberta_base", "method=full")
    assert planned["trainable_parameters"] == planned["total_parameters"]


@cache
def dimensions(model: str) -> PretrainedConfig:
    return skeleton.architecture_of(build(compose("config", [f"model={model}", "task=glue/sst2"])))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_planned_or_refused_in_a_sentence(name: str) -> None:
    """On an encoder and a decoder that come with the package, on a published encoder, and for both kinds of head."""
    method = component(OmegaConf.to_container(OmegaConf.load(conf_root() / f"conf/method/{name}.yaml")), "method")
    refusals = []
    for model, kind in BACKBONES:
        backbone = empty_model(dimensions(model), kind, method.quantization() or Quantization.none)
        bare = logical_parameters(backbone.model)
        try:
            counted = costs.count(method, backbone)
        except ConfigError as error:
            refusals.append(str(error))
            continue
        assert counted["trainable_parameters"] == counted["adapter_parameters"] + counted["head_parameters"]
        assert counted["total_parameters"] >= bare
        assert bool(counted["head_parameters"]) == (kind is Kind.classification)
    assert len(refusals) < len(BACKBONES)
    assert all(text.startswith("method") and "\n" not in text for text in refusals)


def test_a_method_that_starts_from_the_weights_values_is_counted_by_its_closed_form() -> None:
    """Nothing is attached: as many entries of the queries and values as LoRA of rank 8 has; the tensors stay open."""
    planned = cost("model=minilm", "method=shira")
    assert planned["adapter_parameters"] == 12 * 8 * (384 + 384)
    assert planned["total_parameters"] == cost("model=minilm")["total_parameters"]


def test_a_quantized_backbone_is_counted_by_the_numbers_it_stands_for() -> None:
    """Packed storage does not halve the count."""
    packed, plain = cost("model=minilm", "model.quantization=nf4"), cost("model=minilm")
    assert packed["total_parameters"] == plain["total_parameters"]


@pytest.mark.slow
def test_a_pair_that_cannot_work_is_one_sentence_alone_and_does_not_spoil_a_grid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone it ends with status 2; in a grid the others are planned."""
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
    """Arguments replace the sweep file's parameters of the same key."""
    points = list(planner.expand("config", ["method=full,lora", "seed=0,1", "task=glue/sst2"], True))
    assert len(points) == 4
    assert points[0] == ["method=full", "seed=0", "task=glue/sst2"]
    assert len(list(planner.expand("demo", ["method=head"], True))) == 1
    assert len(list(planner.expand("demo", [], True))) == 4


def plan_all(arguments: list[str]) -> list[dict]:
    name, overrides, grid, _ = planner.parse(arguments)
    return [costs.parameters(build(compose(name, point))) for point in planner.expand(name, overrides, grid)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["plan.format=xml"], r"plan\.format=xml: table or json or csv or markdown is allowed"),
        (["plan.device=tpu"], r"plan\.device=tpu: cpu or cuda is allowed"),
        (["plan.batch_size=0"], r"plan\.batch_size=0: a whole number from 1 on"),
        (["plan.length=-5"], r"plan\.length=-5: a whole number from 1 on"),
        (["plan.lenght=5"], r"plan\.lenght=5: there is no key plan\.lenght; did you mean plan\.length"),
        (["plan.picture=memory.gif"], r"plan\.picture=memory.gif: a file that ends in .png or .svg"),
        (["--frobnicate"], "no such option"),
        (["method=lroa"], "did you mean .*lora"),
        (["model=bert_base", "model.path=null", "model.architecture=null"], "no model.architecture to plan with"),
        (["model.path=null", "model.architecture={model_type: nothing}"], "model.architecture: "),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str) -> None:
    """It has the key and what is allowed or was meant."""
    with pytest.raises(ConfigError, match=sentence):
        plan_all(arguments)


@pytest.mark.slow
def test_json_holds_every_point_with_the_names_of_a_record() -> None:
    """Points come in the order of the grid."""
    command = [sys.executable, "-m", "harness.plan", "-m", "method=head,bitfit", "model=minilm", "plan.format=json"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [point["overrides"] for point in printed["points"]] == [
        ["method=head", "model=minilm"],
        ["method=bitfit", "model=minilm"],
    ]
    assert printed["points"][0]["cost"]["adapter_parameters"] == 0


@pytest.mark.parametrize(
    ("value", "is_bytes", "text"),
    [
        (None, False, "-"),
        (0, False, "0"),
        (999, False, "999"),
        (9175040, False, "9.18 million"),
        (28.5e9, False, "28.5 billion"),
        (1536, True, "1.54 kB"),
    ],
)
def test_figures_are_short_in_the_table(value: int | None, is_bytes: bool, text: str) -> None:
    """Three digits with a unit, and a dash for what is not known."""
    assert display.readable(value, is_bytes) == text


PLAN = ["model=minilm", "task=glue/sst2", "task.max_train_rows=1000"]


@pytest.mark.slow
def test_a_plan_has_every_figure_and_all_training_operations() -> None:
    """1,000 rows in batches of 32 for three epochs are 96 steps; a step computes 32 x 128 tokens."""
    point = costs.plan_point("config", PLAN)
    assert not point["unmeasured"]
    assert all(point["cost"][name] for name in costs.PLANNED)
    assert point["cost"]["train_flops"] == pytest.approx(point["cost"]["train_flops_per_token"] * 96 * 32 * 128)
    unknown = costs.plan_point("config", PLAN[:2])
    assert unknown["cost"]["train_flops"] is None
    assert "task.max_train_rows" in unknown["unmeasured"]["train_flops"]


@pytest.mark.slow
def test_the_largest_batch_fits_and_the_next_one_does_not() -> None:
    """On 8 GB, as the prediction of the very batches says; a batch of one more row takes more than there is."""
    settings = costs.PlanSettings(batch_size=8, length=128)
    (device, *_) = costs.plan_point("config", PLAN, settings)["fits"]
    room = 8 * costs.GIGABYTE - costs.CONTEXT_BYTES
    largest = device["largest_batch"]
    fitting, above = (
        costs.plan_point("config", PLAN, costs.PlanSettings(batch_size=rows))["cost"]["train_peak_bytes"]
        for rows in (largest, round(1.02 * largest) + 1)
    )
    assert device["fits"]
    assert fitting <= room < above


@pytest.mark.slow
def test_the_packs_of_each_device_are_those_that_a_plan_has_room_for() -> None:
    """Of 3 billion frozen weights once; larger batches make no larger packs, and a CPU makes none.

    By hand, in GB: 6.43 of weights, of which 0.01 are trained, in a step of 13.1 are 6.42 once and 6.68 for each point:
    13.1, 19.8, 26.5, 33.1 and 39.8 for one to five, and 59.8 for the eight that are the most.
    """
    told, names = ["model=llama_3_2_3b", "task=glue/sst2"], ("largest_pack", "gigabytes")
    small, large = (
        costs.plan_point("config", told, costs.PlanSettings(batch_size=rows, length=256, device="cuda"))
        for rows in (4, 8)
    )
    packs = [tuple(device[name] for name in names) for device in large["fits"]]
    assert packs == [(None, 8), (1, 16), (2, 24), (4, 40), (8, 80), (8, 141)]
    once = large["cost"]["weight_bytes"] - large["cost"]["gradient_bytes"]
    each = large["cost"]["train_peak_bytes"] - once
    for size, gigabytes in packs[1:]:
        room = gigabytes * costs.GIGABYTE - estimate.CONTEXT_BYTES
        assert once + size * each <= room
        assert size == MOST or room < once + (size + 1) * each
    for one, other in zip(small["fits"], large["fits"], strict=True):
        assert (one["largest_pack"] or 0) >= (other["largest_pack"] or 0)
    experiment = build(compose("config", told))
    for answer in costs.with_packs(large["fits"], large["cost"], experiment, "cpu"):
        assert answer["largest_pack"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["lora", "full", "diff_pruning", "prefix_tuning_projected", "p_tuning", "vera", "shira", "houlsby", "oft"]
)
def test_the_predicted_file_is_the_one_that_is_saved(method: str, tmp_path: Path) -> None:
    """Within 1% and the header of names and shapes."""
    experiment = build(compose("config", [f"method={method}"]))
    backbone = load_model(
        Path(str(experiment.model.path)), skeleton.architecture_of(experiment), experiment, torch.float32
    )
    adapter = experiment.method.attach(backbone)
    if method == "diff_pruning":
        with torch.no_grad():
            adapter.difference.normal_()
        adapter.prune()
    adapter.save(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    predicted = costs.plan(experiment)["adapter_file_bytes"]
    assert predicted == pytest.approx(path.stat().st_size - header, rel=0.01)


def test_storing_tasks_counts_one_backbone_or_a_model_each() -> None:
    """Adapters share the backbone, whole models do not."""
    cost = {"adapter_file_bytes": 10, "head_parameters": 2}
    assert costs.storage(cost, 100, 3) == {"tasks": 3, "adapters_bytes": 430, "copies_bytes": 1224}


@pytest.mark.slow
def test_qlora_trains_65_billion_parameters_in_48_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dettmers et al. 2023, abstract: one GPU of 48 GB; here a row of 512 tokens with gradient checkpointing."""
    overrides = ["model=llama_65b", "method=qlora", "train.gradient_checkpointing=true", "task=lm/text"]
    experiment = build(compose("config", [*overrides, "task.data_dir=.", "task.max_length=512"]))
    cost, _ = costs.costs(experiment, Step(1, 512, "cuda"))
    assert 64e9 < cost["total_parameters"] < 67e9
    assert 33e9 < cost["weight_bytes"] < cost["train_peak_bytes"] < 48e9 - costs.CONTEXT_BYTES


@pytest.mark.slow
def test_gradient_checkpointing_lowers_the_peak_of_int8_weights() -> None:
    """Int8 layers keep their inputs for the backward pass; those that are computed again live for one layer alone."""
    overrides = ["model=llama_3_2_1b", "method=lora_int8", "task=glue/sst2"]
    peaks = {}
    for wanted in ("false", "true"):
        experiment = build(compose("config", [*overrides, f"train.gradient_checkpointing={wanted}"]))
        peaks[wanted] = costs.costs(experiment, Step(8, 512, "cuda"))[0]
    held = peaks["true"]["weight_bytes"] + peaks["true"]["gradient_bytes"] + peaks["true"]["optimizer_bytes"]
    beside = {wanted: cost["train_peak_bytes"] - held for wanted, cost in peaks.items()}
    assert beside["true"] < beside["false"] / 2


@pytest.mark.slow
def test_the_peak_holds_weights_gradients_and_optimizer_whatever_the_depth() -> None:
    """With few layers the backward pass is the largest moment here, with all of them the optimizer's step is."""
    overrides = ["model=llama_3_2_3b", "method=full", "train.gradient_checkpointing=true", "task=glue/sst2"]
    found, _ = costs.costs(build(compose("config", overrides)), Step(8, 512, "cuda"))
    held = sum(found[name] for name in ("weight_bytes", "gradient_bytes", "optimizer_bytes"))
    assert held <= found["train_peak_bytes"] < 1.5 * held


def test_lora_of_rank_8_on_a_matrix_of_gpt3_has_196608_parameters() -> None:
    """12,288 x 12,288: GPT-3's projection out of the attention block, one of 96."""
    counted = cost("model=gpt3_175b", "method.rank=8", "method.target_modules=[attn.c_proj]")
    assert counted["adapter_parameters"] == 96 * 196608


def test_houlsbys_share_of_bert_large_is_reached_between_its_sizes() -> None:
    """Houlsby et al. 2019, table 1: 3.6% a task on GLUE with the best of the sizes 8, 64 and 256, and 2.1% with 64.

    A bottleneck of 122 has these 3.6%, an average over tasks; 64 has 1.9% without what else the paper trains.
    """
    shares = {}
    for size in (8, 64, 122, 256):
        counted = cost(
            "model=bert_large", "method=houlsby", f"method.bottleneck_dim={size}", "method.reduction_factor=null"
        )
        without = counted["total_parameters"] - counted["adapter_parameters"]
        shares[size] = 100 * counted["trainable_parameters"] / without
    assert shares[8] < shares[64] < 3.6 < shares[256]
    assert shares[64] == pytest.approx(1.9, abs=0.05)
    assert shares[122] == pytest.approx(3.6, abs=0.05)


@pytest.mark.slow
def test_a_grid_is_printed_as_it_is_planned_and_ends_whole_when_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A million points, of which the third is never planned."""
    plan_point, planned = costs.plan_point, []

    def interrupted(*arguments: Any) -> dict:
        planned.append(arguments)
        if len(planned) == 3:
            raise KeyboardInterrupt
        return plan_point(*arguments)

    monkeypatch.setattr(planner, "plan_point", interrupted)
    grid = ["-m", "seed=range(1000)", "data_seed=range(1000)"]
    for form in ("json", "csv", "markdown", "table"):
        planned.clear()
        monkeypatch.setattr(sys, "argv", ["harness-plan", *grid, f"plan.format={form}"])
        assert planner.main() == 130
        printed = capsys.readouterr()
        assert "stopped after 2 points" in printed.err
        if form == "json":
            assert len(json.loads(printed.out)["points"]) == 2
        assert printed.out.count("data_seed=1") >= 1


@pytest.mark.slow
def test_a_picture_of_the_memory_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As PNG and as SVG, by the file's name."""
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        path = tmp_path / f"memory.{kind}"
        monkeypatch.setattr(sys, "argv", ["harness-plan", "-m", "method=full,lora", f"plan.picture={path}"])
        assert planner.main() == 0
        assert path.read_bytes().startswith(start)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "numbers"),
    [("prompt_tuning", 20 * 4096), ("p_tuning", 20 * 4096), ("prefix_tuning", 30 * 32 * 2 * 1024)],
)
def test_a_prompt_is_planned_for_a_large_backbone(method: str, numbers: int) -> None:
    """Too large to make weights up: the step runs on tensors without values, and so does what is saved."""
    options = [f"method={method}", "model=llama_3_8b", "task=instruct/gsm8k", "task.data_dir=.", "train.max_steps=10"]
    cost = costs.plan_point("config", options, costs.PlanSettings(batch_size=1, length=64))["cost"]
    assert cost["adapter_file_bytes"] == 4 * numbers
    assert cost["train_peak_bytes"] > cost["weight_bytes"] > 2 * 8e9


@pytest.mark.slow
def test_tasks_of_language_are_planned_without_weights() -> None:
    """A pair of answers is two texts, and the reference reads them too: more operations per token, twice the tokens."""
    options = ["model=llama_3_2_1b", "method=lora", "task.data_dir=.", "task.max_length=64", "train.max_steps=10"]
    instruct, preference = (
        costs.plan_point("config", [f"task={task}", *options], costs.PlanSettings(batch_size=4))
        for task in ("instruct/gsm8k", "preference/pairs")
    )
    assert (instruct["step"]["rows"], preference["step"]["rows"]) == (4, 8)
    assert preference["cost"]["adapter_parameters"] == instruct["cost"]["adapter_parameters"]
    assert preference["cost"]["train_flops_per_token"] > 1.2 * instruct["cost"]["train_flops_per_token"]
    assert preference["cost"]["train_flops"] > 2.4 * instruct["cost"]["train_flops"]
    assert preference["cost"]["head_parameters"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "classes", "assumed"),
    [
        (["task=table"], 2, ["two classes are assumed"]),
        (["task=table", "task.file=missing.csv", "task.labels=[a,b,c]"], 3, []),
        (["task=table", "task.file=missing.csv", "task.text=t", "task.label=l"], 2, ["two classes are assumed"]),
        (["task=table", "task.predict=number"], 1, []),
        (["task=table", "task.hub.path=owner/name", "task.text=t", "task.label=l"], 2, ["two classes are assumed"]),
        (["task=table", "task.file=here.csv", "task.text=t", "task.label=l"], 4, []),
        (["task=classification", "task.name=mine", "task.labels=[a,b,c]"], 3, []),
    ],
    ids=str,
)
def test_a_plan_needs_no_rows_for_a_task_of_ones_own(
    overrides: list[str], classes: int, assumed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head has the classes that are told, or those of a file that is there; else two, and the plan says so."""
    monkeypatch.chdir(tmp_path)
    Path("here.csv").write_text("t,l\n" + "".join(f"text {row},class {row % 4}\n" for row in range(40)))
    point = costs.plan_point("config", overrides)
    hidden = 128
    assert point["cost"]["head_parameters"] == classes * (hidden + 1)
    assert len(point["assumed"]) == len(assumed)
    assert all(part in told for part, told in zip(assumed, point["assumed"], strict=True))


@pytest.mark.slow
def test_running_text_is_planned_without_any_and_a_wrong_column_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of the same task asks for its data; a list in an override is shown whole."""
    monkeypatch.chdir(tmp_path)
    text = ["model=micro_decoder", "task=lm/text", "task.max_length=64", "task.stride=32"]
    assert costs.plan_point("config", text)["cost"]["train_peak_bytes"] > 0
    with pytest.raises(ConfigError, match=r"task\.data_dir=null: name a folder"):
        build(compose("config", text))
    Path("here.csv").write_text("text,label\none,a\ntwo,b\n")
    with pytest.raises(ConfigError, match=r"task\.text=txt: no column 'txt'; did you mean text"):
        costs.plan_point("config", ["task=table", "task.file=here.csv", "task.text=txt", "task.label=label"])
    assert planner.print_plan(["task=table", "task.labels=[a,b,c]"]) == 0
    assert "task.labels=[a,b,c]" in capsys.readouterr().out


MEASURED_ON_A_GPU = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "reports/gpu/h200/results.jsonl").read_text().splitlines()
    if '"step": "costs"' in line
]
QUICK_ON_A_GPU = {("BERT", "full", False), ("BERT", "lora", False), ("1B", "full", True), ("1B", "qlora", False)}


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(
            line,
            id=f"{line['size']}-{line['method']}-{line['checkpointing']}",
            marks=[] if (line["size"], line["method"], line["checkpointing"]) in QUICK_ON_A_GPU else pytest.mark.slow,
        )
        for line in MEASURED_ON_A_GPU
    ],
)
def test_a_plan_for_a_gpu_is_what_one_measured(line: dict[str, Any]) -> None:
    """Made without a GPU, of whole steps that were counted on an H200 (reports/gpu/h200)."""
    model = {"1B": "llama_3_2_1b", "8B": "llama_3_8b", "BERT": "bert_base"}[line["size"]]
    task = ["task=micro/sentiment", "task.max_length=128"] if line["size"] == "BERT" else ["task=lm/micro"]
    point = [f"model={model}", f"method={line['method']}", *task, f"train.batch_size={line['rows']}"]
    experiment = build(compose("config", [*point, f"train.gradient_checkpointing={line['checkpointing']}"]))
    planned, why_not = costs.costs(experiment, Step(line["rows"], line["length"], "cuda"))
    assert not {name for name in why_not if name.endswith("_bytes")}
    for name in ("weight_bytes", "gradient_bytes", "optimizer_bytes"):
        assert planned[name] == pytest.approx(line[name], rel=0.001), name
    assert planned["activation_bytes"] == pytest.approx(line["activation_bytes"], rel=0.04)
    assert planned["train_peak_bytes"] == pytest.approx(line["train_peak_bytes"], rel=0.015)


@pytest.mark.slow
def test_a_draw_needs_no_values() -> None:
    """LoHa draws a number to switch its modules off: a backbone too large for values is planned all the same."""
    point = ["model=llama_3_2_1b", "method=loha", "task=lm/micro"]
    planned, why_not = costs.costs(build(compose("config", point)), Step(2, 64, "cpu"))
    assert planned["train_peak_bytes"] > planned["weight_bytes"] > 0
    assert "train_peak_bytes" not in why_not


def test_products_without_values_take_the_memory_of_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a step needs tensors with values, their products are not computed, and its figures are the same."""
    experiment = build(compose("config", ["model=micro_encoder", "method=vblora", "task=micro/sentiment"]))
    step = Step(4, 16, "cpu")
    without = costs.costs(experiment, step)[0]
    monkeypatch.setattr(estimate, "stand_ins", lambda fake: nullcontext())
    assert costs.costs(experiment, step)[0] == without


@pytest.mark.slow
@pytest.mark.parametrize("named", ["model=gpt2 method=lora task=lm/micro", "model=bert_base method=loha"])
def test_what_checkpointing_computes_again_on_a_gpu_is_planned(named: str) -> None:
    """With dropout, whose masks a GPU keeps otherwise than a CPU, and with a method that draws."""
    point = [*named.split(), "train.gradient_checkpointing="]
    kept, again = (
        costs.costs(build(compose("config", [*point[:-1], f"{point[-1]}{value}"])), Step(4, 128, "cuda"))[0]
        for value in ("false", "true")
    )
    assert again["activation_bytes"] < kept["activation_bytes"] / 2
    assert again["train_peak_bytes"] < kept["train_peak_bytes"]


@pytest.mark.parametrize("model", ["llama_3_2_1b", pytest.param("gpt2_large", marks=pytest.mark.slow)])
@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_deep_backbone_is_planned_as_if_all_of_its_layers_were_built(
    model: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest moment of few layers need not be that of many."""
    point = [f"model={model}", "method=full", "task=lm/micro", f"train.gradient_checkpointing={checkpointing}"]
    experiment, step = build(compose("config", point)), Step(8, 256, "cuda")
    carried_on = costs.costs(experiment, step)[0]
    monkeypatch.setattr(estimate, "SHALLOW", 1000)
    assert carried_on["train_peak_bytes"] == pytest.approx(costs.costs(experiment, step)[0]["train_peak_bytes"], 1e-3)
