"""The sweepers: grids that survive a wrong point, and equal budgets whose choice follows from the scores."""

import math
import sys
from pathlib import Path

import pytest
from toy_sweep import ToySweep

from harness.config.errors import ConfigError
from harness.sweep import points
from harness.tracking.record import RunRecord

EQUAL = "hydra/sweeper=equal_budget"
TWO_FINALS = "hydra.sweeper.seeds=[1,2]"
ONE_FINAL = "hydra.sweeper.seeds=[1]"
SECOND = "hydra.sweeper.second_range=true"
RANDOM = "hydra.sweeper.search=random"
TPE = ["hydra.sweeper.search=tpe", "hydra.sweeper.trials=7"]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    return ToySweep(tmp_path, monkeypatch)


@pytest.mark.slow
def test_each_method_gets_the_same_trials_then_its_best_rate_with_fresh_seeds(toy, capsys):
    """Three trials with the tuning seed and validation untouched, then two final runs with the chosen rate."""
    tuned, finals = toy.sweep(["method=wide,narrow"], EQUAL, TWO_FINALS)
    told = [points.defining_overrides(point) for point in overrides(toy, "tune")]
    assert told == [
        [f"method={method}", f"train.learning_rate={rate}", "seed=0"]
        for method, rates in {"wide": (0.1, 0.3, 0.5), "narrow": (1.0, 2.0, 3.0)}.items()
        for rate in rates
    ]
    assert [outcome["status"] for outcome in tuned] == ["finished"] * 3 + ["diverged"] + ["finished"] * 2
    assert all(outcome["scores"]["validation"] is None for outcome in tuned)
    assert [points.defining_overrides(point) for point in overrides(toy, "final")] == [
        [f"method={method}", f"train.learning_rate={rate}", f"seed={seed}"]
        for method, rate in {"wide": 0.3, "narrow": 2.0}.items()
        for seed in (1, 2)
    ]
    assert all(outcome["scores"]["validation"] for outcome in finals)
    shown = capsys.readouterr().out
    assert "0.1: 0.8000, 0.3: 1.0000, 0.5: 0.8000" in shown
    assert "1: -, 2: -0.7000, 3: -1.7000" in shown
    assert not any(outcome.counts_as_failure for outcome in toy.gathered)


def overrides(toy: ToySweep, stage: str) -> list[list[str]]:
    return [point for point, told_stage in toy.asked if told_stage == stage]


@pytest.mark.slow
def test_a_sweep_started_again_takes_finished_trials_from_the_store(toy):
    """Nothing is trained twice, and the choice is the same."""
    one_final = "hydra.sweeper.seeds=[1]"
    first, _ = toy.sweep(["method=wide"], EQUAL, one_final)
    toy.remember(first)
    toy.asked.clear()
    tuned, finals = toy.sweep(["method=wide"], EQUAL, one_final)
    assert all(outcome["skipped"] for outcome in tuned)
    assert [outcome["status"] for outcome in finals] == ["finished"]
    assert all("train.learning_rate=0.3" in point for point in overrides(toy, "final"))


@pytest.mark.slow
def test_a_point_whose_trials_all_fail_is_reported_and_the_others_go_on(toy, capsys):
    """The rest is chosen and run; the sweep counts as failed."""
    _, finals = toy.sweep(["method=wide", "act=finish,raise"], EQUAL, "hydra.sweeper.seeds=[1]")
    assert [outcome["status"] for outcome in finals] == ["finished"]
    assert "act=raise: none of its 3 trials has a development score" in capsys.readouterr().out
    assert any(outcome.counts_as_failure for outcome in toy.gathered)


@pytest.mark.slow
def test_parameters_in_the_file_and_on_the_command_line_make_one_grid(toy):
    """The command line comes over the file, key by key."""
    _, finals = toy.sweep(
        ["act=tie"], EQUAL, "hydra.sweeper.trials=1", "hydra.sweeper.seeds=[1]",
        "+hydra.sweeper.params={method:'wide,single',act:finish}",
    )  # fmt: skip
    assert len(finals) == 2
    assert all("act=tie" in point for point in overrides(toy, "final"))


