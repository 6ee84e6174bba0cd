"""Running text is cut into pieces for training and scored once per token."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.sources import PACKAGE
from harness.run import prepare, run
from harness.tasks import sources
from harness.training.batches import IGNORED

MICRO = PACKAGE / "pretrained/micro_decoder"


def task_of(*overrides: str) -> Any:
    return build(compose("config", ["task=lm/text", "task.data_dir=.", *overrides])).task


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MICRO)


def test_a_document_is_cut_into_pieces_that_leave_out_no_token(tokenizer: Any) -> None:
    """Tokens that two pieces share are scored in the first alone."""
    task = task_of("task.max_length=4", "task.stride=2")
    pieces = task.encode([{"text": "the bird and the baker ."}], tokenizer)
    tokens = [tokenizer.convert_ids_to_tokens(piece["input_ids"]) for piece in pieces]
    assert tokens == [["<s>", "the", "bird", "and"], ["the", "baker", ".", "</s>"]]
    assert [piece["labels"][0] for piece in pieces] == [IGNORED, IGNORED]
    assert [piece["weight"] for piece in pieces] == [3, 3]


ROWS = [{"text": "a b\n"}, {"text": "c\n"}, {"text": "\n"}, {"text": "d e\n"}]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [("whole", ["a b\nc\n\nd e"]), ("paragraph", ["a b\nc", "d e"]), ("row", ["a b\n", "c\n", "d e\n"])],
)
def test_what_one_text_is_can_be_told(documents: str, expected: list[str]) -> None:
    """The whole file, a paragraph or a row."""
    assert task_of(f"task.documents={documents}").texts(ROWS) == expected


@pytest.mark.parametrize(
    ("documents", "expected"),
    [("whole", ["a b.\nc\nd"]), ("paragraph", ["a b.", "c\nd"]), ("row", ["a b.", "c\n", "d"])],
)
def test_rows_that_do_not_end_a_line_are_parted(documents: str, expected: list[str]) -> None:
    """A line break is put between two such rows."""
    rows = [{"text": "a b."}, {"text": "c\n"}, {"text": "d"}]
    assert task_of(f"task.documents={documents}").texts(rows) == expected


@pytest.mark.parametrize("documents", ["whole", "paragraph", "row"])
def test_a_text_is_the_same_however_its_lines_end(documents: str, tmp_path: Path) -> None:
    """Its paragraphs too, and what looks like a line's end to Unicode stays where it is."""
    text = "".join(f"one\x0c {number}\u2028\ntwo\n\n" for number in range(30))
    read = []
    for place, end in enumerate(("\n", "\r\n", "\r")):
        (tmp_path / f"{place}.txt").write_bytes(text.replace("\n", end).encode())
        read.append(task_of(f"task.documents={documents}").texts(sources.read_file(tmp_path / f"{place}.txt")))
    assert read[0] == read[1] == read[2]
    assert len(read[0]) == {"whole": 1, "paragraph": 30, "row": 60}[documents]
    assert "".join(read[0]).count("one\x0c ") == 30


@pytest.mark.parametrize("blank", ["\n\n", "\n \t\n", "\r\n\r\n", "\r\n \r\n", "\n\n \n\n"])
def test_paragraphs_are_parted_by_blank_lines(blank: str) -> None:
    """Of cells too, which keep their ends of lines; a line of spaces is blank, and what is indented stays so."""
    rows = [{"text": f"{blank}a b{blank}  c{blank}"}]
    assert task_of("task.documents=paragraph").texts(rows) == ["a b", "  c"]


def test_texts_that_were_parted_otherwise_have_another_revision(tmp_path: Path) -> None:
    """Paragraphs once ended at no line of spaces; what is one text as a whole is as it was."""
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text("a\n \nb\n")
    folder = f"task.data_dir={tmp_path}"
    whole, row, paragraph = (task_of(folder, f"task.documents={one}") for one in ("whole", "row", "paragraph"))
    assert whole.revision() == row.revision() != paragraph.revision()


