"""Conversations, choices, numbers and gaps are read as they are meant; an answer ends where its template ends it."""

import json
from pathlib import Path
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
from harness.tasks import chat, conversations, templates
from harness.training.generation import generate

MICRO = PACKAGE / "pretrained/micro_decoder"
MESSAGES = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "the bird"},
    {"role": "assistant", "content": "a bird"},
    {"role": "user", "content": "another"},
    {"role": "assistant", "content": "the baker"},
]
ENDED = "{% for m in messages %}{{ m.role[0] + ' ' + m.content + ' ' + eos_token + ' ' }}{% endfor %}"


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MICRO)


def task_of(*overrides: str, task: str = "instruction") -> Any:
    given = [f"task={task}", "task.name=mine", "task.data_dir=.", "task.development_share=0.5", *overrides]
    return build(compose("config", given)).task


def write(rows: list[dict[str, Any]]) -> None:
    for split in ("train", "validation"):
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))


def first_row(task: Any) -> dict[str, Any]:
    return task.load().splits["validation"][0]


def words(ids: list[int], tokenizer: Any) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


OF_MESSAGES = ("task.prompt='{messages}'", "task.answer='{messages}'")


def test_a_conversations_last_answer_is_learned_given_what_stands_before() -> None:
    """The answer is the last message, the prompt all others."""
    write([{"messages": MESSAGES}])
    task = task_of(*OF_MESSAGES)
    row = first_row(task)
    assert task.shown(row) == "be kind\nthe bird\na bird\nanother"
    assert task.asked(row) == MESSAGES[:-1]
    assert task._answer(row) == "the baker"


def test_all_answers_of_a_conversation_are_a_row_each() -> None:
    """Each row has the messages before its answer."""
    write([{"messages": MESSAGES, "idx": 7}])
    task = task_of(*OF_MESSAGES, "task.turns=all")
    rows = task.load().splits["validation"]
    assert len(rows) == 8
    assert [task._answer(row) for row in rows[:2]] == ["a bird", "the baker"]
    assert [task.asked(row) for row in rows[:2]] == [MESSAGES[:2], MESSAGES[:4]]


def test_other_names_of_roles_and_parts_of_messages_are_known() -> None:
    """The roles human and gpt are user and assistant; a list of texts is no conversation."""
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "bird"}]
    told = [{"from": "human", "value": parts}, {"from": "gpt", "value": 3}]
    assert conversations.read(told) == [
        {"role": "user", "content": "the bird"},
        {"role": "assistant", "content": "3"},
    ]
    assert conversations.read(["a", "b"]) is None


def test_a_conversation_without_an_answer_is_named() -> None:
    """The sentence has the row and the column."""
    write([{"messages": MESSAGES[:-1]}])
    with pytest.raises(ConfigError, match=r"row 1: the answer is empty \(messages\); remove the row"):
        task_of(*OF_MESSAGES).load()


def test_a_conversation_has_its_own_system_turn_or_the_tasks(tokenizer: Any) -> None:
    """The row's comes first."""
    task = task_of(*OF_MESSAGES, f'task.chat_template="{ENDED}"', "task.system=brief")
    assert task.asked({"messages": MESSAGES})[0]["content"] == "be kind"
    assert task.asked({"messages": MESSAGES[1:]})[0]["content"] == "brief"
    (row,) = task.encode([{"messages": MESSAGES}], tokenizer)
    answer = words(row["input_ids"][-row["weight"] :], tokenizer)
    assert answer.endswith("the baker </s>")


