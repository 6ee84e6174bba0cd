"""What a generator writes is hashed once for its sources, and told from there."""

from pathlib import Path

import pytest

from harness.tasks import generators, micro_summary
from harness.tasks.generators import revision_of


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine that has computed none, and a process that has asked for none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    revision_of.cache_clear()
    yield
    revision_of.cache_clear()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every hash that is computed from here on."""
    made: list[str] = []
    real = micro_summary.fingerprint
    monkeypatch.setattr(micro_summary, "fingerprint", lambda: made.append(real()) or made[-1])
    return made


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("micro_summary-*"))


def ask() -> str:
    """As a process that starts now."""
    revision_of.cache_clear()
    return revision_of("micro_summary")


def test_it_is_computed_once_on_a_machine(computed: list[str], tmp_path: Path) -> None:
    """It is what the generator itself says, also to the processes that come later."""
    assert ask() == ask() == ask() == micro_summary.fingerprint()
    assert len(computed) == 2  # the last by this test
    assert [path.read_text() for path in kept(tmp_path)] == computed[:1]


def test_other_sources_are_computed_anew(computed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another word in any of them, or another Python, may write something else."""
    ask()
    changed = tmp_path / "sources"
    changed.mkdir()
    for path in generators.SOURCES.glob("micro*.py"):
        (changed / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(generators, "SOURCES", changed)
    ask()
    assert len(computed) == 1
    with (changed / "micro_words.py").open("a") as file:
        file.write("# another word\n")
    ask()
    assert len(computed) == 2
    monkeypatch.setattr("platform.python_version", lambda: "4.0.0")
    ask()
    assert len(computed) == 3


@pytest.mark.parametrize("content", [b"", b"0" * 63, b"\xff" * 64, "½".encode() * 32])
def test_what_is_damaged_is_computed_anew(content: bytes, computed: list[str], tmp_path: Path) -> None:
    """And kept whole."""
    expected = ask()
    (file,) = kept(tmp_path)
    file.write_bytes(content)
    assert ask() == expected
    assert file.read_text() == expected
    assert len(computed) == 2


def test_without_a_place_it_is_computed(computed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process alone: a cache that can't be written to stops nobody."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert ask() == ask()
    assert len(computed) == 2
