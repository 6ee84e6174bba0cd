"""The tests that are marked `gpu`; in a dry run those that do the same in bfloat16 on the CPU."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from parts import Setting

TESTS = Path(__file__).resolve().parents[1]
MARK = "pytest.mark.gpu"
PROCESSES = 8


class Recorder:
    """Writes one line per test."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.counted = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counted += report.when == "call"
            name = report.nodeid.rpartition("::")[2]
            self.setting.write("tests", test=name, outcome=report.outcome, when=report.when, seconds=report.duration)


def main(setting: Setting) -> bool:
    chosen = ["-m", "not gpu", f"{TESTS / 'run' / 'test_run.py'}::test_a_run_in_bfloat16_measures_everything[lora]"]
    if not setting.dry:
        # Not all of them: modules that need packages which only the store or the pages need can't be imported there.
        files = [str(path) for path in TESTS.rglob("test_*.py") if MARK in path.read_text()]
        chosen = ["-m", "gpu", *files]
    # A warning that only this machine gives must not hide what the tests say.
    recorder = Recorder(setting)
    # Nor must options of plugins that are not here.
    options = ["-q", "-o", "addopts=", "-W", "default", "-p", "no:cacheprovider"]
    # One process would leave the GPU idle: each test is a run of tiny steps.
    side_by_side = not setting.dry and importlib.util.find_spec("xdist") is not None
    options += ["-n", str(PROCESSES)] if side_by_side else ["-p", "no:xdist"]
    options += [f"--rootdir={TESTS.parent}"]
    options += [f"--config-file={TESTS.parent / 'pyproject.toml'}", f"--basetemp={setting.work / 'pytest'}"]
    return pytest.main([*options, *chosen], plugins=[recorder]) == 0 and recorder.counted > 0
