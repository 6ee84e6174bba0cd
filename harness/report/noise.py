"""Sources of the scatter of a configuration's scores, if every seed met every data_seed."""

import math

import numpy as np
import pandas as pd

from harness.report.cells import Table, number
from harness.report.labels import label
from harness.report.scores import FINISHED, compared, split_of
from harness.report.stats import t_quantile

# What most published comparisons have.
RUNS = 3
COLUMNS = ("task", "configuration", "seeds", "data_seeds", "seed", "data_seed", "both", "total", "difference")


def noise(frame: pd.DataFrame) -> pd.DataFrame:
    """Split each configuration's variance by the two-way analysis of variance, one run per cell, both factors random.

    Searle, Casella and McCulloch 1992, Variance Components, chapter 4: with a seeds and b data_seeds the mean square
    between seeds is expected to be v + b v_seed, that between data_seeds v + a v_data, and the rest v; a negative
    estimate is 0. Only seeds whose runs all finished take part, and configurations with two of both.

    Columns: task, configuration, seeds, data_seeds (their numbers); seed, data_seed, both (what no sum of the two
        explains), total: standard deviations; difference: what the means of two configurations with this scatter, of
        `RUNS` runs each, must differ by for Student's t to tell them apart at 5%.
    """
    runs = compared(frame)
    runs = runs.assign(configuration=label(runs)) if len(runs) else runs
    rows = []
    for task, of_task in runs.groupby("task", sort=True):
        done = of_task[of_task["status"] == FINISHED]
        for name, group in done[_crossed(done)].groupby("configuration", sort=True):
            cells = group.pivot_table(index="seed", columns="data_seed", values=split_of(of_task)).dropna()
            if min(cells.shape) > 1:
                rows.append({"task": task, "configuration": name, **_parts(cells.to_numpy(dtype=float))})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _crossed(runs: pd.DataFrame) -> pd.Series:
    """Which runs are of a configuration with a seed that met two data_seeds: else there is no grid to look for."""
    meetings = runs.groupby(["configuration", "seed"], sort=False)["data_seed"].nunique()
    return runs["configuration"].isin(meetings[meetings > 1].index.get_level_values("configuration"))


def _parts(cells: np.ndarray) -> dict[str, float]:
    """Standard deviations by cause of an array of scores, seeds x data_seeds."""
    seeds, orders = cells.shape
    by_seed, by_order = cells.mean(axis=1), cells.mean(axis=0)
    rest = cells - by_seed[:, None] - by_order[None, :] + cells.mean()
    both = float((rest**2).sum() / ((seeds - 1) * (orders - 1)))
    seed = max(0.0, float(by_seed.var(ddof=1)) - both / orders)
    order = max(0.0, float(by_order.var(ddof=1)) - both / seeds)
    total = math.sqrt(seed + order + both)
    return {
        "seeds": seeds,
        "data_seeds": orders,
        "seed": math.sqrt(seed),
        "data_seed": math.sqrt(order),
        "both": math.sqrt(both),
        "total": total,
        "difference": t_quantile(2 * RUNS - 2) * total * math.sqrt(2 / RUNS),
    }


def noise_table(found: pd.DataFrame) -> Table | None:
    """Make the table of it; null where no configuration has crossed seeds."""
    if found.empty:
        return None
    columns = ("task", "method", "runs", "sd by seed", "by data_seed", "by both together", "in all", "distinguished")
    cells = [
        (
            str(row["task"]),
            str(row["configuration"]),
            f"{row['seeds']} x {row['data_seeds']}",
            *(number(row[name]) for name in ("seed", "data_seed", "both", "total", "difference")),
        )
        for _, row in found.iterrows()
    ]
    caption = (
        "Standard deviations of the score by cause: the seed of new weights and dropout, that of the order of the rows,"
        f" and what only the two together decide. Distinguished: what two methods with this scatter, {RUNS} runs each,"
        " must differ by for a t test at 5%."
    )
    return Table("Where the noise comes from", columns, cells, caption, ("task", "method"), detail=True)