@pytest.mark.parametrize(
    ("arguments", "setting", "sentence"),
    [
        (["method=wide,single"], TWO_FINALS, "hydra.sweeper.trials=3: method single has 1 learning rates"),
        (["method=wide", "seed=1,2"], TWO_FINALS, "seed: the equal_budget sweeper decides it"),
        (["train.learning_rate=1"], TWO_FINALS, "train.learning_rate: the equal_budget sweeper decides it"),
        (["method=wide"], "hydra.sweeper.seeds=[0,1]", r"hydra.sweeper.seeds=\[0, 1\]: .* not tuning_seed 0"),
        (["method=wide"], "hydra.sweeper.trials=0", "hydra.sweeper.trials=0: a positive whole number is needed"),
        (["method=wid,narro"], TWO_FINALS, "method=wid: there is no such method; did you mean wide"),
        (["method=none"], TWO_FINALS, r"method.learning_rates=\[\]: method none declares no values to try"),
        (["method=falling"], TWO_FINALS, r"method.learning_rates=\[2.0, 1.0\]: .* each higher than the one before"),
        (["method=zero"], TWO_FINALS, r"method.learning_rates=\[0.0, 1.0\]: positive numbers are needed"),
        (
            ["method=wide"],
            "hydra.sweeper.trials=6",
            "trials=6: method wide has 5 learning rates .*search=random or tpe",
        ),
        (["method=wide"], "hydra.sweeper.search=bayes", "search=bayes: there is no such search; Valid: grid, random"),
        (["method=single"], "hydra.sweeper.search=random", "search=random: method single has one value, 1, for train"),
        (["method=single"], "hydra.sweeper.search=tpe", "search=tpe: method single has one value"),
        (["method=wide"], "hydra.sweeper.parallel_trials=0", "parallel_trials=0: a positive whole number"),
        (["method=wide"], "hydra.sweeper.second_range=maybe", "second_range=maybe: true or false is needed"),
        (["method=wide"], "hydra.sweeper.rungs=[0.5,0.25]", r"rungs=\[0.5, 0.25\]: ascending shares between 0 and 1"),
        (
            ["method=wide"],
            "hydra.sweeper.race=1",
            "hydra.sweeper.race=1: an error level between 0 and 1 is needed, or n",
        ),
        (
            ["method=wide"],
            "hydra.sweeper.race=0.05",
            r"race=0.05: its rounds are at the rungs, .*rungs=\[0.25,0.5\]",
        ),
        (["method=wide"], "hydra.sweeper.rungs=[1]", r"rungs=\[1\]: ascending shares between 0 and 1"),
        (["method=single"], SECOND, "second_range.rank: method single has no number called rank"),
        (["method=scaled", "method.alpha=4,8"], SECOND, "method.alpha: the equal_budget sweeper searches it"),
        (["method=wide"], "hydra.sweeper.extend=-1", "extend=-1: a whole number from 0 is needed"),
        (["act=range(1,1)"], TWO_FINALS, "the sweep is empty"),
    ],
)
def test_an_unfair_or_impossible_budget_is_refused(toy, arguments, setting, sentence):
    """Before anything runs, in one sentence."""
    with pytest.raises(ConfigError, match=sentence):
        toy.sweep(arguments, EQUAL, setting)


def test_tpe_with_rungs_or_without_optuna_and_an_extension_without_a_grid_are_refused(toy, monkeypatch):
    """It compares whole trials, and it is Optuna's own."""
    with pytest.raises(ConfigError, match=r"rungs=\[0.5\]: tpe learns from whole trials; use search=grid or random"):
        toy.sweep(["method=wide"], EQUAL, *TPE, "hydra.sweeper.rungs=[0.5]")
    with pytest.raises(ConfigError, match="extend=2: only a grid has an edge to go beyond; use search=grid, or widen"):
        toy.sweep(["method=wide"], EQUAL, *TPE, "hydra.sweeper.extend=2")
    with pytest.raises(ConfigError, match="extend=2: a grid of 1 has no step to go on by"):
        toy.sweep(["method=wide"], EQUAL, "hydra.sweeper.trials=1", "hydra.sweeper.extend=2")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"search=tpe: it needs Optuna .* pip install 'peft-harness\[optuna\]'"):
        toy.sweep(["method=wide"], EQUAL, *TPE)
    assert not toy.asked


