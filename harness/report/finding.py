"""Sentences that open a report: who can't be distinguished from the best, what beats nothing, what was not tuned."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pandas as pd

from harness.report.cells import number
from harness.report.pairwise import Pairwise, few
from harness.report.scores import MAJORITY
from harness.report.single_scores import Judged
from harness.report.spread import LEVEL
from harness.report.words import metric_name
from harness.training.metrics import higher_is_better

# Between what was found and what it was found on.
BREAK = "\n"
# Tasks of which something is said at the top; of more, the table over tasks tells.
MOST_VERDICTS = 6


def verdicts(
    summary: pd.DataFrame, found: Sequence[Pairwise], single: Mapping[str, Judged] = MappingProxyType({})
) -> str:
    """Say of each task who is level with the best, ties first, and never more than the runs allow.

    Args:
        summary: The main table.
        found: The comparisons of each task.
        single: Tasks whose scores others published once each.
    """
    sentences = []
    for one in found[:MOST_VERDICTS]:
        of_task = summary[(summary["task"] == one.task) & (summary["mean"].notna())]
        rows = of_task[(of_task["configuration"] != MAJORITY) & (of_task["n"] > 0)]
        by_majority = beaten(rows, of_task[of_task["configuration"] == MAJORITY], one)
        if one.task in single:
            sentences.append(_once(one.task, single[one.task]))
        elif by_majority:
            sentences.append(by_majority)
        elif len(rows) > 1:
            sentences.append(_standing(rows, one))
    return " ".join(sentences)


def _once(task: str, judged: Judged) -> str:
    """Hold scores of one run each against the highest."""
    best = judged.rows.iloc[0]
    level = judged.rows[judged.rows["level"]].rename(columns={"cost.trainable_parameters": "trainable_parameters"})
    told = f"{best['configuration']}, the highest observed ({number(best['accuracy'])} accuracy)"
    others = f"{len(level) - 1} of the {len(judged.rows) - 1} other scores"
    return f"On {task} {others} can't be distinguished from {told}, each one run's{_cheapest(level)}."


def untuned(frame: pd.DataFrame, tuning: pd.DataFrame) -> str:
    """Warn of methods that are compared at learning rates which nothing chose for this task."""
    own = frame[frame["newest"] & (frame["source"] == "")]
    if not tuning.empty or own["method"].nunique() < 2 or (own["stage"] == "final").any():
        return ""
    return "Learning rates were not tuned here; other rates may change the order."


def beaten(rows: pd.DataFrame, majority: pd.DataFrame, one: Pairwise) -> str:
    """Say that nothing beats the commonest answer, where that is so; empty elsewhere."""
    if majority.empty or rows.empty:
        return ""
    score = float(majority["mean"].iloc[0])
    higher = higher_is_better(one.metric)
    written = f"the majority class ({number(score)} {metric_name(one.metric)})"
    if not ((rows["mean"] > score) if higher else (rows["mean"] < score)).any():
        return f"On {one.task} nothing here beats {written}."
    ends = rows["low" if higher else "high"] if "low" in rows else pd.Series(dtype=float)
    known = ends[ends.notna()]
    if len(known) == len(rows) and not ((known > score) if higher else (known < score)).any():
        return f"On {one.task} nothing here is known to beat {written}: every interval reaches it."
    return ""


def _standing(rows: pd.DataFrame, one: Pairwise) -> str:
    """Hold the methods of a task against the best, or against the baseline."""
    best = rows[rows["configuration"] == one.best].iloc[0] if one.best else rows.iloc[0]
    compared = {name for pair in one.comparisons for name in (pair.a, pair.b)} | {*one.groups}
    among = " of those compared" * bool(one.best and rows["configuration"].iloc[0] not in compared)
    score = f"{number(best['mean'])} {metric_name(one.metric)}"
    highest = f"{best['configuration']} has the highest score observed{among}, {score}"
    sure = f" (the best with probability {one.chances[one.best]:.2f})" if one.best in one.chances else ""
    left = sum(name not in compared for name in rows["configuration"]) if one.best else 0
    rest = f"; {left} more {'was' if left == 1 else 'were'} not compared" * bool(left)
    if not one.best:
        text = f"{highest}; nothing tells whether by more than chance, as no predictions can be compared"
    elif not one.chances:
        text = f"no method can be called better yet: under three runs of a method say nothing of the next. {highest}"
    elif one.every_pair and one.best in one.groups:
        text = _level(rows, one, f"{best['configuration']}, the highest observed{among}, {score}{sure}", highest + sure)
    else:
        text = _against(rows, one) + f" {highest}{sure or '; it is too unstable to say, or has under three runs'}"
    return f"On {one.task} {text}{rest}."


def _level(rows: pd.DataFrame, one: Pairwise, highest: str, alone: str) -> str:
    """Count who is level with the best, where every pair was tested."""
    others = len(one.groups) - 1
    if not one.level:
        return f"{alone}, distinguished from {'the other' if others == 1 else f'all {others} others'} tested"
    level = rows[rows["configuration"].isin([one.best, *one.level])]
    listed = f": {few([name for name in rows['configuration'] if name in one.level])}" * (len(one.level) <= 3)
    whom = "the other method" if others == 1 else f"{len(one.level)} of the {others} other methods tested"
    return f"{whom} can't be distinguished from {highest}{listed}{_cheapest(level)}"


def _against(rows: pd.DataFrame, one: Pairwise) -> str:
    """Count who is better, worse or level against the baseline; under three runs of a method nobody knows."""
    level, better, worse = [one.baseline], 0, 0
    held = [pair for pair in one.comparisons if one.baseline in (pair.a, pair.b) and not pd.isna(pair.p)]
    for pair in held:
        name = pair.b if pair.a == one.baseline else pair.a
        if not pair.over_seeds:
            continue
        if not pair.corrected_p < LEVEL:
            level.append(name)
        elif pair.verdict.startswith(f"{name} "):
            better += 1
        else:
            worse += 1
    count = sum(pair.over_seeds for pair in held)
    if not count:
        return f"nothing could be tested against {one.baseline}."
    whom = "the one method" if count == 1 else f"{len(level) - 1} of {count} methods"
    text = f"{whom} tested can't be distinguished from {one.baseline}"
    if len(level) == 1:
        text = f"{'the one method' if count == 1 else f'all {count} methods'} tested can be distinguished from "
        text += one.baseline
    told = [f"{number} {word}" for number, word in ((better, "better"), (worse, "worse")) if number]
    text += f" ({', '.join(told)})" if told else ""
    single = len(held) - count
    text += f"; {single} more {'has' if single == 1 else 'have'} under three runs" * bool(single)
    return text + _cheapest(rows[rows["configuration"].isin(level)]) + "."


def _cheapest(level: pd.DataFrame) -> str:
    """Name the one that trains least of several that are level; nothing where that is not known."""
    if len(level) < 2 or "trainable_parameters" not in level or level["trainable_parameters"].isna().any():
        return ""
    row: Any = level.sort_values(["trainable_parameters", "configuration"]).iloc[0]
    count = row["trainable_parameters"]
    if math.isnan(count):
        return ""
    return f"; the cheapest of these {len(level)} is {row['configuration']} ({number(count, 0)} trained parameters)"
