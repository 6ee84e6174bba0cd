"""Methods are compared on the same examples, with the uncertainty of seeds and examples, and no more is claimed."""

import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from harness.config.errors import ConfigError
from harness.report import intervals
from harness.report.comparison import (
    NO_DIFFERENCE,
    NO_SCORE,
    Comparison,
    Metric,
    Resampled,
    aligned,
    compare,
    per_row_scores,
    read_predictions,
    resample_means,
    resample_methods,
    resample_metric,
)
from harness.tasks.scoring import write_predictions
from harness.tracking.record import PREDICTIONS_FILE
from harness.training.evaluation import Evaluation
from harness.training.metrics import METRICS, accuracy


def correct(generator: np.random.Generator, runs: int, rows: int, seeds: float = 0.0, methods: int = 2) -> list:
    """Rows right (1.0) or wrong of methods that are equally good: rows share a difficulty, runs have luck."""
    difficulty = generator.normal(0, 1, rows)
    return [
        (
            1
            + difficulty
            + generator.normal(0, 0.5, rows)
            + generator.normal(0, seeds, (runs, 1))
            + generator.normal(0, 0.3, (runs, rows))
            > 0
        ).astype(float)
        for _ in range(methods)
    ]


def over_examples_too(method: Resampled) -> tuple[float, float]:
    """The interval that a report prints of a method: over seeds and examples."""
    rows = float(method.replicates.mean(axis=1).var(ddof=1))
    return intervals.over_seeds("accuracy", method.scores, rows_variance=rows, rows=method.rows)


def frame(labels: list, predictions: list, **columns: list) -> pd.DataFrame:
    return pd.DataFrame({"label": labels, "prediction": predictions, **columns}).rename_axis("idx")


# --- Against SciPy --------------------------------------------------------------------------------------------------


def test_without_spread_over_rows_it_is_welchs_test() -> None:
    """Where all rows of a run are alike only seeds speak: difference, interval and p are those of Welch's t test."""
    generator = np.random.default_rng(0)
    for runs_a, runs_b in ((2, 2), (3, 5), (4, 2)):
        a, b = generator.normal(0.8, 0.1, runs_a), generator.normal(0.7, 0.02, runs_b)
        found = compare({name: resample_means(np.tile(x[:, None], 100)) for name, x in (("a", a), ("b", b))})[0]
        theirs = scipy.stats.ttest_ind(a, b, equal_var=False)
        assert (found.difference, found.p) == pytest.approx((a.mean() - b.mean(), theirs.pvalue))
        assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))
        assert found.over_seeds


def test_with_one_run_each_it_is_the_paired_test_over_rows() -> None:
    """Interval and p are those of the paired t test, up to what resampling leaves; seeds are said to be out."""
    a, b = correct(np.random.default_rng(0), 1, 500)
    found = compare({"a": resample_means(a, resamples=20_000), "b": resample_means(b, resamples=20_000)})[0]
    theirs = scipy.stats.ttest_rel(a[0], b[0])
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()), abs=0.002)
    assert found.p == pytest.approx(theirs.pvalue, rel=0.1)
    assert not found.over_seeds


def test_one_run_on_one_side_says_nothing_of_seeds() -> None:
    """Three runs against one are compared on other examples alone, since the one's luck is unknown."""
    a, b = correct(np.random.default_rng(0), 3, 200, seeds=0.3)
    found = compare({"a": resample_means(a), "b": resample_means(b[:1])})[0]
    rows = scipy.stats.ttest_rel(a.mean(axis=0), b[0]).confidence_interval()
    assert (found.runs_a, found.runs_b, found.over_seeds) == (3, 1, False)
    assert (found.low, found.high) == pytest.approx(tuple(rows), abs=0.01)


