"""Pretraining is repeatable, refuses wrong arguments in a sentence, and its results belong to today's generator."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from harness.config.errors import ConfigError
from harness.config.sources import PACKAGE
from harness.pretrain.__main__ import Pretraining, ShippedModel, build_tokenizer, parse, pretrain
from harness.pretrain.losses import batches, read_passages, with_strangers
from harness.tasks import micro

BACKBONES = [model.name for model in ShippedModel]


def tiny(model: str, out: Path) -> Pretraining:
    return Pretraining(
        ShippedModel[model], steps=20, batch_size=8, hidden_size=32, layers=1, threads=1, heldout=16, out=str(out)
    )


@pytest.mark.parametrize("model", BACKBONES)
def test_shipped_weights_were_made_from_the_generator_of_today(model):
    """The record beside the weights has the generator's fingerprint; where this fails, run `record["command"]`."""
    record = json.loads((PACKAGE / "pretrained" / model / "pretraining.json").read_text())
    assert record["fingerprint"] == micro.fingerprint(), f"the generator changed: run `{record['command']}`"
    assert record["model"] == model
    assert record["parameters"] <= 2_000_000
    assert record["heldout"]["perplexity"] < 4


@pytest.mark.slow
@pytest.mark.parametrize("model", BACKBONES)
def test_a_tiny_run_twice_is_bit_identical(model, tmp_path):
    """Same configuration and seed give the same weights and losses, byte for byte."""
    records = [pretrain(tiny(model, tmp_path / name), progress=False) for name in ("a", "b")]
    assert records[0]["loss_curve"] == records[1]["loss_curve"]
    assert records[0]["heldout"] == records[1]["heldout"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def test_the_encoder_lacks_nothing_but_the_classifier():
    """The pooler is pretrained: only the classifier's weights are new for sequence classification."""
    from transformers import BertForSequenceClassification

    folder = PACKAGE / "pretrained" / "micro_encoder"
    _, info = BertForSequenceClassification.from_pretrained(folder, num_labels=3, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}


def test_the_decoder_loads_for_language_modelling_and_for_classification():
    """Nothing is missing for the first and only the score for the second; a padding token is set."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    folder = PACKAGE / "pretrained" / "micro_decoder"
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not set(info["missing_keys"]) - {"lm_head.weight"}
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {"score.weight"}
    assert model.config.pad_token_id is not None


@pytest.mark.parametrize("model", BACKBONES)
def test_the_tokenizer_knows_every_word_in_any_case(model):
    """No word of the tasks is unknown, and capitals make no difference."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(PACKAGE / "pretrained" / model)
    for task in micro.TASKS:
        for row in micro.generate(task, "validation", 100):
            texts = [value for value in row.values() if isinstance(value, str)]
            assert tokenizer.unk_token_id not in tokenizer(*texts)["input_ids"]
            assert tokenizer(*texts)["input_ids"] == tokenizer(*map(str.upper, texts))["input_ids"]


def test_every_passage_is_batched_once():
    """Batches of similar length lose and repeat nothing."""
    tokenizer = build_tokenizer("micro_encoder", micro.vocabulary())
    passages = list(read_passages("train", 500, 0, tokenizer))
    batched = [passage for batch in batches(iter(passages), 16, 0) for passage in batch]
    assert sorted((p.first, p.second) for p in batched) == sorted((p.first, p.second) for p in passages)


def test_a_stranger_is_never_the_true_second_part():
    """A pair marked 1 has another passage's second part; a pair marked 0 is untouched."""
    tokenizer = build_tokenizer("micro_encoder", micro.vocabulary())
    passages = list(read_passages("train", 64, 0, tokenizer))
    shown, strange = with_strangers(passages, Random(0))
    assert 16 < sum(strange) < 48
    for before, after, other in zip(passages, shown, strange, strict=True):
        assert before.first == after.first
        assert (before.second != after.second) == bool(other)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "model: a value is needed.*Valid: micro_decoder, micro_encoder"),
        (["model=micro_encodr"], "model=micro_encodr.*did you mean micro_encoder"),
        (["model=micro_encoder", "step=3"], "step=3: there is no key step; did you mean steps"),
        (["model=micro_encoder", "steps=many"], "steps=many: a whole number is allowed"),
        (["model=micro_encoder", "steps=0"], "steps=0: a positive number is needed"),
        (["model=micro_encoder", "hidden_size=100"], "hidden_size=100: a positive multiple of 32"),
        (["model=micro_encoder", "causal_share=2"], "causal_share=2.0: a share from 0 to 1"),
        (["model=micro_encoder", "seed=-1"], "seed=-1: a whole number"),
        (["micro_encoder"], "micro_encoder: .* arguments are key=value"),
    ],
)
def test_a_wrong_argument_is_told_in_one_sentence(arguments, sentence):
    """The sentence has the key, what was given and what is allowed."""
    with pytest.raises(ConfigError, match=sentence) as error:
        parse(arguments)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["model=micro_encoder", "steps=x"], ["model=micro_decoder", "out=/proc/none"]])
def test_a_mistake_ends_the_command_with_status_2_and_no_stack_trace(arguments):
    """A wrong type and a folder that cannot be written are told before anything is trained."""
    done = subprocess.run([sys.executable, "-m", "harness.pretrain", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert arguments[1].split("=")[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