def test_the_end_of_a_running_text_is_set_aside(tmp_path: Path) -> None:
    """The development split is its last lines, whatever the number of training rows."""
    lines = [f"line {number}\n" for number in range(40)]
    (tmp_path / "train.txt").write_text("".join(lines))
    (tmp_path / "validation.txt").write_text("other\n")
    data = task_of(f"task.data_dir={tmp_path}", "task.max_train_rows=10").load()
    assert [row["text"] for row in data.splits["development"]] == lines[-2:]
    assert [row["text"] for row in data.splits["train"]] == lines[:10]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["task.stride=256"], "task.stride=256: from 1 to task.max_length - 1 = 255"),
        (["task.metrics=[accuracy]"], "running text is scored by loss"),
        (["task.primary_metric=accuracy"], "not among loss, perplexity"),
        (["task.documents=page"], "task.documents"),
    ],
)
def test_settings_that_can_not_be_right_are_refused(overrides: list[str], told: str) -> None:
    """Each is named with what is allowed."""
    with pytest.raises(ConfigError, match=told):
        task_of(*overrides)


def test_a_text_shorter_than_a_window_is_refused(tokenizer: Any) -> None:
    """The sentence has the number of tokens."""
    with pytest.raises(ConfigError, match=r"task.max_length=256: a split of task=lm/text has 4 tokens"):
        task_of().encode([{"text": "the bird"}], tokenizer)


def test_a_text_of_one_line_can_not_be_split(tmp_path: Path) -> None:
    """There is nothing to set aside."""
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text("one line")
    with pytest.raises(ConfigError, match="1 lines of training text can't be split"):
        task_of(f"task.data_dir={tmp_path}").load()


SMALL = [
    "model=micro_decoder",
    "tracking=none",
    "task=lm/micro",
    "task.generator_rows={train: 64, development: 8, validation: 24}",
    "train.epochs=1",
    "forgetting.tokens=256",
]


def carry_out(folder: Path, *overrides: str) -> Any:
    result = run(prepare(compose("config", [*SMALL, *overrides])), folder)
    assert result.status == "finished", result.error
    return result


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        ("lora", "lora", "merged"),
        pytest.param("full", "houlsby", "merged", marks=pytest.mark.slow),
        pytest.param("houlsby", "lora", "stacked", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_from_an_earlier_one(first: str, second: str, how: str, tmp_path: Path) -> None:
    """The backbone of the later run, its adapter off, scores what the earlier run ended with."""
    earlier = carry_out(tmp_path / "first", f"method={first}")
    onward = [f"model.path={tmp_path}/first/adapter", f"model.earlier_adapter={how}", f"method={second}"]
    later = carry_out(tmp_path / "second", *onward)
    for name, score in earlier.scores["validation"].items():
        assert later.scores["base"][name] == pytest.approx(score, rel=1e-4)
    assert later.scores["forgetting"]["before"] == pytest.approx(earlier.scores["forgetting"]["after"], rel=1e-4)
    assert later.identity != earlier.identity


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "how", "told"),
    [
        ("houlsby", "merged", "houlsby can't be merged.*model.earlier_adapter=stacked may do"),
        ("lora", "stacked", "lora is woven into the model.*model.earlier_adapter=merged may do"),
    ],
)
def test_an_earlier_adapter_that_can_not_be_put_on_so_is_told(method: str, how: str, told: str, tmp_path: Path) -> None:
    """The sentence offers the other way."""
    carry_out(tmp_path / "first", f"method={method}", "train.max_steps=1")
    onward = [*SMALL, f"model.path={tmp_path}/first/adapter", f"model.earlier_adapter={how}"]
    with pytest.raises(ConfigError, match=told):
        run(prepare(compose("config", onward)), tmp_path / "second")


@pytest.mark.slow
def test_a_classifiers_adapter_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    """Only language models are trained on."""
    small = ["task.max_train_rows=32", "task.generator_rows={train: 32, development: 8, validation: 8}"]
    overrides = ["model=micro_decoder", "tracking=none", *small, "train.max_steps=1", "forgetting.text=null"]
    run(prepare(compose("config", overrides)), tmp_path / "first")
    with pytest.raises(ConfigError, match="only language models are trained on from an earlier adapter"):
        run(prepare(compose("config", [*SMALL, f"model.path={tmp_path}/first/adapter"])), tmp_path / "second")
