"""Tracking URIs are checked in seconds and shown without their secrets."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from run_directories import store_of, write_run

from harness import tracking
from harness.config.errors import ConfigError
from harness.tracking import reading
from harness.tracking.uri import Store, check, parse, redact


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://user:word@host:5000/path", "https://***@host:5000/path"),
        ("https://token@host", "https://***@host"),
        ("https://host/?token=abc", "https://host/?***"),
        ("https://user:with/slash@host", "https://***@host"),
        ("https://user:with?mark@host", "https://***@host"),
        ("user:word@host:5000", "***@host:5000"),
        ("postgresql://user:word@host/db", "postgresql://***@host/db"),
        ("sqlite:///folder@2/mlflow.db", "sqlite:///folder@2/mlflow.db"),
        (
            "no answer from https://a:b@h, nor http://c@h (me@home)",
            "no answer from https://***@h, nor http://***@h (me@home)",
        ),
    ],
)
def test_secrets_are_redacted(given: str, shown: str) -> None:
    """User, password, token and query become ***; a file name stays as it is."""
    assert redact(given) == shown


def test_a_server_uri_is_taken_apart() -> None:
    """The URI that mlflow is given has no secret; percent-encoded ones are decoded."""
    assert parse("https://us%40er:p%2Fw@host:5000/x/") == Store("https://host:5000/x", username="us@er", password="p/w")
    assert parse("https://abc@host") == Store("https://host", token="abc")


def test_scrubbing_finds_a_secret_in_any_form() -> None:
    """A password goes from a text also without its URI, plain or percent-encoded."""
    store = parse("https://user:p%2Fw@host")
    assert store.scrub("p/w and p%2Fw and https://user:p%2Fw@host") == "*** and *** and https://***@host"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("mlruns", "is not a tracking store"),
        ("file:///tmp/x", "has an unknown scheme"),
        ("postgresql://u:secret@h/db", "has an unknown scheme"),
        ("sqlite:///", "does not name an SQLite file"),
        ("sqlite:///:memory:", "does not name an SQLite file"),
        ("sqlite:///{tmp}", "is a folder"),
        ("sqlite:///{tmp}/missing/x.db", "the folder {tmp}/missing does not exist"),
        ("sqlite:///{tmp}/text.db", "is not an SQLite database"),
        ("sqlite:///{tmp}/a%20b.db", "a%20b.db has a percent-encoded character in it"),
        ("sqlite:////proc/x.db", "cannot be written"),
        ("http://host:99999", "is not a server's address"),
        ("http://u:sec/ret@host", "is not a server's address"),
        ("http://127.0.0.1:9", "the server cannot be reached"),
        ("http://u:secret@127.0.0.1:9", "the server cannot be reached"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(uri: str, reason: str, tmp_path: Path) -> None:
    """The sentence has the dotted key and what was given, without its password."""
    (tmp_path / "text.db").write_text("just a text, longer than a header")
    with pytest.raises(ConfigError) as caught:
        check(uri.format(tmp=tmp_path))
    text = str(caught.value)
    assert text.startswith("tracking.uri=")
    assert reason.format(tmp=tmp_path) in text
    assert "sec" not in text
    assert "\n" not in text


def test_a_store_that_can_be_used_passes(tmp_path: Path) -> None:
    """A file that does not exist yet is fine, and checking does not make it."""
    check(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_store_that_was_moved_with_its_files_finds_them(tmp_path: Path) -> None:
    """Renamed, or copied while the old place is gone; what neither place has stays as the store says."""
    (tmp_path / "old").mkdir()
    uri = store_of(tmp_path / "old", write_run(tmp_path / "runs"))
    assert (Path(reading.read_runs(uri)[0]["artifact_uri"]) / "result.json").is_file()
    (tmp_path / "old").rename(tmp_path / "new")
    found = Path(reading.read_runs(f"sqlite:///{tmp_path}/new/mlflow.db")[0]["artifact_uri"])
    assert found.is_relative_to(tmp_path / "new")
    assert (found / "result.json").is_file()
    shutil.rmtree(tmp_path / "new/mlartifacts")
    lost = reading.read_runs(f"sqlite:///{tmp_path}/new/mlflow.db")[0]["artifact_uri"]
    assert str(tmp_path / "old/mlartifacts") in lost


# A change that is too large for the memory it is given, so that half of it is in the file when the writer dies.
KILLED_WRITER = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
connection.execute("UPDATE runs SET name = 'half'")
connection.execute("UPDATE tags SET value = value || ?", ("x" * 100_000,))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("read", [tracking.read_runs, tracking.read_curves, tracking.finished, tracking.views])
def test_what_a_killed_writer_left_is_undone_by_who_reads(read: Callable[[str], object], tmp_path: Path) -> None:
    """A store whose writer was killed in the middle of a change is read as it was before, whoever reads it."""
    uri = store_of(tmp_path, write_run(tmp_path / "runs", steps=[{"step": 1, "development.accuracy": 0.5}]))
    before = read(uri)
    assert before
    file = parse(uri).path
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(file)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert Path(f"{file}-journal").stat().st_size
    assert read(uri) == before
