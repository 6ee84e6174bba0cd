"""Tables of a report, in their order: each a function of what was computed from the runs.

A table more is a function in a file of its own that `TABLES` gets when the file is imported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.report import noise, predicted, published, single_scores, tables, tuning
from harness.report.across import Across
from harness.report.cells import Table
from harness.report.pairwise import Pairwise


@dataclass(frozen=True)
class Found:
    """What a report knows of its runs.

    Attributes:
        frame: One row per run.
        summary: The main table: one row per task and configuration.
        pairwise: The comparisons of each task.
        across: Methods over tasks; null where there are no two.
        options: What was varied of each method.
        costs: Means of what was measured.
        noise: Scatter by cause.
        predictions: Predicted against measured bytes.
        tuning: How learning rates were chosen.
        failures: Runs that did not finish.
        columns: Of the score tables; null for all.
        published: What others published of these tasks, of `published.read`; null where no file was named.
    """

    frame: pd.DataFrame
    summary: pd.DataFrame
    pairwise: list[Pairwise]
    across: Across | None
    options: pd.DataFrame
    costs: pd.DataFrame
    noise: pd.DataFrame
    predictions: pd.DataFrame
    tuning: pd.DataFrame
    failures: pd.DataFrame
    columns: list[str] | None
    published: pd.DataFrame | None = None


def _if_any(table: Table | None) -> list[Table]:
    return [table] if table is not None else []


# What a report shows.
TABLES: list[Callable[[Found], Sequence[Table]]] = [
    lambda found: single_scores.single_tables(single_scores.single_scores(found.frame)),
    lambda found: [tables.across_table(found.across)] if found.across else [],
    lambda found: published.beside(
        tables.score_tables(found.summary, found.pairwise, found.columns), found.published, found.summary
    ),
    lambda found: tables.option_tables(found.summary, found.options),
    lambda found: tables.pair_tables(found.pairwise),
    lambda found: tables.cost_tables(found.costs),
    lambda found: _if_any(noise.noise_table(found.noise)),
    lambda found: _if_any(predicted.prediction_table(found.predictions)),
    lambda found: _if_any(tuning.tuning_table(found.tuning)),
    lambda found: _if_any(tables.failure_table(found.failures)),
]


def tabulate(found: Found) -> list[Table]:
    """Make every table that these runs have."""
    return [table for make in TABLES for table in make(found)]