def rates(toy: ToySweep, stage: str = "tune") -> list[float]:
    told = [override for point in overrides(toy, stage) for override in point if override.startswith("train.learn")]
    return [float(override.partition("=")[2]) for override in told]


@pytest.mark.slow
def test_random_trials_lie_at_the_same_places_of_each_methods_range(toy):
    """As many for each, on a log scale between its ends; why one was chosen is told to the final run."""
    tuned, finals = toy.sweep(["method=wide,narrow"], EQUAL, RANDOM, ONE_FINAL, "hydra.sweeper.trials=4")
    wide, narrow = rates(toy)[:4], rates(toy)[4:]
    assert len(tuned) == 8
    assert all(0.1 <= rate <= 0.5 for rate in wide)
    places = [math.log(rate / 0.1, 5) for rate in wide]
    assert [math.log(rate, 3) for rate in narrow] == pytest.approx(places, abs=0.01)
    [chosen, _] = rates(toy, "final")
    assert chosen == min(wide, key=lambda rate: abs(rate - 0.3))
    [reason] = [override for override in overrides(toy, "final")[0] if override.startswith("sweep.chosen_from")]
    assert f"best of 4: {wide[0]:g}: {1 - abs(wide[0] - 0.3):.4f}, " in reason
    assert all("sweep.search=random" in point for stage in ("tune", "final") for point in overrides(toy, stage))
    assert len(finals) == 2


@pytest.mark.slow
def test_tpe_asks_in_batches(toy):
    """Two at a time of each method, until the budget is spent."""
    *batches, finals = toy.sweep(["method=wide,narrow"], EQUAL, *TPE, ONE_FINAL)
    assert [len(batch) for batch in batches] == [4, 4, 4, 2]
    assert [outcome["point"] for batch in (*batches, finals) for outcome in batch] == list(range(16))
    asked = [rate for rate in rates(toy) if rate <= 0.5]
    assert len(set(asked)) == 7


@pytest.mark.slow
def test_a_tpe_sweep_started_again_asks_for_the_same_points(toy):
    """From whatever the store holds: all, or what a sweep had done when it was cut off. Diverged trials too."""
    pytest.importorskip("optuna", reason="pip install 'peft-harness[optuna]' brings it")
    first = toy.sweep(["method=wide,narrow"], EQUAL, *TPE, ONE_FINAL)
    asked = list(toy.asked)
    done = [outcome for batch in first for outcome in batch]
    assert "diverged" in {outcome["status"] for outcome in done}
    for kept in (6, len(done)):
        toy.stored.clear()
        toy.asked.clear()
        toy.remember(done[:kept])
        again = [outcome for batch in toy.sweep(["method=wide,narrow"], EQUAL, *TPE, ONE_FINAL) for outcome in batch]
        assert toy.asked == asked
        assert [bool(outcome.get("skipped")) for outcome in again] == [place < kept for place in range(len(done))]


@pytest.mark.slow
def test_a_second_range_is_searched_with_the_same_number_of_trials(toy):
    """A grid of both where the method declares one, of learning rates alone where it does not."""
    tuned, _ = toy.sweep(["method=scaled,wide"], EQUAL, SECOND, "hydra.sweeper.trials=4", ONE_FINAL)
    told = [points.defining_overrides(point) for point in overrides(toy, "tune")]
    assert len(tuned) == 8
    assert told[:4] == [
        ["method=scaled", f"train.learning_rate={rate}", f"method.alpha={alpha}", "seed=0"]
        for rate in (0.1, 0.3)
        for alpha in (1, 16)
    ]
    assert all("sweep.searched=[train.learning_rate,method.alpha]" in point for point in overrides(toy, "tune")[:4])
    final = points.defining_overrides(overrides(toy, "final")[0])
    assert final == ["method=scaled", "train.learning_rate=0.3", "method.alpha=1", "seed=1"]


