"""`harness-export`: what is written loads where this package is not, and answers as the adapter did."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import train

import harness
from harness.adapters import export

TinyModel = Callable[[str], Path]
TEXT = "word3 word20 word41 word7"
# Task, architecture, method, and further overrides; merged or not.
EXPORTS = {
    "merged_classifier": ("classes", "bert", "lora", [], ["merged=true"]),
    "biases": ("classes", "bert", "bitfit", [], []),
}
MORE = {
    "peft_classifier": ("classes", "bert", "lora", [], []),
    "merged_tied_output": ("generation", "gpt2", "lora", ["method.target_modules=[lm_head]"], ["merged=true"]),
    "merged_pair": ("text2text", "t5", "lora", [], ["merged=true"]),
    "peft_decoder": ("generation", "llama", "lora", [], []),
    "prefix": ("classes", "bert", "prefix_tuning", [], []),
    "merged_dora": ("generation", "llama", "dora", [], ["merged=true"]),
    "whole": ("number", "bert", "full", [], []),
    "head": ("classes", "gpt2", "head", [], []),
    "pruned": ("classes", "bert", "diff_pruning", [], []),
    "drawn": ("classes", "bert", "lora", ["model.pretrained=false"], []),
    "peft_pair": ("text2text", "t5", "ia3", [], []),
    "quantized": ("generation", "llama", "qlora", [], []),
    "quantized_biases": ("classes", "bert", "bitfit", ["model.quantization=nf4"], []),
}
# Runs the card's own lines where an import of the package fails, and prints what the model says to a text.
ELSEWHERE = """
import json, re, sys, warnings
sys.modules["harness"] = None
warnings.simplefilter("ignore")
import torch
answers = {}
for name, folder in json.loads(sys.argv[1]).items():
    (lines,) = re.findall(r"```python\\n(.*?)```", open(f"{folder}/README.md").read(), re.DOTALL)
    found = {}
    # Tiny models have few positions.
    exec(lines.replace("FOLDER", folder).replace("max_new_tokens=64", "max_new_tokens=5"), found)
    inputs = found["tokenizer"](sys.argv[2], return_tensors="pt")
    with torch.no_grad():
        if found["model"].config.num_labels == 2 and hasattr(found["model"], "generate"):
            answers[name] = found["model"].generate(**inputs, max_new_tokens=5, do_sample=False)[0].tolist()
        else:
            answers[name] = found["model"](**inputs).logits[0].tolist()
try:
    import harness
except ImportError:
    print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Callable[..., Path]:
    """The directory of a run, carried out when it is first asked for."""
    made: dict[str, Path] = {}

    def make(task: str, model: str, method: str, options: list[str]) -> Path:
        key = " ".join([task, model, method, *options])
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            made[key] = train(folder, tiny_model(model), task, f"method={method}", *options)
        return made[key]

    return make


