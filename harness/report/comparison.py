"""Methods compared on the same examples, from the predictions that their runs left.

An example that is hard for one method is hard for the next, so a difference on the same rows is known far better than
the two scores are: rows are resampled once for all methods (a paired bootstrap), which needs nothing of a metric but
its value on some rows. Seeds are too few for that. A percentile interval over two or three resampled seeds, meant to
hold the true difference 95 times in a hundred, holds it 73 and 83 times where seeds matter most, so their share comes
from the runs' own variance:

    variance of A - B = variance over resampled rows + s_A^2 / n_A + s_B^2 / n_B

with Student's t of Welch and Satterthwaite's degrees of freedom (Satterthwaite 1946, Biometrics Bulletin 2(6)). With
endless rows this is Welch's t test over seeds, with one run of each method a paired test over rows. t also gives a p
that Holm can multiply by a thousand pairs; the share of 2,000 resamples beyond zero is 0 or at least 1/2000.
"""

import itertools
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.config.errors import ConfigError
from harness.report.intervals import least_variance, width
from harness.report.stats import CONFIDENCE, PLACES, RESAMPLES, TAILS, holm, summarize
from harness.tracking.record import PREDICTIONS_FILE
from harness.training.evaluation import per_row_scores

if TYPE_CHECKING:
    import pandas as pd

NO_DIFFERENCE = "no detectable difference"
NO_SCORE = "no score to compare"
# Rows that are drawn at once: 8 bytes each.
CHUNK = 2**22
Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Resampled:
    """Scores of a method's runs, on all rows and on resampled ones. Runs without a finite score are left out.

    Attributes:
        scores: One per run.
        replicates: Resamples x runs. The rows behind a resample depend on `seed` and `rows` alone, so they are the
            same rows for all methods.
        rows: How many there are.
        seed: Of the resampling.
    """

    scores: np.ndarray
    replicates: np.ndarray
    rows: int
    seed: int


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same examples.

    Attributes:
        a: Method.
        b: Method.
        difference: Mean of A's scores less mean of B's, in the metric's own direction.
        low: Lower end of its 95% interval, not corrected for the other pairs.
        high: Upper end.
        p: Two-sided, of no difference; NaN where a method has no score.
        corrected_p: By Holm over all pairs that were compared together.
        verdict: "A better", by the method's name, "no detectable difference", or "no score to compare".
        runs_a: How many of A's runs have a score.
        runs_b: Of B's.
        over_seeds: Whether it is about methods: both have two runs or more. Else it is about these runs alone, on other
            examples.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    corrected_p: float
    verdict: str
    runs_a: int
    runs_b: int
    over_seeds: bool


# --- Resampling -----------------------------------------------------------------------------------------------------


def resample_means(
    scores: np.ndarray, weights: np.ndarray | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> Resampled:
    """Resample the rows of a metric that is a mean over rows.

    Args:
        scores: Runs x rows.
        weights: Runs x rows, not negative; a row of no weight may have a NaN score. Without, all rows weigh the same.
        seed: The same seed and number of rows draw the same rows.
        resamples: How often.
    """
    weights = np.ones_like(scores, dtype=float) if weights is None else np.asarray(weights, dtype=float)
    weighted = np.where(weights > 0, scores, 0.0) * weights
    rows = weighted.shape[1]
    replicates = []
    for drawn in _draws(rows, seed, resamples):
        places = drawn + rows * np.arange(len(drawn))[:, None]
        counts = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)
        replicates.append((counts @ weighted.T) / (counts @ weights.T))
    return _finished(weighted.sum(axis=1) / weights.sum(axis=1), np.concatenate(replicates), rows, seed)


