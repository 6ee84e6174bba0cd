"""Frames of a tracking store: one row per run, per configuration, per tuning grid, or per failure."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from harness import tracking
from harness.config.version import RESULTS_VERSION
from harness.config.versions import DECIDING
from harness.report.intervals import over_seeds
from harness.report.labels import NOT_TELLING, label
from harness.report.stats import count_outcomes, summarize
from harness.sweep.search import RATE
from harness.tracking.record import MEMORY
from harness.training.metrics import higher_is_better

FINISHED, DIVERGED, STOPPED = "finished", "diverged", "stopped"
MAJORITY = "majority class"
# What `summary` reads of each run: texts, and figures beside its score.
TEXTS = ("method", "status", "mark", "forgetting_metric")
FIGURES = ("seed", "data_seed", "majority")
# Beside a run's own score: that of its backbone alone, and its loss on general text before and after.
BEFORE_AND_AFTER = ("base", "forgetting.before", "forgetting.after")
LEARNING_RATE = f"param.{RATE}"
COSTS = (
    "trainable_parameters",
    "total_parameters",
    "train_seconds",
    "tokens_per_second",
    "adapter_file_bytes",
)
# Read from runs that have them; what a run could not measure is missing.
MEASURED = (
    *MEMORY,
    "evaluation_peak_bytes",
    "step_seconds",
    "train_flops_per_token",
    "flops_ceiling_share",
    "features_seconds",
    "features_bytes",
    "swap_ms",
    "energy_joules",
)
SPLITS = ("validation", "development", "majority", "base")
LATENCY = "cost.latency_ms."
TAGS = (
    "sweep",
    "stage",
    "status",
    "error",
    "identity",
    "task",
    "model",
    "method",
    "primary_metric",
    "data_revision",
    "forgetting_metric",
    "forgetting_revision",
    "git_commit",
    "harness.version",
    "results_version",
    "untested",
    "device",
    "dtype",
    "cached_features",
    *(f"version.{name}" for name in DECIDING),
)
NO_OPTIONS = ("learning_rate", "alpha", "seed", "variant")


def load(uri: str, sweep: str | Collection[str] | None = None) -> pd.DataFrame:
    """Read a tracking store into a tidy frame, one row per run, oldest first.

    Columns:
        run_id, mlflow_run_id, name, artifact_uri: Which run it is.
        sweep, stage, status, error, identity, task, model, method, primary_metric, forgetting_metric, git_commit,
            harness.version, results_version, untested, device, dtype, version.torch (and so on): Its tags; empty text
            where a run has none.
        seed, data_seed: Whole numbers, missing where a run has none.
        started_at, ended_at: UTC.
        validation, development, majority, base: The primary metric on each split, that of the commonest answer, and
            that of the backbone alone; NaN where it was not measured.
        source: Who published it, where it is not a run of this harness (`harness.report.others`); else empty text.
        mark: What a reader should know of a record: that another version of the harness wrote it, that fields are
            missing, or its source; empty text where nothing is odd.
        newest: False where the same point (`identity`) was run again later; tables leave such runs out.
        param.*: The configuration, as text, under its dotted keys.
        validation.*, development.*, majority.*, base.*, forgetting.*, cost.*, train.*: Every metric, under its name in
            the store.

    Args:
        uri: `sqlite:///mlflow.db`, `http://host:port`, ...
        sweep: Only the runs of this sweep, or of one of these.

    Raises:
        ConfigError: The URI names no store.
        ConnectionError: The store cannot be read.
    """
    return tidy(tracking.read_runs(uri, sweep))


def tidy(runs: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Make the frame that `load` describes of what `tracking.read_runs` returns."""
    frame = pd.DataFrame([_row(run) for run in runs])
    if frame.empty:
        return frame
    for column in ("seed", "data_seed"):
        values = frame[f"param.{column}"] if f"param.{column}" in frame else pd.Series(np.nan, frame.index)
        frame[column] = pd.to_numeric(values, errors="coerce").astype("Int64")
    for column in ("started_at", "ended_at"):
        frame[column] = pd.to_datetime(frame[column], unit="ms", utc=True)
    for column in [f"cost.{name}" for name in COSTS]:
        if column not in frame:
            frame[column] = np.nan
    point = frame["identity"].where(frame["identity"] != "", frame["run_id"])
    frame["newest"] = ~point.duplicated(keep="last")
    return frame


