"""A prefix reaches the backbone by whatever name the installed transformers has for its cache."""

import inspect

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from harness.methods.peft_inner import hand_over_prefix
from harness.models.transformers_inner import CACHE_ARGUMENTS, cache_argument

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
WITH_CACHE = ["bert", "roberta", "electra", "gpt2", "opt", "llama", "qwen2", "mistral", "gemma"]


def classifier(folder):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    model.config.pad_token_id = 0
    return model


def prefixed(model, task_type="SEQ_CLS"):
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.PrefixTuningConfig(num_virtual_tokens=3, task_type=task_type)).eval()


@pytest.mark.parametrize("model_type", WITH_CACHE)
def test_the_name_is_one_that_the_backbone_declares(tiny_model, model_type):
    """The name found is a parameter of the classifier or of the backbone inside it."""
    model = classifier(tiny_model(model_type))
    name = cache_argument(model)
    declared = {**inspect.signature(model.forward).parameters, **inspect.signature(model.base_model.forward).parameters}
    assert name in CACHE_ARGUMENTS
    assert name in declared


@pytest.mark.parametrize("model_type", ["deberta-v2", "modernbert"])
def test_a_backbone_without_a_cache_is_refused(tiny_model, model_type):
    """A prefix that would be dropped in silence is an error."""
    model = classifier(tiny_model(model_type))
    assert cache_argument(model) is None
    with pytest.raises(ValueError, match="takes no key-value cache"):
        hand_over_prefix(prefixed(model))


@pytest.mark.parametrize("model_type", WITH_CACHE)
def test_the_prefix_changes_what_a_classifier_says(tiny_model, model_type):
    """Logits move with the prefix's values, and gradients come back to them."""
    model = prefixed(classifier(tiny_model(model_type)))
    hand_over_prefix(model)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    before = model(**inputs).logits
    before.sum().backward()
    prefix = model.prompt_encoder["default"].embedding.weight
    assert prefix.grad is not None
    assert prefix.grad.abs().sum() > 0
    with torch.no_grad():
        prefix.add_(torch.randn_like(prefix))
        assert not torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("model_type", WITH_CACHE)
def test_logits_are_those_that_peft_computes_itself(tiny_model, model_type):
    """Where peft knows the cache's name, handing it over ourselves changes no bit."""
    model = prefixed(classifier(tiny_model(model_type)))
    if cache_argument(model.get_base_model()) != "past_key_values":
        pytest.skip(
            "peft does not know this transformers' name of the cache; transformers below 5.24 has the one it knows"
        )
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with torch.no_grad():
        expected = model(**inputs).logits
        hand_over_prefix(model)
        assert torch.equal(model(**inputs).logits, expected)


def test_a_language_model_is_asked_by_its_own_name(tiny_model):
    """No warning of an old name comes back (warnings are errors here), and what the hook did can be taken back."""
    torch.manual_seed(0)
    model = prefixed(AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval(), "CAUSAL_LM")
    handle = hand_over_prefix(model)
    with torch.no_grad():
        first = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        handle.remove()
        plain = model.get_base_model()(input_ids=IDS).logits
    assert first.shape == plain.shape
    assert not torch.equal(first, plain)
