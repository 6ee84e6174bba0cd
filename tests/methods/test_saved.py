"""A saved adapter comes back from its folder alone, says what it is, and shares a backbone with others."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from trained import run_once

import harness
from harness import run as runner
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.methods import saved
from harness.methods.adapter_set import AdapterSet, load_adapter
from harness.methods.card import card, command, overrides
from harness.tracking.record import RunRecord

TinyModel = Callable[[str], Path]
# One for each way of being saved, put on and taken off.
METHODS = ("full", "head", "bitfit", "lora", "prefix_tuning", "houlsby", "diff_pruning")


def task_options(folder: Path, labels: list[str]) -> list[str]:
    """Overrides of a run of a second on a task of as many classes, made up of the tiny vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    order = random.Random(len(labels))
    for split, count in (("train", 60), ("validation", 12)):
        rows = []
        for number in range(count):
            label = number % len(labels)
            words = " ".join(f"word{order.randrange(20) + 20 * label}" for _ in range(6))
            rows.append(json.dumps({"sentence": words, "label": label, "idx": number}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(rows))
    return [
        "task=classification",
        f"task.name=words{len(labels)}",
        f"task.labels=[{','.join(labels)}]",
        f"task.data_dir={folder}",
        "task.max_length=16",
        "train.max_steps=3",
        "train.learning_rate=0.01",
        "tracking=none",
    ]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Callable[[str, int], Path]:
    """The run directory of a method on a task of two or three classes, made when first asked for."""
    made: dict[tuple[str, int], Path] = {}

    def make(method: str, classes: int = 2) -> Path:
        if (method, classes) not in made:
            folder = tmp_path_factory.mktemp(f"{method}{classes}")
            options = task_options(folder / "data", ["bad", "good", "neither"][:classes])
            run_once(folder / "run", f"model.path={tiny_model('bert')}", f"method={method}", *options)
            made[method, classes] = folder / "run"
        return made[method, classes]

    return make


def logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(4, 64, (5, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def validation_accuracy(run_dir: Path, model: torch.nn.Module, tokenizer: Callable) -> float:
    rows = [json.loads(line) for line in (run_dir.parent / "data/validation.jsonl").read_text().splitlines()]
    batch = tokenizer([row["sentence"] for row in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        answers = model(**batch).logits.argmax(-1)
    return (answers == torch.tensor([row["label"] for row in rows])).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_comes_back_from_its_folder_with_its_scores(method: str, adapters: Callable) -> None:
    """The one public function needs nothing but the folder."""
    run_dir = adapters(method)
    loaded = harness.load_adapter(run_dir / "adapter")
    accuracy = validation_accuracy(run_dir, loaded.model, loaded.tokenizer)
    assert accuracy == pytest.approx(RunRecord.read(run_dir).scores["validation"]["accuracy"], abs=1e-6)
    assert loaded.task.labels == ["bad", "good"]
    assert not loaded.model.training
    again = load_adapter(run_dir / "adapter")
    assert torch.equal(logits(loaded.model), logits(again.model))


def test_loading_leaves_the_callers_random_state_alone(adapters: Callable) -> None:
    """A head is drawn on the way, from the run's own seed."""
    trained = adapters("bitfit")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_adapter(trained / "adapter")
    assert torch.equal(torch.rand(3), expected)


def test_the_backbone_may_lie_elsewhere_now(adapters: Callable, tmp_path: Path, tiny_model: TinyModel) -> None:
    """What counts is the content of its files."""
    (tmp_path / "moved").symlink_to(tiny_model("bert"))
    loaded = load_adapter(adapters("bitfit") / "adapter", model=str(tmp_path / "moved"))
    assert torch.equal(logits(loaded.model), logits(load_adapter(adapters("bitfit") / "adapter").model))


def test_random_weights_that_were_the_backbone_are_drawn_again(tmp_path: Path, tiny_model: TinyModel) -> None:
    """A backbone that is not pretrained is decided by the seed."""
    options = [f"model.path={tiny_model('bert')}", "model.pretrained=false", "method=head", "seed=4"]
    result = run_once(tmp_path / "run", *options, *task_options(tmp_path / "data", ["bad", "good"]))
    loaded = load_adapter(tmp_path / "run/adapter")
    accuracy = validation_accuracy(tmp_path / "run", loaded.model, loaded.tokenizer)
    assert accuracy == pytest.approx(result.scores["validation"]["accuracy"], abs=1e-6)


def copied(run_dir: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in (run_dir / "adapter").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def changed(content: str, **values: object) -> str:
    return json.dumps({**json.loads(content), **values})


def without(content: str, key: str) -> str:
    return json.dumps({name: value for name, value in json.loads(content).items() if name != key})


DAMAGES: dict[str, Callable[[str], str]] = {
    "can't be used: Unterminated string": lambda text: text[:40],
    "format 99 is of another version": lambda text: changed(text, format=99),
    r"manifest\.seed": lambda text: without(text, "seed"),
    r"manifest\.seeds: no such key": lambda text: changed(text, seeds=1),
    r"only classes of harness and peft can be named": lambda text: changed(text, method={"_target_": "os.system"}),
    "there is no such class": lambda text: changed(text, method={"_target_": "harness.methods.lora.Lroa"}),
    "x.safetensors is missing": lambda text: changed(text, files={"x.safetensors": "0"}),
    "SHA-256 123": lambda text: changed(text, backbone="123"),
    "there is no such folder": lambda text: changed(text, model={**json.loads(text)["model"], "path": "/nowhere/x"}),
}


@pytest.mark.parametrize("sentence", DAMAGES)
def test_a_damaged_manifest_is_refused_in_one_sentence(sentence: str, adapters: Callable, tmp_path: Path) -> None:
    """The file, and what is wrong in it."""
    folder = copied(adapters("lora"), tmp_path / "copy")
    manifest = folder / saved.MANIFEST_FILE
    manifest.write_text(DAMAGES[sentence](manifest.read_text()))
    with pytest.raises(ValueError, match=sentence) as caught:
        load_adapter(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "bitfit"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "exchanged"])
def test_damaged_weights_are_refused_before_the_backbone_is_loaded(
    damage: str, method: str, adapters: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a whole file with a tensor left out, which peft alone would fill with random numbers."""
    folder = copied(adapters(method), tmp_path / "copy")
    weights = folder / "adapter_model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-4])
    else:
        weights.write_bytes((adapters(method, 3) / "adapter" / weights.name).read_bytes())
    monkeypatch.setattr("harness.models.load_model", None)
    with pytest.raises(ValueError, match="is missing" if damage == "missing" else "cut off or changed"):
        load_adapter(folder)


@pytest.mark.parametrize(("content", "sentence"), [
    ({}, "holds no harness.json"),
    ({"adapter_model.bin": b"cos\nsystem\n(S'touch pwned'\ntR."}, "adapter_model.bin is a pickle"),
])  # fmt: skip
def test_a_folder_that_no_run_saved_is_refused(content: dict, sentence: str, tmp_path: Path) -> None:
    """A pickle is not opened."""
    (tmp_path / "folder").mkdir()
    for name, data in content.items():
        (tmp_path / "folder" / name).write_bytes(data)
    with pytest.raises(ValueError, match=sentence):
        load_adapter(tmp_path / "folder")
    assert not Path("pwned").exists()
    with pytest.raises(ValueError, match="there is no such folder"):
        load_adapter(tmp_path / "nothing")


def test_another_backbone_is_refused(adapters: Callable, tiny_model: TinyModel) -> None:
    """Both are named."""
    with pytest.raises(ValueError, match=r"was saved for the backbone .*bert.*, and .*electra.* is another one"):
        load_adapter(adapters("lora") / "adapter", model=str(tiny_model("electra")))


def test_an_adapter_of_another_run_is_not_overwritten(adapters: Callable) -> None:
    """The same run may be done again in its folder; anything else is refused before it starts."""
    run_dir = adapters("head")
    options = ["model.path=" + json.loads((run_dir / "adapter/harness.json").read_text())["model"]["path"]]
    options += ["method=head", *task_options(run_dir.parent / "data", ["bad", "good"])]
    before = (run_dir / "result.json").read_text()
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir=.*of another run and is not overwritten"):
        run_once(run_dir, *options, "seed=1")
    assert (run_dir / "result.json").read_text() == before
    weights = (run_dir / "adapter/adapter_model.safetensors").read_bytes()
    run_once(run_dir, *options)
    assert (run_dir / "adapter/adapter_model.safetensors").read_bytes() == weights


# -- the model card


@pytest.mark.parametrize("method", METHODS)
def test_the_card_says_what_it_is(method: str, adapters: Callable) -> None:
    """Front matter that the Hub's own class reads, and the figures of the record."""
    run_dir = adapters(method)
    read, result = ModelCard.load(run_dir / "adapter/README.md"), RunRecord.read(run_dir)
    assert read.data.base_model == result.config["model"]["path"]
    assert read.data.library_name == ("peft" if method in ("lora", "prefix_tuning") else "peft-harness")
    assert method in read.data.tags
    scored = {value.metric_type: value.metric_value for value in read.data.eval_results}
    assert scored == {"accuracy": result.scores["validation"]["accuracy"]}
    for figure in ("trainable_parameters", "adapter_file_bytes"):
        assert f"{result.cost[figure]:,}" in read.text
    assert f"| majority, on validation | 12 | {result.scores['majority']['accuracy']:.4f} |" in read.text
    assert result.identity in read.text
    assert ("from peft import PeftModel" in read.text) == (method in ("lora", "prefix_tuning"))


def test_the_card_of_diff_pruning_says_how_many_weights_differ(adapters: Callable) -> None:
    """As the saved file has them; what `adapter_config.json` holds beside hyper-parameters is in nobody's way."""
    folder = adapters("diff_pruning") / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    stored = load_file(folder / "adapter_model.safetensors")
    differ = sum(len(tensor) for name, tensor in stored.items() if name.endswith(".places"))
    assert config["changed_parameters"] == differ == load_adapter(folder).adapter.changed_parameters()  # type: ignore[attr-defined]
    assert config["changed_share"] == differ / config["selected_parameters"]
    row = f"| weights of the backbone that differ | {differ:,} ({config['changed_share']:.3%}) of the "
    assert row in (folder / "README.md").read_text()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_command_on_the_card_makes_the_same_run(method: str, adapters: Callable) -> None:
    """Its overrides give the identity of the run, whatever the values came from."""
    run_dir = adapters(method)
    result = RunRecord.read(run_dir)
    assert command(result.config) in (run_dir / "adapter/README.md").read_text()
    assert runner.identify(compose("config", overrides(result.config))) == result.identity


def test_odd_values_survive_the_command() -> None:
    """Quotes, spaces, commas, empty texts and lists are written as Hydra reads them."""
    odd = {
        "task": "classification",
        "task.name": "'x y: z'",
        "task.labels": r"['it\'s','a,b c','\\',null_,'']",
        "task.hub": "{path: a, name: null, revision: 'null'}",
        "method.target_modules": "[query,value]",
        "train.learning_rate": "1e-5",
        "seed": "3",
    }
    given = build(compose("config", [f"{key}={value}" for key, value in odd.items()]))
    assert given.task.labels == ["it's", "a,b c", "\\", "null_", ""]
    again = build(compose("config", overrides(given.resolved)))
    assert again.resolved == given.resolved


HOSTILE = "x\n---\nlicense: evil # <script>alert(1)</script> | `a` [b](javascript:c) {{ d }}"


def test_hostile_names_can_not_break_the_card(adapters: Callable) -> None:
    """Neither out of the front matter nor into HTML, a link or another table cell."""
    run_dir = adapters("bitfit")
    manifest, result = saved.read(run_dir / "adapter").manifest, RunRecord.read(run_dir)
    manifest.task.name = manifest.model.name = manifest.model.path = HOSTILE
    manifest.task.labels = [HOSTILE, "```"]
    for section in ("task", "method", "model"):
        result.config[section]["name"] = HOSTILE
    text = card(manifest, result, {"peft_type": HOSTILE})
    read = ModelCard(text)
    assert not hasattr(read.data, "license") or read.data.license is None
    assert read.data.base_model == " ".join(HOSTILE.split())
    outside = [line for line in text.splitlines() if "<script>" in line and "`" not in line]
    front_matter = text.split("\n---\n")[0].splitlines()
    assert all(line in front_matter for line in outside)
    assert "# x --- license" in text
    assert "\\[b\\](javascript" in text


# -- several adapters on one backbone


@pytest.mark.slow
def test_adapters_of_any_method_take_turns_on_one_backbone(adapters: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two and three classes, own methods and peft's: to the bit what each computes alone, and the backbone between."""
    names = {
        f"{method}{classes}": (method, classes) for method in METHODS for classes in (2, 3)[: 1 + (method in SWAP)]
    }
    alone = {name: logits(load_adapter(adapters(*key) / "adapter").model) for name, key in names.items()}
    together = AdapterSet()
    for name, key in names.items():
        together.add(name, adapters(*key) / "adapter")
    monkeypatch.setattr("harness.models.load_model", None)  # from here on nothing loads a backbone
    base = logits(together.model)
    for name in [*names, *reversed(names)]:
        together.use(name)
        assert torch.equal(logits(together.model), alone[name]), name
    together.off()
    assert torch.equal(logits(together.model), base)
    together.off()
    assert together.model.num_labels == 2


SWAP = ("lora", "bitfit", "houlsby")


def test_a_swapped_adapter_keeps_its_scores(adapters: Callable) -> None:
    """Switched there and back, the accuracy of the run."""
    together = AdapterSet()
    for name, classes in (("two", 2), ("three", 3)):
        together.add(name, adapters("lora", classes) / "adapter")
    for name, classes in (("two", 2), ("three", 3), ("two", 2)):
        together.use(name)
        run_dir = adapters("lora", classes)
        accuracy = validation_accuracy(run_dir, together.model, together.tokenizer)
        assert accuracy == pytest.approx(RunRecord.read(run_dir).scores["validation"]["accuracy"], abs=1e-6)


def test_adapters_of_different_backbones_do_not_go_together(
    adapters: Callable, tmp_path: Path, tiny_model: TinyModel
) -> None:
    """Nor do names twice, unknown names, or asking an empty set."""
    together = AdapterSet()
    with pytest.raises(ValueError, match="the set is empty"):
        together.model  # noqa: B018
    together.add("first", adapters("head") / "adapter")
    with pytest.raises(ValueError, match="'first': an adapter of that name"):
        together.add("first", adapters("bitfit") / "adapter")
    with pytest.raises(ValueError, match=r"'frist': no such adapter.*did you mean first"):
        together.use("frist")
    options = task_options(tmp_path / "data", ["bad", "good"])
    run_once(tmp_path / "run", f"model.path={tiny_model('electra')}", "method=head", *options)
    with pytest.raises(ValueError, match="its backbone's SHA-256 is"):
        together.add("other", tmp_path / "run/adapter")


def test_a_file_that_changed_since_leaves_the_backbone_alone(adapters: Callable, tmp_path: Path) -> None:
    """The switch is refused, and the set goes on."""
    folder = copied(adapters("lora"), tmp_path / "copy")
    together = AdapterSet()
    together.add("good", adapters("bitfit") / "adapter")
    together.add("bad", folder)
    base = logits(together.model)
    together.use("good")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="cut off or changed"):
        together.use("bad")
    assert torch.equal(logits(together.model), base)
    together.use("good")
    assert not torch.equal(logits(together.model), base)