def _row(run: dict[str, Any]) -> dict[str, Any]:
    tags, metrics = run["tags"], run["metrics"]
    row = {key: run[key] for key in ("run_id", "mlflow_run_id", "artifact_uri", "started_at", "ended_at")}
    row |= {"name": plain(run["name"])} | {key: plain(tags.get(key, "")) for key in TAGS}
    row["source"] = run.get("source", "")
    row["mark"] = "; ".join(dict.fromkeys([*run.get("marks", ()), *_marks(row)]))
    row["stage"] = row["stage"] or "run"
    for split in SPLITS:
        row[split] = metrics.get(f"{split}.{row['primary_metric']}", math.nan)
    return row | {f"param.{key}": plain(value) for key, value in run["params"].items()} | metrics


def _marks(row: dict[str, Any]) -> list[str]:
    """Say what is odd about a finished run; one that failed early may lack anything."""
    if row["source"]:
        return [f"of {row['source']}"]
    if row["status"] not in (FINISHED, ""):
        return []
    expected = ("status", "identity", "task", "model", "method", "primary_metric", "harness.version")
    missing = [name for name in expected if row[name] in ("", "unknown")]
    # Before results had a version of their own, it was the package's.
    version = row["results_version"] or row["harness.version"]
    other = [f"results of version {version}"] * (version not in ("", RESULTS_VERSION))
    return [f"without {', '.join(missing)}"] * bool(missing) + other


def plain(text: Any) -> str:
    """Make one line of a text, without the control characters that a terminal would obey."""
    return _one_line(str(text))


@lru_cache(maxsize=100_000)
def _one_line(text: str) -> str:
    """Runs of a store have most of their texts in common."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\s]+", " ", text).strip()


def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep the runs that the main table is about: the newest of each point, tuning trials left out."""
    return frame[frame["newest"] & (frame["stage"] != "tune")]