@pytest.mark.parametrize("implicit", [True, False])
def test_preferences_may_be_conversations(implicit: bool, tokenizer: Any) -> None:
    """The prompt stands before both answers, or in a column of its own."""
    asked, chosen = MESSAGES[:2], MESSAGES[2:3]
    rejected = [{"role": "assistant", "content": "the baker"}]
    row = {"prompt": asked, "chosen": chosen, "rejected": rejected}
    if implicit:
        row = {"chosen": asked + chosen, "rejected": asked + rejected}
    write([row])
    column = "chosen" if implicit else "prompt"
    options = [f"task.prompt='{{{column}}}'", "task.input=null", "task.prompt_without_input=null"]
    task = task_of(*options, task="preference/pairs")
    (encoded,) = task.encode([first_row(task)], tokenizer)
    for side, expected in (("chosen", "a bird </s>"), ("rejected", "the baker </s>")):
        ids = encoded[side]["input_ids"]
        assert words(ids[-encoded[side]["weight"] :], tokenizer) == expected
    assert task.shown(first_row(task)) == "be kind\nthe bird"


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        (["the bird", "the baker"], 1, "the baker"),
        (["the bird", "the baker"], "the bird", "the bird"),
        (["3", 1], 1, "1"),  # an option before a place
        ({"text": ["the bird", "the baker"], "label": ["A", "B"]}, "B", "the baker"),
        (["2", "1", "3", "0"], 0, "2"),  # MMLU's: a number beside texts is a place
        (["2", "1", "3", "0"], "0", "0"),
        ([2, 1, 3, 0], 0, "0"),
        (["2", "1"], "0", "2"),
        (["\u00b2", "1"], "\u00b2", "\u00b2"),
        ({"text": ["2", "4", "6", "8"], "label": ["1", "2", "3", "4"]}, "2", "4"),  # ARC's: a label before a text
        ({"text": ["2", "4", "6", "8"], "label": [1, 2, 3, 4]}, 2, "4"),
        ({"text": ["2", "4"], "label": ["A", "B"]}, "2", "2"),
        ({"text": ["2", "1"], "label": None}, 1, "1"),
    ],
)
def test_a_row_may_bring_its_own_choices(choices: Any, answer: Any, expected: str) -> None:
    """The answer is one of them, its place or its label."""
    write([{"ask": "the", "choices": choices, "reply": answer}])
    task = task_of("task.prompt='{ask}'", "task.answer='{reply}'", "task.choices=choices")
    row = first_row(task)
    assert task._answer(row) == expected
    assert expected in task.options_of(row)


def test_an_answer_that_is_none_of_its_rows_choices_is_refused() -> None:
    """The sentence has the row and its choices."""
    write([{"ask": "the", "choices": ["a", "b"], "reply": 2}])
    with pytest.raises(ConfigError, match=r"row 1: '2' is none of its choices, a, b"):
        task_of("task.prompt='{ask}'", "task.answer='{reply}'", "task.choices=choices").load()


@pytest.mark.parametrize(
    ("choices", "answer", "sentence"),
    [
        (["7", "9"], 9, r"reply=9: beside options that are texts a whole number is a place, and .* has 0 to 1; write"),
        (["a", "b"], "\u00b2", "row 1: '\u00b2' is none of its choices"),
        (["a", "b"], -1, "row 1: '-1' is none of its choices"),
        (["1", "0"], True, "row 1: 'true' is none of its choices"),
    ],
)
def test_an_answer_that_could_mean_two_options_or_none_is_refused(choices: Any, answer: Any, sentence: str) -> None:
    """A column that has 9 as a text would have 1 as one too, and 1 is read as a place."""
    write([{"ask": "the", "choices": choices, "reply": answer}])
    with pytest.raises(ConfigError, match=sentence):
        task_of("task.prompt='{ask}'", "task.answer='{reply}'", "task.choices=choices").load()


def test_a_run_chooses_among_each_rows_choices(tmp_path: Path) -> None:
    """Every prediction is one of them."""
    write([{"ask": "the", "choices": ["the bird", "the baker", "a"], "reply": 1}])
    options = ["task.prompt='{ask}'", "task.answer='{reply}'", "task.choices=choices", "task.primary_metric=accuracy"]
    rest = ["model=micro_decoder", "tracking=none", "forgetting.text=null", "train.max_steps=1", "task.max_length=32"]
    given = ["task=instruction", "task.name=mine", f"task.data_dir={tmp_path}", "task.development_share=0.5"]
    result = run(prepare(compose("config", [*given, *options, *rest])), tmp_path / "run")
    assert result.status == "finished", result.error
    kept = pd.read_parquet(tmp_path / "run/predictions.parquet")
    assert set(kept["prediction"]) <= {"the bird", "the baker", "a"}
    assert set(kept["label"]) == {"the baker"}