def test_resampled_rows_agree_with_scipys_bootstrap() -> None:
    """The spread of resampled F1 scores is that of SciPy's paired bootstrap."""
    generator = np.random.default_rng(0)
    references = generator.integers(0, 2, 300)
    predictions = np.where(generator.random(300) < 0.8, references, 1 - references)
    found = resample_metric(METRICS["f1"], predictions[None], references)
    theirs = scipy.stats.bootstrap(
        (predictions, references), METRICS["f1"], paired=True, vectorized=False, n_resamples=2000, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found.replicates.std(ddof=1) == pytest.approx(theirs.standard_error, rel=0.06)


def test_a_mean_and_its_metric_resample_alike() -> None:
    """Accuracy as a mean over rows and as a metric computed anew have the same replicates."""
    generator = np.random.default_rng(0)
    references, predictions = generator.integers(0, 3, 50), generator.integers(0, 3, (3, 50))
    means = resample_means((predictions == references).astype(float), resamples=40)
    anew = resample_metric(accuracy, predictions, references, resamples=40)
    assert means.scores == pytest.approx(anew.scores)
    assert means.replicates == pytest.approx(anew.replicates)


# --- What may be claimed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("runs", "seeds"), [(2, 0.3), (3, 0.3), (3, 0.0), (5, 0.3)])
def test_the_interval_holds_the_true_difference(runs: int, seeds: float) -> None:
    """Of equally good methods it holds 0 about 95 times in a hundred, whether seeds matter or not."""
    generator = np.random.default_rng(1)
    held = []
    for _ in range(300):
        a, b = correct(generator, runs, 100, seeds)
        found = compare({"a": resample_means(a, resamples=300), "b": resample_means(b, resamples=300)})[0]
        held.append(found.low <= 0 <= found.high)
    assert 0.92 <= np.mean(held) <= 0.995


def test_a_percentile_interval_over_resampled_seeds_does_not() -> None:
    """Resampling three seeds of each method as if they were many holds 0 less than 90 times in a hundred."""
    generator = np.random.default_rng(1)
    held = []
    for _ in range(300):
        drawn = []
        for scores in correct(generator, 3, 100, 0.5):
            replicates = resample_means(scores, resamples=300).replicates
            drawn.append(np.take_along_axis(replicates, generator.integers(0, 3, replicates.shape), 1).mean(axis=1))
        low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
        held.append(low <= 0 <= high)
    assert np.mean(held) < 0.9


def test_equally_good_methods_are_seldom_told_apart() -> None:
    """Of five methods, ten pairs, in 150 worlds a difference is found in no more than about 5 of a hundred."""
    generator = np.random.default_rng(2)
    wrong = 0
    for _ in range(150):
        worlds = correct(generator, 3, 100, 0.2, methods=5)
        found = compare({str(n): resample_means(scores, resamples=300) for n, scores in enumerate(worlds)})
        wrong += any(pair.verdict != NO_DIFFERENCE for pair in found)
    assert wrong / 150 < 0.09


def test_a_better_method_is_found_among_many() -> None:
    """One that is right on 15 points more is told from each of forty others, though 820 pairs are corrected for."""
    generator = np.random.default_rng(0)
    equal = correct(generator, 3, 800, methods=40)
    better = np.where(generator.random((3, 800)) < 0.7, 1.0, equal[0])
    methods = {"better": better} | {str(n): scores for n, scores in enumerate(equal)}
    found = compare({name: resample_means(scores) for name, scores in methods.items()})
    assert len(found) == 820
    assert {pair.verdict for pair in found[:40]} == {"better better"}
    assert {pair.verdict for pair in found[40:]} == {NO_DIFFERENCE}
    assert all(pair.corrected_p >= pair.p for pair in found)


def test_the_verdict_follows_the_direction_of_the_metric() -> None:
    """Of two losses the lower is better; the difference keeps its sign."""
    generator = np.random.default_rng(0)
    low, high = generator.normal(1.0, 0.1, (3, 200)), generator.normal(2.0, 0.1, (3, 200))
    methods = {"low": resample_means(low), "high": resample_means(high)}
    found = compare(methods, higher_is_better=False)[0]
    assert (found.verdict, found.difference < 0) == ("low better", True)
    assert compare(methods)[0].verdict == "high better"


def test_a_method_and_itself_do_not_differ() -> None:
    """The same predictions have p 1 and an interval of no width, also with one run more of the same."""
    scores = np.tile((np.random.default_rng(0).random(90) < 0.7).astype(float), (3, 1))
    found = compare({"a": resample_means(scores), "b": resample_means(scores[:2])})[0]
    assert (found.difference, found.p, found.verdict) == (0, 1, NO_DIFFERENCE)
    assert (found.low, found.high) == pytest.approx((0, 0), abs=1e-12)


def test_a_few_rows_prove_nothing() -> None:
    """A method that is right on all of four rows, where the other is wrong on all, has p 1/8, as the sign test."""
    found = compare({"a": resample_means(np.ones((1, 4))), "b": resample_means(np.zeros((1, 4)))})[0]
    assert (found.p, found.verdict) == (1 / 8, NO_DIFFERENCE)


def test_a_run_without_a_score_is_left_out_and_a_method_without_runs_is_not_compared() -> None:
    """NaN scores lower n; where none is left the verdict says so, and Holm does not count the pair."""
    scores = correct(np.random.default_rng(0), 3, 100)[0]
    damaged = scores.copy()
    damaged[1, 5] = np.nan
    methods = {"a": scores, "b": damaged, "c": np.full((2, 100), np.nan)}
    found = compare({name: resample_means(rows) for name, rows in methods.items()})
    assert [(pair.runs_a, pair.runs_b) for pair in found] == [(3, 2), (3, 0), (2, 0)]
    assert [pair.verdict for pair in found] == [NO_DIFFERENCE, NO_SCORE, NO_SCORE]
    assert found[0].corrected_p == found[0].p
    assert math.isnan(found[1].corrected_p)


def test_methods_on_other_rows_are_refused() -> None:
    """Numbers of rows, seeds or resamples that differ pair nothing; one row cannot be resampled."""
    scores = np.random.default_rng(0).random((2, 20))
    for other in (
        resample_means(scores[:, :19]),
        resample_means(scores, seed=1),
        resample_means(scores, resamples=10),
    ):
        with pytest.raises(ValueError, match="rows, seed or number of resamples"):
            compare({"a": resample_means(scores), "b": other})
    with pytest.raises(ValueError, match="1 rows"):
        resample_means(scores[:, :1])


def test_an_interval_over_seeds_and_examples_is_wider_than_either() -> None:
    """It adds what other examples would change to what other seeds would; one run has no interval, nor have two."""
    scores = correct(np.random.default_rng(0), 3, 100, seeds=0.2)[0]
    low, high = over_examples_too(resample_means(scores))
    half = (high - low) / 2
    over_rows = 1.96 * scipy.stats.sem(scores.mean(axis=0))
    assert low < scores.mean() < high
    assert half > over_rows
    assert half > scipy.stats.sem(scores.mean(axis=1))
    assert all(map(math.isnan, over_examples_too(resample_means(scores[:1]))))
    assert all(map(math.isnan, over_examples_too(resample_means(scores[:2]))))


def test_an_interval_over_seeds_and_examples_holds_the_truth() -> None:
    """It covers the expected score of other runs on other rows at least 9 times in 10 with three runs."""
    generator = np.random.default_rng(1)
    truth = scipy.stats.norm.cdf(1 / np.sqrt(1 + 0.25 + 0.04 + 0.09))
    held = []
    for _ in range(300):
        low, high = over_examples_too(resample_means(correct(generator, 3, 100, 0.2, 1)[0], resamples=300))
        held.append(low <= truth <= high)
    assert 0.9 <= np.mean(held) <= 0.99


# --- The same numbers -----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_whatever_the_order() -> None:
    """Runs, rows (by their idx) and methods in another order change nothing but the sign; another seed does."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 60)
    answers = {name: np.where(generator.random((3, 60)) < 0.7, labels, 1 - labels) for name in "abc"}
    methods = {name: [frame(labels, run) for run in runs] for name, runs in answers.items()}
    mixed = {name: [methods[name][run].sample(frac=1, random_state=run) for run in (2, 0, 1)] for name in "cba"}
    for metric in ("accuracy", "f1", "matthews_correlation"):
        found = {(pair.a, pair.b): pair for pair in compare(resample_methods(methods, metric, resamples=50))}
        for pair in compare(resample_methods(mixed, metric, resamples=50)):
            same = found[pair.b, pair.a]
            assert (pair.difference, pair.low, pair.high) == (-same.difference, -same.high, -same.low)
            assert (pair.p, pair.corrected_p, pair.verdict) == (same.p, same.corrected_p, same.verdict)
        for name, runs in resample_methods(mixed, metric, resamples=50).items():
            again = resample_methods({name: methods[name]}, metric, resamples=50)[name]
            assert over_examples_too(runs) == over_examples_too(again)
        other = compare(resample_methods(methods, metric, seed=1, resamples=50))
        assert [pair.p for pair in other] != [pair.p for pair in found.values()]


def test_a_pair_does_not_depend_on_who_else_is_compared() -> None:
    """Difference, interval and p of two methods are the same bits among ten others; only the correction grows."""
    worlds = correct(np.random.default_rng(0), 3, 200, methods=12)
    methods = {str(n): resample_means(scores) for n, scores in enumerate(worlds)}
    alone = compare({name: methods[name] for name in ("3", "7")})[0]
    among = next(pair for pair in compare(methods) if (pair.a, pair.b) == ("3", "7"))
    assert (alone.difference, alone.low, alone.high, alone.p) == (among.difference, among.low, among.high, among.p)
    assert among.corrected_p >= alone.corrected_p


def test_any_metric_can_be_bootstrapped() -> None:
    """Spearman's correlation of two methods: the nearer one is better, and accuracy is as by rows."""
    generator = np.random.default_rng(0)
    references = generator.normal(size=300)
    near, far = references + generator.normal(0, 0.3, (2, 300)), references + generator.normal(0, 1.5, (2, 300))

    def bootstrapped(metric: Metric, a: np.ndarray, b: np.ndarray, higher: bool = True) -> Comparison:
        methods = {
            "A": resample_metric(metric, a, references, 0, 300),
            "B": resample_metric(metric, b, references, 0, 300),
        }
        return compare(methods, higher)[0]

    found = bootstrapped(METRICS["spearman"], near, far)
    assert (found.verdict, found.low > 0) == ("A better", True)
    assert bootstrapped(METRICS["spearman"], far, near).verdict == "B better"
    root = bootstrapped(lambda p, r: float(np.sqrt(((p - r) ** 2).mean())), near, far, False)
    assert (root.verdict, root.difference < 0) == ("A better", True)


def test_methods_by_the_thousand_pairs_take_seconds() -> None:
    """Fifty methods of three runs on 872 rows, 2,000 resamples and 1,225 pairs: about 2 s on one core."""
    worlds = correct(np.random.default_rng(0), 3, 872, methods=50)
    start = time.process_time()
    found = compare({str(n): resample_means(scores) for n, scores in enumerate(worlds)})
    assert time.process_time() - start < 20
    assert len(found) == 1225
    assert all(pair.low <= pair.difference <= pair.high for pair in found)


# --- What runs left -------------------------------------------------------------------------------------------------


def written(run_dir: Path, labels: list[int], predictions: list[int], idx: list[int]) -> Path:
    run_dir.mkdir(parents=True)
    columns = {"label": labels, "prediction": predictions}
    rows = [{"idx": number} for number in idx]
    found = {"validation": Evaluation({}, columns), "development": Evaluation({}, {"label": [9], "prediction": [9]})}
    write_predictions(run_dir / PREDICTIONS_FILE, found, {"validation": rows, "development": [{"idx": 0}]})
    return run_dir


def test_predictions_are_read_by_split_and_sorted_by_idx(tmp_path: Path) -> None:
    """A run directory and its file give the same rows, in the order of idx, of one split alone."""
    run_dir = written(tmp_path / "run", [0, 1, 1], [0, 0, 1], [7, 3, 5])
    found = read_predictions(run_dir)
    assert found.equals(read_predictions(run_dir / PREDICTIONS_FILE))
    assert (list(found.index), list(found["label"]), list(found["prediction"])) == ([3, 5, 7], [1, 1, 0], [0, 1, 0])
    assert list(per_row_scores(found, "accuracy")) == [0, 1, 1]
    assert len(read_predictions(run_dir, "development")) == 1


def test_predictions_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    """No file, a damaged one, an unknown split and an idx that comes twice are each named."""
    run_dir = written(tmp_path / "run", [0, 1], [0, 1], [3, 4])
    whole = pd.read_parquet(run_dir / PREDICTIONS_FILE)
    whole.assign(idx=3).to_parquet(run_dir / PREDICTIONS_FILE)
    with pytest.raises(ConfigError, match="idx 3 comes twice"):
        read_predictions(run_dir)
    whole.to_parquet(run_dir / PREDICTIONS_FILE)
    with pytest.raises(ConfigError, match="no predictions on the test split; there is development, validation"):
        read_predictions(run_dir, "test")
    with pytest.raises(ConfigError, match="no predictions can be read"):
        read_predictions(tmp_path)
    (run_dir / PREDICTIONS_FILE).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="no predictions can be read"):
        read_predictions(run_dir)
    pd.DataFrame({"label": [1]}).to_parquet(run_dir / PREDICTIONS_FILE)
    with pytest.raises(ConfigError, match="no column split and no column idx"):
        read_predictions(run_dir)


