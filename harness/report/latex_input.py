r"""A table for a paper, as a file that `\input` takes: methods in rows, tasks in columns, 80.1 ± 1.6 in cells."""

import math
from typing import Any

import pandas as pd

from harness.report.latex import escape
from harness.report.names import configuration_label, label_of
from harness.report.pairwise import ALIKE, BEST
from harness.report.scores import MAJORITY
from harness.report.words import metric_name
from harness.training.metrics import RANGE_OF, higher_is_better

NOTE = r"""% Made by harness-report. \usepackage{booktabs} is needed; \input{table} prints it.
% Mean and sample standard deviation over n runs; shares and correlations are times 100.
% Bold: the highest observed of a task. Underlined: not distinguished from it.
"""


def table(summary: pd.DataFrame) -> str:
    """Write the scores of all tasks as one tabular.

    Args:
        summary: The main table, with `standing` where methods were compared.
    """
    tasks = list(dict.fromkeys(summary["task"]))
    found = {(row["task"], row["configuration"]): row for row in summary.to_dict("records")}
    names = dict.fromkeys(row["configuration"] for row in _ranked(summary))
    labels = {row["configuration"]: configuration_label(row["configuration"], row["method"]) for row in found.values()}
    head = ["method", *(label_of("task", str(task)) for task in tasks)]
    metrics = ["", *(_metric(summary, task) for task in tasks)]
    body = [
        " & ".join([escape(labels[name]), *(_cell(found.get((task, name))) for task in tasks)]) + r" \\"
        for name in names
    ]
    rule = [r"\midrule"] * (len(body) > 1 and MAJORITY in names)
    rows = [*body[:-1], *rule, body[-1]] if body else []
    lines = [rf"\begin{{tabular}}{{l{'r' * len(tasks)}}}", r"\toprule"]
    lines += [" & ".join(map(escape, cells)) + r" \\" for cells in (head, metrics)]
    return NOTE + "\n".join([*lines, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _ranked(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows in the order of the first task that has them, the majority class last."""
    rows = summary.to_dict("records")
    return [row for row in rows if row["configuration"] != MAJORITY] + [
        row for row in rows if row["configuration"] == MAJORITY
    ]


def _metric(summary: pd.DataFrame, task: str) -> str:
    rows = summary[summary["task"] == task]
    metric = metric_name(str(rows["metric"].iloc[0] or ""))
    return metric if higher_is_better(str(rows["metric"].iloc[0])) else f"{metric} (lower is better)"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or pd.isna(row["mean"]):
        return "--"
    bounded = RANGE_OF.get(str(row["metric"]).rpartition(".")[2], "open") in ("share", "correlation")
    factor, places = (100, 1) if bounded else (1, 3)
    text = f"{factor * row['mean']:.{places}f}"
    if row.get("standing") == BEST:
        text = rf"\textbf{{{text}}}"
    elif row.get("standing") == ALIKE:
        text = rf"\underline{{{text}}}"
    std = row.get("std", math.nan)
    return text if pd.isna(std) else rf"{text} $\pm$ {factor * std:.{places}f}"
