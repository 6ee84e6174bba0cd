"""Racing: who is dropped at a round, how often wrongly, and what the test sees of any metric."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.report.stats import mcnemar
from harness.sweep.outcome import Outcome
from harness.sweep.racing import Race, beaten, dropped, p_value, pseudo_values, values_of_rows
from harness.tracking.record import DEVELOPMENT_FILE
from harness.training.evaluation import outcomes_of_rows
from harness.training.metrics import matthews_correlation

TRIALS, ROUNDS, ROWS = 6, 3, 200


def curves_of_equals(generator: np.random.Generator, rows: int = ROWS) -> np.ndarray:
    """Rounds x trials x rows: right or wrong, the trials equally good at each round, on the same rows.

    A trial's row changes little from round to round, and rows that are hard for one are hard for all.
    """
    ease = generator.normal(0.8, 1.0, rows)
    own = generator.normal(0, 0.7, (TRIALS, rows))
    return np.array([ease + own + generator.normal(0, 0.4, (TRIALS, rows)) + 0.3 * r > 0 for r in range(ROUNDS)])


def first_of_a_race_is_dropped(rounds: np.ndarray, level: float) -> bool:
    """Whether the first trial, as good as any, is dropped at any round; the leader is not spared, to see the test."""
    race, still_in = Race(level, ROUNDS, TRIALS), list(range(TRIALS))
    for scores in rounds:
        lost = beaten([scores[trial].astype(float) for trial in still_in], -1, race)
        still_in = [trial for place, trial in enumerate(still_in) if place not in lost]
        if 0 not in still_in:
            return True
    return False


@pytest.mark.parametrize("level", [0.05, 0.3])
def test_of_equal_trials_the_best_is_dropped_no_more_often_than_the_level_says(level: float) -> None:
    """Over three rounds on the same rows, which is more than one look at one pair."""
    generator = np.random.default_rng(7)
    races = 400
    dropped_races = sum(first_of_a_race_is_dropped(curves_of_equals(generator), level) for _ in range(races))
    # Three standard errors above the level, where a correct test fails once in a thousand seeds.
    assert dropped_races / races <= level + 3 * (level * (1 - level) / races) ** 0.5
    assert dropped_races > 0 or level < 0.1, "a test that never drops anything proves nothing"


def test_without_its_correction_the_same_test_drops_the_best_too_often() -> None:
    """So that the simulation above could fail."""
    generator = np.random.default_rng(7)
    uncorrected = 0.3 * ROUNDS * (TRIALS - 1)  # each test at 0.3
    races = 200
    wrong = sum(first_of_a_race_is_dropped(curves_of_equals(generator), uncorrected) for _ in range(races))
    assert wrong / races > 0.4


def test_a_trial_far_behind_is_dropped_and_one_near_by_is_not() -> None:
    """The leader goes on though its last evaluation was a bad one."""
    generator = np.random.default_rng(0)
    good = generator.random(ROWS) < 0.85
    near, far = good.copy(), generator.random(ROWS) < 0.55
    near[:3] = ~near[:3]
    values = [one.astype(float) for one in (good, near, far, far)]
    assert beaten(values, 3, Race(0.05, ROUNDS, 4)) == {2}
    assert beaten(values, 0, Race(0.05, ROUNDS, 4)) == {2, 3}
    assert beaten(values, 0, Race(1e-12, ROUNDS, 4)) == set()


def test_where_rows_are_right_or_wrong_it_is_mcnemars_exact_test() -> None:
    """One-sided: half of the two-sided p where the better is better."""
    generator = np.random.default_rng(1)
    for _ in range(20):
        a, b = generator.random((2, 150)) < [[0.8], [0.7]]
        better, worse = (a, b) if a.sum() > b.sum() else (b, a)
        if a.sum() == b.sum():
            continue
        found = p_value(better.astype(float), worse.astype(float), 0.01)
        assert min(1.0, 2 * found) == pytest.approx(mcnemar(better, worse).p)
    assert p_value(np.ones(5), np.ones(5), 0.01) == 1.0


def test_draws_of_signs_agree_with_all_signs() -> None:
    """Of ten rows of different sizes all 1,024 signs can be counted; the draws need a level they can resolve."""
    differences = np.array([3.0, -1.0, 2.5, 0.5, 1.25, -0.75, 2.0, 4.0, -0.25, 1.5])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1).T
    exact = float((signs @ differences >= differences.sum() - 1e-9).mean())
    found = p_value(differences, np.zeros(10), 1e-4)
    assert found == pytest.approx(exact, rel=0.6)
    assert p_value(differences, np.zeros(10), 1e-4) == found
    assert p_value(np.zeros(10), differences, 1e-4) > 0.9


def test_pseudo_values_make_a_mean_of_a_metric_that_is_none() -> None:
    """Of a mean they are its terms; of a correlation their mean and spread are its value and its standard error."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 300)
    predictions = np.where(generator.random(300) < 0.8, labels, 1 - labels)
    accuracy = pseudo_values(lambda a, b: float((a == b).mean()), predictions, labels)
    assert accuracy == pytest.approx((predictions == labels).astype(float))
    values = pseudo_values(matthews_correlation, predictions, labels)
    assert values.mean() == pytest.approx(matthews_correlation(predictions, labels), abs=0.01)
    resampled = [
        matthews_correlation(predictions[rows], labels[rows]) for rows in generator.integers(0, 300, (400, 300))
    ]
    assert values.std(ddof=1) / 300**0.5 == pytest.approx(np.std(resampled), rel=0.2)


