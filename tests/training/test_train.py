"""Training takes the steps it was told to, keeps the best weights, and a resumed run ends where a whole one does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.config.build import build
from harness.config.compose import compose
from harness.methods.optimizer import make_optimizer
from harness.run import prepare, run
from harness.tracking.record import RunRecord
from harness.training.schedule import make_schedule


def settings(*overrides: str):
    return build(compose("config", list(overrides))).train


@pytest.mark.slow
def test_accumulated_batches_take_the_step_of_one_large_batch(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Without dropout, which would draw other masks for smaller batches."""
    folder = shutil.copytree(tiny_experiment[0].removeprefix("model.path="), tmp_path / "model")
    configuration = json.loads((folder / "config.json").read_text())
    configuration |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(configuration))
    options = [*tiny_experiment, f"model.path={folder}", "train.max_steps=1", "method=head", "train.warmup_share=0"]
    sizes = {
        "whole": ["train.batch_size=180"],
        "parts": ["train.batch_size=60", "train.gradient_accumulation_steps=3"],
    }
    weights = []
    for name, size in sizes.items():
        run(prepare(compose("config", [*options, *size])), tmp_path / name)
        weights.append(load_file(tmp_path / name / "adapter/adapter_model.safetensors")["classifier.weight"])
    assert torch.allclose(*weights, atol=1e-5)


@pytest.mark.slow
def test_the_number_of_steps_is_what_the_epochs_need_or_what_was_said(
    tiny_experiment: list[str], tmp_path: Path
) -> None:
    """The log ends at that step."""
    for name, extra, expected in (("epochs", "train.epochs=2", 12), ("steps", "+train.max_steps=7", 7)):
        run(prepare(compose("config", [*tiny_experiment, extra.lstrip("+")])), tmp_path / name)
        assert f'"step": {expected},' in (tmp_path / name / "steps.jsonl").read_text().splitlines()[-1]


def test_early_stopping_ends_a_run_that_gets_no_better(tiny_experiment: list[str], tmp_path: Path) -> None:
    """After the first evaluation and a patience of two there are three."""
    options = ["train.early_stopping_patience=2", "train.epochs=50", "train.learning_rate=1e-9"]
    run(prepare(compose("config", [*tiny_experiment, *options])), tmp_path / "run")
    assert (tmp_path / "run/steps.jsonl").read_text().count("development.accuracy") == 3


def test_the_best_weights_are_kept_and_not_the_last(tiny_experiment: list[str], tmp_path: Path) -> None:
    """A learning rate that ruins the model late: the score reported is the best evaluation's."""
    options = ["method=full", "train.epochs=6", "train.learning_rate=0.05", "train.evaluations_per_epoch=3"]
    result = run(prepare(compose("config", [*tiny_experiment, *options])), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/steps.jsonl").read_text().splitlines()]
    scores = [line["development.accuracy"] for line in lines if "development.accuracy" in line]
    assert result.scores["development"]["accuracy"] == max(scores)


@pytest.mark.parametrize(("scheduler", "halfway"), [("linear", 0.5), ("cosine", 0.5)])
def test_the_schedule_warms_up_and_falls_to_zero(scheduler: str, halfway: float) -> None:
    """Linearly up for a fifth of the steps, then as the scheduler says."""
    train = settings(f"train.scheduler={scheduler}", "train.warmup_share=0.2", "train.learning_rate=1.0")
    optimizer = make_optimizer({"weight": torch.nn.Parameter(torch.ones(2, 2))}, train)
    schedule = make_schedule(optimizer, train, 100)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0
    assert rates[10] == pytest.approx(0.5)
    assert rates[20] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(halfway)
    assert rates[100] == pytest.approx(0, abs=1e-9)


def test_vectors_do_not_decay() -> None:
    """Biases and norms are in a group without weight decay."""
    train = settings("train.weight_decay=0.1")
    optimizer = make_optimizer(
        {"w": torch.nn.Parameter(torch.ones(2, 2)), "b": torch.nn.Parameter(torch.ones(2))}, train
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


KILLED = """
import sys
from pathlib import Path
from harness.config.compose import compose
from harness.run import prepare, run
from harness.training.trainer import Trainer

step = Trainer._step
def slow_step(trainer, batches, weight):
    import time
    loss = step(trainer, batches, weight)
    print(trainer.state.step, flush=True)
    time.sleep(0.05)
    return loss
Trainer._step = slow_step
run(prepare(compose("config", sys.argv[2:])), Path(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "kill_at", [pytest.param(3, marks=pytest.mark.slow), 11, pytest.param(17, marks=pytest.mark.slow)]
)
def test_a_run_killed_outright_goes_on_to_the_scores_it_would_have_had(
    kill_at: int, tiny_experiment: list[str], tmp_path: Path
) -> None:
    """From the last checkpoint, whichever step SIGKILL came at."""
    options = [*tiny_experiment, "train.checkpoint_minutes=1e-4"]
    whole = run(prepare(compose("config", options)), tmp_path / "whole")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed"), *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == kill_at:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/result.json").exists()
    resumed = run(prepare(compose("config", [*options, "train.resume=true"])), tmp_path / "resumed")
    assert resumed.scores == whole.scores


@pytest.mark.slow
def test_sigterm_leaves_a_record_and_a_checkpoint(tiny_experiment: list[str], tmp_path: Path) -> None:
    """SIGTERM ends the run with status 130 and a record that says how to go on."""
    arguments = [*tiny_experiment, "train.epochs=100000", f"hydra.run.dir={tmp_path}/run"]
    process = subprocess.Popen([sys.executable, "-m", "harness", *arguments], stderr=subprocess.DEVNULL)
    log = tmp_path / "run/run.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "trains" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    record = RunRecord.read(tmp_path / "run")
    assert record.status == "interrupted"
    assert "train.resume=true" in str(record.error)
    assert list(Path("runs/checkpoints").glob("*/checkpoint.pt"))