def test_runs_on_other_examples_are_refused() -> None:
    """The message names the runs, and the first idx or label that differs."""
    first = frame([0, 1, 1], [0, 0, 0])
    with pytest.raises(
        ConfigError, match=r"b, run 2 and a, run 1 are on different examples: 1 are in one only.* idx 2"
    ):
        aligned({"a": [first], "b": [first, first.iloc[:2]]})
    with pytest.raises(ConfigError, match="different labels for idx 2: 0 and 1"):
        aligned({"a": [first], "b": [frame([0, 1, 0], [0, 0, 0])]})
    aligned({"a": [first], "b": [frame([0, 1, 1], [1, 1, 1])]})


def test_metrics_with_and_without_a_score_a_row() -> None:
    """A column of the metric's name is the score per row; F1 has none and is computed from labels and predictions."""
    found = frame([0, 1, 1, 1], [0, 1, 0, 1], exact_match=[1.0, 0.5, 0.0, 0.5])
    assert list(per_row_scores(found, "exact_match")) == [1, 0.5, 0, 0.5]
    assert per_row_scores(found, "f1") is None
    assert list(per_row_scores(found, "reward_accuracy")) == list(per_row_scores(found, "accuracy")) == [1, 1, 0, 1]
    assert resample_methods({"a": [found]}, "exact_match", resamples=5)["a"].scores == pytest.approx([0.5])
    assert resample_methods({"a": [found]}, "f1", resamples=5)["a"].scores == pytest.approx([0.8])
    assert set(resample_methods({"a": [found], "b": []}, "f1", resamples=5)) == {"a"}
    with pytest.raises(ConfigError, match="a: no column rouge in its predictions"):
        resample_methods({"a": [found]}, "rouge")


