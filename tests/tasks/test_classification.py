"""Every task of conf/task/ composes, reads rows, and refuses rows that can't be right."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf

from harness.config.build import build, component
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.sources import conf_root
from harness.report.comparison import read_predictions
from harness.tasks.leakage import overlap
from harness.tasks.scoring import row_ids, write_predictions
from harness.training.evaluation import Evaluation

FOLDER = conf_root() / "conf/task"
TASKS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*/*.yaml"))
GLUE_BY_HAND = {
    "cola": {"sentence": "text"},
    "sst2": {"sentence": "text"},
    "mrpc": {"sentence1": "text", "sentence2": "more"},
    "stsb": {"sentence1": "text", "sentence2": "more"},
    "qqp": {"question1": "text", "question2": "more"},
    "mnli": {"premise": "text", "hypothesis": "more"},
    "qnli": {"question": "text", "sentence": "more"},
    "rte": {"sentence1": "text", "sentence2": "more"},
    "wnli": {"sentence1": "text", "sentence2": "more"},
}


MINE = ("classification", "task.name=mine", "task.text=s")


def task_of(name: str, *overrides: str):
    return build(compose("config", [f"task={name}", *overrides])).task


def test_every_named_task_is_there() -> None:
    """GLUE and the micro tasks have their files."""
    assert {f"glue/{name}" for name in GLUE_BY_HAND} <= set(TASKS)
    assert {f"micro/{name}" for name in ("sentiment", "acceptability", "entailment", "paraphrase")} <= set(TASKS)


def version_of(name: str) -> int:
    """Above 1 where a result changed: texts compared, options chosen, lines read, pairs, which decoders now part."""
    pairs = {f"glue/{task}" for task, columns in GLUE_BY_HAND.items() if len(columns) == 2}
    pairs |= {"micro/entailment", "micro/paraphrase"}
    if name in ("lm/text", "instruct/arc_easy"):
        return 3
    return 2 if name.startswith("instruct/") or name in pairs else 1


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_named_after_its_file_and_has_a_version(name: str) -> None:
    """Both come from its YAML."""
    # Some have no copy on the Hub: they are for files.
    task = task_of(name, "task.data_dir=.")
    assert (task.name, task.version) == (name, version_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [task for task in TASKS if task.startswith("micro/")])
def test_a_generated_task_loads_without_overlap(name: str) -> None:
    """No text of one split is in another."""
    data = task_of(name).load()
    assert {"train", "development", "validation"} <= set(data.splits)
    assert all(shares["exact"] == 0 for shares in data.notes["overlap"].values())


@pytest.mark.parametrize("name", sorted(GLUE_BY_HAND))
def test_a_glue_task_reads_local_files_with_the_hubs_columns(name: str, tmp_path: Path) -> None:
    """A tenth of the training rows becomes the development split."""
    classes = 3 if name == "mnli" else 2
    for split in ("train", "validation"):
        rows = [
            {**GLUE_BY_HAND[name], "label": number / 8 if name == "stsb" else number % classes, "idx": number}
            for number in range(40)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = task_of(f"glue/{name}", f"task.data_dir={tmp_path}").load()
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 36,
        "development": 4,
        "validation": 40,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(GLUE_BY_HAND) - {"qnli"}))
def test_a_glue_task_reads_the_real_files(name: str, real_data: Path) -> None:
    """The majority answer has every metric of the task."""
    task = task_of(f"glue/{name}", f"task.data_dir={real_data}/glue/{name}", "task.max_train_rows=100")
    data = task.load()
    assert len(data.splits["train"]) == 100
    majority = task.majority(data, "validation")
    assert set(majority) == set(task.metrics)


def test_mnli_scores_matched_and_mismatched(tmp_path: Path) -> None:
    """It has a split of each."""
    rows = [{**GLUE_BY_HAND["mnli"], "label": number % 3} for number in range(40)]
    for split in ("train", "validation_matched", "validation_mismatched"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = task_of("glue/mnli", f"task.data_dir={tmp_path}").load()
    assert set(data.splits) == {"train", "development", "validation", "mismatched"}


@pytest.fixture
def sst2(tmp_path: Path) -> Callable[..., Path]:
    """Writes train and validation files of good rows, then one bad row into the validation file."""

    def write(**bad: object) -> Path:
        good = [{"sentence": f"sentence {number}", "label": number % 2} for number in range(40)]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good))
        rows = [*good[:2], {"sentence": "the bad one", "label": 0, **bad}]
        (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"label": 2}, r"validation\.jsonl, row 3: label=2; a whole number from 0 to 1 is allowed"),
        ({"label": -1}, r"row 3: label=-1; .*the label is hidden, as in GLUE's test files"),
        ({"label": 0.5}, r"row 3: label=0\.5"),
        ({"label": None}, r"row 3: label=None"),
        ({"sentence": None}, r"row 3: sentence=None is not text"),
    ],
)
def test_a_bad_row_is_named(bad: dict, sentence: str, sst2: Callable[..., Path]) -> None:
    """The sentence has the file, the row and what is allowed."""
    with pytest.raises(ConfigError, match=sentence):
        task_of("glue/sst2", f"task.data_dir={sst2(**bad)}").load()


def test_a_missing_column_is_named_with_near_misses(sst2: Callable[..., Path]) -> None:
    """A misspelled column is answered with its correction."""
    with pytest.raises(ConfigError, match=r"no column 'sentense'; did you mean sentence\?"):
        task_of("glue/sst2", f"task.data_dir={sst2()}", "task.text=[sentense]").load()


def test_a_number_that_is_none_is_refused_for_a_regression(sst2: Callable[..., Path]) -> None:
    """An empty label needs a number."""
    options = ["task.text=[sentence]", f"task.data_dir={sst2(label=None)}"]
    with pytest.raises(ConfigError, match="label=None; a number is needed"):
        task_of("glue/stsb", *options).load()


def test_the_majority_answer_is_the_training_rows_commonest() -> None:
    """Its score is taken on the other split."""
    task = task_of("glue/sst2")
    rows = [{"sentence": "x", "label": int(number < 7)} for number in range(10)]
    from harness.tasks import TaskData

    data = TaskData({"train": rows, "validation": rows[:8]}, "")
    assert task.majority(data, "validation") == {"accuracy": 7 / 8}


def test_a_revision_follows_the_files(sst2: Callable[..., Path]) -> None:
    """One more row gives another."""
    folder = sst2()
    task = task_of("glue/sst2", f"task.data_dir={folder}")
    before = task.revision()
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"sentence": "one more", "label": 0}\n')
    assert task.revision() != before


def test_a_pair_is_cut_to_the_length_and_keeps_its_segments() -> None:
    """Both texts are still there in every row."""
    from harness.models import load_tokenizer, resolve

    experiment = build(compose("config", ["task=micro/entailment", "task.max_length=12"]))
    from harness.models.architectures import BERT

    tokenizer = load_tokenizer(resolve(experiment.model), BERT)
    rows = experiment.task.load().splits["validation"][:50]
    features = experiment.task.encode(rows, tokenizer)
    assert max(len(row["input_ids"]) for row in features) <= 12
    assert {segment for row in features for segment in row["token_type_ids"]} == {0, 1}


def test_an_empty_text_that_gives_no_tokens_is_refused() -> None:
    """The sentence names the task."""
    task = replace(task_of("glue/sst2"), name="mine")

    def tokenizer(*columns: list[str], **_: object) -> dict[str, list]:
        return {"input_ids": [[] for _ in columns[0]]}

    with pytest.raises(ConfigError, match="task=mine: '' gives no tokens"):
        task.encode([{"sentence": "", "label": 0}], tokenizer)


def test_overlap_counts_whole_texts_and_runs_of_words() -> None:
    """Case and punctuation do not count."""
    train = ["One two three four five six seven eight nine.", "a b"]
    evaluation = ["one TWO three four five six seven eight", "A, b!", "nothing of the kind", "b a"]
    assert overlap(train, evaluation) == {"exact": 1 / 4, "8-gram": 1 / 4}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["task=glue/mnli", "task.metrics=[accuracy,f1]"],
            "metrics=f1: it is of two classes, and there are 3; f1_macro",
        ),
        (["task=glue/rte", "task.metrics=[accuracy,pearson]"], "metrics=pearson: it compares numbers, and a class"),
        (["task=glue/stsb", "task.metrics=[pearson,accuracy]"], "metrics=accuracy: it compares classes, and a number"),
        (["task=glue/rte", "task.metrics=[accuracy,rouge_l]"], "metrics=rouge_l: it compares texts, and a class"),
        (["model=micro_decoder", "task=instruct/micro", "task.metrics=[exact_match,f1]"], "metrics=f1: texts are"),
    ],
)
def test_a_metric_belongs_to_a_kind_of_answer(overrides: list[str], sentence: str) -> None:
    """What can't be meant is refused before anything is read."""
    with pytest.raises(ConfigError, match=sentence):
        build(compose("config", overrides))


