"""Runs reach a store whole, once, without secrets, and come back in one query."""

import json
import math
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import pandas as pd
import pytest
from browsing import tracking_server
from run_directories import new_store, store_of, write_run

from harness import tracking
from harness.report import __main__ as report
from harness.tracking import live, sending, server_cache
from harness.tracking import pages as tracking_pages
from harness.tracking.record import CONFIG_FILE, LOG_FILE, RESULT_FILE, STEPS_FILE, TRACKED_FILE
from harness.tracking.uri import Store

SECRET = "s3cret-pass"


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server that refuses everything, and the Authorization headers that it was sent."""
    seen: list[str] = []

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(403)
            self.end_headers()
            self.wfile.write(f"no entry for {self.path}".encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{httpd.server_port}", seen
        httpd.shutdown()


def test_a_run_arrives_whole(tmp_path: Path) -> None:
    """Parameters, scores, costs, tags, times and artifacts of a run directory are all in the store."""
    run_dir = write_run(
        tmp_path / "runs", options={"rank": 8}, cost={"latency_ms": {"merged": 1.5}}, steps=[{"step": 10, "loss": 0.7}]
    )
    (run_dir / CONFIG_FILE).write_text("seed: 0\n")
    (run_dir / LOG_FILE).write_text("began\n")
    (run_dir / "adapter").mkdir()
    (run_dir / "adapter" / "weights.bin").write_bytes(b"weights")
    pd.DataFrame({"idx": [0], "label": [1]}).to_parquet(run_dir / "predictions.parquet")
    [run] = tracking.read_runs(store_of(tmp_path, run_dir))
    assert run["name"] == "lora r=8 lr=1e-3 s0 micro/sentiment"
    assert run["params"] == {
        "model.name": "micro_encoder",
        "model.path": "/models/x",
        "task.name": "micro/sentiment",
        "method.name": "lora",
        "method.learning_rate": "0.001",
        "method.learning_rates": "[0.0001, 0.001]",
        "method.rank": "8",
        "train.learning_rate": "0.001",
        "train.epochs": "3",
        "train.batch_size": "32",
        "seed": "0",
        "data_seed": "0",
        "evaluate.validation": "true",
        "sweep.name": "grid",
        "sweep.stage": "run",
    }
    assert run["metrics"].pop("cost.track_seconds") > 0
    assert run["metrics"] == {
        "validation.accuracy": 0.9,
        "validation.loss": 0.5,
        "development.accuracy": 0.8,
        "majority.accuracy": 0.5,
        "cost.trainable_parameters": 1000,
        "cost.total_parameters": 20_000,
        "cost.train_seconds": 10,
        "cost.tokens_per_second": 2000,
        "cost.adapter_file_bytes": 4096,
        "cost.latency_ms.merged": 1.5,
        "train.loss": 0.7,
    }
    wanted = {"method": "lora", "status": "finished", "sweep": "grid", "stage": "run", "git_commit": "0123abc"}
    assert wanted.items() <= run["tags"].items()
    artifacts = Path(run["artifact_uri"])
    names = [RESULT_FILE, CONFIG_FILE, LOG_FILE, STEPS_FILE, "predictions.parquet", "adapter/weights.bin"]
    assert all((artifacts / name).read_bytes() == (run_dir / name).read_bytes() for name in names)
    assert artifacts.is_relative_to(tmp_path / "mlartifacts")
    assert run["started_at"] == pd.Timestamp("2026-11-01T10:00:00Z").value // 10**6


def test_the_first_predictions_are_a_table(tmp_path: Path) -> None:
    """Fifty of validation where they are texts; labels need no table, and a run that kept none has none."""
    generated, classified, without = (write_run(tmp_path / name) for name in ("generated", "classified", "without"))
    splits, answers = ["development"] * 5 + ["validation"] * 60, [f"answer {number}" for number in range(65)]
    frame = pd.DataFrame({"split": splits, "prompt": "<b>why?</b>", "label": "x", "prediction": answers})
    frame.to_parquet(generated / "predictions.parquet")
    frame.drop(columns="prompt").assign(prediction=1).to_parquet(classified / "predictions.parquet")
    runs = tracking.read_runs(store_of(tmp_path, generated, classified, without))
    table, labels, none = (Path(run["artifact_uri"]) / "answers.json" for run in runs)
    content = json.loads(table.read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [row["prediction"] for row in rows] == [f"answer {number}" for number in range(5, 55)]
    assert (labels.exists(), none.exists()) == (False, False)


def test_no_run_is_left_running(tmp_path: Path) -> None:
    """Every run of the store, parents of sweeps too, has ended with the status that the record says."""
    for status in ("finished", "failed", "diverged", "out_of_memory", "interrupted"):
        write_run(tmp_path / "runs", status=status, error=None if status == "finished" else "why")
    uri = new_store(tmp_path)
    tracking.sync(tmp_path / "runs", uri, "tests")
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        rows = connection.execute(
            "SELECT t.value, r.status, r.end_time FROM runs r "
            "LEFT JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'status'"
        ).fetchall()
    connection.close()
    assert {(status, ended) for status, ended, _ in rows} == {
        ("finished", "FINISHED"),
        ("failed", "FAILED"),
        ("diverged", "FAILED"),
        ("out_of_memory", "FAILED"),
        ("interrupted", "KILLED"),
        (None, "FINISHED"),
    }
    assert all(end for _, _, end in rows)


def test_the_runs_of_a_sweep_share_one_parent(tmp_path: Path) -> None:
    """A sweep has one parent run, also when its runs are sent one by one."""
    uri = store_of(tmp_path, *(write_run(tmp_path / "runs", seed=seed) for seed in range(3)))
    other = write_run(tmp_path / "runs", sweep=None)
    tracking.send(other, uri, "tests")
    parents = [run["tags"].get("mlflow.parentRunId") for run in tracking.read_runs(uri)]
    assert len(set(parents[:3])) == 1
    assert parents[3] is None
    assert tracking.sweeps(uri) == {"": 1, "grid": 3}


def test_the_final_score_is_the_one_shown(tmp_path: Path) -> None:
    """A score by step of the same name never hides the final one, even where it is higher or has no time."""
    steps = [{"step": step, "development.accuracy": 0.99, "loss": 1.0} for step in (10, 20)]
    [run] = tracking.read_runs(store_of(tmp_path, write_run(tmp_path / "runs", steps=steps, development=0.7)))
    assert run["metrics"]["development.accuracy"] == 0.7


def test_a_run_is_sent_once(tmp_path: Path) -> None:
    """Sending again returns the same MLflow run, and tracked.json names it."""
    run_dir = write_run(tmp_path / "runs")
    uri = new_store(tmp_path)
    first = tracking.send(run_dir, uri, "tests")
    assert tracking.send(run_dir, uri, "tests") == first
    assert len(tracking.read_runs(uri)) == 1
    assert json.loads((run_dir / TRACKED_FILE).read_text())["mlflow_run_id"] == first


def test_what_a_kill_left_half_sent_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose sending was cut short is not read, and sending it again leaves one whole run."""
    run_dir = write_run(tmp_path / "runs")
    uri = new_store(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sending, "_log", killed)
        with pytest.raises(KeyboardInterrupt):
            tracking.send(run_dir, uri, "tests")
    assert tracking.read_runs(uri) == []
    tracking.send(run_dir, uri, "tests")
    assert [run["metrics"]["validation.accuracy"] for run in tracking.read_runs(uri)] == [0.9]
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        active = connection.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active' AND name LIKE 'lora%'")
        assert active.fetchone() == (1,)
    connection.close()


