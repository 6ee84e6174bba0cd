"""An adapter on top of another, and one on the output layer, come back as they were, with peft alone too."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import run_once

import harness
from harness.methods.earlier import load_backbone
from harness.methods.peft_adapter import quiet
from harness.methods.saved import read

SMALL = [
    "model=micro_decoder",
    "task=lm/micro",
    "task.generator_rows={train: 64, development: 8, validation: 8}",
    "train.learning_rate=0.01",
    "train.max_steps=4",
    "forgetting.text=null",
    "measure.costs=false",
    "tracking=none",
]


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer("the bird and the baker", return_tensors="pt")).logits


def from_card(folder: Path) -> dict[str, Any]:
    """What the card's snippet for peft alone leaves behind, run as it stands."""
    snippet = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[-1]
    found: dict[str, Any] = {}
    with quiet():  # peft warns of the tied output layer
        exec(snippet.replace("FOLDER", str(folder)), found)
    return found


@pytest.mark.slow
def test_the_card_of_an_adapter_on_top_of_another_has_a_snippet_that_gives_the_same(tmp_path: Path) -> None:
    """Plain peft finds no backbone by the name in the configuration, where it would load the wrong one."""
    from peft import AutoPeftModelForCausalLM

    run_once(tmp_path / "one", *SMALL, "method=lora")
    run_once(tmp_path / "two", *SMALL, "method=lora", f"model.path={tmp_path}/one/adapter", "seed=1")
    run_once(tmp_path / "three", *SMALL, "method=lora", f"model.path={tmp_path}/two/adapter", "seed=2")
    for name in ("one", "two", "three"):
        folder = tmp_path / name / "adapter"
        ours, theirs = harness.load_adapter(folder), from_card(folder)
        torch.testing.assert_close(logits(theirs["model"], ours.tokenizer), logits(ours.model, ours.tokenizer))
    named = json.loads((tmp_path / "two/adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named.endswith(f"with the adapter {tmp_path}/one/adapter in it")
    with pytest.raises((OSError, ValueError)):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "two/adapter")


@pytest.mark.slow
def test_the_card_says_where_peft_alone_can_not_load_it(tmp_path: Path) -> None:
    """Below is a method that peft does not have."""
    run_once(tmp_path / "one", *SMALL, "method=houlsby")
    onward = [f"model.path={tmp_path}/one/adapter", "model.earlier_adapter=stacked"]
    run_once(tmp_path / "two", *SMALL, "method=lora", *onward)
    text = (tmp_path / "two/adapter/README.md").read_text()
    assert "Not with peft alone: the adapter below it, " in text
    assert "PeftModel" not in text


@pytest.mark.slow
def test_lora_on_an_output_layer_that_is_tied_to_the_embeddings_comes_back(tmp_path: Path) -> None:
    """Merged, it leaves the embeddings as they are."""
    run_once(tmp_path / "run", *SMALL, "method=lora", "method.target_modules=[lm_head]")
    folder = tmp_path / "run/adapter"
    ours = harness.load_adapter(folder)
    theirs = from_card(folder)
    expected = logits(ours.model, ours.tokenizer)
    torch.testing.assert_close(logits(theirs["model"], ours.tokenizer), expected)
    saved = read(folder)
    backbone, tokenizer = load_backbone(saved, None)
    embeddings = backbone.model.get_input_embeddings().weight
    assert embeddings is backbone.model.get_output_embeddings().weight, "the backbone's are tied"
    merged = saved.restore(backbone).merge()
    torch.testing.assert_close(logits(merged, tokenizer), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged.get_input_embeddings().weight, embeddings)
    run_once(tmp_path / "two", *SMALL, "method=lora", f"model.path={folder}")
    assert "Not with peft alone: the adapter below it, " in (tmp_path / "two/adapter/README.md").read_text()
