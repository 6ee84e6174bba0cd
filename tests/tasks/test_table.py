"""One table and one line: classes, splits and metrics are read from the rows, or what is missing is asked for."""

import csv
import datetime
import json
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import harness
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.plan import costs
from harness.run import prepare, run
from harness.tasks import splitting, values

KINDS = ["outage", "billing", "praise"]


def rows_of(count: int, **more: Any) -> list[dict[str, Any]]:
    words = {"outage": "the bird is sad", "billing": "the baker", "praise": "a kind sailor"}
    return [
        {
            "text": f"{words[KINDS[number % 3]]} {number}",
            "kind": KINDS[number % 3],
            "stars": number % 5 + 1,
            "price": number * 1.25,
            "urgent": number % 2 == 0,
            "customer": f"c{number % 10}",
            **{name: make(number) for name, make in more.items()},
        }
        for number in range(count)
    ]


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with Path(name).open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if name.endswith("tsv") else ",")
        table.writeheader()
        table.writerows(rows)


def table(file: str, label: str = "kind", *overrides: str) -> Any:
    return build(
        compose("config", ["task=table", f"task.file={file}", "task.text=text", f"task.label={label}", *overrides])
    ).task


@pytest.mark.parametrize(
    ("label", "labels", "metrics"),
    [
        ("kind", ["billing", "outage", "praise"], ["accuracy", "f1_macro"]),
        ("stars", ["1", "2", "3", "4", "5"], ["accuracy", "f1_macro"]),
        ("urgent", ["False", "True"], ["accuracy", "f1"]),
        ("price", [], ["pearson", "spearman"]),
    ],
)
def test_classes_and_metrics_are_read_from_the_column(label: str, labels: list[str], metrics: list[str]) -> None:
    """The record says what the answer was taken for, and why."""
    write("tickets.csv", rows_of(120))
    task = table("tickets.csv", label)
    assert (task.name, task.labels, task.metrics, task.primary_metric) == ("tickets", labels, metrics, metrics[0])
    data = task.load()
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 86,
        "development": 10,
        "validation": 24,
    }
    assert data.notes["answer"].startswith("a number, since its 120 values" if not labels else "classes, since its")


def test_classes_may_be_told_and_numbers_taken_for_classes() -> None:
    """What can't be read as asked is refused with an example."""
    write("tickets.csv", rows_of(120))
    assert table("tickets.csv", "kind", "task.labels=[praise,outage,billing]").labels == ["praise", "outage", "billing"]
    assert len(table("tickets.csv", "price", "task.predict=classes").labels) == 120
    assert table("tickets.csv", "stars", "task.predict=number").regression
    with pytest.raises(ConfigError, match=r"task\.predict=number: 'outage' in the column kind is none"):
        table("tickets.csv", "kind", "task.predict=number")


def written(labels: list[Any], name: str = "labels.jsonl", copies: int = 4) -> list[str]:
    """Write rows with these labels; the class that each label is read as."""
    rows = [{"text": f"text {number}", "label": labels[number % len(labels)]} for number in range(copies * len(labels))]
    if name.endswith("parquet"):
        pd.DataFrame(rows).to_parquet(name)
    else:
        write(name, rows)
    task = table(name, "label", "task.predict=classes")
    data = task.load()
    read = {row["text"]: task.labels[row["label"]] for rows in data.splits.values() for row in rows}
    return [read[f"text {number}"] for number in range(len(labels))]


@pytest.mark.parametrize(
    "labels",
    [
        ["unknown", "n/a", 1, 2],
        [True, False, 0, 1],
        ["1", "1.0", "02", 2.0],
        ["yes", "no", True, False],
        [2**60, 2**60 + 1],
        [0.5, 1.0, 1.5, 2.0],
        [-1, 1],
    ],
)
def test_a_labels_own_text_names_its_class_whatever_its_type(labels: list[Any]) -> None:
    """No number is taken for a place in the list, and none for another that a float can't tell from it."""
    assert written(labels) == [str(one).lower() for one in labels]


