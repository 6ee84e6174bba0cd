"""A store that runs can make ends in a report, wherever it has holes."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_directories import write_run

from harness.config.errors import ConfigError
from harness.report import across, report, scores
from harness.report.definitions import Definition
from harness.report.runs import load_runs

SCORES = st.none() | st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1)
RUNS = st.lists(
    st.fixed_dictionaries(
        {
            "method": st.sampled_from(["full", "head", "lora", "ia3"]),
            "task": st.sampled_from(["a", "b", "c"]),
            "seed": st.integers(0, 2),
            "score": SCORES,
            "development": SCORES,
            "majority": st.sampled_from([None, 0.5, 1.0]),
            "status": st.sampled_from([*["finished"] * 5, "failed", "diverged", "out_of_memory", "interrupted"]),
            "stage": st.sampled_from(["run", "run", "run", "tune"]),
            "model": st.sampled_from(["micro_encoder", "micro_encoder", "minilm"]),
            "learning_rate": st.sampled_from([1e-3, 1e-2]),
        }
    ),
    min_size=1,
    max_size=24,
)
# Pictures take seconds; the numbers behind them are in the tables.
NO_PICTURES: dict[str, Any] = {"plots": []}


def written(runs: list[dict[str, Any]], chosen: dict[str, Any]) -> str:
    """The report's Markdown, or the sentence that refuses it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for run in runs:
            write_run(folder / "runs", **run)
        frame = load_runs(folder / "runs")
        try:
            report.write(report.build(frame, Definition(**chosen)), folder / "report")
        except ConfigError as error:
            return str(error)
        return (folder / "report/report.md").read_text()


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(RUNS, st.sampled_from(["baseline", "all"]))
def test_a_store_with_holes_ends_in_a_report(runs: list[dict[str, Any]], pairs: str) -> None:
    """Whatever is missing from whichever runs, the tables are written."""
    assert written(runs, {**NO_PICTURES, "pairs": pairs})


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(RUNS)
def test_a_store_with_holes_ends_in_a_report_with_pictures(runs: list[dict[str, Any]]) -> None:
    """Whatever is missing from whichever runs, the pictures are drawn too."""
    assert written(runs, {})


@pytest.mark.parametrize("there", [[("full", "a"), ("lora", "b")], [("full", "a"), ("lora", "a"), ("head", "b")]])
def test_methods_that_share_no_task_get_no_rank(tmp_path: Path, there: list[tuple[str, str]]) -> None:
    """Their scores stand beside each other, and nothing is said about which is better over tasks."""
    for (method, task), seed in itertools.product(there, range(3)):
        write_run(tmp_path, method=method, task=task, seed=seed)
    frame = load_runs(tmp_path)
    found = across.over_tasks(frame, scores.summary(frame))
    assert found is not None
    assert (found.ranked, found.common) == (0, ())
    assert found.table["rank"].isna().all()
    assert written([{"method": method, "task": task} for method, task in there], NO_PICTURES)
