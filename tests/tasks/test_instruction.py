"""Instructions are scored on their answers alone, and what can't be right is refused by name."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.sources import PACKAGE
from harness.run import prepare, run
from harness.tasks.scoring import evaluate
from harness.training.batches import IGNORED, collator_for
from harness.training.evaluation import Subject

MICRO = PACKAGE / "pretrained/micro_decoder"
ROWS = [
    {"ask": "the bird", "about": "the sailor smiled .", "reply": "a bird and another"},
    {"ask": "the baker", "about": "", "reply": "the baker"},
]
OPTIONS = [
    "task=instruction",
    "task.name=mine",
    "task.data_dir=.",
    "task.prompt='{about} {ask} ?'",
    "task.prompt_without_input='{ask} ?'",
    "task.input=about",
    "task.answer='{reply}'",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MICRO)


def task_of(*overrides: str) -> Any:
    return build(compose("config", [*OPTIONS, *overrides])).task


def test_the_loss_counts_the_answer_and_the_end_of_sequence(tokenizer: Any) -> None:
    """Tokens of the prompt are ignored, with an input or without."""
    first, second = task_of().encode(ROWS, tokenizer)
    assert tokenizer.convert_ids_to_tokens(first["input_ids"]) == (
        "<s> the sailor smiled . the bird ? a bird and another </s>".split()
    )
    assert first["labels"] == [IGNORED] * 8 + first["input_ids"][8:]
    assert (first["length"], first["weight"], first["cut"]) == (13, 5, False)
    assert tokenizer.convert_ids_to_tokens(second["prompt_ids"]) == ["<s>", "the", "baker", "?"]


def test_an_answer_is_cut_at_its_end_and_then_whole(tokenizer: Any) -> None:
    """The first prompt has eight tokens."""
    (row,) = task_of("task.max_length=10").encode(ROWS[:1], tokenizer)
    assert (row["weight"], row["cut"], row["length"]) == (2, True, 10)
    (row,) = task_of("task.max_length=8").encode(ROWS[:1], tokenizer)
    assert (row["weight"], row["cut"]) == (0, False)


class Uneven(torch.nn.Module):
    """Gives the token 5 three times the odds of every other, whatever it reads."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.zeros(*input_ids.shape, 10)
        logits[..., 5] = math.log(3)
        return SimpleNamespace(logits=logits)


def test_loss_and_perplexity_by_hand() -> None:
    """Of ten tokens one has 3 chances of 12: answers [5, 2] and [5] cost ln 4 + ln 12 and ln 4 over three tokens."""
    features = [
        {"input_ids": [1, 3, 5, 2], "labels": [IGNORED, IGNORED, 5, 2], "length": 4, "weight": 2},
        {"input_ids": [1, 5], "labels": [IGNORED, 5], "length": 2, "weight": 1},
    ]
    backbone: Any = SimpleNamespace(model=Uneven(), architecture=SimpleNamespace(decoder=True), kind=task_of().kind)
    collate = collator_for(backbone, SimpleNamespace(pad_token_id=0), torch.device("cpu"))  # type: ignore[arg-type]
    subject = Subject(SimpleNamespace(model=backbone.model), None, collate, 2, None)  # type: ignore[arg-type]
    found = evaluate(task_of(), subject, features, ROWS)
    loss = (2 * math.log(4) + math.log(12)) / 3
    assert found.scores["loss"] == pytest.approx(loss, rel=1e-6)
    assert found.scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert found.columns["loss"] == pytest.approx([(math.log(4) + math.log(12)) / 2, math.log(4)], rel=1e-6)
    assert found.columns["tokens"] == [2, 1]


def test_packed_instructions_do_not_see_each_other(tokenizer: Any) -> None:
    """Each token's logits are those of its instruction alone."""
    task = task_of("task.packing=true", "task.max_length=40")
    features = task.encode(ROWS, tokenizer)
    (packed,) = task.train_on(features)
    assert packed["weight"] == sum(row["weight"] for row in features)
    assert packed["position_ids"] == [*range(13), *range(7)]
    model = AutoModelForCausalLM.from_pretrained(MICRO).eval()
    backbone: Any = SimpleNamespace(model=model, architecture=SimpleNamespace(decoder=True), kind=task.kind)
    collate = collator_for(backbone, tokenizer, torch.device("cpu"))
    with torch.no_grad():
        together = model(**collate([packed], [0]).inputs, use_cache=False)
        alone = [model(**collate(features, [index]).inputs) for index in range(2)]
    assert torch.allclose(together.logits[0], torch.cat([one.logits[0] for one in alone]), atol=1e-4)
    mean = sum(one.loss * row["weight"] for one, row in zip(alone, features, strict=True)) / packed["weight"]
    assert together.loss == pytest.approx(float(mean), rel=1e-4)


