"""Preferences: the loss is the paper's and TRL's, the reference is the backbone alone, and the scores are by hand."""

import copy
import json
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.nn import functional

from harness import measure, models
from harness.config.build import build
from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.config.sources import PACKAGE
from harness.methods import Adapter
from harness.models.architectures import ARCHITECTURES, Backbone
from harness.plan.__main__ import compose
from harness.tasks import dpo
from harness.tasks.micro_instruct import preferences
from harness.tasks.preference import Preference, softplus
from harness.tasks.scoring import evaluate
from harness.tasks.trl_inner import no_checkpointing
from harness.training.batches import Batch
from harness.training.evaluation import Evaluation, Subject

MICRO = PACKAGE / "pretrained" / "micro_decoder"
CPU = torch.device("cpu")
METHODS = ("lora", "full", "last_layers", "prompt_tuning", "houlsby", "qlora")
ROWS = preferences("train", 8)
BETA = 0.1


@cache
def experiment_of(*overrides: str) -> Experiment:
    return build(compose("config", ["model=micro_decoder", "task=preference/micro", *overrides]))


def task_of(*overrides: str) -> Preference:
    return experiment_of(*overrides).task


@cache
def tokenizer() -> Any:
    return models.load_tokenizer(MICRO, ARCHITECTURES["llama"])


def attached(method: str) -> tuple[Adapter, Backbone]:
    """The method on a fresh micro decoder, the same every time."""
    experiment = experiment_of(f"method={method}")
    torch.manual_seed(0)
    backbone = models.load_model(MICRO, models.load_config(MICRO, None, False), experiment, torch.float32)
    return experiment.method.attach(backbone), backbone


def batch_of(backbone: Backbone, rows: list[dict[str, Any]] = ROWS) -> Batch:
    task = task_of()
    return task.collator(backbone, tokenizer(), CPU)(task.encode(rows, tokenizer()), list(range(len(rows))))


def disturb(adapter: Adapter, scale: float = 0.05) -> None:
    """Move what is trained away from its start, where a low-rank or bottleneck method adds nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.adapter_parameters().values():
            parameter += scale * torch.randn_like(parameter)


def gradients(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in adapter.adapter_parameters().items()}


def sequence_log_probabilities(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The log of pi(y | x) of each row by its definition, from the logits."""
    ids, answer = batch.inputs["input_ids"], batch.targets["completion_mask"]
    logits = model(**batch.inputs).logits[:, -ids.shape[1] :]
    tokens = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (tokens * answer[:, 1:]).sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loss_and_its_gradients_are_equation_7_of_the_paper(method: str) -> None:
    """-log sigmoid(beta * ((log pi(w) - log ref(w)) - (log pi(l) - log ref(l)))), in float64."""
    adapter, backbone = attached(method)
    batch = batch_of(backbone)
    disturb(adapter)
    adapter.model.train()
    found = dpo.loss(adapter, batch, BETA, dropout=False)
    found.backward()
    single = gradients(adapter)

    adapter.model.zero_grad()
    adapter.model.double()
    with torch.no_grad(), adapter.disabled():
        reference = sequence_log_probabilities(adapter.model, batch)
    chosen, rejected = (sequence_log_probabilities(adapter.model, batch) - reference).chunk(2)
    expected = -torch.log(torch.sigmoid(BETA * (chosen - rejected))).mean()
    expected.backward()

    assert abs(found.item() - math.log(2)) > 1e-3
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, double in gradients(adapter).items():
        torch.testing.assert_close(single[name].double(), double, rtol=1e-3, atol=1e-6)