def test_what_a_metric_needs_of_each_row_is_kept_and_no_more() -> None:
    """A mean over rows its terms, a loss its tokens too, another metric what it is computed from."""
    columns = {"label": [1, 0, 1], "prediction": [1, 1, 1], "scores": [[0.1, 0.2]] * 3}
    assert outcomes_of_rows(columns, "accuracy") == {"score": [1.0, 0.0, 1.0]}
    assert outcomes_of_rows(columns, "f1") == {"prediction": [1, 1, 1], "label": [1, 0, 1]}
    pieces = {"idx": [5, 6], "loss": [2.0, 3.0], "tokens": [10, 30]}
    assert outcomes_of_rows(pieces, "perplexity") == {"score": [2.0, 3.0], "idx": [5, 6], "tokens": [10, 30]}
    assert outcomes_of_rows({"text": ["a"]}, "f1") == {}


def test_a_loss_over_tokens_weighs_its_rows_by_them_and_less_is_better() -> None:
    """Its mean is the loss with the sign turned; rows that tell nothing of the metric have no values."""
    rows = pd.DataFrame({"score": [2.0, 3.0], "tokens": [10, 30]})
    found = values_of_rows(rows, "perplexity")
    assert found is not None
    assert found.mean() == pytest.approx(-(2 * 10 + 3 * 30) / 40)
    assert values_of_rows(pd.DataFrame({"idx": [1]}), "f1") is None


def trial(folder: Path, right: np.ndarray, idx: list[int] | None = None) -> Outcome:
    """A trial that left its rows at two steps, of which the last counts."""
    folder.mkdir()
    rows = idx or list(range(len(right)))
    table = {"idx": rows * 2, "step": [5] * len(rows) + [10] * len(rows)}
    table["score"] = [0.0] * len(rows) + right.astype(float).tolist()
    pd.DataFrame(table).to_parquet(folder / DEVELOPMENT_FILE, index=False)
    return Outcome("stopped", scores={"primary_metric": "accuracy"}, run_dir=str(folder))


def test_a_round_reads_what_its_trials_left_and_one_that_left_nothing_goes_on(tmp_path: Path) -> None:
    """Nor does anything follow from trials on different rows."""
    generator = np.random.default_rng(5)
    good, bad = generator.random(ROWS) < 0.9, generator.random(ROWS) < 0.5
    outcomes = [trial(tmp_path / "good", good), trial(tmp_path / "bad", bad)]
    outcomes.append(Outcome("stopped", scores={"primary_metric": "accuracy"}, run_dir=str(tmp_path)))
    assert dropped(outcomes, 0, Race(0.05, ROUNDS, 3), None) == {1}
    other = trial(tmp_path / "other", bad, list(range(1, ROWS + 1)))
    assert dropped([outcomes[0], other], 0, Race(0.05, ROUNDS, 2), None) == set()