def test_a_conversation_is_written_by_its_template(tokenizer: Any) -> None:
    """The answer and its end have the weight."""
    template = (
        "{% for m in messages %}{{ '<s>' if m.role == 'user' else '' }} {{ m.content }} "
        "{{ '?' if m.role == 'user' else '</s>' }}{% endfor %}"
    )
    task = task_of(f'task.chat_template="{template}"', "task.prompt='{ask}'", "task.prompt_without_input=null")
    first, _ = task.encode(ROWS, tokenizer)
    assert tokenizer.convert_ids_to_tokens(first["input_ids"]) == ("<s> the bird ? a bird and another </s>".split())
    assert first["weight"] == 5


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["task.prompt='{ask.__class__}'"], "is not the name of a column alone"),
        (["task.prompt='{ask'"], "task.prompt: "),
        (["task.prompt=hello"], "no column in braces"),
        (["task.input=null"], "task.input=null"),
        (["task.options=[yes,yes]"], "two different answers"),
        (["task.max_new_tokens=8"], "task.metrics=[]"),
        (["task.metrics=[exact_match]"], "set task.max_new_tokens"),
        (["task.metrics=[exact_mach]", "task.max_new_tokens=8"], "did you mean exact_match"),
        (["task.primary_metric=accuracy"], "not among loss, perplexity"),
        (["task.system=hello"], "only a conversation has one"),
        (["task.max_new_tokens=0", "task.metrics=[exact_match]"], "task.max_new_tokens=0"),
    ],
)
def test_settings_that_can_not_be_right_are_refused(overrides: list[str], told: str) -> None:
    """Each is named with what is allowed."""
    with pytest.raises(ConfigError, match=re.escape(told)):
        task_of(*overrides)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"ask": " ", "about": "", "reply": "a bird"}, "the prompt is empty (ask)"),
        ({"ask": "the bird", "about": "", "reply": " "}, "the answer is empty (reply)"),
        ({"ask": "the bird", "about": "", "reply": {"a": 1}}, "reply={'a': 1} is not text"),
        ({"ask": "the bird", "about": ""}, "no column 'reply'"),
    ],
)
def test_rows_that_can_not_be_used_are_named(row: dict[str, Any], told: str) -> None:
    """An empty prompt or answer, a value that is no text, a missing column."""
    for split in ("train", "validation"):
        pd.DataFrame([row]).to_json(f"{split}.jsonl", orient="records", lines=True)
    with pytest.raises(ConfigError, match=re.escape(told)):
        task_of().load()


def test_an_answer_that_is_no_option_is_refused() -> None:
    """The sentence has the row and the key."""
    for split in ("train", "validation"):
        pd.DataFrame(ROWS).to_json(f"{split}.jsonl", orient="records", lines=True)
    with pytest.raises(ConfigError, match=r"row 1: 'a bird and another' is none of task\.options"):
        task_of("task.options=[the baker,the bird]").load()


def test_what_cannot_be_a_conversation_is_told(tokenizer: Any) -> None:
    """A missing template, one with an error, and one that changes what stands before the answer."""
    with pytest.raises(ConfigError, match="has no chat template"):
        task_of("task.chat_template=tokenizer").encode(ROWS, tokenizer)
    with pytest.raises(ConfigError, match="can't be used"):
        task_of("task.chat_template='{% for %}'").encode(ROWS, tokenizer)
    other_words = '{{ "bird" if messages | length == 1 else "baker" }}'
    with pytest.raises(ConfigError, match="does not begin as it does without"):
        task_of(f"task.chat_template='{other_words}'").encode(ROWS, tokenizer)


SMALL = [
    "model=micro_decoder",
    "tracking=none",
    "task.max_train_rows=32",
    "task.generator_rows.development=8",
    "task.generator_rows.validation=16",
    "train.epochs=1",
    "forgetting.tokens=256",
]


