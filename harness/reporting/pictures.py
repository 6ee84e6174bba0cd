"""All pictures of a report: those that a store has numbers for, each as `svg` and `png`."""

import re
from typing import TYPE_CHECKING

import pandas as pd

from harness.reporting import plot_costs, plot_scores
from harness.reporting.plots import SETTINGS, encoded
from harness.reporting.scores import FINISHED, compared, label, split_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def points(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep the finished runs that have a score, with it.

    Columns: those of `scores.load`, and configuration, metric, split (which one `score` is of), score.
    """
    runs = compared(frame)
    runs = runs.assign(configuration=label(runs), metric=runs["primary_metric"], split="", score=float("nan"))
    for _, group in runs.groupby("task"):
        split = split_of(group)
        runs.loc[group.index, "split"] = split
        runs.loc[group.index, "score"] = group[split]
    return runs[(runs["status"] == FINISHED) & runs["score"].notna()]


def draw(frame: pd.DataFrame, curves: pd.DataFrame | None = None) -> dict[str, dict[str, bytes]]:
    """Draw what there are numbers for: file name without ending -> `svg` and `png`; the same numbers, the same bytes.

    Args:
        frame: Of `scores.load`.
        curves: Of `curves.load`; without it no learning curves are drawn.
    """
    import matplotlib

    runs = points(frame)
    with matplotlib.rc_context(SETTINGS):
        figures: dict[str, Figure | None] = {
            f"score_vs_{name}": plot_costs.score_against_cost(runs, cost) for name, cost in plot_costs.COSTS.items()
        }
        for column in plot_scores.sizes(runs):
            # A name from a configuration becomes part of a file's.
            name = re.sub(r"\W+", "_", plot_scores.size_name(column))
            figures[f"score_vs_{name}"] = plot_scores.score_against_size(runs, column)
        figures["seeds"] = plot_scores.seed_spread(runs)
        figures["learning_rates"] = plot_scores.learning_rates(frame)
        if curves is not None and len(curves):
            figures["learning_curves"] = plot_scores.learning_curves(runs, curves)
        figures["memory"] = plot_costs.memory_by_category(runs)
        figures["predicted_vs_measured"] = plot_costs.predicted_against_measured(runs)
        figures["forgetting"] = plot_scores.forgetting_against_gain(runs)
        return {
            name: {kind: encoded(figure, kind) for kind in ("svg", "png")}
            for name, figure in figures.items()
            if figure is not None
        }
