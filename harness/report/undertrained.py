"""Methods that would have needed more steps, by rule: their scores say how far training came, not what they can do.

`docs/statistics.md` states the rule.
"""

from collections.abc import Sequence

import pandas as pd

from harness.report.labels import label, searched
from harness.report.scores import FINISHED, compared
from harness.training.metrics import higher_is_better

# Of a score from 0 to 1, and of a loss its share: what the end of a run must have gained to be called a rise.
RISE = 0.01
# The end of a run: this share of its steps.
LAST = 1 / 3
# Evaluations without which a rise can't be told from a start.
FEWEST = 3

STILL_RISES = "still rising at the end of its best trial"
AT_MAJORITY = "a run at the majority"


def still_rises(steps: Sequence[int], scores: Sequence[float], higher: bool = True) -> bool:
    """Whether a run's last evaluation is its best, and beats all before the last third of its steps by `RISE`.

    A run that was stopped for gaining nothing has its best before its last evaluation, and a plateau gains less.

    Args:
        steps: Of the evaluations, ascending.
        scores: On the development split, one an evaluation.
        higher: Whether higher is better.
    """
    if len(scores) < FEWEST:
        return False
    sign = 1 if higher else -1
    *before, last = (sign * score for score in scores)
    early = [score for step, score in zip(steps, before, strict=False) if step <= (1 - LAST) * steps[-1]]
    tolerance = RISE if higher else RISE * abs(max(early, default=0.0))
    return last > max(before) and bool(early) and last - max(early) > tolerance


def undertrained(frame: pd.DataFrame, summary: pd.DataFrame, curves: pd.DataFrame | None) -> pd.DataFrame:
    """Fill the main table's column `undertrained`: why a row is, or empty text.

    Args:
        frame: One row per run.
        summary: The main table.
        curves: Of `curves.load`; without them no rise can be seen.
    """
    rising = set() if curves is None or curves.empty else _rising(frame, curves)
    reasons = [
        ", ".join(
            [STILL_RISES] * ((row.task, row.configuration) in rising) + [AT_MAJORITY] * bool(row.n and row.collapsed)
        )
        for row in summary.itertuples()
    ]
    return summary.assign(undertrained=pd.Series(reasons, index=summary.index, dtype=object))


def _rising(frame: pd.DataFrame, curves: pd.DataFrame) -> set[tuple[str, str]]:
    """The task and configuration of rows whose best trial still rises."""
    best = _best_trials(frame)
    wanted = curves[curves["run_id"].isin(best["run_id"])].sort_values("step", kind="stable")
    lines: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for one in wanted.itertuples():
        steps, scores = lines.setdefault((str(one.run_id), str(one.name)), ([], []))
        steps.append(int(one.step))
        scores.append(float(one.value))
    return {
        (str(one.task), str(one.configuration))
        for one in best.itertuples()
        if (line := lines.get((str(one.run_id), str(one.primary_metric))))
        and still_rises(*line, higher_is_better(str(one.primary_metric)))
    }


def _best_trials(frame: pd.DataFrame) -> pd.DataFrame:
    """The trial that chose for each row, or without trials its run of the best development score.

    Columns: task, configuration, run_id, primary_metric.
    """
    runs = frame[frame["newest"] & (frame["status"] == FINISHED) & frame["development"].notna()]
    signs = runs["primary_metric"].map(lambda metric: 1 if higher_is_better(metric) else -1)
    runs = runs.assign(tuned=label(runs, without=searched(runs)), order=signs * runs["development"])
    runs = runs.sort_values("order", ascending=False, kind="stable")
    trials = runs[runs["stage"] == "tune"].drop_duplicates(["task", "tuned"])
    rows = compared(frame)
    rows = runs.assign(configuration=label(rows)).loc[lambda found: found["stage"] != "tune"]
    found = rows.merge(trials, on=["task", "tuned"], how="left", suffixes=("", "_of_trial"))
    has_trial = found["run_id_of_trial"].notna()
    found = found.assign(
        has_trial=has_trial,
        order=found["order_of_trial"].where(has_trial, found["order"]).astype(float),
        run_id=found["run_id_of_trial"].where(has_trial, found["run_id"]),
    )
    found = found.sort_values(["has_trial", "order"], ascending=False, kind="stable")
    return found.drop_duplicates(["task", "configuration"])[["task", "configuration", "run_id", "primary_metric"]]


def notes(summary: pd.DataFrame) -> list[str]:
    """Say what the mark means, where a row has it."""
    if not (summary["undertrained"] != "").any():
        return []
    return [
        "Undertrained: the last evaluation of the best trial is its best and beats all of its first two thirds by"
        f" {RISE:g} or more, or a run is no better than the commonest answer; more steps may change its place."
    ]