@pytest.mark.slow
def test_a_run_keeps_its_answers_and_says_what_the_backbone_knew(tmp_path: Path) -> None:
    """Recorded scores are the means of the kept rows, and the backbone is scored alike."""
    result = run(prepare(compose("config", [*SMALL, "task=instruct/micro"])), tmp_path / "run")
    assert result.status == "finished", result.error
    kept = pd.read_parquet(tmp_path / "run/predictions.parquet")
    assert {"prompt", "label", "prediction", "loss", "tokens", "exact_match", "token_f1"} <= set(kept)
    of_validation = kept[kept["split"] == "validation"]
    assert result.scores["validation"]["exact_match"] == pytest.approx(of_validation["exact_match"].mean())
    mean = (of_validation["loss"] * of_validation["tokens"]).sum() / of_validation["tokens"].sum()
    assert result.scores["validation"]["loss"] == pytest.approx(mean)
    assert set(result.scores["base"]) == set(result.scores["validation"])
    assert result.scores["forgetting"]["metric"] == "perplexity"
    assert result.cost["generated_tokens_per_second"] > 0


def test_a_run_whose_answers_are_all_cut_off_is_refused(tmp_path: Path) -> None:
    """The sentence names task.max_length."""
    inputs = prepare(compose("config", [*SMALL, "task=instruct/micro", "task.max_length=4"]))
    with pytest.raises(ConfigError, match=r"task\.max_length=4: it cuts the answer off every one of"):
        run(inputs, tmp_path / "run")


@pytest.mark.slow
def test_options_are_chosen_by_their_likelihood(tmp_path: Path) -> None:
    """The chosen option is the one that costs the model least behind the prompt, counted one by one."""
    rows = [{"ask": "the bird", "about": "", "reply": reply} for reply in ("the baker", "a bird and another")] * 4
    for split in ("train", "validation"):
        pd.DataFrame(rows).to_json(tmp_path / f"{split}.jsonl", orient="records", lines=True)
    options = [
        f"task.data_dir={tmp_path}",
        "task.options=[the baker,a bird and another]",
        "task.primary_metric=accuracy",
    ]
    overrides = ["model=micro_decoder", "tracking=none", *OPTIONS, *options, "task.development_share=0.5"]
    rest = ["task.max_length=32", "train.max_steps=1", "train.learning_rate=1e-9", "forgetting.text=null"]
    result = run(prepare(compose("config", [*overrides, *rest])), tmp_path / "run")
    assert result.status == "finished", result.error
    kept = pd.read_parquet(tmp_path / "run/predictions.parquet").query("split == 'validation'")
    tokenizer, model = AutoTokenizer.from_pretrained(MICRO), AutoModelForCausalLM.from_pretrained(MICRO).eval()
    task, likelihoods = task_of(), {}
    for option in ("the baker", "a bird and another"):
        (row,) = task.encode([{**rows[0], "reply": option}], tokenizer)
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            steps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :]
        likelihoods[option] = (float(steps.sum()), float(steps.mean()))
    by_whole, by_mean = (max(likelihoods, key=lambda name: likelihoods[name][place]) for place in range(2))
    assert set(kept["prediction.accuracy"]) == {by_whole}
    assert set(kept["prediction.accuracy_normalized"]) == {by_mean}
    assert result.scores["validation"]["accuracy"] == 0.5


def test_packed_instructions_take_no_virtual_tokens(tmp_path: Path) -> None:
    """They would stand in front of a whole row, not of each instruction in it."""
    options = ["task=instruct/micro", "task.packing=true", "method=prompt_tuning"]
    with pytest.raises(ConfigError, match=r"task\.packing=true: method=prompt_tuning puts virtual tokens"):
        run(prepare(compose("config", [*SMALL, *options])), tmp_path / "run")


@pytest.mark.slow
def test_a_packed_run_learns(tmp_path: Path) -> None:
    """The loss falls below the backbone's, with little padding."""
    options = ["task=instruct/micro", "task.packing=true", "train.batch_size=4", "train.epochs=4", "method=full"]
    result = run(prepare(compose("config", [*SMALL, *options])), tmp_path / "run")
    assert result.status == "finished", result.error
    assert result.scores["validation"]["loss"] < result.scores["base"]["loss"]
    assert result.cost["padding_share"] < 0.2


@pytest.mark.slow
def test_the_best_weights_of_a_loss_are_those_of_the_lowest(tmp_path: Path) -> None:
    """The recorded loss is the least of the log."""
    options = ["task=instruct/micro", "task.primary_metric=loss", "train.learning_rate=0.05", "method=full"]
    more = ["train.epochs=4", "train.evaluations_per_epoch=2", "train.batch_size=8"]
    result = run(prepare(compose("config", [*SMALL, *options, *more])), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/steps.jsonl").read_text().splitlines()]
    losses = [line["development.loss"] for line in lines if "development.loss" in line]
    assert len(set(losses)) > 2
    assert result.scores["development"]["loss"] == min(losses)