def test_overlap_sees_marks_and_scripts_without_spaces() -> None:
    """Words that differ in a vowel sign are two; eight Chinese characters are a run as eight words are."""
    assert overlap(["\u0915\u0940"], ["\u0915\u0947"])["exact"] == 0
    assert (
        overlap(
            ["\u5c71\u9ad8\u6c34\u957f\u65e5\u6708\u661f\u8fb0\u3002"],
            ["\u770b\u5c71\u9ad8\u6c34\u957f\u65e5\u6708\u661f\u8fb0"],
        )["8-gram"]
        == 1
    )


@pytest.mark.parametrize(
    ("labels", "values", "classes"),
    [
        ("[sad,glad]", ["glad", " sad"], [1, 0]),
        ("[sad,glad]", ["1", "0"], [1, 0]),
        ("[sad,glad]", [True, False], [1, 0]),
        ("[sad,glad]", [1.0, 0], [1, 0]),
        ("['2','1']", [1, "2"], [1, 0]),  # names that are numbers are names
        ("['true','false']", [True, False], [0, 1]),
        ("['yes','no']", [True, False], [0, 1]),
        ("[Y,N]", [True, False], [0, 1]),
        ("['1','0']", [True, False], [0, 1]),
        ("[n,p]", [True, False], [1, 0]),
        ("[bad,'1','2']", [1, 2], [1, 2]),
        ("[x,'0','1']", [0, 1.0], [1, 2]),
        ("['1','2']", [1.0, "2.0"], [0, 1]),
        ("['1152921504606846976','1152921504606846977']", [2**60 + 1, 2**60], [1, 0]),
    ],
)
def test_a_class_is_told_by_its_name_or_its_place(
    labels: str, values: list, classes: list[int], tmp_path: Path
) -> None:
    """Names, numbers and truth values are understood as the file has them."""
    for split in ("train", "validation"):
        rows = [{"s": f"text {number}", "label": values[number % 2]} for number in range(20)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_of(*MINE, f"task.data_dir={tmp_path}", f"task.labels={labels}")
    assert [row["label"] for row in task.load().splits["validation"][:2]] == classes


@pytest.mark.parametrize(
    ("labels", "value", "sentence"),
    [
        ("['2','1']", 0, r"label='0' is none of task\.labels=\['2', '1'\]"),  # no place where names are numbers
        ("[x,'0','1']", 2, r"label='2' is none of"),
        ("['2','1']", -1, r"label='-1' .*the label is hidden"),
        ("['yes','maybe']", True, ""),
        ("['yes','maybe']", False, r"label=False is none of .*; name the classes false and true"),
        ("[a,b,c]", True, r"label=True is none of .*; name the classes false and true"),
        ("[a,b]", ["a"], r"label=\['a'\] is a list; an answer is a text"),
        ("[a,b]", {"a": 1}, r"label=\{'a': 1\} is an object; an answer is a text"),
        ("[a,b]", 10**400, "label=10+ is none of"),
    ],
)
def test_a_value_that_means_no_class_is_refused(labels: str, value: object, sentence: str, tmp_path: Path) -> None:
    """With what it might have meant."""
    for split in ("train", "validation"):
        rows = [{"s": f"text {number}", "label": value} for number in range(20)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_of(*MINE, f"task.data_dir={tmp_path}", f"task.labels={labels}")
    if sentence:
        with pytest.raises(ConfigError, match=sentence):
            task.load()
    else:
        assert task.load().splits["validation"][0]["label"] == 0


def test_two_classes_of_one_name_are_refused() -> None:
    """The second would never occur."""
    with pytest.raises(ConfigError, match=r"task\.labels=\['a', 'b', 'a'\]: two classes have one name"):
        task_of(*MINE, "task.data_dir=.", "task.labels=[a,b,a]")


def test_numbers_written_as_text_are_a_regressions(tmp_path: Path) -> None:
    """Text that looks like a number stays text."""
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("s,label\n" + "".join(f"007,{number / 4}\n" for number in range(20)))
    options = ["task.labels=[]", "task.metrics=[pearson]", "task.primary_metric=pearson"]
    data = task_of(*MINE, f"task.data_dir={tmp_path}", *options).load()
    assert data.splits["validation"][:2] == [{"s": "007", "label": 0.0}, {"s": "007", "label": 0.25}]


def test_classes_that_the_file_names_otherwise_are_refused(tmp_path: Path) -> None:
    """In another order they are put right, by other names they are refused."""
    import datasets

    features = datasets.Features({"s": datasets.Value("string"), "label": datasets.ClassLabel(names=["glad", "sad"])})
    rows = {"s": [f"text {number}" for number in range(20)], "label": [0, 1] * 10}
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / f"{split}.parquet")
    in_other_order = task_of(*MINE, f"task.data_dir={tmp_path}", "task.labels=[sad,glad]").load()
    assert [row["label"] for row in in_other_order.splits["validation"][:2]] == [1, 0]
    with pytest.raises(ConfigError, match=r"label='glad' is none of task\.labels=\['happy', 'unhappy'\]"):
        task_of(*MINE, f"task.data_dir={tmp_path}", "task.labels=[happy,unhappy]").load()


def test_yamls_yes_and_no_are_to_be_quoted(tmp_path: Path) -> None:
    """YAML reads them as truth values, and the sentence says so."""
    plain = OmegaConf.to_container(compose("config", ["task=glue/sst2"]).task)
    assert isinstance(plain, dict)
    for key in ("labels", "text"):
        given = {**plain, key: yaml.safe_load("[no, yes]")}
        with pytest.raises(ConfigError, match=rf"task\.{key}=\[false, true\]: false is no text; YAML reads yes, no"):
            component(given, "task")


def test_rows_numbered_in_two_ways_keep_their_predictions(tmp_path: Path) -> None:
    """Numbers and names stand in one column as text."""
    rows = {"train": [{"idx": 0}, {"idx": 1}], "validation": [{"idx": "dev-0"}]}
    found = {split: Evaluation({}, {"label": [0] * len(given)}) for split, given in rows.items()}
    write_predictions(tmp_path / "predictions.parquet", found, rows)
    assert pd.read_parquet(tmp_path / "predictions.parquet")["idx"].tolist() == ["0", "1", "dev-0"]


def test_rows_of_one_number_are_told_apart(tmp_path: Path) -> None:
    """As of two files that each count from zero: reports read them, and pair each with its own of another run."""
    rows = {"validation": [{"idx": 0}, {"idx": 1}, {"idx": 0}, {}, {"idx": 1}, {"idx": 1}]}
    found = {"validation": Evaluation({}, {"label": list(range(6))})}
    write_predictions(tmp_path / "predictions.parquet", found, rows)
    kept = read_predictions(tmp_path)
    assert dict(zip(kept.index, kept["label"], strict=True)) == {"0": 0, "1": 1, "0-2": 2, "3": 3, "1-2": 4, "1-3": 5}
    assert row_ids([{"idx": 7}, {}, {"idx": 2}]) == [7, 1, 2]


def test_a_decoders_pairs_have_something_between_them() -> None:
    """The border between two texts is seen, the longer text is cut, and an encoder's own template stays."""
    from harness.config.sources import PACKAGE
    from harness.models import load_tokenizer
    from harness.models.architectures import BERT, LLAMA

    task = task_of("micro/entailment", "task.max_length=9")
    first, second = task.text
    texts = [("the bird", "and the baker"), ("the bird and", "the baker"), ("the bird " * 9, "the baker")]
    rows = [{first: one, second: other, "label": 0} for one, other in texts]
    decoder = load_tokenizer(PACKAGE / "pretrained/micro_decoder", LLAMA)
    found = [" ".join(decoder.convert_ids_to_tokens(row["input_ids"])) for row in task.encode(rows, decoder)]
    assert found[0].endswith("the bird </s> and the baker")
    assert found[1].endswith("the bird and </s> the baker")
    assert found[2].endswith("the bird the bird the </s> the baker") or found[2].endswith("bird </s> the baker")
    assert all(len(one.split()) <= 9 for one in found)
    encoder = load_tokenizer(PACKAGE / "pretrained/micro_encoder", BERT)
    plain = encoder("the bird", "and the baker", truncation=True, max_length=9)["input_ids"]
    assert task.encode(rows[:1], encoder)[0]["input_ids"] == plain
