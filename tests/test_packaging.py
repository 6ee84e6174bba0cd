"""The wheel works where there is no source tree."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from harness.config.sources import PACKAGE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel, and everything else from the environment of the tests.

    A `.pth` file lends the other packages. The source tree is not lent with them: an editable installation is itself
    a `.pth` file, and those are not read at second hand.
    """
    folder = tmp_path_factory.mktemp("wheel")
    run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(PACKAGE.parent)],
        folder,
    )
    (wheel,) = folder.glob("peft_harness-*.whl")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env/bin/python"
    run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], folder)
    (site,) = (folder / "env/lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env/bin"


def run(command: list[str], folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HYDRA", "COV"))}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_package_is_the_wheels_and_not_the_source_trees(installed: Path, tmp_path: Path) -> None:
    """It is imported from the new environment."""
    where = run([str(installed / "python"), "-c", "import harness; print(harness.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_a_sweep_and_its_report_run_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Two points finish, and the report has both methods."""
    overrides = ["method=head,lora", "train.max_steps=3", "task.max_train_rows=64"]
    printed = run([str(installed / "harness"), "-m", *overrides], tmp_path)
    assert "2 finished" in printed
    run([str(installed / "harness-report"), "sweep=multirun"], tmp_path)
    table = (tmp_path / "report/report.md").read_text()
    assert "lora" in table
    assert "head" in table


def test_a_shipped_sweep_and_the_plan_are_found(installed: Path, tmp_path: Path) -> None:
    """conf/ and sweeps/ come with the wheel."""
    assert "micro/sentiment" in run([str(installed / "harness"), "-cn", "demo", "--cfg", "job"], tmp_path)
    assert "trained" in run([str(installed / "harness-plan"), "model=roberta_base"], tmp_path)
