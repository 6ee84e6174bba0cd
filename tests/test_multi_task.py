"""Adapters of several tasks share one backbone and score there what their runs recorded."""

import json
import sys
from pathlib import Path

import pytest

from harness import multi_task
from harness.config.compose import compose
from harness.run import prepare, run

SMALL = ["model=micro_encoder", "tracking=none", "train.max_steps=4", "forgetting.text=null"]
ROWS = "task.generator_rows={train: 64, development: 16, validation: 48}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for task, method in (("sentiment", "lora"), ("entailment", "houlsby"), ("paraphrase", "bitfit")):
        made.append(folder / task)
        run(prepare(compose("config", [*SMALL, ROWS, f"task=micro/{task}", f"method={method}"])), made[-1])
    return made


def carry_out(*arguments: str) -> int:
    sys.argv = ["multi_task", *arguments]
    return multi_task.main()


def test_each_task_scores_what_its_run_recorded(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The files have every task, the time of a switch and the bytes of both ways to store them."""
    assert carry_out(*map(str, runs), "out=shared") == 0
    content = json.loads(Path("shared/multi_task.json").read_text())
    assert [row["task"] for row in content["tasks"]] == ["micro/sentiment", "micro/entailment", "micro/paraphrase"]
    for row in content["tasks"]:
        assert row["score"] == pytest.approx(row["recorded"], abs=1e-6)
        assert row["swap_ms"] > 0
    saved = sum((path / "adapter/adapter_model.safetensors").stat().st_size for path in runs)
    assert content["storage"]["adapters_bytes"] == saved
    assert content["storage"]["copies_bytes"] == 3 * content["storage"]["backbone_bytes"]
    assert "3 tasks take" in capsys.readouterr().out
    assert "micro/entailment" in Path("shared/multi_task.md").read_text()


def test_a_record_that_no_adapter_bears_out_is_told(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A changed score ends the command with status 1 and the run's name."""
    record = json.loads((runs[0] / "result.json").read_text())
    changed = runs[0].with_name("changed")
    changed.mkdir()
    (changed / "adapter").symlink_to(runs[0] / "adapter")
    record["scores"]["validation"]["accuracy"] += 0.25
    (changed / "result.json").write_text(json.dumps(record))
    assert carry_out(str(changed), "out=shared") == 1
    assert f"other scores than recorded: {changed}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "one or more finished runs are needed"),
        (["nowhere"], "nowhere: there is no result.json"),
        (["bare"], "bare: it kept no adapter"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, whatever is missing."""
    Path("bare").mkdir()
    Path("bare/result.json").write_text("{}")
    assert carry_out(*arguments) == 2
    captured = capsys.readouterr().err
    assert told in captured
    assert len(captured.strip().splitlines()) == 1