@pytest.mark.parametrize(
    "labels",
    [
        [np.float32(0.5), np.float32(1.5)],
        [datetime.date(2024, 1, 2), datetime.date(2023, 1, 2)],
        [Decimal("0.50"), Decimal("1.25")],
    ],
)
def test_a_parquet_files_numbers_and_dates_are_classes(labels: list[Any]) -> None:
    """As the same values in a CSV file are."""
    assert written(labels, "labels.parquet") == [str(one) for one in labels]


def test_decimals_are_numbers_to_predict() -> None:
    """A database's prices come so."""
    rows = [{"text": f"text {number}", "price": Decimal(number) / 4} for number in range(60)]
    pd.DataFrame(rows).to_parquet("prices.parquet")
    task = table("prices.parquet", "price")
    assert task.regression
    found = {row["text"]: row["price"] for rows in task.load().splits.values() for row in rows}
    assert found["text 5"] == 1.25


@pytest.mark.parametrize(
    ("label", "what"), [(["a"], "a list stands there"), ({"a": 1}, "an object stands"), (b"a", "bytes stands there")]
)
def test_a_label_that_holds_several_values_is_refused_by_its_type(label: Any, what: str) -> None:
    """What a label may be instead is said."""
    pd.DataFrame([{"text": f"text {number}", "label": label} for number in range(20)]).to_parquet("odd.parquet")
    for overrides in ([], ["task.labels=[a,b]"]):
        with pytest.raises(ConfigError, match=rf"task\.label=label: {what}.*; an answer is a text, a number"):
            table("odd.parquet", "label", *overrides)


def test_classes_of_a_number_to_predict_are_refused() -> None:
    """One of the two settings would be dropped, in a plan without rows too."""
    write("tickets.csv", rows_of(30))
    told = ["task.predict=number", "task.labels=[a,b]"]
    sentence = r"task\.labels=\['a', 'b'\]: task\.predict=number predicts a number, which has no classes"
    with pytest.raises(ConfigError, match=sentence):
        table("tickets.csv", "stars", *told)
    with pytest.raises(ConfigError, match=sentence):
        costs.plan_point("config", ["task=table", *told])


def test_all_that_is_missing_is_asked_for_with_what_the_file_holds() -> None:
    """Both keys in one sentence, with the file's columns."""
    write("tickets.csv", [{"text": row["text"], "kind": row["kind"]} for row in rows_of(30)])
    told = r"task\.text=, task\.label=: .*\(columns: text, kind; text has 30 values, as .*; kind has 3 values: "
    with pytest.raises(ConfigError, match=told):
        build(compose("config", ["task=table", "task.file=tickets.csv"]))
    with pytest.raises(ConfigError, match=r"task\.labels: a value is needed\ntask\.name: a value is needed"):
        build(compose("config", ["task=classification", "task.data_dir=."]))


def test_the_split_is_seeded_and_recorded() -> None:
    """Equal texts and equal groups stay together, the shares of the classes are kept."""
    rows = rows_of(150)
    write("tickets.csv", [*rows, *rows[:60]])
    data = table("tickets.csv", "kind", "task.group=customer").load()
    members = {split: {row["customer"] for row in rows} for split, rows in data.splits.items()}
    assert not members["train"] & members["validation"]
    assert not members["train"] & members["development"]
    again = table("tickets.csv", "kind", "task.group=customer").load()
    assert again.notes["row_hashes"] == data.notes["row_hashes"]
    assert len(data.splits["validation"][0]["idx"]) == 16
    data = table("tickets.csv").load()
    texts = {split: {row["text"] for row in rows} for split, rows in data.splits.items()}
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["development"]
    other = table("tickets.csv", "kind", "task.split_seed=1").load()
    assert other.notes["row_hashes"] != data.notes["row_hashes"]


