"""Runs as a frame, from a store or a folder, the same rows either way."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from run_directories import store_of, write_run

import harness
from harness.config.errors import ConfigError
from harness.report import same_files, scores
from harness.report.labels import label


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five runs on two days, and the store they were sent to."""
    folder = tmp_path_factory.mktemp("runs")
    dirs = [
        write_run(folder / "runs", method="lora", ended_at="2026-11-01T12:00:00+00:00"),
        write_run(folder / "runs", method="full", task="micro/entailment", ended_at="2026-11-01T13:00:00+00:00"),
        write_run(folder / "runs", method="head", status="failed", error="why", ended_at="2026-11-01T14:00:00+00:00"),
        write_run(folder / "runs", method="lora", sweep=None, ended_at="2026-11-02T12:00:00+00:00"),
        write_run(folder / "runs", method="ia3", model="other", ended_at="2026-11-02T13:00:00+00:00"),
    ]
    store_of(folder, *dirs)
    return folder


def test_a_folder_and_its_store_give_the_same_frame(folder: Path) -> None:
    """But for where a run lies, and what is known only of a store."""
    frames = [harness.load_runs(place) for place in (f"sqlite:///{folder}/mlflow.db", folder / "runs")]
    apart = ["mlflow_run_id", "artifact_uri", "cost.track_seconds"]
    one, other = (frame.drop(columns=apart, errors="ignore").sort_index(axis=1) for frame in frames)
    pd.testing.assert_frame_equal(one, other)
    assert len(one) == 5


@pytest.mark.parametrize(
    ("filters", "methods"),
    [
        ({"sweep": "grid"}, ["lora", "full", "head", "ia3"]),
        ({"sweep": ""}, ["lora"]),
        ({"task": "micro/entailment"}, ["full"]),
        ({"model": "other"}, ["ia3"]),
        ({"method": ["lora", "ia3"]}, ["lora", "lora", "ia3"]),
        ({"status": "failed"}, ["head"]),
        ({"since": "2026-11-02"}, ["lora", "ia3"]),
        ({"since": "2026-11-02T13:30:00+01:00"}, ["ia3"]),
        ({"since": datetime(2026, 11, 1, 14, tzinfo=UTC), "sweep": "grid"}, ["head", "ia3"]),
        ({"method": "lora", "status": "failed"}, []),
    ],
)
def test_filters_keep_what_was_asked_for(folder: Path, filters: dict[str, object], methods: list[str]) -> None:
    """All of them must hold, from a store as from a folder; nothing left is an empty frame."""
    for place in (f"sqlite:///{folder}/mlflow.db", folder / "runs"):
        frame = harness.load_runs(place, **filters)  # type: ignore[arg-type]
        assert (list(frame["method"]) if len(frame) else []) == methods


@pytest.mark.parametrize("content", ["{", "[]", '{"config": []}', '{"started_at": 3}', "\udcff"])
def test_a_damaged_record_is_skipped_with_a_warning(tmp_path: Path, content: str) -> None:
    """Whatever is in the file; the other runs are there."""
    write_run(tmp_path)
    path = write_run(tmp_path) / "result.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match="result.json is damaged"):
        frame = harness.load_runs(tmp_path)
    assert len(frame) == 1


def test_an_almost_empty_record_is_a_marked_row(tmp_path: Path) -> None:
    """Of a record that says only its status, the rest is unknown."""
    (tmp_path / "result.json").write_text(json.dumps({"status": "finished"}))
    [row] = harness.load_runs(tmp_path).to_dict("records")
    assert (row["method"], row["status"]) == ("unknown", "finished")
    assert row["mark"].startswith("without run_id, error, identity, sweep, config; ")