def split_of(runs: pd.DataFrame) -> str:
    """Say which split a task's table is about: validation, or development where no run scored validation."""
    return "validation" if runs["validation"].notna().any() else "development"


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Make the main table: for each task one row per configuration, best mean first, then the majority class.

    Columns: task, configuration, method, metric, split, n, mean, std, low, high, collapsed, diverged, failed (runs that
    ended in any other way), undertrained (why; `harness.report.undertrained` fills it in), marked (how many of its
    records are odd, and why), share (trainable of total parameters), forgetting_metric, and the means of
    `BEFORE_AND_AFTER` and of `COSTS`. A diverged or failed run has no score and counts in its own column; a collapsed
    one (no better than the commonest answer) does both.
    """
    runs = compared(frame)
    runs = runs.assign(configuration=label(runs))
    rows: list[dict[str, Any]] = []
    for task, of_task in runs.groupby("task", sort=True):
        split = split_of(of_task)
        metrics = of_task["primary_metric"]
        common = {"task": task, "metric": next(iter(metrics[metrics != ""]), ""), "split": split}
        means = _means(of_task)
        # A data frame for each of thousands of configurations would take most of a report's time.
        read = {name: of_task[name].to_numpy(dtype=object) for name in TEXTS}
        read |= {name: of_task[name].to_numpy(dtype=float, na_value=math.nan) for name in (*FIGURES, split)}
        found = [
            common
            | {"configuration": name}
            | _configuration({key: values[places] for key, values in read.items()}, split, common["metric"])
            | means[name]
            for name, places in of_task.groupby("configuration", sort=True).indices.items()
        ]
        sign = -1 if higher_is_better(common["metric"]) else 1
        rows += sorted(found, key=lambda row: (sign * row["mean"] if row["n"] else math.inf, row["configuration"]))
        majority = of_task["majority"].dropna()
        if len(majority) and split == "validation":
            counts = dict.fromkeys(("n", "collapsed", "diverged", "failed"), 0)
            score, no_text = float(majority.iloc[-1]), dict.fromkeys(("method", "undertrained", "marked"), "")
            rows.append(common | counts | no_text | {"configuration": MAJORITY, "mean": score})
    columns = ["task", "configuration", "method", "metric", "split", "n", "mean", "std", "low", "high"]
    columns += [
        "collapsed",
        "diverged",
        "failed",
        "undertrained",
        "marked",
        "share",
        "forgetting_metric",
        *BEFORE_AND_AFTER,
        *COSTS,
    ]
    return pd.DataFrame(rows, columns=columns)


def _means(of_task: pd.DataFrame) -> dict[Any, dict[str, float]]:
    """Configuration -> the means over its finished runs that `summary` tells, NaN without any."""
    sources = {**{name: name for name in BEFORE_AND_AFTER}, **{name: f"cost.{name}" for name in COSTS}}
    figures = of_task.reindex(columns=list(sources.values())).astype(float).set_axis(list(sources), axis=1)
    means = figures.where(of_task["status"] == FINISHED).groupby(of_task["configuration"]).mean()
    total = means["total_parameters"]
    means["share"] = means["trainable_parameters"] / total.where(total != 0)
    found: dict[Any, dict[str, float]] = means.to_dict("index")
    return found


def _configuration(runs: Mapping[str, Any], split: str, metric: str) -> dict[str, Any]:
    """Two runs have no interval, nor have runs of which one collapsed or diverged: their mean is of two kinds."""
    finished, diverged = runs["status"] == FINISHED, runs["status"] == DIVERGED
    scores: Any = np.where(finished, runs[split], math.nan)
    outcomes = count_outcomes(scores, diverged, runs["majority"], higher_is_better(metric))
    found = summarize(scores)
    low, high = math.nan, math.nan
    if not (outcomes.collapsed or outcomes.diverged):
        # Sorted: the last bits of a variance depend on the order of the runs.
        order = np.lexsort((scores, runs["data_seed"], runs["seed"]))
        order = order[np.isfinite(scores[order])]
        low, high = over_seeds(metric, scores[order], runs["seed"][order], runs["data_seed"][order])
    marks = Counter(mark for mark in runs["mark"] if mark)
    return {
        "method": runs["method"][0],
        "n": found.n,
        "mean": found.mean,
        "std": found.std,
        "low": low,
        "high": high,
        "collapsed": outcomes.collapsed,
        "diverged": outcomes.diverged,
        "failed": int((~(finished | diverged)).sum()),
        "undertrained": "",
        "marked": "; ".join(f"{count} {mark}" for mark, count in sorted(marks.items())),
        "forgetting_metric": next((name for name in runs["forgetting_metric"][finished] if name), ""),
    }


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """List the newest run of every point that did not finish, those apart that were told to stop.

    Columns: task, configuration, seed, stage, status, error.
    """
    runs = frame[frame["newest"]]
    runs = runs.assign(configuration=label(runs))
    runs = runs[~runs["status"].isin([FINISHED, STOPPED])].sort_values(["task", "configuration", "seed", "run_id"])
    return runs[["task", "configuration", "seed", "stage", "status", "error"]].reset_index(drop=True)


def costs(frame: pd.DataFrame) -> pd.DataFrame:
    """Make the cost table: one row per configuration, means over its finished runs.

    Columns: task, configuration, the names of `MEASURED`, and `base`, `attached`, `merged`: milliseconds of a forward
    pass of one row; missing where no run measured them.
    """
    runs = compared(frame)
    runs = runs[runs["status"] == FINISHED]
    runs = runs.assign(configuration=label(runs))
    names = {f"cost.{name}": name for name in MEASURED}
    names |= {f"{LATENCY}{variant}.1": variant for variant in ("base", "attached", "merged")}
    there = runs.reindex(columns=["task", "configuration", *names]).rename(columns=names)
    grouped = there.groupby(["task", "configuration"], sort=True)
    found = grouped.mean()
    # Nothing is faster than the device's ceiling: a share above it says that the ceiling was measured too low.
    found["flops_ceiling_share"] = found["flops_ceiling_share"].where(~(grouped["flops_ceiling_share"].max() > 1))
    return found.reset_index()


def options(frame: pd.DataFrame) -> pd.DataFrame:
    """Find what was varied of a method: one row per configuration of methods of which something was.

    Columns: task, configuration, method, and parameters such as method.rank and method.target_modules, as text; missing
    where a method has or varies none. Learning rates are tuned, and alpha goes with the rank.
    """
    runs = compared(frame)
    runs = runs[runs["status"] == FINISHED].assign(configuration=label(runs))
    columns = {
        str(column): str(column).removeprefix("param.")
        for column in runs
        if str(column).startswith("param.method.")
        and str(column).removeprefix("param.") not in NOT_TELLING
        and str(column).rpartition(".")[2] not in NO_OPTIONS
    }
    groups = runs.groupby(["task", "method"])
    varied = {column: name for column, name in columns.items() if (groups[column].nunique() > 1).any()}
    found = runs[["task", "configuration", "method", *varied]].rename(columns=varied)
    for name in varied.values():
        several = found.groupby(["task", "method"])[name].transform("nunique") > 1
        found[name] = found[name].where(several)
    found = found.drop_duplicates(["task", "configuration"])
    return found[found[list(varied.values())].notna().any(axis=1)].reset_index(drop=True)


def means(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Take the mean of some figures over the finished runs of each configuration: task, configuration, `columns`."""
    runs = compared(frame)
    runs = runs[runs["status"] == FINISHED].assign(configuration=label(runs))
    return runs.groupby(["task", "configuration"], sort=True)[columns].mean().reset_index()
