"""Metrics as plain functions, and as `evaluate.Metric`s made of them.

Here are GLUE's (Wang et al. 2019, arXiv 1804.07461, table 1); those of generated text are the means of
text_metrics.py over the rows. Neither needs a network. Runs call the functions through `compute`; importing
`evaluate` takes six seconds, so it is imported only by who wants a `evaluate.Metric`.

Where a formula has no value: an F1 without positives (0/0), and a correlation with something constant, are 0.0. That is
scikit-learn's convention for Matthews; SciPy calls Pearson's and Spearman's NaN, which would drop a collapsed run out
of every mean instead of showing it at the level of chance. NaN is left to predictions that are not numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError, near_misses
from harness.training import text_metrics
from harness.training.text_metrics import PER_ROW

if TYPE_CHECKING:
    from evaluate import Metric
    from numpy import ndarray

POSITIVE_LABEL = 1
# A prediction that is no class: an answer in words that names none.
NO_CLASS = -1


def accuracy(predictions: "ndarray", references: "ndarray") -> float:
    """Share of rows whose prediction equals the label."""
    return float((predictions == references).mean())


def f1(predictions: "ndarray", references: "ndarray") -> float:
    """Harmonic mean of precision and recall for the label 1; 0 without any positive, predicted or true.

    Of two classes; for more of them see `f1_macro`.
    """
    predicted, true = predictions == POSITIVE_LABEL, references == POSITIVE_LABEL
    total = predicted.sum() + true.sum()
    return float(2 * (predicted & true).sum() / total) if total else 0.0


def f1_macro(predictions: "ndarray", references: "ndarray") -> float:
    """Mean over the classes of each one's F1, a class that is rare counting as much as any other.

    An answer that names no class is no class of its own: it costs the recall of the row's class alone.
    """
    import numpy as np

    labels = np.unique(np.concatenate([predictions[predictions != NO_CLASS], references]))
    predicted, true = predictions[:, None] == labels, references[:, None] == labels
    return float((2 * (predicted & true).sum(0) / (predicted.sum(0) + true.sum(0))).mean())


def matthews_correlation(predictions: "ndarray", references: "ndarray") -> float:
    """Correlation of two labelings; for more than two labels the R_K statistic of Gorodkin 2004."""
    import numpy as np

    labels = np.unique(np.concatenate([predictions, references]))
    predicted = predictions[:, None] == labels
    true = references[:, None] == labels
    # float64, not int64: a product of four counts of a large data set would overflow.
    rows, correct = float(len(predictions)), float((predicted & true).sum())
    predicted_counts, true_counts = predicted.sum(0, dtype=float), true.sum(0, dtype=float)
    covariance = correct * rows - predicted_counts @ true_counts
    variances = (rows**2 - predicted_counts @ predicted_counts) * (rows**2 - true_counts @ true_counts)
    return float(covariance / np.sqrt(variances)) if variances > 0 else 0.0


def pearson(predictions: "ndarray", references: "ndarray") -> float:
    """Linear correlation; 0 if either side is constant, NaN if either is not finite."""
    import numpy as np

    if not (np.isfinite(predictions).all() and np.isfinite(references).all()):
        return float("nan")
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return float(np.clip(_centered(predictions) @ _centered(references), -1, 1))


def spearman(predictions: "ndarray", references: "ndarray") -> float:
    """Pearson's correlation of the ranks, equal values sharing their mean rank; 0 and NaN as for `pearson`."""
    import numpy as np

    if not (np.isfinite(predictions).all() and np.isfinite(references).all()):
        return float("nan")
    return pearson(_ranks(predictions), _ranks(references))


def _centered(values: "ndarray") -> "ndarray":
    """Subtract the mean and scale to length 1; scaled by the largest first, so that no square over- or underflows."""
    import numpy as np

    centered = values.astype(float) - values.mean(dtype=float)
    centered /= np.abs(centered).max()
    return centered / np.linalg.norm(centered)


def _ranks(values: "ndarray") -> "ndarray":
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _mean_over_rows(score: Callable[[str, str], float]) -> Callable[[Sequence[str], Sequence[str]], float]:
    @wraps(score)
    def mean(predictions: Sequence[str], references: Sequence[str]) -> float:
        return fmean(map(score, predictions, references))

    return mean


METRICS: dict[str, Callable[[Any, Any], float]] = {}
# What a metric compares -> names of the metrics.
COMPARED: dict[str, list[str]] = {"classes": [], "numbers": [], "texts": []}
# Where its values can be, which decides how intervals are computed: a share from 0 to 1, a correlation from -1 to 1.
RANGES = ("share", "correlation", "open")
RANGE_OF: dict[str, str] = {}
LOWER_IS_BETTER = ["loss", "perplexity", "bits_per_byte", "forgetting.before", "forgetting.after"]


