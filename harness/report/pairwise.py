"""The methods of a task held against each other, from the predictions that their runs left in the store."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd

from harness import tracking
from harness.config.errors import ConfigError, near_misses
from harness.report.comparison import (
    Comparison,
    Resampled,
    compare,
    per_row_scores,
    read_predictions,
    resample_methods,
    summarise_over_examples,
)
from harness.report.scores import FINISHED, MAJORITY, compared, label
from harness.report.stats import CONFIDENCE, RESAMPLES, Summary, letters, minimum_detectable_difference
from harness.tracking.record import PREDICTIONS_FILE
from harness.training.metrics import higher_is_better

# Methods of a task: 2,016 pairs. More of them are neither read nor legible.
MOST_METHODS = 64
# A metric of all rows at once is computed anew for each run and resample: so often at most, where that leaves enough.
MOST_COMPUTATIONS, FEWEST_RESAMPLES = 40_000, 400
# Stored predictions and the recorded score are of the same model if they agree to this share.
AGREEMENT = 1e-4
BEST, LEVEL = "best", "not told apart from the best"
BASELINE = "full"


@dataclass(frozen=True)
class Pairwise:
    """What the predictions of a task's runs say.

    Attributes:
        task: Its name.
        metric: Primary metric.
        split: `validation` or `development`.
        rows: Examples of the split; 0 where no predictions could be read.
        comparisons: All pairs of methods whose predictions could be read, Holm-corrected together; best first.
        summaries: Method -> mean with an interval over seeds and examples.
        groups: Method -> its letters: methods that share one were not told apart.
        best: The best of them; empty where fewer than two are compared.
        level: Those that were not told apart from it.
        baseline: What the report holds the others against: full fine-tuning, or else the best.
        notes: Sentences on what was not compared, and on how small a difference the split can show.
    """

    task: str
    metric: str
    split: str
    rows: int
    comparisons: tuple[Comparison, ...]
    summaries: dict[str, Summary]
    groups: dict[str, str]
    best: str
    level: frozenset[str]
    baseline: str
    notes: tuple[str, ...]


def compare_tasks(
    frame: pd.DataFrame, summary: pd.DataFrame, baseline: str | None = None, server: str | None = None
) -> list[Pairwise]:
    """Compare the methods of each task.

    Args:
        frame: A row a run (`scores.load`).
        summary: The main table (`scores.summary`).
        baseline: What the others are held against, a method or a row's name; null for full fine-tuning.
        server: Tracking URI of the server that has the predictions; null where they are on this machine.

    Raises:
        ConfigError: No task has the baseline.
    """
    if baseline is not None:
        there = {*summary["method"], *summary["configuration"]} - {"", MAJORITY}
        if baseline not in there:
            raise ConfigError(f"baseline={baseline}: no run is of such a method; {near_misses(baseline, there)}")
    runs = compared(frame)
    runs = runs[runs["status"] == FINISHED].assign(configuration=label(runs))
    return [
        _of_task(str(task), rows, runs[runs["task"] == task], baseline or BASELINE, server)
        for task, rows in summary.groupby("task", sort=True)
    ]


def _of_task(task: str, rows: pd.DataFrame, runs: pd.DataFrame, wanted: str, server: str | None) -> Pairwise:
    metric, split = str(rows["metric"].iloc[0]), str(rows["split"].iloc[0])
    scored = rows[(rows["configuration"] != MAJORITY) & (rows["n"] > 0)]
    names = list(scored["configuration"])
    asked = scored["configuration"][(scored["configuration"] == wanted) | (scored["method"] == wanted)]
    baseline = next(iter([*asked, *names]), "")
    kept = names[:MOST_METHODS]
    if baseline not in kept:
        kept[-1:] = [baseline] if baseline else []
    needed = ["configuration", "artifact_uri", "mlflow_run_id", split]
    chosen = runs[runs[split].notna() & runs["configuration"].isin(kept)]
    groups = dict(list(chosen[needed].groupby("configuration")))
    found, notes = _resampled({name: groups[name] for name in kept}, split, metric, server)
    if len(kept) < len(names):
        notes.insert(0, f"Of {len(names)} methods the {len(kept)} best are compared.")
    comparisons = tuple(compare(found, higher_is_better(metric))) if len(found) > 1 else ()
    apart = [(pair.a, pair.b) for pair in comparisons if pair.corrected_p < 1 - CONFIDENCE]
    best = next(iter(found), "") if comparisons else ""
    from_best = {name for pair in apart if best in pair for name in pair}
    baseline = baseline if baseline in found else best
    size = next((method.rows for method in found.values()), 0)
    notes += _precision(metric, size, comparisons, [float(method.scores.mean()) for method in found.values()])
    return Pairwise(
        task,
        metric,
        split,
        size,
        comparisons,
        # One method's interval over examples beside another's over seeds alone would be misread.
        {name: summarise_over_examples(method) for name, method in found.items()} if len(found) == len(names) else {},
        letters(list(found), apart) if comparisons else {},
        best,
        frozenset(set(found) - from_best - {best}) if comparisons else frozenset(),
        baseline,
        tuple(notes),
    )


def _resampled(
    groups: dict[str, pd.DataFrame], split: str, metric: str, server: str | None
) -> tuple[dict[str, Resampled], list[str]]:
    """Read and resample what can be read; say of the rest why it cannot."""
    predictions: dict[str, list[pd.DataFrame]] = {}
    reasons: dict[str, str] = {}
    for name, runs in groups.items():
        try:
            files = [
                predictions_of(uri, run, server)
                for uri, run in zip(runs["artifact_uri"], runs["mlflow_run_id"], strict=True)
            ]
            predictions[name] = [read_predictions(file, split) for file in files]
        except ConfigError as error:
            reasons[name] = str(error)
    found: dict[str, Resampled] = {}
    if predictions:
        try:
            found = resample_methods(predictions, metric, resamples=_resamples(predictions, metric))
        except (ConfigError, ValueError) as error:
            reasons |= dict.fromkeys(predictions, str(error))
    for name, method in list(found.items()):
        recorded = np.sort(groups[name][split].to_numpy(dtype=float))
        if len(recorded) != len(method.scores) or not np.allclose(method.scores, recorded, AGREEMENT, AGREEMENT):
            reasons[name] = "its predictions give another score than its record"
            del found[name]
    kinds: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        kinds.setdefault(reason, []).append(name)
    return found, [f"Not compared: {few(names)} ({reason})." for reason, names in kinds.items()]


def predictions_of(artifact_uri: str, mlflow_run_id: str = "", server: str | None = None) -> Path:
    """Where the predictions of a run are; those that only a server has are fetched.

    Raises:
        ConfigError: There are none.
    """
    parts = urlsplit(artifact_uri)
    if parts.scheme in ("", "file"):
        file = Path(unquote(parts.path) if parts.scheme else artifact_uri) / PREDICTIONS_FILE
        if artifact_uri and file.is_file():
            return file
    if server is not None and mlflow_run_id:
        try:
            return tracking.download(server, mlflow_run_id, PREDICTIONS_FILE)
        except (ConnectionError, OSError, ValueError):
            raise ConfigError("the server has no predictions of it, or does not give them away") from None
    if parts.scheme not in ("", "file"):
        raise ConfigError("its predictions are with a server and not on this machine")
    raise ConfigError("it kept no predictions, or they are no longer where the store says")


def _resamples(predictions: dict[str, list[pd.DataFrame]], metric: str) -> int:
    runs = [run for group in predictions.values() for run in group]
    column = "loss" if metric == "perplexity" else metric
    if per_row_scores(runs[0], column) is not None:
        return RESAMPLES
    return min(RESAMPLES, max(FEWEST_RESAMPLES, MOST_COMPUTATIONS // len(runs)))


def few(names: Sequence[str]) -> str:
    """Name three at most, and count the rest."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _precision(metric: str, rows: int, comparisons: Sequence[Comparison], means: Sequence[float]) -> list[str]:
    """Say how small a difference can be seen, and what comparisons of single runs are about."""
    if not comparisons:
        return []
    notes = []
    if metric == "accuracy":
        level = max(means)
        smallest = minimum_detectable_difference(rows, level)
        notes.append(
            f"Minimum detectable difference: {smallest:.4f} with {rows:,} examples near {level:.2f} (paired, found "
            "every other time); spread between seeds comes on top."
        )
    half = [(pair.high - pair.low) / 2 for pair in comparisons]
    half = [width for width in half if math.isfinite(width)]
    if half:
        notes.append(f"Differences between two methods are known here to ±{float(np.median(half)):.4f} (median pair).")
    if not all(pair.over_seeds for pair in comparisons):
        notes.append("Where a method has one run, its comparisons are about that run on other examples only.")
    return notes