@pytest.mark.slow
def test_a_kill_at_any_request_leaves_a_run_whole_and_known_or_to_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of the requests that send a run: sent again it is there once, whole, and nothing is there by half."""
    from mlflow import MlflowClient

    asked: list[str] = []
    killed_at = 0

    def counted(name: str) -> Any:
        original = getattr(MlflowClient, name)

        def request(*given: Any, **named: Any) -> Any:
            answer = original(*given, **named)
            asked.append(name)
            if len(asked) == killed_at:
                raise KeyboardInterrupt
            return answer

        return request

    for name in ("create_run", "set_terminated", "log_batch", "log_metric", "log_artifact", "set_tag", "delete_tag"):
        monkeypatch.setattr(MlflowClient, name, counted(name))
    uri = new_store(tmp_path)
    tracking.send(write_run(tmp_path / "first"), uri, "tests")  # and the parent of its sweep
    asked.clear()
    tracking.send(write_run(tmp_path / "second"), uri, "tests")
    requests = len(asked)
    assert asked[-2:] == ["log_batch", "delete_tag"]
    for killed_at in range(1, requests + 1):
        run_dir = write_run(tmp_path / f"runs{killed_at}", seed=killed_at)
        asked.clear()
        with pytest.raises(KeyboardInterrupt):
            tracking.send(run_dir, uri, "tests")
        known = len(tracking.read_runs(uri)) == killed_at + 2
        assert known == (killed_at >= requests - 1)
        tracking.send(run_dir, uri, "tests")
        assert len(tracking.read_runs(uri)) == killed_at + 2
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        active = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active' AND name LIKE 'lora%'"
        assert connection.execute(active).fetchone() == (requests + 2,)
        running = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active' AND status = 'RUNNING'"
        assert connection.execute(running).fetchone() == (0,)


@pytest.mark.slow
def test_four_processes_create_one_store(tmp_path: Path) -> None:
    """Processes that start at once on a store that does not exist all deliver their runs."""
    code = "import sys; from pathlib import Path; from harness import tracking; "
    code += "tracking.send(Path(sys.argv[1]), sys.argv[2], 'tests')"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-W", "error", "-c", code]
    processes = [
        subprocess.Popen(
            [*command, str(write_run(tmp_path / "runs", seed=seed)), uri], stderr=subprocess.PIPE, text=True
        )
        for seed in range(4)
    ]
    printed = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, printed
    assert printed == [""] * 4
    assert sorted(run["params"]["seed"] for run in tracking.read_runs(uri)) == ["0", "1", "2", "3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlartifacts", "mlflow.db", "mlflow.db.lock", "runs"]


def test_an_unreachable_server_loses_nothing(tmp_path: Path) -> None:
    """A run that could not be sent is sent by sync; what is there already is left alone."""
    run_dirs = [write_run(tmp_path / "runs", seed=seed) for seed in range(2)]
    with pytest.raises(ValueError, match=r"^tracking\.uri=http://127\.0\.0\.1:9: the server cannot be reached"):
        tracking.send(run_dirs[0], "http://127.0.0.1:9", "tests")
    uri = new_store(tmp_path)
    first = tracking.sync(tmp_path / "runs", uri, "tests")
    second = tracking.sync(tmp_path / "runs", uri, "tests")
    assert (first.sent, first.present) == (run_dirs, [])
    assert (second.sent, second.present) == ([], run_dirs)


def test_a_damaged_record_does_not_stop_the_others(tmp_path: Path) -> None:
    """Sync reports a damaged result.json with its path, and sends the rest."""
    good, bad = write_run(tmp_path / "runs"), write_run(tmp_path / "runs")
    (bad / RESULT_FILE).write_text('{"run_id": "1')
    outcome = tracking.sync(tmp_path, new_store(tmp_path), "tests")
    assert outcome.sent == [good]
    assert list(outcome.damaged) == [bad]
    assert str(bad / RESULT_FILE) in outcome.damaged[bad]


def test_no_file_holds_a_secret(
    tmp_path: Path, server: tuple[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Credentials of a URI reach the server as credentials, and no error, log or file."""
    address, seen = server
    run_dir = write_run(tmp_path / "runs")
    with pytest.raises(ConnectionError) as caught:
        tracking.send(run_dir, f"http://admin:{SECRET}@{address}", "tests")
    assert seen[0].startswith("Basic ")
    assert SECRET not in str(caught.value) + caplog.text
    assert "no entry" in str(caught.value)
    assert not any(SECRET.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_secret_in_a_run_directory_does_not_travel(tmp_path: Path) -> None:
    """A URI with a password that got into a configuration or an error is redacted in the store's database."""
    uri = f"https://admin:{SECRET}@host"
    run_dir = write_run(tmp_path / "runs", status="failed", error=f"no answer from {uri}", options={"note": uri})
    store_of(tmp_path, run_dir)
    assert SECRET.encode() not in (tmp_path / "mlflow.db").read_bytes()


def test_finished_points_are_found_by_identity(tmp_path: Path) -> None:
    """Each point comes with its newest run, however it ended, its status and its scores."""
    runs = tmp_path / "runs"
    uri = store_of(
        tmp_path,
        write_run(runs, identity="a", status="failed", error="why"),
        write_run(runs, identity="a", score=0.7, development=0.6),
        write_run(runs, identity="b", status="diverged", error="nan", sweep="other"),
        write_run(runs, identity="c"),
    )
    found = tracking.finished(uri, ["a", "b", "missing"])
    assert {identity: run["status"] for identity, run in found.items()} == {"a": "finished", "b": "diverged"}
    assert found["a"]["scores"] == {"validation": {"accuracy": 0.7, "loss": 0.5}, "development": {"accuracy": 0.6}}
    assert found["a"]["primary_metric"] == "accuracy"
    assert set(tracking.finished(uri, sweep="grid")) == {"a", "c"}
    assert set(tracking.finished(uri)) == {"a", "b", "c"}
    assert tracking.finished(uri, []) == {}


def test_a_store_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    """Reading creates no store."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert (tracking.finished(uri), tracking.read_runs(uri), tracking.sweeps(uri)) == ({}, [], {})
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_not_numbers_are_left_out(tmp_path: Path) -> None:
    """NaN and null scores and steps become no metric, and the line that a kill cut short is skipped."""
    run_dir = write_run(
        tmp_path / "runs", score=math.nan, steps=[{"step": 1, "loss": 0.5}, {"step": 2, "loss": math.nan}]
    )
    with (run_dir / STEPS_FILE).open("a") as file:
        file.write('{"step": 3, "lo')
    [run] = tracking.read_runs(store_of(tmp_path, run_dir))
    assert "validation.accuracy" not in run["metrics"]
    assert run["metrics"]["train.loss"] == 0.5


def test_a_record_without_most_of_its_fields_is_sent(tmp_path: Path) -> None:
    """A run that failed before anything was known still arrives."""
    run_dir = write_run(tmp_path / "runs", status="failed", error="early", scores={}, sweep=None)
    content = json.loads((run_dir / RESULT_FILE).read_text())
    content |= {"config": {}, "cost": {}, "provenance": {}, "started_at": "", "ended_at": ""}
    (run_dir / RESULT_FILE).write_text(json.dumps(content))
    [run] = tracking.read_runs(store_of(tmp_path, run_dir))
    assert run["tags"]["method"] == "unknown"
    assert run["tags"]["error"] == "early"


def test_long_and_odd_values_are_made_to_fit(tmp_path: Path) -> None:
    """Values longer than MLflow takes are cut, and characters that its names cannot have are replaced."""
    run_dir = write_run(
        tmp_path / "runs", options={"text": "x" * 9000, "odd?key": 1}, error="e" * 9000, status="failed"
    )
    [run] = tracking.read_runs(store_of(tmp_path, run_dir))
    assert len(run["params"]["method.text"]) == live.VALUE_LENGTH
    assert run["params"]["method.odd_key"] == "1"
    assert len(run["tags"]["error"]) == live.TAG_LENGTH


def test_a_folder_with_odd_characters_holds_a_store(tmp_path: Path) -> None:
    """Spaces, # and % in the path of a store do no harm."""
    folder = tmp_path / "a b#c% @d"
    folder.mkdir()
    uri = store_of(folder, write_run(tmp_path / "runs"))
    [run] = tracking.read_runs(uri)
    assert (Path(run["artifact_uri"]) / RESULT_FILE).is_file()


def test_a_run_directory_that_cannot_be_written_is_sent(tmp_path: Path) -> None:
    """Only the note tracked.json is missing then."""
    run_dir = write_run(tmp_path / "runs")
    (run_dir / (TRACKED_FILE + ".partial")).mkdir()  # what makes writing fail for root as well
    uri = new_store(tmp_path)
    with pytest.raises(OSError, match="partial"):
        (run_dir / (TRACKED_FILE + ".partial")).write_text("")
    tracking.send(run_dir, uri, "tests")
    assert len(tracking.read_runs(uri)) == 1


def test_importing_costs_nothing() -> None:
    """Importing harness.tracking imports neither mlflow nor pandas."""
    code = "import sys, harness.tracking; print(sorted({'mlflow', 'pandas', 'sqlalchemy', 'torch'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_a_database_that_is_no_store_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    """An SQLite file of something else raises ConnectionError when it is read."""
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(ConnectionError, match="cannot be read: no such table"):
        tracking.read_runs(f"sqlite:///{tmp_path}/other.db")


def test_copies_within_a_store_are_not_sent(tmp_path: Path) -> None:
    """Sync passes by the result.json files that a store keeps as artifacts."""
    run_dir = write_run(tmp_path / "runs")
    store_of(tmp_path, run_dir)
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "second").mkdir()
    assert tracking.sync(tmp_path, new_store(tmp_path / "second"), "tests").sent == []


# --- What the pages of MLflow show ----------------------------------------------------------------------------------


def of_sweep(uri: str, tag: str = "harness.sweep") -> list[tuple[str, str]]:
    """Id and artifact folder of the parents of sweeps."""
    query = "SELECT r.run_uuid, r.artifact_uri FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = ?"
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        return connection.execute(query, [tag]).fetchall()


def tags_of(uri: str, run: str) -> dict[str, str]:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        return dict(connection.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [run]).fetchall())


def test_a_report_lies_with_its_sweep_once(tmp_path: Path) -> None:
    """Its files are the parent run's artifacts; another report takes their place, and nothing becomes a run."""
    uri = store_of(tmp_path, *(write_run(tmp_path / "runs", seed=seed) for seed in range(2)))
    files = [tmp_path / name for name in ("report.html", "failures.csv", "seeds.png")]
    for path in files:
        path.write_text(f"first {path.name}")
    first = tracking.attach(files, uri, "grid", "# One")
    files[0].write_text("second")
    assert tracking.attach([files[0], files[2]], uri, "grid", "# Two") == first
    [(parent, artifacts)] = of_sweep(uri)
    assert parent == first
    there = {path.name: path.read_text() for path in (Path(artifacts) / "report").iterdir()}
    assert there == {"report.html": "second", "seeds.png": "first seeds.png"}
    assert tags_of(uri, parent)["mlflow.note.content"] == "# Two"
    assert all(run["tags"]["mlflow.parentRunId"] == parent for run in tracking.read_runs(uri))
    assert len(tracking.read_runs(uri)) == 2


def test_a_view_of_a_sweep_shows_its_metrics(tmp_path: Path) -> None:
    """Sorted by the first; the same report leaves the same view."""
    uri = store_of(tmp_path, write_run(tmp_path / "runs"))
    for _ in range(2):
        tracking.attach([], uri, "grid", "x", ["validation.accuracy", "cost.train_seconds"])
    pages = {name: urlsplit(path.replace("#/", "")) for name, path in tracking.views(uri).items()}
    assert {name: page.path for name, page in pages.items()} == dict.fromkeys(
        ("tests", "sweep grid"), "/experiments/1/runs"
    )
    queries = {name: parse_qs(page.query) for name, page in pages.items()}
    assert all(query["workflowType"] == ["machine_learning"] for query in queries.values())
    (share,) = queries["sweep grid"]["viewStateShareKey"]
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        query = "SELECT value FROM experiment_tags WHERE key = ?"
        [(value,)] = connection.execute(query, [tracking_pages.VIEW_TAG + share]).fetchall()
    state = json.loads(json.loads(value)["state"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`validation.accuracy`", False)
    shown = ["tags.`method`", "params.`method.rank`", "metrics.`validation.accuracy`", "metrics.`cost.train_seconds`"]
    assert state["selectedColumns"] == [*shown, "attributes.`Duration`"]
    charts = {chart["metricKey"]: chart["deleted"] for chart in state["compareRunCharts"]}
    assert (charts["train.loss"], charts["cost.train_seconds"]) == (False, True)
    assert state["searchFilter"] == "tags.sweep = 'grid'"


def test_a_deleted_experiment_comes_back_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sending to it restores it, and the log says so."""
    uri = store_of(tmp_path, write_run(tmp_path / "runs"))
    assert "deleted" not in caplog.text
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'tests'")
    tracking.send(write_run(tmp_path / "runs"), uri, "tests")
    assert "the experiment tests was deleted in the MLflow UI, and is there again with its runs" in caplog.text


def test_a_sweep_whose_parent_was_deleted_gets_another(tmp_path: Path) -> None:
    """Its runs are nested under the new one."""
    uri = store_of(tmp_path, write_run(tmp_path / "runs"))
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE name = 'sweep grid'")
    (tmp_path / "report.html").write_text("x")
    parent = tracking.attach([tmp_path / "report.html"], uri, "grid", "x")
    assert [run["tags"]["mlflow.parentRunId"] for run in tracking.read_runs(uri)] == [parent]


def test_a_copy_of_a_store_takes_no_report_by_itself(tmp_path: Path) -> None:
    """Its artifacts lie with the original, which nobody meant to change."""
    store_of(tmp_path, write_run(tmp_path / "runs"))
    (tmp_path / "copy").mkdir()
    shutil.copyfile(tmp_path / "mlflow.db", tmp_path / "copy" / "mlflow.db")
    (tmp_path / "report.html").write_text("x")
    copy = f"sqlite:///{tmp_path}/copy/mlflow.db"
    assert tracking.attach([tmp_path / "report.html"], copy, "grid", "x", anywhere=False) is None
    assert not list((tmp_path / "mlartifacts").rglob("report.html"))


def test_a_report_of_no_runs_is_not_attached(tmp_path: Path) -> None:
    """There must be runs of the sweep."""
    with pytest.raises(ValueError, match=r"^sweep=grid: there is nothing to attach a report to"):
        tracking.attach([], store_of(tmp_path), "grid", "x")


def test_the_rows_of_a_task_are_an_input(tmp_path: Path) -> None:
    """Name and revision, the same for runs on the same rows; an experiment says what it is."""
    run_dirs = [write_run(tmp_path / "runs", seed=seed) for seed in range(2)]
    for run_dir in run_dirs:
        content = json.loads((run_dir / RESULT_FILE).read_text())
        content["provenance"] |= {"revisions": {"data": "a" * 64}, "data": {"rows": {"train": 200}}}
        (run_dir / RESULT_FILE).write_text(json.dumps(content))
    uri = store_of(tmp_path, *run_dirs, write_run(tmp_path / "runs"))
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        found = connection.execute("SELECT name, digest, dataset_source, dataset_profile FROM datasets").fetchall()
        inputs = connection.execute("SELECT count(*) FROM inputs WHERE destination_type = 'RUN'").fetchone()
        note = connection.execute("SELECT value FROM experiment_tags WHERE key = 'mlflow.note.content'").fetchone()
    [(name, digest, source, profile)] = found
    assert (name, digest, json.loads(profile)) == ("micro/sentiment", "a" * 36, {"rows": {"train": 200}})
    assert json.loads(source)["revision"] == "a" * 64
    assert inputs == (2,)
    assert "report/report.html" in note[0]


# --- A server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mlflow_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real tracking server on this machine, which keeps the artifacts, and an empty cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tracking_server(tmp_path) as address:
        yield address


@contextmanager
def crowded(address: str, refusals: list[int]) -> Iterator[str]:
    """A server before another one that creates two runs for one, then is too busy for a batch, as often as told.

    `refusals` is counted down, and ends at the number of batches that were let through, as a negative number.
    """

    class Forward(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path.endswith("/runs/log-batch"):
                refusals[0] -= 1
                if refusals[0] >= 0:
                    message = "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00"
                    return self.answer(400, json.dumps({"error_code": "BAD_REQUEST", "message": message}).encode())
            headers = {name: value for name, value in self.headers.items() if name not in {"Host", "Content-Length"}}
            for _ in range(1 + self.path.endswith("/runs/create")):
                request = Request(address + self.path, body or None, headers, method=self.command)
                try:
                    with urlopen(request, timeout=60) as response:
                        status, content = response.status, response.read()
                except HTTPError as error:
                    status, content = error.code, error.read()
            return self.answer(status, content)

        do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Forward) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_crowded_server_is_asked_again(tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server is too busy for comes again until it is there once; one that stays busy keeps nothing half."""
    first, second = (write_run(tmp_path / "runs", seed=seed) for seed in range(2))
    monkeypatch.setattr(sending, "FIRST_WAIT", 0.01)
    refusals = [3]
    with crowded(mlflow_server, refusals) as uri:
        tracking.send(first, uri, "tests")
        assert refusals[0] < 0
        assert [run["params"]["seed"] for run in tracking.read_runs(mlflow_server)] == ["0"]
        refusals[0] = 10**6
        monkeypatch.setattr(sending, "BUSY_SECONDS", 1)
        with pytest.raises(ConnectionError, match=r"^the tracking store http://127.* failed: .*QueuePool limit"):
            tracking.send(second, uri, "tests")
    with closing(sqlite3.connect(tmp_path / "server.db")) as connection:
        query = "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active' AND name LIKE 'lora%s0%'"
        assert len(connection.execute(query).fetchall()) == 1
    tracking.send(second, mlflow_server, "tests")
    assert [run["params"]["seed"] for run in tracking.read_runs(mlflow_server)] == ["0", "1"]
    with closing(sqlite3.connect(tmp_path / "server.db")) as connection:
        query = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active' AND name LIKE 'lora%'"
        assert connection.execute(query).fetchone() == (2,)


def with_predictions(folder: Path, method: str, wrong: int) -> Path:
    """A run directory with a curve, and predictions of which some are wrong."""
    steps = [{"step": step, "development.accuracy": step / 100, "loss": 1.0} for step in (10, 20)]
    run_dir = write_run(folder, method=method, score=1 - wrong / 40, steps=steps)
    table = {"split": "validation", "idx": range(40), "label": 0, "prediction": [int(row < wrong) for row in range(40)]}
    pd.DataFrame(table).to_parquet(run_dir / "predictions.parquet", index=False)
    return run_dir


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_server_is_read_whole_and_then_only_for_what_is_new(tmp_path: Path, mlflow_server: str) -> None:
    """Rows, curves and predictions are those of a store in a file; what was read is not asked for again."""
    run_dirs = [with_predictions(tmp_path / "runs", method, wrong) for method, wrong in (("full", 2), ("lora", 30))]
    for run_dir in run_dirs:
        tracking.send(run_dir, mlflow_server, "tests")
    local = store_of(tmp_path, *run_dirs)
    runs, here = tracking.read_runs(mlflow_server), tracking.read_runs(local)
    for one, other in zip(runs, here, strict=True):
        del one["metrics"]["cost.track_seconds"], other["metrics"]["cost.track_seconds"]
        assert (one["run_id"], one["params"], one["metrics"]) == (other["run_id"], other["params"], other["metrics"])
    assert tracking.read_curves(mlflow_server) == tracking.read_curves(local)

    report.main([f"tracking.uri={mlflow_server}", f"out={tmp_path / 'out'}", "sweep=grid", "attach=true"])
    assert "full better" in (tmp_path / "out" / "comparisons.csv").read_text()
    assert f'href="{mlflow_server}/#/runs/' in (tmp_path / "out" / "report.html").read_text()
    [(_, artifacts)] = of_sweep(f"sqlite:///{tmp_path}/server.db")
    assert list((tmp_path / "kept").rglob("report/report.html")), artifacts

    asked: list[str] = []
    third = with_predictions(tmp_path / "runs", "head", 20)
    tracking.send(third, mlflow_server, "tests")
    with pytest.MonkeyPatch.context() as patch:
        from mlflow import MlflowClient

        history, pages = MlflowClient.get_metric_history, MlflowClient.search_runs
        patch.setattr(MlflowClient, "get_metric_history", lambda *a: (asked.append(a[1]), history(*a))[1])
        patch.setattr(MlflowClient, "search_runs", lambda *a, **k: (asked.append(a[2]), pages(*a, **k))[1])
        curves = tracking.read_curves(mlflow_server)
    assert {run for run, *_ in curves} == {
        json.loads((d / RESULT_FILE).read_text())["run_id"] for d in [*run_dirs, third]
    }
    searches = [text for text in asked if "harness.run_id" in text]
    assert sum("harness.sent_on" not in text for text in searches) == 1, "only deleted runs are asked for as a whole"
    assert len(asked) - len(searches) == 1, "one curve is new"

    server = sqlite3.connect(tmp_path / "server.db")
    with closing(server), server:
        server.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE name LIKE 'head%'")
    assert sorted(run["tags"]["method"] for run in tracking.read_runs(mlflow_server)) == ["full", "lora"]


def test_a_damaged_copy_of_a_server_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in its files; and days are asked for only where they are few."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store("http://127.0.0.1:5000")
    copy = server_cache.load(store)
    assert (copy.day, copy.runs, copy.days(date(2026, 11, 2))) == (None, {}, None)
    copy.runs, copy.curves = {"a": {"run_id": "1", "metrics": {"x": math.inf}}}, {"a": [("development.loss", 1, 0.5)]}
    copy.save(date(2026, 11, 1))
    again = server_cache.load(store)
    assert (again.day, again.runs, again.curves) == (date(2026, 11, 1), copy.runs, copy.curves)
    assert again.days(date(2026, 11, 2)) == ["2026-10-31", "2026-11-01", "2026-11-02", "2026-11-03"]
    assert again.days(date(2027, 1, 1)) is None
    assert server_cache.load(Store(store.uri, token="other")).runs == {}
    for content in ("{", "[]", '{"day": "x", "runs": {}}', '{"day": "2026-11-01", "runs": 3}'):
        (copy.folder / "runs.json").write_text(content)
        assert server_cache.load(store).day is None
    with pytest.raises(ValueError, match="no id of an MLflow run"):
        copy.file("../../x", "y")