@pytest.mark.slow
def test_the_better_half_of_each_methods_trials_goes_on_at_each_rung(toy, capsys):
    """5, 3, 2: stopped trials are no failures and never chosen; those that go on resume to their end."""
    settings = [EQUAL, ONE_FINAL, "hydra.sweeper.trials=5", "hydra.sweeper.rungs=[0.25,0.5]"]
    *batches, finals = toy.sweep(["method=wide"], *settings)
    assert [[outcome["status"] for outcome in batch] for batch in batches] == [
        ["stopped"] * 5,
        ["stopped"] * 3,
        ["finished"] * 2,
    ]
    told = overrides(toy, "tune")
    assert all("train.resume=true" in point for point in told)
    assert [sum(f"sweep.stop_share={share}" in point for point in told) for share in (0.25, 0.5)] == [5, 3]
    assert rates(toy) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.2, 0.3, 0.4, 0.2, 0.3]
    assert rates(toy, "final") == [0.3]
    assert "0.1: 0.8000 (stopped)" in capsys.readouterr().out
    assert not any(outcome.counts_as_failure for outcome in toy.gathered)
    toy.remember([outcome for batch in (*batches, finals) for outcome in batch])
    asked = list(toy.asked)
    toy.asked.clear()
    left = leave_checkpoints(toy, batches)
    again = toy.sweep(["method=wide"], *settings)
    assert toy.asked == asked
    assert all(outcome["skipped"] for batch in again for outcome in batch)
    # A start that was cut off could remove none; of those that do not go on, this one does. Not what lies elsewhere.
    assert [rate for rate, place in left.items() if place.exists()] == [0.2, 0.3, 0.5]


def leave_checkpoints(toy, batches):
    """Records and checkpoints as runs that were stopped leave them; one record tells of a file that is none of ours."""
    left = {rate: toy.folder / "checkpoints" / str(rate) / "checkpoint.pt" for rate in (0.1, 0.2, 0.3, 0.4)}
    left[0.5] = toy.folder / "of somebody else" / "checkpoint.pt"
    for place in left.values():
        place.parent.mkdir(parents=True)
        for name in (place.name, "run.json"):
            (place.parent / name).touch()
    for batch, tried in zip(batches, ((0.1, 0.2, 0.3, 0.4, 0.5), (0.2, 0.3, 0.4)), strict=False):
        for outcome, rate in zip(batch, tried, strict=True):
            provenance = {"checkpoint": str(left[rate])}
            record = RunRecord("0" * 32, "stopped", None, outcome["identity"], {}, {}, provenance=provenance)
            record.write(Path(outcome["run_dir"]))
    return left


RACE = [EQUAL, ONE_FINAL, "hydra.sweeper.trials=5", "hydra.sweeper.rungs=[0.25,0.5]", "hydra.sweeper.race=0.05"]


@pytest.mark.slow
def test_a_race_stops_the_trials_that_the_rows_tell_apart_and_a_killed_one_asks_the_same(toy, capsys):
    """Five, three, one: at the first round the outer rates are told apart, at the second all but the best.

    Cut off between any two batches, or in the middle of one, it finds what was done in the store, reads the rows of
    that from there, and asks for the rest.
    """
    arguments = ["method=wide", "act=race"]
    batches = toy.sweep(arguments, *RACE)
    assert [[outcome["status"] for outcome in batch] for batch in batches[:-1]] == [
        ["stopped"] * 5,
        ["stopped"] * 3,
        ["finished"],
    ]
    assert rates(toy) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.2, 0.3, 0.4, 0.3]
    assert rates(toy, "final") == [0.3]
    assert "4 stopped on the way, about 50% of the steps" in capsys.readouterr().out
    asked, outcomes = list(toy.asked), [outcome for batch in batches for outcome in batch]
    for number, done in enumerate((3, 8, len(outcomes))):
        toy.asked.clear()
        toy.stored.clear()
        toy.remember(outcomes[:done])
        again = toy.sweep(arguments, *RACE, f"hydra.sweep.dir={toy.folder}/again{number}")
        assert toy.asked == asked
        assert [outcome["skipped"] for batch in again for outcome in batch] == [n < done for n in range(len(outcomes))]


