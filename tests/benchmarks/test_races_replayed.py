"""Races replayed on sweeps whose trials all ran to their ends: tokens spent and choices kept, against the error level.

    HARNESS_REAL_DATA=FOLDER harness -cn racing model.path=FOLDER
    HARNESS_RACE_STORE=sqlite:///mlflow.db python -m pytest -m slow -s tests/benchmarks/test_races_replayed.py

The first takes hours on two cores; without a store of it, four rates of one method on a task of the micro world are
trained here, too few to conclude from.
"""

import os
from pathlib import Path

import pytest

from harness.config.compose import compose
from harness.replay.__main__ import rules
from harness.replay.page import overall
from harness.replay.races import load, replay
from harness.run import prepare, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]
STORE = os.environ.get("HARNESS_RACE_STORE")
RATES = (2e-4, 8e-4, 3.2e-3, 1.28e-2)
# Small, and its schedule as in the sweep: eight evaluations in two epochs.
MICRO = [
    "task=micro/sentiment", "task.max_train_rows=256", "task.max_development_rows=200", "train.epochs=2",
    "train.evaluations_per_epoch=4", "train.keep_adapter=false", "forgetting.text=null", "measure.costs=false",
    "evaluate.validation=false", "sweep.stage=tune", "tracking=none",
]  # fmt: skip


def micro_sweep(folder: Path) -> str:
    for number, rate in enumerate(RATES):
        told = [*MICRO, f"train.learning_rate={rate}", f"train.checkpoint_dir={folder}/checkpoints"]
        assert run(prepare(compose("config", told)), folder / f"runs/{number}").status == "finished"
    return str(folder / "runs")


def test_races_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The highest level spends no more than the lowest; a race that spends all chooses as the whole sweep does."""
    curves = load(STORE or micro_sweep(tmp_path), "racing" if STORE else None)
    assert curves
    table = overall(replay(curves, rules(), replays=100 if STORE else 10, seed=0))
    with capsys.disabled():
        print(f"\n{len(curves)} races\n{table.to_string(index=False, float_format='{:.3f}'.format)}")
    races = table[table["level"].notna()]
    for _, race in races.groupby("rungs", sort=False):
        assert race["spent"].iloc[-1] <= race["spent"].iloc[0]
    assert (races.loc[races["spent"] == 1, "same"] == 1).all()
    assert table["spent"].between(0, 1).all()