@pytest.mark.parametrize(
    "exports", [pytest.param(EXPORTS, id="some"), pytest.param(MORE, id="more", marks=pytest.mark.slow)]
)
def test_it_answers_the_same_where_this_package_is_not(
    exports: dict[str, Any], trained: Callable[..., Path], tmp_path: Path
) -> None:
    """The lines of the card load it, in a process that can't import the package."""
    expected: dict[str, list[float]] = {}
    for name, (task, model, method, options, how) in exports.items():
        run_dir = trained(task, model, method, options)
        assert export.main([f"adapter={run_dir}", f"out={tmp_path / name}", *how]) == 0
        expected[name] = answer(run_dir)
        assert not (tmp_path / name / "harness.json").exists()
        assert (tmp_path / name / "tokenizer.json").is_file()
    folders = json.dumps({name: str(tmp_path / name) for name in exports})
    ended = subprocess.run([sys.executable, "-c", ELSEWHERE, folders, TEXT], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    answers = json.loads(ended.stdout.splitlines()[-1])
    assert set(answers) == set(expected)
    for name, values in expected.items():
        assert answers[name] == pytest.approx(values, abs=1e-4), name


def answer(run_dir: Path) -> list[float]:
    """What the adapter says to the text, with this package: logits, or tokens that it generates."""
    loaded = harness.load_adapter(run_dir / "adapter")
    inputs = loaded.tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        if loaded.task.labels_count is None:
            model: Any = loaded.model
            return model.generate(**inputs, max_new_tokens=5, do_sample=False)[0].tolist()
        return loaded.model(**inputs).logits[0].tolist()


def test_classes_have_their_names_in_a_pipeline(trained: Callable[..., Path], tmp_path: Path) -> None:
    """And the card says what library loads it, who made it, and which classes there are."""
    from huggingface_hub import ModelCard
    from transformers import pipeline

    run_dir = trained("classes", "bert", "bitfit", [])
    assert export.main([f"adapter={run_dir}", f"out={tmp_path / 'model'}"]) == 0
    found = pipeline("text-classification", str(tmp_path / "model"))(TEXT)
    assert found[0]["label"] in ("bad", "good", "neither")
    card = ModelCard.load(tmp_path / "model/README.md")
    assert card.data.library_name == "transformers"
    assert "`bad`, `good`, `neither`" in card.text
    assert "in its weights" in card.text
    assert "import harness" not in card.text


HUB = "classes", "bert", "lora", []
REFUSED = {
    "a bottleneck": (("classes", "bert", "houlsby", []), [], "its adapters are not linear"),
    "biases apart": (("classes", "bert", "bitfit", []), ["merged=false"], "bitfit is none of peft's methods"),
    "a folder that exists": (HUB, ["out=there"], "out=there: it exists and is not overwritten"),
    "another backbone": (HUB, ["merged=true", "model={other}"], "is another one"),
    "no name": (HUB, ["hub=tickets"], "write ORG/NAME"),
    "offline": (HUB, ["hub=me/tickets"], "HF_HUB_OFFLINE is set"),
    "a wrong type": (HUB, ["merged=perhaps"], "merged=perhaps: true or false is allowed"),
}
REFUSED_MORE = {
    "a prefix": (
        ("classes", "bert", "prefix_tuning", []),
        ["merged=true"],
        "can't be merged: what it adds to attention",
    ),
    "four bits": (("generation", "llama", "qlora", []), ["merged=true"], "rounded to nf4, scores differently"),
}


@pytest.mark.parametrize(
    ("run", "arguments", "sentence"),
    [*REFUSED.values(), *(pytest.param(*one, marks=pytest.mark.slow) for one in REFUSED_MORE.values())],
    ids=[*REFUSED, *REFUSED_MORE],
)
def test_what_can_not_be_exported_is_refused_in_a_sentence(
    run: tuple[str, str, str, list[str]],
    arguments: list[str],
    sentence: str,
    trained: Callable[..., Path],
    tiny_model: TinyModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit status 2, and no folder or half of one is left."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "there").mkdir()
    run_dir = trained(*run)
    given = [one.format(other=tiny_model("roberta")) for one in arguments]
    assert export.main([f"adapter={run_dir}", "out=exported", *given]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert "Traceback" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


@pytest.mark.parametrize(("token", "sentence"), [("", "needs a token that may write"), ("x", "Hub can't be reached")])
def test_a_push_needs_a_token_and_the_hub(
    token: str, sentence: str, trained: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are asked for before anything is written; here nobody listens where the Hub should be."""
    code = "import sys; from harness.adapters.export import main; sys.exit(main(sys.argv[1:]))"
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "PATH": ""}
    environment |= {"HF_TOKEN": token} if token else {}
    arguments = [f"adapter={trained(*HUB)}", "out=exported", "merged=true", "hub=me/tickets"]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert re.search(f"hub=me/tickets: .*{sentence}", ended.stderr), ended.stderr
    assert not (tmp_path / "exported").exists()


def test_an_adapter_of_a_local_backbone_is_not_pushed_alone(
    trained: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else has the folder; merged, its weights go along."""
    from harness.adapters import hub

    monkeypatch.setattr(hub, "check", lambda name: None)
    assert export.main([f"adapter={trained(*HUB)}", "out=exported", "hub=me/tickets"]) == 2
    assert "merged=true puts its weights into the repository" in capsys.readouterr().err


@pytest.mark.slow
def test_an_adapter_on_an_earlier_one_is_exported_with_it_or_refused(
    trained: Callable[..., Path], tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Peft merges its own below; modules that stand beside the weights have no place in transformers."""
    below = trained("generation", "llama", "lora", [])
    above = train(tmp_path / "above", below / "adapter", "generation", "method=lora", "seed=1")
    for how, name in (([], "adapter"), (["merged=true"], "model")):
        assert export.main([f"adapter={above}", f"out={tmp_path / name}", *how]) == 0
    folders = json.dumps({name: str(tmp_path / name) for name in ("adapter", "model")})
    ended = subprocess.run([sys.executable, "-c", ELSEWHERE, folders, TEXT], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    answers = json.loads(ended.stdout.splitlines()[-1])
    assert answers == dict.fromkeys(answers, answer(above))
    beside = trained("generation", "llama", "houlsby", [])
    onward = ["method=lora", "model.earlier_adapter=stacked"]
    stacked = train(tmp_path / "stacked", beside / "adapter", "generation", *onward)
    assert export.main([f"adapter={stacked}", "out=exported"]) == 2
    assert "stands beside the backbone's weights" in capsys.readouterr().err
