"""Rows come from local files or the Hub's layout, and what is wrong with them is said with file and line."""

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import datasets
import pandas as pd
import pytest

from harness.config.errors import ConfigError
from harness.tasks import files, sources

SPLITS = {"train": "train", "validation": "validation"}


def write(folder: Path, name: str, rows: list[dict]) -> Path:
    path = folder / name
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [{"sentence": f"sentence {number}", "label": number % 2, "idx": number} for number in range(10)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    """JSON lines, CSV and Parquet."""
    assert sources.read_file(write(tmp_path, f"train{suffix}", ROWS)) == ROWS


def test_a_split_is_found_under_our_name_or_the_hubs(tmp_path: Path) -> None:
    """In any of the formats."""
    write(tmp_path, "train.csv", ROWS)
    write(tmp_path, "validation_matched.jsonl", ROWS)
    found = sources.local_files(str(tmp_path), {"train": "train", "validation": "validation_matched"})
    assert {split: [path.name for path in paths] for split, paths in found.items()} == {
        "train": ["train.csv"],
        "validation": ["validation_matched.jsonl"],
    }


def test_a_missing_folder_is_named() -> None:
    """The sentence has the key and the path."""
    with pytest.raises(ConfigError, match=r"task\.data_dir=nowhere: there is no such folder"):
        sources.local_files("nowhere", SPLITS)


def test_a_missing_file_is_named_with_what_there_is(tmp_path: Path) -> None:
    """The files of the folder are listed."""
    write(tmp_path, "train.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"no file for the validation split .* there is train\.jsonl"):
        sources.local_files(str(tmp_path), SPLITS)


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    """Neither is silently preferred."""
    write(tmp_path, "train.jsonl", ROWS)
    write(tmp_path, "train.csv", ROWS)
    with pytest.raises(ConfigError, match="two files for the train split"):
        sources.local_files(str(tmp_path), SPLITS)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b'{"sentence": "a"}\n\xff\xfe\n', "line 2: not UTF-8"),
        (b'{"sentence": "a"}\nnot json\n', "line 2: not JSON"),
        (b'["a", "b"]\n', "line 1: a JSON object is needed"),
    ],
)
def test_a_damaged_file_is_refused_with_the_line(content: bytes, sentence: str, tmp_path: Path) -> None:
    """Empty files, other encodings and other contents."""
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        sources.read_file(tmp_path / "train.jsonl")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    """One sentence, whatever the reader raises."""
    (tmp_path / "train.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="can't be read as parquet"):
        sources.read_file(tmp_path / "train.parquet")


def test_the_hubs_own_layout_is_read_with_its_revision(tmp_path: Path) -> None:
    """A split that is not there is named."""
    (tmp_path / "glue/sst2").mkdir(parents=True)
    write(tmp_path / "glue/sst2", "train-00000-of-00001.parquet", ROWS)
    write(tmp_path / "glue/sst2", "validation-00000-of-00001.parquet", ROWS[:4])
    (tmp_path / "glue/README.md").write_text(
        "---\nconfigs:\n- config_name: sst2\n  data_files:\n"
        "  - {split: train, path: sst2/train-*}\n  - {split: validation, path: sst2/validation-*}\n---\n"
    )
    hub = sources.Hub(str(tmp_path / "glue"), "sst2", None)
    assert list(sources.hub_rows(hub, "validation")) == ROWS[:4]
    assert len(sources.hub_revision(hub, "validation")) == 64
    with pytest.raises(ConfigError, match="the tset split can't be loaded"):
        list(sources.hub_rows(hub, "tset"))


def test_a_hub_name_without_a_network_says_what_to_do() -> None:
    """A local folder is offered instead."""
    with pytest.raises(ConfigError, match=r"task\.hub\.path=nyu-mll/glue \(sst2\): .*give task\.data_dir=FOLDER"):
        list(sources.hub_rows(sources.Hub("nyu-mll/glue", "sst2", None), "train"))


def test_the_development_split_keeps_the_shares_of_the_classes_and_is_seeded() -> None:
    """Another seed takes other rows."""
    rows = [{"label": int(number % 10 < 3)} for number in range(1000)]
    strata = [row["label"] for row in rows]
    train, development = sources.carve(rows, strata, 0.1, 500, seed=0)
    assert (len(train), len(development)) == (900, 100)
    assert Counter(row["label"] for row in development) == {0: 70, 1: 30}
    numbered = [{"idx": number} for number in range(1000)]
    assert sources.carve(numbered, strata, 0.1, 500, 0) == sources.carve(numbered, strata, 0.1, 500, 0)
    assert sources.carve(numbered, strata, 0.1, 500, 0) != sources.carve(numbered, strata, 0.1, 500, 1)


def test_the_development_split_has_a_ceiling() -> None:
    """A share of many rows takes no more than that."""
    rows = [{"idx": number} for number in range(1000)]
    assert len(sources.carve(rows, [0] * 1000, 0.5, 20, 0)[1]) == 20


def test_too_few_rows_to_carve_are_refused() -> None:
    """One row can't be two splits."""
    with pytest.raises(ConfigError, match=r"1 training rows can't be split"):
        sources.carve([{}], [0], 0.1, 500, 0)


def test_a_smaller_sample_is_a_part_of_a_larger_one() -> None:
    """Learning curves add rows to those before."""
    rows = [{"idx": number} for number in range(100)]
    small, large = sources.subsample(rows, 10, 0), sources.subsample(rows, 50, 0)
    assert large[:10] == small
    assert sources.subsample(rows, None, 0) is rows


def test_a_text_column_of_a_csv_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Whatever its cells look like, and however late in the file; a column that is not text becomes numbers."""
    cells = ["word"] * 12_000 + ["13.10", "007", "True", "1e3", "null", "N/A", "", "2024-01-31", '"a, ""b""\nc"']
    lines = "".join(f"{cell},{number}\n" for number, cell in enumerate(cells))
    (tmp_path / "train.csv").write_text(f"answer,idx\n{lines}")
    rows = sources.read_file(tmp_path / "train.csv", text=["answer"])
    assert [row["answer"] for row in rows[12_000:]] == [*cells[12_000:-1], 'a, "b"\nc']
    assert [row["idx"] for row in rows] == list(range(len(cells)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "a,b\nx,y\n"),
        ("train.csv", "a;b\r\nx;y\r\n"),
        ("train.tsv", "a\tb\nx\ty\n"),
        ("train.jsonl", '{"a": "x", "b": "y"}\n'),
        ("train.json", '[{"a": "x", "b": "y"}]'),
        ("train.json", '{"data": [{"a": "x", "b": "y"}]}'),
        ("train.json", '{"a": ["x"], "b": ["y"]}'),
        ("train.json", '{"a": "x", "b": "y"}\n'),
        ("train.jsonl.gz", '{"a": "x", "b": "y"}\n'),
        ("train.csv.gz", "a,b\nx,y\n"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_part_of_any_format(name: str, content: str, mark: bytes, tmp_path: Path) -> None:
    """Rows and names of columns are the same with it and without."""
    whole = mark + content.encode()
    (tmp_path / name).write_bytes(gzip.compress(whole) if name.endswith(".gz") else whole)
    assert sources.read_file(tmp_path / name) == [{"a": "x", "b": "y"}]
    assert files.columns(tmp_path / name) == ["a", "b"]


def test_a_text_files_first_line_has_no_byte_order_mark(tmp_path: Path) -> None:
    """Lines are rows with their ends."""
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfone\ntwo")
    assert sources.read_file(tmp_path / "train.txt") == [{"text": "one\n"}, {"text": "two"}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_of_a_text_file_ends_where_the_file_ends_it(end: str, tmp_path: Path) -> None:
    """However the system that wrote it ends lines, and at no other character."""
    lines = ["one\x0b\x0c\x1c\x1d\x1e\x85", "", "\u2028two\u2029", " three"]
    (tmp_path / "train.txt").write_bytes(end.join(lines).encode())
    rows = sources.read_file(tmp_path / "train.txt")
    assert [row["text"] for row in rows] == [f"{lines[0]}\n", "\n", f"{lines[2]}\n", " three"]


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("train.csv", '"text, long";label\n"x, y";z\n', ["text, long", "label"]),
        ("train.csv", '"text ""a, b""";label\n"x, y";z\n', ['text "a, b"', "label"]),
        ("train.csv", '"text; long",label\n"x; y",z\n', ["text; long", "label"]),
        ("train.csv", '"text; long"\nx; y\n', ["text; long"]),
        ("train.csv", '"text, long"\tlabel\nx, y\tz\n', ["text, long", "label"]),
        ("train.tsv", "text, long\tlabel; short\nx, y\tz\n", ["text, long", "label; short"]),
    ],
)
def test_the_mark_between_cells_is_looked_for_outside_of_quotes(
    name: str, content: str, names: list[str], tmp_path: Path
) -> None:
    """A name of a column may hold a comma or a semicolon as any cell may."""
    (tmp_path / name).write_text(content)
    assert files.columns(tmp_path / name) == names
    assert [list(row) for row in sources.read_file(tmp_path / name)] == [names]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("train.csv", b"a,b\nx,y\nx,y,z\n", "line 3: 3 cells under 2 names of columns"),
        ("train.csv", b'a,b\nx,"y\n', "line 2: not CSV"),
        ("train.csv", b"a,a\nx,y\n", "two columns are called 'a'"),
        ("train.jsonl.gz", b"no gzip", "can't be uncompressed"),
        ("train.json", b"[1, 2]", "a list of JSON objects is needed"),
    ],
)
def test_a_file_of_another_shape_is_refused(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    """The sentence has the line or the reason."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        sources.read_file(tmp_path / name)


def test_classes_that_have_names_in_a_parquet_file_are_given_by_those(tmp_path: Path) -> None:
    """A hidden label stays -1."""
    features = datasets.Features({"s": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"s": ["a", "b", "c"], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "train.parquet")
    assert [row["label"] for row in sources.read_file(tmp_path / "train.parquet")] == ["yes", "no", -1]


def test_shards_are_one_split_and_other_names_of_validation_do(tmp_path: Path) -> None:
    """A shard that is missing is counted."""
    for shard in range(2):
        write(tmp_path, f"train-0000{shard}-of-00002.parquet", ROWS[shard * 5 : shard * 5 + 5])
    write(tmp_path, "dev.jsonl", ROWS)
    found = sources.local_files(str(tmp_path), SPLITS)
    assert [row for path in found["train"] for row in sources.read_file(path)] == ROWS
    assert [path.name for path in found["validation"]] == ["dev.jsonl"]
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ConfigError, match="1 of 2 shards of train"):
        sources.local_files(str(tmp_path), SPLITS)


def test_a_value_that_an_object_leaves_out_is_missing(tmp_path: Path) -> None:
    """Every row has every column."""
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    assert sources.read_file(tmp_path / "train.jsonl") == [{"a": 1, "b": None}, {"a": None, "b": 2}]


def test_a_column_is_there_where_any_object_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the first objects are listed; for one that is named, all are looked at."""
    monkeypatch.setattr(files, "GLANCED_AT", 2)
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n{"b": 2}\n{"c": 3}\n{"d": 4}\n')
    (tmp_path / "train.json").write_text('[{"a": 1}, {"b": 2}, {"c": 3}, {"d": 4}]')
    for name in ("train.jsonl", "train.json"):
        assert files.columns(tmp_path / name) == ["a", "b"]
        assert files.columns(tmp_path / name, ["b"]) == ["a", "b"]
        assert files.columns(tmp_path / name, ["c"]) == ["a", "b", "c"]
        assert files.columns(tmp_path / name, ["e"]) == ["a", "b", "c", "d"]


CUT = r'{"a": {"b": ["\ud83d"]}}'
DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
LONG = '{"a": ' + "5" * 5000 + "}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (CUT, r"\ud83d is half of a character, which no UTF-8 text can hold"),
        (CUT.replace("ud83d", "uDC00"), r"\udc00 is half of a character"),
        (r'{"\uD83D": 1}', r"\ud83d is half of a character"),
        (DEEP, "lists and objects are nested too deep to be read"),
        (LONG, "a number has too many digits to be read"),
    ],
    ids=["high", "low", "name", "deep", "long"],
)
@pytest.mark.parametrize(
    ("name", "where"), [("train.jsonl", ", line 2: "), ("train.json", ", line 2: "), ("list.json", ", row 2: ")]
)
def test_json_that_no_text_or_memory_can_hold_is_refused(
    content: str, sentence: str, name: str, where: str, tmp_path: Path
) -> None:
    """The sentence has the line, or of one whole list the row, where the list could be read."""
    rows = ['{"a": "x"}', content]
    (tmp_path / name).write_text("[" + ",\n".join(rows) + "]" if name == "list.json" else "\n".join(rows) + "\n")
    told = ": " if name == "list.json" and content in (DEEP, LONG) else where
    with pytest.raises(ConfigError) as error:
        sources.read_file(tmp_path / name)
    assert str(error.value).startswith(f"task.data_dir: {tmp_path / name}{told}{sentence}")


