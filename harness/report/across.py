"""Methods over several tasks: ranks, duels and normalized scores, compared on the tasks that they share."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.report.labels import label
from harness.report.scores import FINISHED, MAJORITY, compared, split_of
from harness.report.stats import Estimate, average_ranks, interquartile_mean, win_rates
from harness.training.metrics import higher_is_better

BASELINE = "full"
UNKNOWN = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Across:
    """The table over tasks.

    Attributes:
        table: One row per method, best average rank first: configuration, method, `tasks` (how many it has a score on),
            `rank`, `rank_low`, `rank_high`, `ranked_on` (tasks), `win_rate`, `iqm`, `iqm_low`, `iqm_high`, and
            `score.TASK`, the mean score on each task, missing where the method has none.
        tasks: All tasks.
        common: Those that ranks are over.
        normalized: Those that interquartile means are over.
        ranked: How many methods have a rank.
    """

    table: pd.DataFrame
    tasks: tuple[str, ...]
    common: tuple[str, ...]
    normalized: tuple[str, ...]
    ranked: int


def over_tasks(frame: pd.DataFrame, summary: pd.DataFrame) -> Across | None:
    """Hold methods against each other over all tasks; None where there are not two methods on two tasks.

    A method is what the main table calls so; it must be called the same on each task. Ranks are over the tasks that
    every method has a score on. Where there are not two such tasks, methods with holes get no rank, and the others are
    ranked over all tasks. Win rates need no common tasks: a duel takes place where both have a score.

    Args:
        frame: One row per run (`scores.load`).
        summary: The main table (`scores.summary`).
    """
    scored = summary[(summary["configuration"] != MAJORITY) & (summary["n"] > 0)]
    means = scored.pivot(index="configuration", columns="task", values="mean").sort_index().sort_index(axis=1)
    if min(means.shape) < 2:
        return None
    tasks = [str(task) for task in means.columns]
    metrics = summary.groupby("task")["metric"].first()
    higher = [higher_is_better(str(metrics[task])) for task in tasks]
    whole = means.notna()
    common, ranked = whole.all(axis=0).to_numpy(), np.ones(len(means), dtype=bool)
    if common.sum() < 2:
        common, ranked = np.ones(len(tasks), dtype=bool), whole.all(axis=1).to_numpy()
    if ranked.sum() < 2:
        ranked = np.zeros(len(means), dtype=bool)
    shared = [task for task, kept in zip(tasks, common, strict=True) if kept] if ranked.any() else []
    wins = win_rates(means.to_numpy(), higher)
    normalized = _normalized(frame, summary, shared)
    table = pd.DataFrame({"configuration": means.index, "tasks": whole.sum(axis=1).to_numpy()})
    table["method"] = table["configuration"].map(scored.groupby("configuration")["method"].first())
    kept = means.to_numpy()[ranked][:, common]
    ranks = iter(average_ranks(kept, [way for way, there in zip(higher, common, strict=True) if there]))
    summaries = [next(ranks) if there else None for there in ranked]
    for column, name in (("rank", "mean"), ("rank_low", "low"), ("rank_high", "high")):
        # Over two or three tasks the interval reaches past the ranks that there are.
        found_ranks = pd.Series([getattr(found, name) if found else math.nan for found in summaries], dtype=float)
        table[column] = found_ranks.clip(1, int(ranked.sum()) or None)
    table["ranked_on"] = [len(shared) if there else 0 for there in ranked]
    table["win_rate"] = wins
    estimates = [
        _middle(normalized, name) if there else UNKNOWN for name, there in zip(means.index, ranked, strict=True)
    ]
    for column, name in (("iqm", "value"), ("iqm_low", "low"), ("iqm_high", "high")):
        table[column] = [getattr(found, name) for found in estimates]
    for task in tasks:
        table[f"score.{task}"] = means[task].to_numpy()
    table = table.sort_values(["rank", "win_rate", "configuration"], ascending=[True, False, True], na_position="last")
    on = tuple(sorted(normalized["task"].unique()))
    return Across(table.reset_index(drop=True), tuple(tasks), tuple(shared), on, int(ranked.sum()))


def _normalized(frame: pd.DataFrame, summary: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
    """Scale each run's score: 0 is the majority class, 1 full fine-tuning's mean.

    Tasks on which either is missing, or full fine-tuning is no better than the majority class, have no such scale and
    are left out. Columns: task, configuration, value.
    """
    runs = compared(frame)
    runs = runs[runs["status"] == FINISHED].assign(configuration=label(runs))
    parts = []
    for task in tasks:
        rows, of_task = summary[summary["task"] == task], runs[runs["task"] == task]
        floor = rows["mean"][rows["configuration"] == MAJORITY]
        ceiling = rows["mean"][rows["configuration"] == BASELINE]
        if floor.empty or ceiling.isna().all():
            continue
        scale = float(ceiling.iloc[0] - floor.iloc[0])
        if scale > 0 if higher_is_better(str(rows["metric"].iloc[0])) else scale < 0:
            values = (of_task[split_of(of_task)] - floor.iloc[0]) / scale
            parts.append(of_task[["task", "configuration"]].assign(value=values))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["task", "configuration", "value"])


def _middle(normalized: pd.DataFrame, name: str) -> Estimate:
    """Interquartile mean of a method's normalized scores."""
    own = normalized[normalized["configuration"] == name]
    if own.empty:
        return UNKNOWN
    columns = [group.to_numpy(dtype=float) for _, group in own.groupby("task", sort=True)["value"]]
    longest = max(map(len, columns))
    padded = [np.pad(column, (0, longest - len(column)), constant_values=math.nan) for column in columns]
    return interquartile_mean(np.array(padded).T)
