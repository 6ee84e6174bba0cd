"""All pictures of a report: those that a store has numbers for, each as the files of `style.KINDS`."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from harness.config.errors import ConfigError, near_misses
from harness.report.labels import label
from harness.report.plots import costs, scores
from harness.report.plots.costs import COSTS, REFERENCES, front
from harness.report.plots.scores import MOST_DRAWN
from harness.report.plots.style import SETTINGS, files
from harness.report.scores import FINISHED, compared, split_of
from harness.training.metrics import higher_is_better

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


def telling(points: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keep what pictures have room for: of each task the best configurations, the best of each reference, and every
    configuration that no other one beats at its cost.

    Returns:
        Those runs, and a sentence for each task that was cut.
    """
    kept, notes = [], []
    for task, runs in points.groupby("task", sort=True):
        names = runs.groupby(["configuration", "method"])["score"].mean().reset_index()
        if len(names) > MOST_DRAWN:
            higher = higher_is_better(runs["metric"].iloc[0])
            names = names.sort_values(["score", "configuration"], ascending=[not higher, True])
            chosen = set(names["configuration"][:MOST_DRAWN])
            chosen |= set(names[names["method"].isin(REFERENCES)].drop_duplicates("method")["configuration"])
            means = names.set_index("configuration")["score"]
            for cost in COSTS.values():
                if cost.column in runs:
                    on = front(runs.groupby("configuration")[cost.column].mean(), means, higher)
                    chosen |= set(on.index[on])
            runs = runs[runs["configuration"].isin(chosen)]
            notes.append(
                f"Pictures of {task} show {len(chosen)} of its {len(names):,} methods: the {MOST_DRAWN} best, the "
                "references, and those that no other beats at its cost."
            )
        kept.append(runs)
    return pd.concat(kept).sort_index() if kept else points, notes


def draw(
    frame: pd.DataFrame, curves: pd.DataFrame | None = None, wanted: Sequence[str] | None = None
) -> dict[str, dict[str, bytes]]:
    """Draw what there are numbers for: file name without ending -> content by ending; the same numbers, the same bytes.

    Args:
        frame: Of `scores.load`.
        curves: Of `curves.load`; without it no learning curves are drawn.
        wanted: Names of the pictures to draw; null draws all.

    Raises:
        ConfigError: There is no picture of a name that is wanted, of whatever runs.
    """
    import matplotlib

    everything = points(frame)
    runs, _ = telling(everything)
    of_size = {
        # A name from a configuration becomes part of a file's.
        re.sub(r"\W+", "_", scores.size_name(column)): column
        for column in scores.sizes(everything)
    }
    makers: dict[str, Callable[[], Figure | None]] = {
        f"score_vs_{name}": partial(costs.score_against_cost, runs, cost) for name, cost in COSTS.items()
    }
    makers |= {
        f"score_vs_{name}": partial(scores.score_against_size, everything, column) for name, column in of_size.items()
    }
    makers |= {
        "seeds": partial(scores.seed_spread, runs),
        "learning_rates": partial(scores.learning_rates, frame),
        "learning_curves": partial(scores.learning_curves, runs, curves),
        "memory": partial(costs.memory_by_category, runs),
        "predicted_vs_measured": partial(costs.predicted_against_measured, runs),
        "forgetting": partial(scores.forgetting_against_gain, runs),
    }
    for name in wanted or ():
        # Of a size that these runs do not vary there is nothing to draw, as of a cost that they did not measure.
        if name not in makers and not name.startswith("score_vs_"):
            raise ConfigError(f"plots={name}: there is no such picture; {near_misses(name, makers)}")
    with matplotlib.rc_context(SETTINGS):
        figures = {name: make() for name, make in makers.items() if wanted is None or name in wanted}
        return {name: files(figure) for name, figure in figures.items() if figure is not None}
