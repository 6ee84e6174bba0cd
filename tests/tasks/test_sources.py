"""Rows come from local files or the Hub's layout, and what is wrong with them is said with file and line."""

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from harness.config.errors import ConfigError
from harness.tasks import sources

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
    assert sources.read_file(write(tmp_path, f"train{suffix}", ROWS)) == ROWS


def test_a_split_is_found_under_our_name_or_the_hubs(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", ROWS)
    write(tmp_path, "validation_matched.jsonl", ROWS)
    found = sources.local_files(str(tmp_path), {"train": "train", "validation": "validation_matched"})
    assert {split: path.name for split, path in found.items()} == {
        "train": "train.csv",
        "validation": "validation_matched.jsonl",
    }


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ConfigError, match=r"task\.data_dir=nowhere: there is no such folder"):
        sources.local_files("nowhere", SPLITS)


def test_a_missing_file_is_named_with_what_there_is(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"no file for the validation split .* there is train\.jsonl"):
        sources.local_files(str(tmp_path), SPLITS)


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
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
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        sources.read_file(tmp_path / "train.jsonl")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="can't be read as parquet"):
        sources.read_file(tmp_path / "train.parquet")


def test_the_hubs_own_layout_is_read_with_its_revision(tmp_path: Path) -> None:
    (tmp_path / "glue/sst2").mkdir(parents=True)
    write(tmp_path / "glue/sst2", "train-00000-of-00001.parquet", ROWS)
    write(tmp_path / "glue/sst2", "validation-00000-of-00001.parquet", ROWS[:4])
    (tmp_path / "glue/README.md").write_text(
        "---\nconfigs:\n- config_name: sst2\n  data_files:\n"
        "  - {split: train, path: sst2/train-*}\n  - {split: validation, path: sst2/validation-*}\n---\n"
    )
    hub = sources.Hub(str(tmp_path / "glue"), "sst2", None)
    rows, revision = sources.read_hub(hub, "validation")
    assert rows == ROWS[:4]
    assert len(revision) == 64
    with pytest.raises(ConfigError, match="the tset split can't be loaded"):
        sources.read_hub(hub, "tset")


def test_a_hub_name_without_a_network_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"task\.hub\.path=nyu-mll/glue \(sst2\): .*give task\.data_dir=FOLDER"):
        sources.read_hub(sources.Hub("nyu-mll/glue", "sst2", None), "train")


def test_the_development_split_keeps_the_shares_of_the_classes_and_is_seeded() -> None:
    rows = [{"label": int(number % 10 < 3)} for number in range(1000)]
    strata = [row["label"] for row in rows]
    train, development = sources.carve(rows, strata, 0.1, 500, seed=0)
    assert (len(train), len(development)) == (900, 100)
    assert Counter(row["label"] for row in development) == {0: 70, 1: 30}
    numbered = [{"idx": number} for number in range(1000)]
    assert sources.carve(numbered, strata, 0.1, 500, 0) == sources.carve(numbered, strata, 0.1, 500, 0)
    assert sources.carve(numbered, strata, 0.1, 500, 0) != sources.carve(numbered, strata, 0.1, 500, 1)


def test_the_development_split_has_a_ceiling() -> None:
    rows = [{"idx": number} for number in range(1000)]
    assert len(sources.carve(rows, [0] * 1000, 0.5, 20, 0)[1]) == 20


def test_too_few_rows_to_carve_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1 training rows can't be split"):
        sources.carve([{}], [0], 0.1, 500, 0)


def test_a_smaller_sample_is_a_part_of_a_larger_one() -> None:
    rows = [{"idx": number} for number in range(100)]
    small, large = sources.subsample(rows, 10, 0), sources.subsample(rows, 50, 0)
    assert large[:10] == small
    assert sources.subsample(rows, None, 0) is rows
