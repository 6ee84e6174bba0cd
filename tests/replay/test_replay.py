"""Races replayed: what a rule would have spent and chosen, from what runs left."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_directories import write_run

from harness.config.errors import ConfigError
from harness.replay.__main__ import Study, parse, study_races
from harness.replay.races import Curves, Rule, load, replay
from harness.tracking.record import DEVELOPMENT_FILE

RATES, STEPS, ROWS = (1e-4, 1e-3, 1e-2, 1e-1), (2, 4, 6, 8), 300
# Shares of rows that each rate has right at each step: the third is best throughout, the fourth ends nearly as well.
AHEAD = ((0.5, 0.5, 0.5, 0.5), (0.5, 0.6, 0.7, 0.75), (0.6, 0.8, 0.9, 0.91), (0.5, 0.7, 0.85, 0.89))
# The best at the end is far behind until the last evaluation.
LATE = ((0.5, 0.5, 0.5, 0.5), (0.6, 0.7, 0.75, 0.76), (0.6, 0.7, 0.74, 0.75), (0.3, 0.3, 0.4, 0.95))


def write_sweep(folder: Path, shares: tuple[tuple[float, ...], ...], method: str = "lora") -> None:
    """Trials that ran to their ends and left their rows; which rows are hard is the same for all."""
    ease = np.random.default_rng(0).permutation(ROWS) / ROWS
    own = np.random.default_rng(1)
    for rate, curve in zip(RATES, shares, strict=True):
        run_dir = write_run(folder, method=method, stage="tune", learning_rate=rate, development=curve[-1])
        luck = own.normal(0, 0.03, ROWS)
        table = [
            {"step": step, "idx": row, "score": float(ease[row] + luck[row] < share)}
            for step, share in zip(STEPS, curve, strict=True)
            for row in range(ROWS)
        ]
        pd.DataFrame(table).sample(frac=1, random_state=0).to_parquet(run_dir / DEVELOPMENT_FILE, index=False)


def curves_of(folder: Path, shares: tuple[tuple[float, ...], ...]) -> Curves:
    write_sweep(folder, shares)
    [found] = load(str(folder))
    return found


def test_curves_are_the_rows_of_whole_trials(tmp_path: Path) -> None:
    """In the order of the rates and rows; a stopped trial, a final run and one without rows are no part of them."""
    write_run(tmp_path, stage="tune", learning_rate=5e-5, status="stopped", search={"stop_share": 0.5})
    write_run(tmp_path, stage="final", learning_rate=1e-3)
    write_run(tmp_path, stage="tune", learning_rate=2e-3)
    found = curves_of(tmp_path, AHEAD)
    assert (found.rates, found.shares, found.count) == (RATES, (0.25, 0.5, 0.75, 1.0), ROWS)
    assert (found.task, found.configuration, found.metric) == ("micro/sentiment", "lora", "accuracy")
    assert [found.final(trial) for trial in range(4)] == pytest.approx([0.5, 0.75, 0.9, 0.89], abs=0.02)
    assert not found.tied[2, 0]
    assert found.tied[2, 3]


def test_a_race_spends_less_and_keeps_the_best_that_was_ahead(tmp_path: Path) -> None:
    """Trials stop where rows tell them apart; a lower level stops fewer; the better half stops whatever they say."""
    curves = curves_of(tmp_path, AHEAD)
    strict, loose = Rule((0.25, 0.5, 0.75), 1e-9), Rule((0.25, 0.5, 0.75), 0.3)
    half = curves.whole.follow(Rule((0.5,), None), 1e-6)
    assert (half.chosen, half.spent) == (2, pytest.approx((1 + 1 + 0.5 + 0.5) / 4))
    first, second = (curves.whole.follow(rule, 1e-8) for rule in (strict, loose))
    assert first.chosen == second.chosen == 2
    assert second.spent < first.spent < 1
    assert curves.whole.follow(Rule((), None), 1e-8).spent == 1


def test_a_late_winner_is_lost_to_early_rounds_and_the_replay_says_so(tmp_path: Path) -> None:
    """And none to a rule whose first round comes when the winner is ahead."""
    found = replay([curves_of(tmp_path, LATE)], [Rule((0.5,), None), Rule((0.25,), 0.05)], replays=20, seed=0)
    whole, half, race = found.to_dict("records")
    assert (whole["rungs"], whole["spent"], whole["same"]) == ("", 1.0, 1.0)
    for row in (half, race):
        assert (row["same"], row["tied"]) == (0.0, 0.0)
        assert row["lost"] == pytest.approx(0.19, abs=0.03)
        assert row["spent"] < 1


def test_the_same_seed_gives_the_same_replay(tmp_path: Path) -> None:
    """Draws included; another seed draws other rows."""
    curves = curves_of(tmp_path, AHEAD)
    rules = [Rule((0.25, 0.5), 0.1)]
    first, again, other = (replay([curves], rules, 40, seed) for seed in (0, 0, 3))
    assert first.equals(again)
    assert not first.equals(other)


def test_the_command_writes_page_table_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says what was raced, what the aim is and whether it is reached; every method has its line."""
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "runs", AHEAD)
    write_sweep(tmp_path / "runs", LATE, method="full")
    page = study_races(Study(store="runs", out="out", replays=4)).read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "racing.dark.png",
        "racing.png",
        "replay.csv",
        "report.md",
    }
    assert "2 races of a method's learning rates on a task, replayed 4 times each." in page
    assert "35% of the tokens with a choice as good in at least 95%" in page
    assert "full (4 rates), lora (4 rates)" in page.replace("\\", "")
    table = pd.read_csv(tmp_path / "out/replay.csv")
    assert set(table["configuration"]) == {"full", "lora"}
    assert table["spent"].between(0, 1).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["replays=1"], "replays=1: two or more are needed"),
        (["seed=-1"], "seed=-1: a whole number from 0"),
        (["stor=x"], "stor=x"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(arguments)


def test_a_store_without_whole_sweeps_is_refused(tmp_path: Path) -> None:
    """As one of an earlier version, whose runs left no rows."""
    write_run(tmp_path / "runs", stage="tune")
    for sweep, asked in ((None, "runs"), ("gird", "runs sweep=gird")):
        with pytest.raises(ConfigError, match=rf"{asked}: no method there has three or more trials that ran to their"):
            study_races(Study(store=str(tmp_path / "runs"), sweep=sweep, out=str(tmp_path / "out")))