def resample_metric(
    metric: Metric, predictions: np.ndarray, references: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> Resampled:
    """Resample the rows of any metric, such as F1 or a correlation, by computing it anew on each resample.

    Args:
        metric: Called as metric(predictions, references) with as many rows as there are.
        predictions: Runs x rows, or runs x rows x anything.
        references: Rows.
        seed: The same seed and number of rows draw the same rows.
        resamples: How often.
    """
    scores = np.array([metric(run, references) for run in predictions])
    replicates = np.array(
        [
            [metric(run[rows], reference) for run in predictions]
            for drawn in _draws(len(references), seed, resamples)
            for rows, reference in zip(drawn, references[drawn], strict=True)
        ]
    )
    return _finished(scores, replicates, len(references), seed)


def _draws(rows: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield numbers of rows, drawn with replacement: some resamples x rows at a time."""
    if rows < 2:
        raise ValueError(f"{rows} rows: two or more are needed to resample them")
    generator = np.random.default_rng(seed)
    at_once = max(1, CHUNK // rows)
    for start in range(0, resamples, at_once):
        yield generator.integers(0, rows, (min(at_once, resamples - start), rows))


def _finished(scores: np.ndarray, replicates: np.ndarray, rows: int, seed: int) -> Resampled:
    """Leave out runs without a score, and sort: the last bits of a mean depend on the order of the runs."""
    there = np.isfinite(scores)
    return Resampled(np.sort(scores[there]), np.sort(replicates[:, there], axis=1), rows, seed)


# --- Comparing ------------------------------------------------------------------------------------------------------


def compare(
    methods: Mapping[str, Resampled], higher_is_better: bool = True, metric: str | None = None
) -> list[Comparison]:
    """Compare each method with each other one, corrected for the number of pairs.

    Args:
        methods: Method -> its runs, all resampled with the same seed on the same rows.
        higher_is_better: Direction of the metric.
        metric: Says how far apart scores can be, where intervals end, and that not even equal predictions are alike for
            certain; null where neither is known.

    Returns:
        One per pair, in the order of the methods.

    Raises:
        ValueError: The methods were not resampled alike.
    """
    if len({(method.rows, method.seed, len(method.replicates)) for method in methods.values()}) > 1:
        raise ValueError("the methods differ in rows, seed or number of resamples: nothing would be paired")
    pairs = list(itertools.combinations(methods, 2))
    scored = [(a, b) for a, b in pairs if len(methods[a].scores) and len(methods[b].scores)]
    figures = dict(zip(scored, _figures(methods, scored, metric or ""), strict=True))
    found = [figures.get(pair, (math.nan,) * 4) for pair in pairs]
    comparisons = []
    for (a, b), (difference, low, high, p), corrected in zip(
        pairs, found, holm([row[3] for row in found]), strict=True
    ):
        verdict = NO_SCORE if math.isnan(p) else NO_DIFFERENCE
        if corrected < 1 - CONFIDENCE:
            verdict = f"{a if (difference > 0) == higher_is_better else b} better"
        runs_a, runs_b = len(methods[a].scores), len(methods[b].scores)
        over_seeds = min(runs_a, runs_b) > 1
        comparisons.append(
            Comparison(a, b, difference, low, high, p, float(corrected), verdict, runs_a, runs_b, over_seeds)
        )
    return comparisons


def _figures(
    methods: Mapping[str, Resampled], pairs: Sequence[tuple[str, str]], metric: str
) -> list[tuple[float, ...]]:
    """Difference, ends of its interval, and p of each pair."""
    if not pairs:
        return []
    from scipy.stats import t

    scores = {name: summarize(method.scores) for name, method in methods.items()}
    means = {name: method.replicates.mean(axis=1) for name, method in methods.items() if len(method.scores)}
    # Rounded, because three equal runs and two such runs may differ in the last bit of their mean.
    difference = np.round([scores[a].mean - scores[b].mean for a, b in pairs], PLACES)
    count = methods[pairs[0][0]].rows
    least = 2 * least_variance(metric, count)
    rows = [max(float((means[a] - means[b]).var(ddof=1)), least) for a, b in pairs]
    over_seeds = np.array([min(scores[a].n, scores[b].n) > 1 for a, b in pairs])
    seeds = np.array([[scores[name].std ** 2 / scores[name].n for name in pair] for pair in pairs]).T
    freedom = np.array([[max(scores[name].n - 1, 1) for name in pair] for pair in pairs]).T
    error, freedom = _combined(
        np.vstack([np.where(over_seeds, seeds, 0.0), rows]), np.vstack([freedom, np.full(len(pairs), count - 1)])
    )
    half = _quantile(freedom) * error
    low, high = np.clip([difference - half, difference + half], -width(metric), width(metric))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * t.sf(np.abs(difference) / error, freedom)
    # No test that lets each row's difference change its sign goes lower; two rows cannot prove anything.
    p = np.maximum(np.where(difference == 0, 1.0, p), 2.0 ** (1 - count))
    return list(zip(*(column.tolist() for column in (difference, low, high, p)), strict=True))


def _combined(variances: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard error of a sum of independent parts, and Satterthwaite's degrees of freedom; parts x cases."""
    total = variances.sum(axis=0)
    spread = (variances**2 / freedom).sum(axis=0)
    return np.sqrt(total), np.divide(total**2, spread, out=np.ones_like(total), where=spread > 0)


def _quantile(freedom: np.ndarray) -> np.ndarray:
    from scipy.stats import t

    return t.ppf(TAILS[1], freedom)


# --- What runs left -------------------------------------------------------------------------------------------------


def read_predictions(path: Path, split: str = "validation") -> "pd.DataFrame":
    """Read the predictions of a run on a split: one row per example, indexed by `idx` and sorted by it.

    Args:
        path: A run directory, or its Parquet file.
        split: As the run names it.

    Raises:
        ConfigError: There is no such file or split, or an `idx` comes twice.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    file = path / PREDICTIONS_FILE if path.is_dir() else path
    try:
        # Without pandas' search for partitions, which takes half as long again.
        with ParquetFile(file) as content:
            frame = content.read().to_pandas()
    except (OSError, ArrowException) as error:
        raise ConfigError(f"{file}: no predictions can be read, {error}") from error
    missing = [column for column in ("split", "idx") if column not in frame]
    if missing:
        raise ConfigError(f"{file}: there is no column {' and no column '.join(missing)}")
    rows = frame[frame["split"] == split]
    if rows.empty:
        there = ", ".join(sorted(map(str, frame["split"].unique()))) or "no row at all"
        raise ConfigError(f"{file}: no predictions on the {split} split; there is {there}")
    if rows["idx"].duplicated().any():
        raise ConfigError(f"{file}: idx {rows['idx'][rows['idx'].duplicated()].iloc[0]} comes twice on {split}")
    return rows.drop(columns="split").set_index("idx").sort_index()


def resample_methods(
    methods: Mapping[str, Sequence["pd.DataFrame"]], metric: str, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Resampled]:
    """Resample the rows of all runs of some methods, all the same rows.

    A loss is a mean over tokens where there is a column `tokens`, and perplexity is the exponential of the loss.

    Args:
        methods: Method -> what `read_predictions` read of each of its runs; a method without runs is left out.
        metric: One of `harness.training.metrics.METRICS`, "perplexity", or the name of a column.
        seed: Of the resampling.
        resamples: How often.

    Raises:
        ConfigError: The runs are not on the same examples, or do not hold what the metric needs.
    """
    ordered = {name: runs for name, runs in aligned(methods).items() if runs}
    return {name: _resample_runs(name, runs, metric, seed, resamples) for name, runs in ordered.items()}


def _resample_runs(name: str, runs: Sequence["pd.DataFrame"], metric: str, seed: int, resamples: int) -> Resampled:
    from harness.training.metrics import METRICS

    column = "loss" if metric == "perplexity" and not all(metric in run for run in runs) else metric
    scores = [per_row_scores(run, column) for run in runs]
    there = [row for row in scores if row is not None]
    if len(there) == len(runs):
        tokens = column == "loss" and all("tokens" in run for run in runs)
        weights = np.array([run["tokens"] for run in runs]) if tokens else None
        found = resample_means(np.array(there), weights, seed, resamples)
        if column != metric:
            return Resampled(np.exp(found.scores), np.exp(found.replicates), found.rows, found.seed)
        return found
    if metric not in METRICS or not all({"prediction", "label"} <= set(run) for run in runs):
        raise ConfigError(f"{name}: no column {metric} in its predictions, nor what it could be computed from")
    predictions = np.array([run["prediction"] for run in runs])
    return resample_metric(METRICS[metric], predictions, runs[0]["label"].to_numpy(), seed, resamples)


def aligned(methods: Mapping[str, Sequence["pd.DataFrame"]]) -> dict[str, list["pd.DataFrame"]]:
    """Sort the rows of all runs by `idx`, so that a row is the same example everywhere.

    Args:
        methods: Method -> what `read_predictions` read of each of its runs.

    Raises:
        ConfigError: Not all hold the same `idx` with the same labels; names the run and the first that differs.
    """
    ordered = {name: [run.sort_index() for run in runs] for name, runs in methods.items()}
    runs = [(f"{name}, run {number}", run) for name, frames in ordered.items() for number, run in enumerate(frames, 1)]
    for name, run in runs[1:]:
        first_name, first = runs[0]
        other = first.index.symmetric_difference(run.index)
        if len(other):
            raise ConfigError(
                f"{name} and {first_name} are on different examples: {len(other)} are in one only, first idx {other[0]}"
            )
        if "label" in first and "label" in run:
            pairs = zip(first.index, run["label"].tolist(), first["label"].tolist(), strict=True)
            for idx, label, first_label in pairs:
                if label != first_label:
                    labels = f"{reprlib.repr(label)} and {reprlib.repr(first_label)}"
                    raise ConfigError(f"{name} and {first_name} have different labels for idx {idx}: {labels}")
    return ordered
