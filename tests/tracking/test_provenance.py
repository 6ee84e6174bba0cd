"""Provenance says what a reader needs to get the same result again, and no secret."""

import subprocess

import pytest
import torch

from harness.config.sources import PACKAGE
from harness.tracking import provenance as origin


def test_versions_device_seeds_and_revisions_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is there too, without its password."""
    monkeypatch.setattr("sys.argv", ["harness", "tracking.uri=http://me:s3cret@host:5000", "seed=3"])
    found = origin.provenance(torch.device("cpu"), torch.float32, {"seed": 3}, {"model": "m", "data": "d"})
    assert found["packages"]["torch"] == torch.__version__
    assert (found["device_type"], found["dtype"]) == ("cpu", "float32")
    assert found["threads"] == torch.get_num_threads()
    assert found["seeds"] == {"seed": 3}
    assert found["revisions"] == {"model": "m", "data": "d"}
    assert "s3cret" not in str(found)
    assert found["command"][-1] == "seed=3"


def test_the_commit_is_that_of_the_clone() -> None:
    """As git itself says."""
    if not (PACKAGE.parent / ".git").exists():
        pytest.skip("not a clone")
    commit = subprocess.run(
        ["git", "-C", str(PACKAGE.parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    state = origin.git_state()
    assert state is not None
    assert state["commit"] == commit