def add(
    name: str,
    function: Callable[[Any, Any], float],
    compares: str,
    values: str = "share",
    lower_is_better: bool = False,
) -> None:
    """Make a metric known by its name, as a task's `metrics` and `primary_metric` give it.

    Args:
        name: No other metric's, nor the end of one.
        function: Of predictions and references: arrays, or of texts what compares one with one, to be averaged.
        compares: classes, numbers or texts.
        values: One of `RANGES`.
        lower_is_better: Whether it is an error and not a score.

    Raises:
        ValueError: There is a metric of that name, or no such kind or range.
    """
    if name in METRICS:
        raise ValueError(f"metric {name}: there is one of that name")
    if compares not in COMPARED or values not in RANGES:
        raise ValueError(f"metric {name}: {', '.join(COMPARED)} are compared, with values {', '.join(RANGES)}")
    if compares == "texts":
        PER_ROW.setdefault(name, function)
    METRICS[name] = _mean_over_rows(function) if compares == "texts" else function
    COMPARED[compares].append(name)
    RANGE_OF[name] = values
    LOWER_IS_BETTER.extend([name] * lower_is_better)


for _function in (accuracy, f1, f1_macro):
    add(_function.__name__, _function, "classes")
add("matthews_correlation", matthews_correlation, "classes", "correlation")
for _function in (pearson, spearman):
    add(_function.__name__, _function, "numbers", "correlation")
for _name, _score in PER_ROW.items():
    add(_name, _score, "texts")


def check_kind(names: Iterable[str], classes: int, key: str) -> None:
    """Refuse metrics that do not compare what is predicted.

    Args:
        classes: How many there are; 0 where a number is predicted.
        key: The task's.

    Raises:
        ConfigError: A metric compares something else, or two classes where there are more.
    """
    what, allowed = ("a class", COMPARED["classes"]) if classes else ("a number", COMPARED["numbers"])
    for name in names:
        if name not in allowed:
            compared = next(kind for kind, of_kind in COMPARED.items() if name in of_kind)
            raise ConfigError(
                f"{key}.metrics={name}: it compares {compared}, and {what} is predicted; "
                f"{', '.join(allowed)} are allowed"
            )
        if name == f1.__name__ and classes > 2:
            raise ConfigError(
                f"{key}.metrics=f1: it is of two classes, and there are {classes}; f1_macro is the mean of each "
                "class's F1"
            )


def higher_is_better(name: str) -> bool:
    """Direction of a score; a name may carry a split, as in mismatched.accuracy, or say of what it is a loss."""
    return not name.endswith(tuple(LOWER_IS_BETTER))


def compute(names: Iterable[str], predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Score predictions against labels, or texts against texts: metric name -> value.

    Raises:
        ConfigError: There is no metric of a name.
        ValueError: There are no rows, or not as many predictions as labels.
    """
    import numpy as np

    names = list(names)
    for name in names:
        _check(name)
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} labels")
    if len(predictions) == 0:
        raise ValueError("there are no rows to score")
    as_given, arrays = (predictions, references), (np.asarray(predictions), np.asarray(references))
    return {name: METRICS[name](*(as_given if name in PER_ROW else arrays)) for name in names}


def metric(name: str) -> "Metric":
    """A metric for code that works with the library evaluate: `metric("f1").compute(...)`, `evaluate.combine([...])`.

    Raises:
        ConfigError: There is no such metric.
    """
    import tempfile

    import evaluate
    from datasets import Features, Value

    function = METRICS[_check(name)]
    kind = "string" if name in PER_ROW else "float64" if name in COMPARED["numbers"] else "int64"
    glue = "Wang et al. 2019, GLUE, arXiv 1804.07461"

    class RowMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=(function.__doc__ or "").split("\n")[0],
                citation=(text_metrics.__doc__ or "") if name in PER_ROW else glue,
                inputs_description="predictions, references: one of each per row",
                features=Features({"predictions": Value(kind), "references": Value(kind)}),
            )

        def _compute(self, *, predictions: Any, references: Any, **_: Any) -> dict[str, float]:
            return compute([name], predictions, references)

    RowMetric.__name__ = RowMetric.__qualname__ = name
    # In memory; evaluate makes its cache folder all the same, and a home may be read-only.
    return RowMetric(keep_in_memory=True, cache_dir=tempfile.gettempdir())


def _check(name: str) -> str:
    if name not in METRICS:
        raise ConfigError(f"metrics={name}: there is no such metric; {near_misses(name, METRICS)}")
    return name