def test_the_loss_and_its_gradients_are_those_of_trl_run_as_it_documents(tmp_path: Path) -> None:
    """TRL's own trainer computes both on the same rows."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    adapter, backbone = attached("lora")
    batch = batch_of(backbone)
    disturb(adapter)
    adapter.model.train()
    found = dpo.loss(adapter, batch, BETA, dropout=False)
    found.backward()

    told = [
        {
            "prompt": f"{row['input']} {row['instruction']}",
            "chosen": f" {row['chosen']}",
            "rejected": f" {row['rejected']}",
        }
        for row in ROWS
    ]
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(MICRO),
        ref_model=None,
        args=DPOConfig(
            str(tmp_path), beta=BETA, bf16=False, report_to="none", use_cpu=True, **no_checkpointing(DPOConfig)
        ),
        train_dataset=Dataset.from_list(told),
        processing_class=tokenizer(),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    given = trainer.data_collator([trainer.train_dataset[index] for index in range(len(ROWS))])
    assert {name: given[name].tolist() for name in ("input_ids", "attention_mask", "completion_mask")} == {
        name: tensor.tolist() for name, tensor in {**batch.inputs, **batch.targets}.items()
    }
    ours, theirs = adapter.adapter_parameters(), dict(trainer.model.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.items():
            theirs[name].copy_(parameter)
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, given)
    expected.backward()

    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-8)


def three_steps(method: str) -> tuple[Adapter, Batch, list[float], list[dpo.LogProbabilities]]:
    """Losses of three steps and after them; the reference's log-probabilities before and after."""
    adapter, backbone = attached(method)
    batch = batch_of(backbone)
    reference = [dpo.reference_log_probabilities(adapter, batch)]
    optimizer = torch.optim.AdamW(adapter.adapter_parameters().values(), lr=1e-3)
    losses = []
    adapter.model.train()
    for _ in range(3):
        value = dpo.loss(adapter, batch, BETA, dropout=False)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    losses.append(dpo.loss(adapter, batch, BETA, dropout=False).item())
    reference.append(dpo.reference_log_probabilities(adapter, batch))
    return adapter, batch, losses, reference


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_three_steps_lower_the_loss_and_leave_the_reference_as_it_was(method: str) -> None:
    """To the bit, and again the same when repeated."""
    adapter, batch, losses, (before, after) = three_steps(method)
    assert losses[3] < losses[0]
    assert torch.equal(before.chosen, after.chosen)
    assert torch.equal(before.rejected, after.rejected)
    changed = dpo.log_probabilities(adapter, batch)
    assert not torch.equal(changed.chosen, after.chosen)
    assert {p.dtype for p in adapter.adapter_parameters().values()} == {torch.float32}
    assert three_steps(method)[2] == losses


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_costs_a_copy_of_the_backbones_trained_weights_alone(method: str) -> None:
    """A method that leaves the backbone alone costs nothing."""
    adapter, _ = attached(method)
    own = method in ("full", "last_layers")
    assert adapter.reference_bytes() == own * sum(p.nbytes for p in adapter.adapter_parameters().values())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_reference_is_the_backbone_loaded_anew(method: str) -> None:
    """Its log-probabilities are those of a fresh copy, after training."""
    adapter, backbone = attached(method)
    batch = batch_of(backbone)
    disturb(adapter)
    found = torch.cat(dpo.reference_log_probabilities(adapter, batch))
    _, fresh = attached("lora")
    with torch.no_grad():
        torch.testing.assert_close(found, sequence_log_probabilities(fresh.model, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_under_autocast_rounded_weights_do_not_pass_between_model_and_reference(method: str) -> None:
    """Autocast keeps its roundings of trained weights until it ends, and the reference has other values in them."""
    adapter, backbone = attached(method)
    batch = batch_of(backbone, ROWS[:2])

    def computing() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    with computing():
        reference = dpo.reference_log_probabilities(adapter, batch)
    disturb(adapter)
    with torch.inference_mode(), computing():
        alone = dpo.log_probabilities(adapter, batch)
    with torch.inference_mode(), computing():
        policy, again = dpo.log_probabilities(adapter, batch), dpo.reference_log_probabilities(adapter, batch)
        last = dpo.log_probabilities(adapter, batch)
    assert torch.equal(again.chosen, reference.chosen)
    assert torch.equal(policy.chosen, alone.chosen)
    assert torch.equal(last.chosen, alone.chosen)
    with computing():
        dpo.loss(adapter, batch, BETA, dropout=False).backward()
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients(adapter).values())


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_a_loss_leaves_modes_forward_passes_and_random_numbers_alone(method: str) -> None:
    """All generators and modules are as before."""
    adapter, backbone = attached(method)
    batch = batch_of(backbone, ROWS[:2])
    adapter.model.train()
    backbone.model.get_submodule("model.layers.1").eval()
    modes = [module.training for module in adapter.model.modules()]
    forwards = [vars(module).get("forward") for module in adapter.model.modules()]
    dpo._trainer.cache_clear()
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    dpo.loss(adapter, batch, BETA, dropout=True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == states[1:]
    assert [module.training for module in adapter.model.modules()] == modes
    assert [vars(module).get("forward") for module in adapter.model.modules()] == forwards


def test_dropout_is_off_unless_asked_for(tiny_model: Callable[[str], Path]) -> None:
    """GPT-2 has dropout; without it two losses of one batch are equal, and a reference never has any."""
    folder = tiny_model("gpt2")
    experiment = experiment_of("method=lora", f"model.path={folder}")
    backbone = models.load_model(folder, models.load_config(folder, None, False), experiment, torch.float32)
    adapter = experiment.method.attach(backbone)
    task, words = experiment.task, models.load_tokenizer(folder, ARCHITECTURES["gpt2"])
    row = {"input": "word1 word2", "instruction": "word3", "chosen": "word4 word5", "rejected": "word6"}
    batch = task.collator(backbone, words, CPU)(task.encode([row], words), [0])
    adapter.model.train()
    first, second = (dpo.reference_log_probabilities(adapter, batch) for _ in range(2))
    assert torch.equal(first.chosen, second.chosen)
    assert dpo.loss(adapter, batch, BETA, dropout=True) != dpo.loss(adapter, batch, BETA, dropout=True)
    quiet = [dpo.loss(adapter, batch, BETA, dropout=False).item() for _ in range(2)]
    # Before the first step the two are one model, whatever beta is.
    assert quiet == pytest.approx([math.log(2)] * 2, abs=1e-6)


def test_a_small_vocabulary_takes_a_small_buffer() -> None:
    """TRL's, of 32,768 logits a token, would alone be more than 60 MB here."""
    adapter, backbone = attached("lora")
    batch = batch_of(backbone)
    with measure.live_bytes([]) as live:
        dpo.loss(adapter, batch, BETA, dropout=False).backward()
    assert batch.padded_tokens * 32768 * 4 > 60e6
    assert live.peak < 40e6


def test_a_method_that_calls_the_backbones_forward_pass_itself_works() -> None:
    """Policy and reference differ, and the policy is the model's own."""
    adapter, backbone = attached("adaption_prompt")
    batch = batch_of(backbone)
    disturb(adapter)
    with torch.no_grad():
        expected = sequence_log_probabilities(adapter.model, batch)
    torch.testing.assert_close(torch.cat(dpo.log_probabilities(adapter, batch)), expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(torch.cat(dpo.reference_log_probabilities(adapter, batch)), expected)


def test_a_method_on_the_output_layer_is_refused() -> None:
    """TRL multiplies by that layer's own weights alone."""
    adapter, backbone = attached("trainable_tokens")
    with pytest.raises(ConfigError, match="it changes the output layer"):
        dpo.loss(adapter, batch_of(backbone), BETA, dropout=False)


def evaluated(task: Preference, adapter: Adapter, backbone: Backbone, rows: list[dict[str, Any]]) -> Evaluation:
    subject = Subject(adapter, tokenizer(), task.collator(backbone, tokenizer(), CPU), 3, None)
    return evaluate(task, subject, task.encode(rows, tokenizer()), rows)


def test_scores_are_those_of_the_definitions() -> None:
    """Batches of three, the longest first; the columns are in the rows' order all the same."""
    adapter, backbone = attached("full")
    disturb(adapter, 0.02)
    found = evaluated(task_of(), adapter, backbone, ROWS)
    batch = batch_of(backbone)
    with torch.no_grad():
        policy = sequence_log_probabilities(adapter.model, batch).chunk(2)
        with adapter.disabled():
            reference = sequence_log_probabilities(adapter.model, batch).chunk(2)
    margins = BETA * ((policy[0] - reference[0]) - (policy[1] - reference[1]))
    tokens = batch.targets["completion_mask"].chunk(2)[0].sum()
    assert 0 < found.scores["reward_accuracy"] < 1
    assert found.scores == pytest.approx(
        {
            "reward_accuracy": float((margins > 0).float().mean()),
            "reward_margin": float(margins.mean()),
            "loss": float(functional.softplus(-margins).mean()),
            "chosen_loss": float(-policy[0].sum() / tokens),
            "reference_chosen_loss": float(-reference[0].sum() / tokens),
        },
        rel=1e-3,
        abs=1e-5,
    )
    assert found.columns["label"] == [1] * 8
    assert found.columns["prediction"] == (margins > 0).int().tolist()
    assert found.columns["margin"] == pytest.approx(margins.tolist(), rel=1e-2, abs=1e-4)
    assert found.columns["rejected_log_probability"] == pytest.approx(policy[1].tolist(), rel=1e-4)
    assert found.columns["reference_chosen_log_probability"] == pytest.approx(reference[0].tolist(), rel=1e-4)
    assert found.costs == {"reference_bytes": sum(p.nbytes for p in adapter.adapter_parameters().values())}
    with torch.no_grad():
        assert found.scores["loss"] == pytest.approx(dpo.loss(adapter, batch, BETA, dropout=False).item(), abs=1e-5)


def test_pairs_that_are_cut_off_count_in_no_score() -> None:
    """The other rows' scores stay the same."""
    adapter, backbone = attached("lora")
    disturb(adapter)
    long = {**ROWS[0], "input": "the drum is big . " * 20}
    found = evaluated(task_of(), adapter, backbone, [*ROWS[:2], long])
    assert found.scores == pytest.approx(evaluated(task_of(), adapter, backbone, ROWS[:2]).scores, rel=1e-4)
    assert found.columns["prediction"][2] is None
    assert found.columns["margin"][2] is None


def test_the_loss_does_not_overflow() -> None:
    """Softplus of very large numbers is exact."""
    assert softplus(0.0) == pytest.approx(math.log(2))
    assert (softplus(-1000.0), softplus(1000.0)) == (0.0, 1000.0)


ROW = {"input": "the drum is big .", "instruction": "say it .", "chosen": "the drum", "rejected": "a cat was big"}


def test_a_pair_is_a_prompt_and_two_ended_answers() -> None:
    """Its length is that of the longer side."""
    features = task_of().encode([ROW], tokenizer())[0]
    assert tokenizer().decode(features["chosen"]["input_ids"]) == "<s> the drum is big . say it . the drum </s>"
    assert tokenizer().decode(features["rejected"]["input_ids"]) == "<s> the drum is big . say it . a cat was big </s>"
    assert features["input_ids"] == features["rejected"]["input_ids"]
    assert (features["length"], features["weight"], features["cut"]) == (14, 1, False)


def test_a_batch_has_the_chosen_answers_above_the_rejected_ones() -> None:
    """Tokens and padding of all rows are counted."""
    _, backbone = attached("lora")
    batch = batch_of(backbone, [ROW, {**ROW, "chosen": "the cat big", "rejected": "a"}])
    ids, answers = batch.inputs["input_ids"], batch.targets["completion_mask"].bool()
    assert [tokenizer().decode(row[mask]) for row, mask in zip(ids, answers, strict=True)] == [
        "the drum </s>",
        "the cat big </s>",
        "a cat was big </s>",
        "a </s>",
    ]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert (batch.weight, batch.tokens, batch.padded_tokens) == (2, 12 + 13 + 14 + 11, 4 * 14)


@pytest.mark.parametrize(
    ("max_length", "weight", "cut"),
    [(14, 1, False), (13, 1, True), (10, 1, True), (9, 0, False)],
    ids=["whole", "an end is cut off", "a token is left of each", "the answers are cut off"],
)
def test_an_answer_keeps_a_token_or_the_pair_has_no_weight(max_length: int, weight: int, cut: bool) -> None:
    """Cut down further, the pair counts for nothing."""
    features = task_of(f"task.max_length={max_length}").encode([ROW], tokenizer())[0]
    assert (features["weight"], features["cut"]) == (weight, cut)
    assert features["length"] == max_length


def test_answers_that_are_cut_to_the_same_have_no_weight() -> None:
    """A pair whose difference was cut off teaches nothing."""
    row = {**ROW, "rejected": "the drum was big"}
    assert task_of("task.max_length=11").encode([row], tokenizer())[0]["weight"] == 0
    assert task_of("task.max_length=12").encode([row], tokenizer())[0]["weight"] == 1


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": "the drum "}, "row 2: chosen and rejected are equal, so neither is preferred"),
        ({"chosen": " "}, r"row 2: the chosen answer is empty \(chosen\)"),
        ({"rejected": ""}, r"row 2: the rejected answer is empty \(rejected\)"),
        ({"instruction": "", "input": "\n"}, r"row 2: the prompt is empty \(instruction\)"),
        ({"chosen": {"a": 3}}, "row 2: chosen={'a': 3} is not text"),
    ],
    ids=["equal sides", "no chosen answer", "no rejected answer", "no prompt", "a number"],
)
def test_a_pair_that_teaches_nothing_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The sentence has the row and the column."""
    folder = write(tmp_path, ROW, {**ROW, **change})
    if change == {"chosen": 3}:  # a JSON column has one type
        folder = write(tmp_path, {**ROW, **change}, {**ROW, **change})
        message = message.replace("row 2", "row 1")
    task = build(compose("config", ["task=preference/pairs", "model=micro_decoder", f"task.data_dir={folder}"])).task
    with pytest.raises(ConfigError, match=message):
        task.load()


def test_a_template_that_names_an_absent_column_is_refused(tmp_path: Path) -> None:
    """The column is named."""
    write(tmp_path, ROW)
    task = task_of(f"task.data_dir={tmp_path}", "task.prompt='{instructions}'")
    with pytest.raises(ConfigError, match="no column 'instructions'"):
        task.load()


def test_other_names_of_columns_do(tmp_path: Path) -> None:
    """Prompt and answers are taken from the columns that the task names."""
    write(tmp_path, *({"question": f"say {n} .", "better": "a cat", "worse": "a drum"} for n in range(20)))
    task = task_of(f"task.data_dir={tmp_path}", "task.prompt='{question}'", "task.chosen=better", "task.rejected=worse")
    assert task.shown(task.load().splits["validation"][1]) == "say 1 ."


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.beta=0", "task.beta=0.0: a positive number is needed"),
        ("task.rejected=chosen", "task.rejected=chosen: another column"),
        ("task.metrics=[accuracy]", "an empty list is allowed"),
        ("task.primary_metric=accuracy", "task.primary_metric=accuracy: not among reward_accuracy"),
        ("task.prompt=none", "no column in braces"),
        ("task.system=hello", "only a conversation has one"),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused(override: str, message: str) -> None:
    """Each is named with what is allowed."""
    with pytest.raises(ConfigError, match=message):
        experiment_of(override)


def test_a_tokenizer_without_an_end_of_sequence_is_refused() -> None:
    """Answers could not end."""
    endless = copy.deepcopy(tokenizer())
    endless.eos_token = None
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        task_of().encode([ROW], endless)


def test_a_coin_would_be_right_in_half_of_the_pairs() -> None:
    """That is the score to beat."""
    data = task_of("task.generator_rows={train: 8, development: 4, validation: 4}").load()
    assert task_of().majority(data, "validation") == {"reward_accuracy": 0.5}


def test_equal_pairs_are_left_out_and_counted_if_that_is_wished(tmp_path: Path) -> None:
    """When none is left, the sentence says so."""
    write(tmp_path, *({**ROW, "rejected": "the drum" if number % 5 == 0 else "a cat"} for number in range(20)))
    task = task_of(f"task.data_dir={tmp_path}", "task.drop_equal_pairs=true")
    data = task.load()
    assert data.notes["rows"]["validation"] == len(data.splits["validation"]) == 16
    assert data.notes["equal_pairs_left_out"]["validation"] == 4
    write(tmp_path, *({**ROW, "rejected": "the drum"} for _ in range(20)))
    with pytest.raises(ConfigError, match="all 18 pairs of the train split are equal"):
        task.load()


def test_the_polite_pairs_load_and_are_encoded(real_data: Path) -> None:
    """Six of them have two equal answers."""
    of_polite_pairs = ["model=micro_decoder", "task=preference/pairs"]
    of_polite_pairs += [f"task.data_dir={real_data}/preference/polite_pairs"]
    with pytest.raises(ConfigError, match="row 470: chosen and rejected are equal"):
        build(compose("config", of_polite_pairs)).task.load()
    task = build(compose("config", [*of_polite_pairs, "task.drop_equal_pairs=true"])).task
    data = task.load()
    assert sum(len(rows) for rows in data.splits.values()) == 875 + 200 - 6
    assert sum(data.notes["equal_pairs_left_out"].values()) == 6
    words = models.load_tokenizer(real_data / "models/stories260K", ARCHITECTURES["llama"])
    assert all(row["weight"] == 1 for row in task.encode(data.splits["validation"], words))