def test_a_first_line_that_can_not_be_read_is_refused_as_any(tmp_path: Path) -> None:
    """Though it is what tells a list from an object a line."""
    for content in (DEEP, LONG):
        (tmp_path / "train.json").write_text(f'{content}\n{{"a": "x"}}\n')
        with pytest.raises(ConfigError, match=r"train\.json: .* to be read"):
            sources.read_file(tmp_path / "train.json")


def test_escapes_of_whole_characters_are_read(tmp_path: Path) -> None:
    """Two halves that belong together, Hangul, and a backslash before the letters."""
    (tmp_path / "train.jsonl").write_text(r'{"a": "\ud83d\ude00 \ud55c \\ud83d"}' + "\n")
    assert sources.read_file(tmp_path / "train.jsonl") == [{"a": "\U0001f600 \ud55c \\ud83d"}]


def test_a_sample_is_the_beginning_of_a_seeded_order_of_all() -> None:
    """Which no more is drawn of than is wanted."""
    for count, most in ((1, 1), (5, 2), (22, 22), (300, 40), (10**9, 3)):
        if count < 1000:
            assert sources.sample(count, most, 3) == random.Random(3).sample(range(count), count)[:most]
        assert len(set(sources.sample(count, most, 3))) == most


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.json", "train.parquet"])
def test_a_file_is_streamed(name: str, tmp_path: Path) -> None:
    """Its first rows come before the last are looked at; only the wanted columns do."""
    path = write(tmp_path, name, [{"a": f"{number}", "b": "x" * 50, "c": "y"} for number in range(5000)])
    if not name.endswith("parquet"):
        with path.open("a") as file:
            file.write("no row of this format {" if "json" in name else "one,two,three,four\n")
    rows = files.stream(path, ["c", "a"])
    assert next(rows) == {"c": "y", "a": "0"}
    if name.endswith("parquet"):
        assert sum(1 for _ in rows) == 4999
        return
    with pytest.raises(ConfigError, match=r"line 500[12]"):
        list(rows)