@pytest.mark.slow
def test_a_race_whose_trials_leave_no_rows_stops_none(toy):
    """What is not known is no reason to stop a trial."""
    *batches, _ = toy.sweep(["method=wide"], *RACE)
    assert [len(batch) for batch in batches] == [5, 5, 5]


@pytest.mark.slow
def test_a_grid_is_extended_where_the_best_lies_at_its_edge_and_a_killed_sweep_asks_the_same(toy, capsys):
    """The best rate is 0.3: a grid around it is not extended, one below goes up by its own step until the score falls.

    A sweep that was cut off after any batch finds what was done in the store, and asks for the rest.
    """
    toy.method("low", [0.01, 0.03])
    settings = [EQUAL, ONE_FINAL, "hydra.sweeper.trials=2", "hydra.sweeper.rungs=[0.5]", "hydra.sweeper.extend=4"]
    batches = toy.sweep(["method=low"], *settings)
    # Two are compared at the rung; those beyond the grid come one at a time, and nothing could stop them on the way.
    assert rates(toy) == [0.01, 0.03, 0.03, 0.09, 0.27, 0.81]
    assert list(dict.fromkeys(rates(toy))) == [0.01, 0.03, 0.09, 0.27, 0.81]
    assert rates(toy, "final") == [0.27]
    assert "best of 5 (3 beyond the grid): " in str(overrides(toy, "final"))
    asked = list(toy.asked)
    for done in (1, len(batches) - 2):
        toy.asked.clear()
        toy.stored.clear()
        toy.remember([outcome for batch in batches[:done] for outcome in batch])
        again = toy.sweep(["method=low"], *settings)
        assert toy.asked == asked
        assert all(outcome["skipped"] for batch in again[:done] for outcome in batch)
        assert not any(outcome["skipped"] for batch in again[done:] for outcome in batch)
    toy.asked.clear()
    toy.sweep(["method=wide"], EQUAL, ONE_FINAL, "hydra.sweeper.extend=4", "hydra.sweep.dir=wide")
    assert rates(toy) == [0.1, 0.3, 0.5]


def test_a_trial_that_diverges_before_a_rung_does_not_go_on(toy):
    """Nor does it take the place of one that could."""
    *batches, _ = toy.sweep(["method=narrow"], EQUAL, ONE_FINAL, "hydra.sweeper.rungs=[0.5]")
    assert [[outcome["status"] for outcome in batch] for batch in batches] == [
        ["diverged", "stopped", "stopped"],
        ["finished", "finished"],
    ]


@pytest.mark.slow
def test_fail_fast_ends_an_equal_budget_sweep_at_its_first_failure(toy):
    """No further batch, no final run."""
    batches = toy.sweep(["method=wide", "act=raise"], EQUAL, *TPE, "sweep.fail_fast=true")
    assert len(batches) == 1


def test_a_plain_sweep_is_the_product_of_its_values_and_survives_a_bad_point(toy):
    """hydra/sweeper=basic runs what composes, and one point that does not is a failed point."""
    (outcomes,) = toy.sweep(["method=wide,narow", "seed=0,1"])
    assert [outcome["status"] for outcome in outcomes] == ["finished", "finished", "failed", "failed"]
    assert "did you mean narrow?" in outcomes[2]["error"]


def test_a_batch_with_a_failure_does_not_stop_the_next(toy):
    """hydra.sweeper.max_batch_size limits what is launched together, nothing else."""
    batches = toy.sweep(["act=raise,finish", "seed=0"], "hydra.sweeper.max_batch_size=1")
    assert [[outcome["status"] for outcome in batch] for batch in batches] == [["failed"], ["finished"]]
    assert [outcome["point"] for batch in batches for outcome in batch] == [0, 1]


def test_the_configuration_of_a_sweep_lies_beside_its_points_without_passwords(toy):
    """In the folder that is named after the sweep."""
    toy.sweep(["seed=0,1"], "tracking.kind=none", "tracking.uri=postgresql://me:s3cret@host/db")
    text = (toy.folder / "sweep/multirun.yaml").read_text()
    assert "postgresql://***@host/db" in text
    assert "s3cret" not in text