# --- Frames ---------------------------------------------------------------------------------------------------------


def annotated(summary: pd.DataFrame, found: Sequence[Pairwise]) -> pd.DataFrame:
    """Add to the main table what comparing says.

    Columns: `groups`, the letters; `standing`, "best", "not told apart from the best" or nothing; `interval`, of what
    `low` and `high` are: "seeds", or "seeds and examples" where the predictions of all methods could be read.
    """
    table = summary.assign(groups="", standing="", interval="seeds")
    for one in found:
        of_task = table["task"] == one.task
        name = table.loc[of_task, "configuration"]
        table.loc[of_task, "groups"] = [one.groups.get(key, "") for key in name]
        standing = {one.best: BEST, **dict.fromkeys(one.level, LEVEL)} if one.best else {}
        table.loc[of_task, "standing"] = [standing.get(key, "") for key in name]
        if one.summaries:
            table.loc[of_task, "interval"] = "seeds and examples"
            for end in ("low", "high"):
                ends = {key: getattr(interval, end) for key, interval in one.summaries.items()}
                table.loc[of_task, end] = [ends.get(key, math.nan) for key in name]
    return table


def pairs(found: Sequence[Pairwise]) -> pd.DataFrame:
    """List every comparison: task, metric, split, rows, and the fields of `Comparison`."""
    return pd.DataFrame(
        [
            {"task": one.task, "metric": one.metric, "split": one.split, "rows": one.rows, **asdict(pair)}
            for one in found
            for pair in one.comparisons
        ]
    )
