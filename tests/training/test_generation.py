"""Answers do not depend on what else is in a batch, and are those of a model asked token by token."""

import copy
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from harness.config.schema import Quantization
from harness.config.sources import PACKAGE
from harness.methods.bottleneck import Activation, Houlsby
from harness.methods.peft import PeftMethod
from harness.methods.peft_inner import hand_over_prefix
from harness.models.architectures import Backbone, Kind, architecture
from harness.models.precision import quantization_config
from harness.tasks.micro import corpus
from harness.training.generation import generate, option_log_likelihoods

MICRO = PACKAGE / "pretrained" / "micro_decoder"
NEW = 12
LANGUAGE_MODEL = {"task_type": "CAUSAL_LM"}
PEFT = {
    "lora": lambda: peft.LoraConfig(r=4, init_lora_weights=False, **LANGUAGE_MODEL),
    "prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=5, **LANGUAGE_MODEL),
    "p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16, **LANGUAGE_MODEL),
    "prefix_tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, **LANGUAGE_MODEL),
    "adaption_prompt": lambda: peft.AdaptionPromptConfig(adapter_len=5, adapter_layers=2, **LANGUAGE_MODEL),
}
VIRTUAL = ("prompt_tuning", "p_tuning", "prefix_tuning")
METHODS = ["none", *PEFT, "houlsby", "nf4", "nf4_prompt_tuning"]
# Absolute positions show what rotary ones hide: a shift of all of them at once.
TINY = [("gpt2", method) for method in ("none", *VIRTUAL)]


def micro_decoder() -> Any:
    return AutoModelForCausalLM.from_pretrained(MICRO)


def with_peft(model: Any, method: str) -> Any:
    """A method with values that change what the model says, as if it had been trained."""
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, PEFT[method]())
    if method == "prefix_tuning":
        hand_over_prefix(wrapped)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "prompt" in name or "adaption" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    return wrapped


def with_houlsby(model: Any) -> Any:
    """Changed in place: what comes back is the model itself."""
    torch.manual_seed(1)
    method = Houlsby("houlsby", 1e-3, [1e-3], 8, None, Activation.gelu, layer_norms=False)
    adapter = method.attach(Backbone(model, architecture(model.config), (), Kind.causal_lm))
    with torch.no_grad():
        for parameter in adapter.adapter_parameters().values():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return adapter.model


def in_nf4() -> Any:
    options = quantization_config(Quantization.nf4, architecture(micro_decoder().config), torch.float32, double=True)
    return AutoModelForCausalLM.from_pretrained(MICRO, quantization_config=options)


MAKE: dict[str, Callable[[], Any]] = {
    "none": micro_decoder,
    **{name: lambda name=name: with_peft(micro_decoder(), name) for name in PEFT},  # type: ignore[misc]
    "houlsby": lambda: with_houlsby(micro_decoder()),
    "nf4": in_nf4,
    "nf4_prompt_tuning": lambda: with_peft(in_nf4(), "prompt_tuning"),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MICRO)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    """Beginnings of passages, 1 to 20 tokens long, the lengths in no order."""
    lengths = [5, 20, 1, 9, 14, 2, 9]
    texts = corpus("heldout", len(lengths), seed=3)
    return [tokenizer(text)["input_ids"][:length] for text, length in zip(texts, lengths, strict=True)]


def token_by_token(model: Any, prompt: list[int], end: int | None, count: int = NEW) -> list[int]:
    """The whole text through the whole model for every new token: nothing padded, nothing kept, no generate()."""
    model.eval()
    text = list(prompt)
    while len(text) < len(prompt) + count:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax())
        if token == end:
            break
        text.append(token)
    return text[len(prompt) :]


