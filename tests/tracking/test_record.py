"""A record is written whole or not at all, in JSON that every reader accepts."""

import json
from pathlib import Path

import pytest

from harness.tracking.record import RunRecord, Status, finite, write_atomically


def record() -> RunRecord:
    return RunRecord("id", Status.finished, None, "identity", {"name": None, "stage": "run"}, {"seed": 0})


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """Every field survives."""
    record().write(tmp_path)
    assert RunRecord.read(tmp_path) == record()


def test_numbers_that_json_cannot_express_become_null(tmp_path: Path) -> None:
    """NaN and infinity are not valid JSON."""
    assert finite({"a": [float("nan"), 1.0], "b": (float("inf"),)}) == {"a": [None, 1.0], "b": [None]}
    broken = record()
    broken.scores = {"validation": {"loss": float("nan")}}
    broken.write(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("content", ["{", "[]", '{"run_id": "x"}', "\x00"])
def test_a_damaged_record_is_named(content: str, tmp_path: Path) -> None:
    """Whatever is in the file, the error says which one it is."""
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        RunRecord.read(tmp_path)


def test_a_field_of_a_later_version_is_left_out(tmp_path: Path) -> None:
    """The rest is read."""
    path = record().write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert RunRecord.read(tmp_path) == record()


def test_a_write_that_fails_leaves_the_old_file_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk changes nothing in the folder."""
    path = tmp_path / "file"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"
