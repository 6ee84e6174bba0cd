"""A head computes in float32 whatever the backbone computes in: its scores and numbers have all of their digits."""

import copy
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import method_of, random_backbone
from tiny_methods import inputs
from trained import train

from harness.adapters import predict
from harness.config import identity
from harness.config.compose import compose
from harness.methods import prepare_trained
from harness.models.architectures import Kind
from harness.run import prepare

# Heads of one layer, of two, one for every token, and one that is beside a pooler.
ARCHITECTURES = ("bert", "roberta", "distilbert", "gpt2", "t5")


@pytest.mark.parametrize("method", ["full", "lora", "head"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_have_all_of_their_digits(architecture: str, method: str) -> None:
    """Inside of autocast on a backbone that is stored in bfloat16."""
    backbone = random_backbone(architecture)
    backbone.model.to(torch.bfloat16)
    adapter = method_of(method).attach(backbone)
    prepare_trained(adapter)
    adapter.model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = adapter.model(**inputs(Kind.classification, backbone.model.config)).logits
    assert found.dtype is torch.float32
    assert (found != found.bfloat16()).any()


def test_in_float32_nothing_changes() -> None:
    """To the bit, in the forward and the backward pass."""
    found = []
    for prepared in (False, True):
        backbone = random_backbone("bert")
        adapter = method_of("lora").attach(backbone)
        if prepared:
            prepare_trained(adapter)
        out = adapter.model(**inputs(Kind.classification, backbone.model.config))
        out.loss.backward()
        found.append([out.logits, *(p.grad for p in adapter.head_parameters().values())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_copy_computes_with_its_own_weights() -> None:
    """As the copies that peft and packs make of a head."""
    backbone = random_backbone("bert")
    adapter = method_of("bitfit").attach(backbone)
    prepare_trained(adapter)
    twin = copy.deepcopy(adapter.model).eval()
    asked = inputs(Kind.classification, backbone.model.config)
    before = adapter.model.eval()(**asked).logits
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if backbone.is_head(name):
                parameter.zero_()
    assert (twin(**asked).logits == 0).all()
    assert torch.equal(adapter.model(**asked).logits, before)


def test_the_numbers_of_a_run_are_not_rounded(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Of a regression in bfloat16, neither in its own predictions nor in its adapter's, which are the same."""
    run_dir = train(tmp_path, tiny_model("bert"), "number", "train.precision=bfloat16", "method=lora")
    kept = pd.read_parquet(run_dir / "predictions.parquet").query("split == 'validation'")["prediction"]
    assert (torch.tensor(kept.tolist()) != torch.tensor(kept.tolist()).bfloat16()).all()
    data = run_dir.parent / "data/validation.jsonl"
    assert predict.main([f"adapter={run_dir}", f"data={data}", f"out={tmp_path}/a.parquet"]) == 0
    assert pd.read_parquet(tmp_path / "a.parquet")["prediction"].tolist() == kept.tolist()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["train.precision=bfloat16"], "float32"),
        (["train.precision=float32"], None),
        (["train.precision=bfloat16", "task=lm/micro", "model=micro_decoder"], None),
    ],
)
def test_runs_from_before_are_others(options: list[str], told: str | None) -> None:
    """Of classes and numbers in bfloat16; all else is what it was."""
    inputs_ = prepare(compose("config", options))
    assert identity.decisive(inputs_.experiment, inputs_.revisions).get("head") == told