def test_numbers_gaps_lists_and_names_with_spaces_are_a_templates() -> None:
    """Any value of a column becomes text."""
    write([{"Question Text": 7, "about": None, "parts": ["x", 2], "reply": 1.5}, {"Question Text": True, "reply": "a"}])
    task = task_of("task.prompt='{Question Text} {about} {parts}'", "task.answer='{reply}'")
    rows = task.load().splits["validation"]
    assert [task.shown(row) for row in rows[:2]] == ["7  x\n2", "true  "]
    assert task._answer(rows[0]) == "1.5"


@pytest.mark.parametrize(
    ("given", "meant"), [(r"{ask}\n", "{ask}\n"), (r"\t{ask}", "\t{ask}"), (r"{ask}\\nabla", r"{ask}\nabla")]
)
def test_a_backslash_and_an_n_are_a_lines_end(given: str, meant: str) -> None:
    """As on the command line, where Hydra leaves them be; two backslashes keep one."""
    assert templates.unescaped(given) == meant
    task = task_of(f'task.prompt="{given}"', "task.answer='{reply}'")
    assert task.prompt == meant
    assert task == task_of(f'task.prompt="{meant}"', "task.answer='{reply}'") or "nabla" in given


def test_a_template_that_merges_prompt_and_answer_is_cut_at_the_border() -> None:
    """A token that would span both is split between them."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: number for number, piece in enumerate(["<u>", "</s>", "u", ":", " ", "x", " x", "y"])}
    merging = Tokenizer(models.BPE(vocabulary, [(" ", "x")], unk_token="<u>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging, eos_token="</s>", unk_token="<u>")
    template = "{% for m in messages %}u: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}u: {% endif %}"
    asked = [{"role": "user", "content": "y"}]
    prompt, answer = chat.ids(asked, "x", template, tokenizer)
    assert tokenizer.convert_ids_to_tokens(prompt)[-3:] == ["u", ":", " "]
    assert tokenizer.convert_ids_to_tokens(answer) == ["x", "</s>"]


def test_a_template_that_ends_no_answer_is_refused(tokenizer: Any) -> None:
    """Without an end the model could not learn to stop."""
    template = "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
    task = task_of("task.prompt='{ask}'", "task.answer='{reply}'", f'task.chat_template="{template}"')
    with pytest.raises(ConfigError, match="writes nothing behind an answer, so none could end"):
        task.encode([{"ask": "the bird", "reply": "a bird"}], tokenizer)


def test_a_template_with_a_clock_writes_the_same_on_every_day(tokenizer: Any) -> None:
    """The date is a fixed one."""
    template = "{{ strftime_now('%Y') }} {% for m in messages %}{{ m.content }} </s>{% endfor %}"
    assert chat._write([{"role": "user", "content": "a"}], template, tokenizer).startswith("2024 a")


@pytest.mark.parametrize(("end", "is_token"), [("<s>", True), ("baker bird", False)])
def test_generation_ends_where_the_template_ends_an_answer(end: str, is_token: bool, tokenizer: Any) -> None:
    """At a token that is not the end of sequence, and at a text of several tokens; what stands before is as without."""
    template = "{% for m in messages %}{{ m.content }} " + end + " {% endfor %}"
    found = chat.end(template, tokenizer)
    assert (found.token is not None, found.text is None) == (is_token, is_token)
    model = AutoModelForCausalLM.from_pretrained(MICRO).eval()
    written = tokenizer("the bird " + end, add_special_tokens=False)["input_ids"]
    script = iter([*written, *written, *written])

    class Scripted(torch.nn.Module):
        """Says the script whatever it reads."""

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*hidden.shape[:-1], len(tokenizer))
            logits[..., next(script)] = 1
            return logits

    model.lm_head = Scripted()
    answers = generate(model, tokenizer, [[5, 6]], 12, 1, found)
    text = tokenizer.decode(answers.tokens[0])
    assert text == ("the bird" if is_token else f"the bird {end}")
    assert answers.new_tokens == len(written)


def test_an_options_end_counts(tokenizer: Any) -> None:
    """An option that goes on where another ends is not its rival's beginning alone."""
    task = task_of("task.prompt='{ask}'", "task.answer='{reply}'", "task.options=[the bird,the bird and another]")
    _, short = task.token_ids({"ask": "the"}, "the bird", tokenizer)
    _, long = task.token_ids({"ask": "the"}, "the bird and another", tokenizer)
    assert (words(short, tokenizer), words(long, tokenizer)) == ("the bird </s>", "the bird and another </s>")