def test_a_record_by_another_version_is_marked(tmp_path: Path) -> None:
    """The mark names the version of results; of a record without one, which was the package's."""
    path = write_run(tmp_path) / "result.json"
    content = json.loads(path.read_text())
    made = content["provenance"]
    for provenance in (made | {"results_version": "0.0.1"}, {"harness": "0.0.1"}):
        path.write_text(json.dumps(content | {"provenance": provenance}))
        assert harness.load_runs(tmp_path)["mark"].tolist() == ["results of version 0.0.1"]


def test_there_must_be_a_store(tmp_path: Path) -> None:
    """Neither a store nor a folder that is not there is silently empty."""
    for place in (f"sqlite:///{tmp_path}/none.db", tmp_path / "none"):
        with pytest.raises(ConfigError):
            harness.load_runs(place)
    with pytest.raises(ConfigError, match="since=soon is no date"):
        harness.load_runs(tmp_path, since="soon")


def test_backbones_are_told_apart_by_their_files_and_not_by_their_names(tmp_path: Path) -> None:
    """Two that are called the same are two rows, one that has two names is one; an old record keeps its name."""
    files = {"a": ("mine", "f" * 64), "b": ("mine", "0" * 64), "c": ("yours", "f" * 64), "d": ("mine", None)}
    for method, (model, revision) in files.items():
        write_run(tmp_path / "runs", method=method, model=model, revisions={"model": revision} if revision else {})
    frame = harness.load_runs(tmp_path / "runs").set_index("method")["model"]
    assert dict(frame) == {"a": "mine@ffffffff", "b": "mine@00000000", "c": "mine@ffffffff", "d": "mine"}
    assert set(harness.load_runs(tmp_path / "runs", model="yours")["model"]) == {"yours"}


@pytest.mark.parametrize("stored", [True, False], ids=["store", "folder"])
def test_runs_on_other_rows_are_no_repetitions(stored: bool, tmp_path: Path) -> None:
    """A file of one name before and after a change is two tasks; a record that names no rows keeps the task's name."""
    before, after = "1" * 64, "2" * 64
    for seed, (score, rows) in enumerate([(0.6, before), (0.6, before), (0.8, after), (0.8, after), (0.7, "")]):
        write_run(tmp_path / "runs", task="data", seed=seed, score=score, revisions={"data": rows} if rows else {})
    write_run(tmp_path / "runs", task="other", revisions={"data": after})
    runs = sorted((tmp_path / "runs").iterdir())
    frame = harness.load_runs(store_of(tmp_path, *runs) if stored else tmp_path / "runs")
    summary = scores.summary(frame)
    told = summary[summary["configuration"] == "lora"].set_index("task")
    assert dict(told["n"]) == {"data": 1, "data@11111111": 2, "data@22222222": 2, "other": 1}
    assert dict(told["mean"]) == pytest.approx({"data": 0.7, "data@11111111": 0.6, "data@22222222": 0.8, "other": 0.9})
    (note,) = same_files.notes(frame)
    assert note.startswith("data@11111111, data@22222222: files of one name")
    placed = frame.assign(**{"param.task.file": '["A/data.csv"]'})
    assert same_files.notes(placed)[0].startswith("data@11111111 (A/data.csv), data@22222222 (A/data.csv): files of")
    assert same_files.notes(frame[frame["task"] == "other"]) == []
    assert set(harness.load_runs(tmp_path / "runs", task="data")["task"]) == set(told.index) - {"other"}


def test_what_was_lost_of_another_text_is_told_apart(tmp_path: Path) -> None:
    """Where all saw the same text, wherever it lay, nothing is said of it."""
    for seed, text in enumerate(("3" * 64, "4" * 64, "4" * 64)):
        write_run(tmp_path / "runs", seed=seed, revisions={"data": "5" * 64, "forgetting": text})
    frame = harness.load_runs(tmp_path / "runs")
    assert list(label(frame)) == ["lora general_text=33333333", *["lora general_text=44444444"] * 2]
    assert set(label(harness.load_runs(tmp_path / "runs")[1:])) == {"lora"}
