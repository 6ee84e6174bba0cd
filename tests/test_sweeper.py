import pytest
from toy_sweep import ToySweep

from harness import points
from harness.config import ConfigError
from harness.sweeper import Candidate, choose, spread, trial_score

EQUAL = "hydra/sweeper=equal_budget"
TWO_FINALS = "hydra.sweeper.seeds=[1,2]"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    return ToySweep(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("rates", "number", "taken"),
    [
        ([1, 2, 3, 4, 5], 3, [1, 3, 5]),
        ([1, 2, 3, 4, 5], 5, [1, 2, 3, 4, 5]),
        ([1, 2, 3, 4, 5], 1, [3]),
        ([1, 2, 3, 4], 1, [2]),
        ([1, 2, 3, 4], 2, [1, 4]),
        ([1, 2, 3, 4, 5, 6, 7], 4, [1, 3, 5, 7]),
    ],
)
def test_trials_spread_evenly_over_the_whole_range(rates, number, taken):
    """Both ends are tried whenever there is more than one trial."""
    assert spread(rates, number) == taken


def test_the_highest_development_score_wins_and_of_equals_the_smaller_rate():
    """A rate without a score never wins."""
    candidate = Candidate([], [0.1, 0.2, 0.3], scores={0.3: 0.9, 0.2: 0.9, 0.1: None})
    choose(candidate)
    assert candidate.chosen == 0.2


def test_where_lower_is_better_the_lowest_development_score_wins():
    """Perplexity is such a score."""
    candidate = Candidate([], [0.1, 0.2], scores={0.1: 3.0, 0.2: 2.0}, higher_is_better=False)
    choose(candidate)
    assert candidate.chosen == 0.2


@pytest.mark.parametrize(
    "outcome",
    [
        {"status": "diverged", "scores": {"primary_metric": "x", "development": {"x": 1.0}}},
        {"status": "finished", "scores": {"primary_metric": "x", "development": {"x": float("nan")}}},
        {"status": "finished", "scores": {"primary_metric": "x", "development": None}},
        {"status": "failed", "scores": {}},
    ],
)
def test_a_trial_without_a_sound_score_has_none(outcome):
    """A diverged trial never wins, whatever it scored before."""
    assert trial_score(outcome) is None


def test_each_method_gets_the_same_trials_then_its_best_rate_with_fresh_seeds(toy, capsys):
    """Three trials with the tuning seed and validation untouched, then two final runs with the chosen rate."""
    tuned, finals = toy.sweep(["method=wide,narrow"], EQUAL, TWO_FINALS)
    told = [points.told(point) for point in overrides(toy, "tune")]
    assert told == [
        [f"method={method}", f"train.learning_rate={rate}", "seed=0"]
        for method, rates in {"wide": (0.1, 0.3, 0.5), "narrow": (1.0, 2.0, 3.0)}.items()
        for rate in rates
    ]
    assert [outcome["status"] for outcome in tuned] == ["finished"] * 3 + ["diverged"] + ["finished"] * 2
    assert all(outcome["scores"]["validation"] is None for outcome in tuned)
    assert [points.told(point) for point in overrides(toy, "final")] == [
        [f"method={method}", f"train.learning_rate={rate}", f"seed={seed}"]
        for method, rate in {"wide": 0.3, "narrow": 2.0}.items()
        for seed in (1, 2)
    ]
    assert all(outcome["scores"]["validation"] for outcome in finals)
    shown = capsys.readouterr().out
    assert "0.1: 0.8000, 0.3: 1.0000, 0.5: 0.8000" in shown
    assert "1: -, 2: -0.7000, 3: -1.7000" in shown
    assert not any(points.counts_as_failure(outcome) for outcome in points.outcomes)


def overrides(toy: ToySweep, stage: str) -> list[list[str]]:
    return [point for point, told_stage in toy.asked if told_stage == stage]


def test_a_sweep_started_again_takes_finished_trials_from_the_store(toy):
    """Nothing is trained twice, and the choice is the same."""
    one_final = "hydra.sweeper.seeds=[1]"
    first, _ = toy.sweep(["method=wide"], EQUAL, one_final)
    for outcome in first:
        scores = outcome["scores"]
        kept = {"development": scores["development"], "validation": {}}
        toy.stored[outcome["identity"]] = {"status": "finished", "primary_metric": "accuracy", "scores": kept}
    toy.asked.clear()
    tuned, finals = toy.sweep(["method=wide"], EQUAL, one_final)
    assert all(outcome["skipped"] for outcome in tuned)
    assert [outcome["status"] for outcome in finals] == ["finished"]
    assert all("train.learning_rate=0.3" in point for point in overrides(toy, "final"))


def test_a_point_whose_trials_all_fail_is_reported_and_the_others_go_on(toy, capsys):
    """The rest is chosen and run; the sweep counts as failed."""
    _, finals = toy.sweep(["method=wide", "act=finish,raise"], EQUAL, "hydra.sweeper.seeds=[1]")
    assert [outcome["status"] for outcome in finals] == ["finished"]
    assert "act=raise: none of its 3 trials has a development score" in capsys.readouterr().out
    assert any(points.counts_as_failure(outcome) for outcome in points.outcomes)


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
    ],
)
def test_an_unfair_or_impossible_budget_is_refused(toy, arguments, setting, sentence):
    """Before anything runs, in one sentence."""
    with pytest.raises(ConfigError, match=sentence):
        toy.sweep(arguments, EQUAL, setting)


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