@pytest.mark.parametrize(
    ("files", "given"),
    [
        (["train.csv", "valid.csv"], "."),
        (["data/train.tsv", "data/dev.tsv"], "data"),
        (["a1.csv", "a2.csv"], "[a1.csv,a2.csv]"),
        (["a1.jsonl", "a2.jsonl"], "'a?.jsonl'"),
        (["data/one.csv", "data/two.csv"], "data"),
    ],
)
def test_files_may_be_several_and_splits_already(files: list[str], given: str) -> None:
    """Files that are no splits are put together and divided."""
    rows = rows_of(120)
    write(files[0], rows[:90])
    write(files[1], rows[90:])
    data = table(given).load()
    split = "train" in files[0]
    assert len(data.splits["validation"]) == (30 if split else 24)
    assert sum(map(len, data.splits.values())) == 120


def test_a_folder_in_the_hubs_layout_works_and_keeps_the_order_of_its_classes(tmp_path: Path) -> None:
    """Names of classes come from the file."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=KINDS)})
    rows = {"text": [row["text"] for row in rows_of(60)], "kind": [number % 3 for number in range(60)]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "news/train-00000-of-00001.parquet")
    task = build(
        compose("config", ["task=table", f"task.hub.path={tmp_path}/news", "task.text=text", "task.label=kind"])
    ).task
    assert task.labels == KINDS
    assert [row["kind"] for row in task.load().splits["train"]][:1] == [KINDS.index("outage")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "overrides", "told"),
    [
        (rows_of(3), [], r"2 rows in 2 part\(s\) that belong together"),
        (
            [{**row, "text": "alike"} for row in rows_of(60)],
            [],
            r"60 rows in 1 part\(s\) that belong together, the largest",
        ),
        (
            [{**row, "kind": "one"} for row in rows_of(60)],
            [],
            "all rows have 1 value: one, so there is nothing to learn",
        ),
        ([{**row, "customer": "c"} for row in rows_of(60)], ["task.group=customer"], "task.group=customer: all rows"),
        ([*rows_of(60), {**rows_of(1)[0], "kind": ""}], [], "task.label=kind: 1 row.s. have no value there"),
        (rows_of(60, kind=lambda number: f"words {number}"), [], "60 different values in 60 rows are no classes"),
        (rows_of(60), ["task.group=custmer"], "no column 'custmer'; did you mean customer"),
        (rows_of(60), ["task.file=ticket.csv"], r"there is no such file; did you mean tickets\.csv"),
    ],
)
def test_a_table_that_can_not_be_split_or_learned_says_so(rows: list, overrides: list[str], told: str) -> None:
    """Each reason is one sentence."""
    write("tickets.csv", rows)
    with pytest.raises(ConfigError, match=told):
        table("tickets.csv", "kind", *overrides).load()


def test_a_file_with_names_of_columns_alone_has_no_rows() -> None:
    """The sentence has the key and the file."""
    Path("tickets.csv").write_text("text,kind\n")
    with pytest.raises(ConfigError, match=r"task\.file=tickets\.csv: the split has no rows"):
        table("tickets.csv")


def test_a_class_seen_once_stays_in_train_and_five_hundred_classes_do() -> None:
    """No class is first met in validation."""
    write("tickets.csv", [*rows_of(90), {**rows_of(1)[0], "text": "rare", "kind": "rare"}])
    task = table("tickets.csv")
    data = task.load()
    place = task.labels.index("rare")
    assert [sum(row["kind"] == place for row in data.splits[split]) for split in data.splits] == [1, 0, 0]
    write("many.csv", rows_of(2000, kind=lambda number: f"class {number % 500}"))
    task = table("many.csv")
    assert len({row["kind"] for row in task.load().splits["train"]}) == len(task.labels) == 500


def test_a_run_names_its_classes_everywhere(tmp_path: Path) -> None:
    """In the record, the predictions, the adapter, its model and its card; the backbone by its folder."""
    import shutil

    from harness.config.sources import PACKAGE

    shutil.copytree(PACKAGE / "pretrained/micro_encoder", "my-encoder")
    # Some tickets come several times.
    write("tickets.csv", [*rows_of(90), *rows_of(90)[:40], *rows_of(90)[:20]])
    told = ["task=table", "task.file=tickets.csv", "task.text=text", "task.label=kind", "model=./my-encoder"]
    rest = ["tracking=none", "train.max_steps=2", "forgetting.text=null", "measure.costs=false"]
    result = run(prepare(compose("config", [*told, *rest])), tmp_path / "run")
    assert result.status == "finished", result.error
    names = sorted(KINDS)
    assert result.config["task"]["labels"] == names
    assert result.config["model"]["name"] == "my-encoder"
    for file in ("predictions", "development"):
        kept = pd.read_parquet(tmp_path / f"run/{file}.parquet")
        assert kept["idx"].str.contains("-").any()
        assert not kept.duplicated([name for name in ("split", "step", "idx") if name in kept]).any()
    kept = pd.read_parquet(tmp_path / "run/predictions.parquet")
    assert set(kept["label_name"]) == set(KINDS)
    assert [names[place] for place in kept["prediction"]] == list(kept["prediction_name"])
    loaded = harness.load_adapter(tmp_path / "run/adapter")
    assert loaded.task.labels == names
    assert loaded.model.config.id2label == dict(enumerate(names))
    assert ", ".join(f"`{name}`" for name in names) in (tmp_path / "run/adapter/README.md").read_text()


@pytest.mark.slow
def test_only_the_rows_that_are_used_are_held() -> None:
    """A file larger than memory is read row by row; the sample is the same rows in the same turn every time."""
    rows = [{**row, "text": row["text"] + " storm" * 200} for row in rows_of(2500)]
    write("tickets.csv", rows)
    size = Path("tickets.csv").stat().st_size
    most = ["task.max_train_rows=20", "task.max_validation_rows=10", "task.max_development_rows=5"]

    def peak(*overrides: str) -> tuple[int, Any]:
        task = table("tickets.csv", "kind", *overrides)
        tracemalloc.start()
        data = task.load()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest, data

    memory, data = peak(*most)
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 20,
        "validation": 10,
        "development": 5,
    }
    assert memory < size / 4
    memory, whole = peak()
    assert memory > size, "where all rows are used, they are held"
    assert {row["idx"] for row in data.splits["validation"]} < {row["idx"] for row in whole.splits["validation"]}
    assert peak(*most)[1].splits == data.splits


def test_values_beyond_a_hundred_thousand_are_counted_as_more() -> None:
    """So that a column of a large file is known in little memory; numbers are told from words all the same."""
    numbers = values.count(({"a": f"{number / 7}"} for number in range(values.MOST_COUNTED + 50)), ["a"])["a"]
    assert (numbers.rows, numbers.no_number, numbers.different) == (100_050, None, "more than 100,000")
    assert len(numbers.counts) == values.MOST_COUNTED
    numbers.add(" ")
    assert (numbers.blank, numbers.no_number) == (1, " ")
    write("tickets.csv", rows_of(30))
    assert str(table("tickets.csv")._values()) == "3 values: outage, billing, praise"


def test_texts_without_a_word_are_told_apart() -> None:
    """Different punctuation is different text, so such rows can be split."""
    write("tickets.csv", [{**row, "text": ":" * (number + 1)} for number, row in enumerate(rows_of(60))])
    assert len(table("tickets.csv").load().splits["validation"]) == 12


def test_a_parts_rows_are_those_of_the_whole_split(tmp_path: Path) -> None:
    """Ten thousand units, some of several rows: the shares of each class are kept, no unit is parted."""
    order = np.random.default_rng(0)
    texts, groups, strata = (
        order.integers(0, 8000, 10_000),
        order.integers(0, 9000, 10_000),
        order.integers(0, 3, 10_000),
    )
    aside = splitting.carve(strata, [texts, groups], 0.2, 10_000, 0, "validation")
    unit = splitting.units([texts, groups])
    assert not set(unit[aside]) & set(unit[~aside])
    assert aside.mean() == pytest.approx(0.2, abs=0.02)
    for key in (texts, groups):
        assert not set(key[aside]) & set(key[~aside])
    single = splitting.carve(strata, [np.arange(10_000)], 0.2, 10_000, 0, "validation")
    assert single.sum() == 2000
    assert [single[strata == one].mean() for one in range(3)] == pytest.approx([0.2] * 3, abs=0.001)
