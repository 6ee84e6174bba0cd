"""The cache of a worker between its runs changes no bit of their results, and has a bound."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from harness import run as runner
from harness.config.compose import compose
from harness.tracking.record import PREDICTIONS_FILE, STEPS_FILE, RunRecord
from harness.training import cache

KEPT = ["features", "rows", "tokenizer"]


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cache, "_cache", None)
    cache.begin()
    yield
    cache.new_run()


def carry_out(folder: Path, *overrides: str) -> RunRecord:
    return runner.run(runner.prepare(compose("config", list(overrides))), folder)


def without_times(steps: Path) -> pd.DataFrame:
    frame = pd.read_json(steps, lines=True)
    return frame.drop(columns=[name for name in frame if "second" in name])


@pytest.mark.slow
def test_a_run_after_others_has_the_bits_of_a_run_alone(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores, every prediction and every step's loss."""
    shared = [*tiny_experiment, "train.epochs=2"]
    points = [("full", 0), ("lora", 0), ("lora", 1), ("bitfit", 1)]
    alone = [
        carry_out(tmp_path / f"alone{number}", *shared, f"method={method}", f"seed={seed}")
        for number, (method, seed) in enumerate(points)
    ]
    monkeypatch.setattr(cache, "_cache", None)
    cache.begin()
    together = [
        carry_out(tmp_path / f"together{number}", *shared, f"method={method}", f"seed={seed}")
        for number, (method, seed) in enumerate(points)
    ]
    assert [one.provenance["from_earlier_run"] for one in together] == [[], KEPT, KEPT, KEPT]
    assert not any(one.provenance["from_earlier_run"] for one in alone)
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert one.status == other.status == "finished"
        assert one.scores == other.scores
        assert one.cost["trainable_parameters"] == other.cost["trainable_parameters"]
        folders = tmp_path / f"alone{number}", tmp_path / f"together{number}"
        for left, right in [
            [without_times(folder / STEPS_FILE) for folder in folders],
            [pd.read_parquet(folder / PREDICTIONS_FILE) for folder in folders],
        ]:
            pd.testing.assert_frame_equal(left, right, check_exact=True)


@pytest.mark.slow
@pytest.mark.usefixtures("keeping")
def test_changed_data_are_read_again(tiny_experiment: list[str], tmp_path: Path) -> None:
    """A file with the same name and other rows is another file."""
    carry_out(tmp_path / "one", *tiny_experiment, "train.epochs=1")
    rows = (tmp_path / "data/train.jsonl").read_text().splitlines()
    (tmp_path / "data/train.jsonl").write_text("\n".join(rows[:-40]) + "\n")
    again = carry_out(tmp_path / "two", *tiny_experiment, "train.epochs=1")
    assert again.provenance["from_earlier_run"] == ["tokenizer"]
    assert sum(again.provenance["data"]["rows"].values()) == 60 + 160


def test_a_shelf_keeps_no_more_than_its_limit() -> None:
    """What was put there first goes first, and what is larger than the shelf is not kept at all."""
    shelf = cache.Shelf(10, len)
    for key, size in (("a", 4), ("b", 4), ("c", 4), ("d", 11)):
        shelf.put(key, "x" * size)
    assert list(shelf.values) == ["b", "c"]


def test_a_single_run_keeps_nothing() -> None:
    """Only a sweep's worker begins to."""
    assert cache.once("tokenizer", "key", lambda: 1) == 1
    assert cache.once("tokenizer", "key", lambda: 2) == 2
