"""The contracts on who may import whom, held against a copy of the tree with one import too many."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config.sources import PACKAGE


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    if not (PACKAGE.parent / "pyproject.toml").is_file():
        pytest.skip("the contracts lie in pyproject.toml, which an installed package does not have")
    shutil.copy(PACKAGE.parent / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__", "pretrained"))
    return tmp_path


def test_the_tree_keeps_its_contracts(copy):
    """As it is, nothing imports upwards."""
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("config/errors.py", "from harness.run import prepare", "Rooms import downwards BROKEN"),
        ("config/errors.py", "def late():\n    from harness import models", "Rooms import downwards BROKEN"),
        (
            "methods/budget.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from harness.tasks import Task",
            "Rooms import downwards BROKEN",
        ),
        ("plan/costs.py", "from harness import doctor", "Rooms import downwards BROKEN"),
        ("tracking/uri.py", "from harness.tracking import sending", "part of a circle BROKEN"),
        ("report/runs.py", "def late():\n    import mlflow", "MLflow is known to harness.tracking alone BROKEN"),
        ("sweep/points.py", "def late():\n    import torch", "neither torch nor transformers BROKEN"),
        ("new_room.py", "", "new_room"),
    ],
)
def test_an_import_too_many_is_found(copy, file, line, broken):
    """Upwards, sideways, in a circle, in a function's body or for types alone: the check names what it breaks."""
    path = copy / "harness" / file
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}\n\n{line}\n")
    done = lint(copy)
    assert done.returncode != 0
    assert broken in done.stdout + done.stderr