def likelihood_alone(model: Any, prompt: list[int], option: list[int]) -> float:
    """Log-probability of one option, its tokens read off one by one."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + option])).logits[0].double()
    logs = logits.log_softmax(-1)
    return sum(float(logs[len(logs) - len(option) - 1 + place, token]) for place, token in enumerate(option))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_a_model_asked_token_by_token(method, tokenizer, prompts):
    """In one batch of padded prompts, in small ones and one by one, with every sort of method."""
    model = MAKE[method]()
    expected = [token_by_token(model, prompt, tokenizer.eos_token_id) for prompt in prompts]
    assert len({tuple(answer) for answer in expected}) > 3, "answers that are all alike would prove nothing"
    for batch_size in (1, 3, len(prompts)):
        assert generate(model, tokenizer, prompts, NEW, batch_size).tokens == expected


@pytest.mark.parametrize(("model_type", "method"), TINY)
def test_positions_count_from_the_first_real_or_virtual_token(tiny_model, model_type, method):
    """With learned absolute positions a padded prompt would else be read at other places than alone."""
    folder = tiny_model(model_type)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(20)  # a random model hardly looks at them
    model = model if method == "none" else with_peft(model, method)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [[5], [40, 41, 42, 43, 44, 45, 46], [30, 31, 32]]
    expected = [token_by_token(model, prompt, tokenizer.eos_token_id) for prompt in prompts]
    assert generate(model, tokenizer, prompts, NEW, 3).tokens == expected


@pytest.mark.parametrize("method", METHODS)
def test_options_are_as_likely_in_a_batch_as_alone(method, tokenizer, prompts):
    """Prompts and options of all lengths; within 1e-4 relative of an unbatched loop."""
    model = MAKE[method]()
    options = [
        [prompts[(row + shift) % len(prompts)] for shift in range(1, 2 + row % 3)] for row in range(len(prompts))
    ]
    found = option_log_likelihoods(model, prompts, options, batch_size=4)
    for prompt, of_one, scored in zip(prompts, options, found, strict=True):
        assert [size for _, size in scored] == [len(option) for option in of_one]
        alone = [likelihood_alone(model, prompt, option) for option in of_one]
        assert [value for value, _ in scored] == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_an_answer_is_worth_what_its_steps_are(tokenizer, prompts):
    """The first tokens that are generated are the likeliest of all options of one token."""
    model = micro_decoder()
    options = [[[token] for token in range(len(tokenizer))]] * len(prompts)
    found = option_log_likelihoods(model, prompts, options, batch_size=512)
    for prompt, scored in zip(prompts, found, strict=True):
        values = [value for value, _ in scored]
        assert torch.tensor(values).logsumexp(0) == pytest.approx(0, abs=1e-3), "probabilities add up to 1"
        assert [values.index(max(values))] == token_by_token(model, prompt, None, 1)


def test_an_answer_stops_before_the_end_of_sequence(tokenizer, prompts):
    """Whatever token that is: the answer is what came before it, and its rows' neighbors go on."""
    model = micro_decoder()
    free = SimpleNamespace(pad_token_id=tokenizer.pad_token_id, eos_token_id=None)
    whole = generate(model, free, prompts, NEW, 4)
    assert [len(answer) for answer in whole.tokens] == [NEW] * len(prompts)
    assert whole.new_tokens == NEW * len(prompts)
    end = whole.tokens[0][4]
    stopped = generate(model, SimpleNamespace(pad_token_id=end, eos_token_id=end), prompts, NEW, 4)
    cut = [answer[: answer.index(end)] if end in answer else answer for answer in whole.tokens]
    assert stopped.tokens == cut
    assert 0 < len(cut[0]) < NEW
    assert stopped.new_tokens == sum(map(len, cut)) + sum(end in answer for answer in whole.tokens)
    assert stopped.tokens_per_second == stopped.new_tokens / stopped.seconds


def test_a_checkpoints_own_generation_settings_are_set_aside_and_stay(tokenizer, prompts, caplog, monkeypatch):
    """Sampling, penalties and other ends would make the answers of two backbones differ for no reason of theirs."""
    model = micro_decoder()
    expected = generate(model, tokenizer, prompts, NEW, 4).tokens
    own = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, max_length=2, eos_token_id=list(range(300))
    )
    model.generation_config = own
    before = copy.deepcopy(own).to_dict()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert generate(model, tokenizer, prompts, NEW, 4).tokens == expected
    assert model.generation_config is own
    assert own.to_dict() == before
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("method", VIRTUAL)
def test_a_model_answers_with_what_is_switched_off(method, tokenizer, prompts):
    """The backbone's own answers while the virtual tokens are off, by peft or by us, and theirs again afterwards."""
    backbone = generate(micro_decoder(), tokenizer, prompts, NEW, 4).tokens
    config = {"_target_": f"peft.{type(PEFT[method]()).__name__}", "num_virtual_tokens": 5}
    model = micro_decoder()
    adapter = PeftMethod(method, 1e-3, [1e-3], config).attach(
        Backbone(model, architecture(model.config), (), Kind.causal_lm)
    )
    with torch.no_grad():
        for parameter in adapter.adapter_parameters().values():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    adapted = generate(adapter.model, tokenizer, prompts, NEW, 4).tokens
    assert adapted != backbone
    for off in (adapter.disabled, adapter.model.disable_adapter):
        with off():
            assert generate(adapter.model, tokenizer, prompts, NEW, 4).tokens == backbone
        assert generate(adapter.model, tokenizer, prompts, NEW, 4).tokens == adapted


def test_dropout_is_off(tokenizer, prompts):
    """A model that comes from training answers the same twice."""
    model = peft.get_peft_model(
        micro_decoder(), peft.LoraConfig(r=4, init_lora_weights=False, lora_dropout=0.9, **LANGUAGE_MODEL)
    )
    answers = [generate(model.train(), tokenizer, prompts, NEW, 4).tokens for _ in range(2)]
    assert answers[0] == answers[1]
    options = [[prompts[0]]] * len(prompts)
    scores = [option_log_likelihoods(model.train(), prompts, options, 4) for _ in range(2)]
    assert scores[0] == scores[1]


def test_what_can_not_be_answered_is_refused(tokenizer):
    """In a sentence, before anything is computed."""
    model = MAKE["prompt_tuning"]()
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        generate(model, tokenizer, [[5], []], NEW, 2)
    with pytest.raises(ValueError, match="100 tokens and 29 further ones are more than the model's 128 positions"):
        generate(model, tokenizer, [[5] * 100], 24, 2)
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        option_log_likelihoods(model, [[]], [[[5]]], 2)
    with pytest.raises(ValueError, match="an option has no tokens"):
        option_log_likelihoods(model, [[5]], [[[5], []]], 2)


def test_no_prompts_have_no_answers(tokenizer):
    """Nor a speed, and a prompt without options has none that are likely."""
    model = micro_decoder()
    generated = generate(model, tokenizer, [], NEW, 2)
    assert (generated.tokens, generated.new_tokens, generated.tokens_per_second) == ([], 0, 0.0)
    assert option_log_likelihoods(model, [[5], [6]], [[], [[7]]], 2)[0] == []