def test_a_loss_is_a_mean_over_tokens() -> None:
    """Rows of 1 and 3 tokens weigh so; a row without tokens has no loss; perplexity is the exponential."""
    run = frame(["x"] * 3, [""] * 3, loss=[1.0, 2.0, math.nan], tokens=[1, 3, 0])
    assert resample_methods({"a": [run, run]}, "loss", resamples=5)["a"].scores == pytest.approx([1.75, 1.75])
    run = frame(["x"] * 2, [""] * 2, loss=[1.0, 2.0], tokens=[1, 3])
    found = resample_methods({"a": [run, run]}, "perplexity", resamples=50)["a"]
    assert found.scores == pytest.approx([math.exp(1.75)] * 2)
    # Of two rows a resample has the first twice, the second twice, or both.
    assert set(np.round(found.replicates.ravel(), 6)) == set(np.round(np.exp([1.0, 1.75, 2.0]), 6))


def test_resampled_runs_are_what_they_say() -> None:
    """Every replicate is the mean of as many rows as there are, drawn with replacement: k/n for scores of 0 and 1."""
    found = resample_means(np.array([[0.0, 1.0, 1.0, 1.0]]), resamples=500)
    assert set(found.replicates.ravel()) <= {0, 0.25, 0.5, 0.75, 1}
    assert found.replicates.mean() == pytest.approx(0.75, abs=0.03)
