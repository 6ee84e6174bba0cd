"""Pictures of scores: over seeds, learning rates, steps and a method's size, and against what was forgotten."""

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from harness.report.labels import label, searched
from harness.report.plots.costs import REFERENCES, REST
from harness.report.plots.style import (
    COLORS,
    LEGEND_LIMIT,
    appearance,
    figure_of,
    legend,
    majority_line,
    of_run,
    place_labels,
    places,
    score_label,
    shades,
    title,
)
from harness.report.scores import FINISHED, LEARNING_RATE, NO_OPTIONS
from harness.report.words import metric_name
from harness.training.metrics import higher_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of marks that a row or a label names already.
ACCENT = COLORS[0]
ROW = 0.19  # inches
# Curves that stand out among more than this many.
CURVES_LIMIT = 8
# Rows of a picture, as many as methods are compared in pairs; more are not legible.
MOST_DRAWN = 64
MOST_TICKS = 10
# A size of a method is drawn where a sweep has at least this many.
SIZES = 3


def _rows(axes: "Axes", names: "list[str]", label: str) -> None:
    """Make an axis one row per name, the first at the top."""
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)


def _width(names: "pd.Series[str]") -> float:
    """Inches of a panel with a row per name: long names take nothing from what is drawn."""
    return 6.5 + 0.064 * max(0, int(names.str.len().max()) - 24)


def seed_spread(points: pd.DataFrame) -> "Figure | None":
    """Draw one row per configuration, best mean first: every seed as a point, the mean as a line."""
    if points.empty:
        return None
    tasks = sorted(points["task"].unique())
    most = int(points.groupby("task")["configuration"].nunique().max())
    figure, axes = figure_of(len(tasks), 2, _width(points["configuration"]), ROW * most + 1.1)
    for panel, task in zip(axes, tasks, strict=True):
        runs = points[points["task"] == task]
        metric = runs["metric"].iloc[0]
        means = runs.groupby("configuration")["score"].mean()
        order = means.sort_values(ascending=not higher_is_better(metric), kind="stable").index.tolist()
        rows = {name: float(place) for place, name in enumerate(order)}
        # The row says which method it is: a color would say it again.
        heights = runs["configuration"].map(rows)
        panel.plot(runs["score"], heights, "o", color=ACCENT, markersize=5.5, mec="white", mew=0.5, zorder=3)
        middle = pd.Series(rows)
        panel.vlines(means[order], middle - 0.35, middle + 0.35, color="black", linewidth=1.4)
        majority = runs["majority"].dropna()
        if len(majority):
            majority_line(panel, majority.iloc[-1], across=False)
        _rows(panel, order, f"{score_label(metric, runs['split'].iloc[0])}\none point per seed, a line the mean")
        title(panel, task, _scatter(runs, means))
    return figure


def _scatter(runs: pd.DataFrame, means: "pd.Series[float]") -> str:
    """Hold what seeds change against what methods change."""
    scatter = runs.groupby("configuration")["score"].std().median()
    if len(means) == 1:
        return f"{means.index[0]}: seeds scatter by {scatter:.4f}" if pd.notna(scatter) else "one run"
    span = f"methods span {means.max() - means.min():.4f}"
    return f"{span}, seeds scatter by {scatter:.4f} (median sd)" if pd.notna(scatter) else f"{span}, one run each"


def learning_rates(frame: pd.DataFrame) -> "Figure | None":
    """Draw one row per method, best first: the development score at each learning rate that was tried for it.

    Small points are low rates, large ones high rates; the number is the best one.

    Args:
        frame: Of `scores.load`; only trials (`stage=tune`) count.
    """
    if LEARNING_RATE not in frame:
        return None
    runs = frame[frame["newest"] & (frame["stage"] == "tune") & (frame["status"] == FINISHED)]
    runs = runs.assign(rate=pd.to_numeric(runs[LEARNING_RATE], errors="coerce")).dropna(subset=["rate", "development"])
    if runs.empty:
        return None
    runs = runs.assign(configuration=label(runs, without=searched(frame)))
    tasks = sorted(runs["task"].unique())
    most = min(int(runs.groupby("task")["configuration"].nunique().max()), MOST_DRAWN)
    figure, axes = figure_of(len(tasks), 2, _width(runs["configuration"]), ROW * most + 1.1)
    for panel, task in zip(axes, tasks, strict=True):
        _rates_panel(panel, task, runs[runs["task"] == task])
    return figure


def _rates_panel(axes: "Axes", task: str, runs: pd.DataFrame) -> None:
    metric = runs["primary_metric"].iloc[0]
    higher = higher_is_better(metric)
    scores = runs.groupby(["configuration", "rate"])["development"].mean()
    best = scores.groupby("configuration").max() if higher else scores.groupby("configuration").min()
    order = best.sort_values(ascending=not higher, kind="stable").index.tolist()[:MOST_DRAWN]
    for place, name in enumerate(order):
        tried = scores[name].sort_index()
        axes.plot([tried.min(), tried.max()], [place] * 2, color="#777777", linewidth=1, zorder=1)
        for step, (rate, score) in enumerate(tried.items()):
            share = step / max(len(tried) - 1, 1)
            axes.plot(
                score,
                place,
                "o",
                color=ACCENT,
                markersize=3.5 + 3.5 * share,
                markeredgecolor="black",
                mew=0.4,
            )
            if score == best[name]:
                chosen = rate
        axes.annotate(
            f"{chosen:g}",
            (best[name], place),
            (6 if higher else -6, 0),
            textcoords="offset points",
            fontsize=7,
            horizontalalignment="left" if higher else "right",
            verticalalignment="center",
        )
    axes.margins(x=0.12)
    moved = (scores.groupby("configuration").max() - scores.groupby("configuration").min()).median()
    _rows(axes, order, f"{score_label(metric, 'development')}\nlarger: a higher rate; the number is the best")
    title(axes, task, f"the rate moves a method's score by {moved:.4f} (median)")


def learning_curves(frame: pd.DataFrame, curves: pd.DataFrame | None) -> "Figure | None":
    """Draw one panel per task: each configuration's development score by step, a mean over its runs.

    Args:
        frame: One row per run (`pictures.points`).
        curves: Of `curves.load`; null where there are none.
    """
    if curves is None or curves.empty:
        return None
    from matplotlib.ticker import MaxNLocator

    lines = curves.merge(frame[["run_id", "task", "configuration", "method", "metric"]], on="run_id")
    lines = lines[lines["name"] == lines["metric"]]
    lines = lines[lines.groupby("configuration")["step"].transform("nunique") > 1]
    if lines.empty:
        return None
    tasks = sorted(lines["task"].unique())
    figure, axes = figure_of(len(tasks), 3, 4.6, 3.8)
    labels, drawn = [], []
    for panel, task in zip(axes, tasks, strict=True):
        of_task = lines[lines["task"] == task]
        metric = of_task["metric"].iloc[0]
        means = of_task.groupby(["configuration", "method", "step"], sort=True)["value"].mean().reset_index()
        last = means.groupby("configuration")["value"].last().sort_values(ascending=not higher_is_better(metric))
        colors = dict(zip(of_task["configuration"], shades(of_task), strict=True))
        ends: list[tuple[float, float, str]] = []
        along: list[tuple[float, float]] = []
        telling = list(last.index[: CURVES_LIMIT // 2])
        telling += [name for name in last.index if name in REFERENCES and name not in telling]
        for (name, method), curve in means.groupby(["configuration", "method"], sort=True):
            shown = len(last) <= CURVES_LIMIT or name in telling
            color, marker = (colors[name], appearance(method)[1]) if shown else (REST, "")
            panel.plot(
                curve["step"], curve["value"], marker=marker, color=color, markersize=5,
                linewidth=1.6 if shown else 0.7, zorder=3 if shown else 1,
            )  # fmt: skip
            if shown:
                ends.append((curve["step"].iloc[-1], curve["value"].iloc[-1], str(name)))
                steps = np.linspace(curve["step"].iloc[0], curve["step"].iloc[-1], 100)
                along += zip(steps, np.interp(steps, curve["step"], curve["value"]), strict=True)
        labels.append(ends)
        drawn.append(along)
        # Room for the names at the ends of the lines.
        left, right = panel.get_xlim()
        panel.set_xlim(left, right + 0.3 * (right - left))
        title(
            panel,
            task,
            f"{last.index[0]} ends {'highest' if higher_is_better(metric) else 'lowest'}"
            if len(last) > 1
            else f"{last.index[0]} by step",
        )
        panel.set_xlabel("step")
        panel.set_ylabel(score_label(metric, "development"))
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for panel, along, of_panel in zip(axes, drawn, labels, strict=True):
        place_labels(panel, along, of_panel)
    return figure


def sizes(points: pd.DataFrame) -> list[str]:
    """Find what the score is drawn over: numbers of which a sweep has a few, such as method.rank or learning rates.

    Learning rates that were chosen from trials are no such axis: each is of another configuration.
    """
    found = []
    given = points[points["stage"] == "run"]
    if LEARNING_RATE in given and _values(given, LEARNING_RATE) >= SIZES:
        found.append(LEARNING_RATE)
    for column in sorted(str(column) for column in points if str(column).startswith("param.method.")):
        if column.removeprefix("param.method.").rpartition(".")[2] in NO_OPTIONS:
            continue
        if _values(points, column) >= SIZES:
            found.append(column)
    return found


def _values(points: pd.DataFrame, column: str) -> float:
    """The most numbers that one method on one task has there."""
    numbers = pd.to_numeric(points[column], errors="coerce")
    return numbers.groupby([points["task"], points["method"]]).nunique().max()


def size_name(column: str) -> str:
    """Label of a parameter beside an axis: `rank` of `param.method.rank`."""
    return column.rpartition(".")[2] if column == LEARNING_RATE else re.sub(r"^param\.method\.(config\.)?", "", column)


def score_against_size(points: pd.DataFrame, column: str) -> "Figure":
    """Draw one panel per task: each method's mean score over its size, the band a sample standard deviation each way.

    Of more methods than a legend has room for, a panel has the best ones.
    """
    points = points.assign(size=pd.to_numeric(points[column], errors="coerce")).dropna(subset=["size"])
    tasks = sorted(points["task"].unique())
    figure, axes = figure_of(len(tasks), 3, 4.6, 3.8)
    handles: dict[str, object] = {}
    for panel, task in zip(axes, tasks, strict=True):
        runs = points[points["task"] == task]
        best = (
            runs.groupby("method")["score"]
            .mean()
            .sort_values(ascending=not higher_is_better(runs["metric"].iloc[0]), kind="stable")
        )
        moved: dict[str, float] = {}
        for method in places(best.index[:LEGEND_LIMIT]):
            of_method = runs[runs["method"] == method]
            color, marker = appearance(method)
            scores = of_method.groupby("size")["score"].agg(["mean", "std"])
            band = scores["std"].fillna(0.0)
            panel.fill_between(
                scores.index, scores["mean"] - band, scores["mean"] + band, color=color, alpha=0.2, linewidth=0
            )
            panel.plot(of_method["size"], of_method["score"], marker, **of_run(color))
            [drawn] = panel.plot(scores.index, scores["mean"], marker=marker, color=color, markersize=6)
            handles.setdefault(method, drawn)
            moved[method] = float(scores["mean"].max() - scores["mean"].min())
        if runs["size"].min() > 0:
            panel.set_xscale("log", base=2)
        values = sorted(runs["size"].unique())
        values = values[:: -(-len(values) // MOST_TICKS)]
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.set_xlabel(size_name(column).replace("_", " "))
        panel.set_ylabel(score_label(runs["metric"].iloc[0], runs["split"].iloc[0]))
        name = size_name(column).replace("_", " ")
        farthest = max(moved, key=lambda method: moved[method])
        title(panel, task, f"{name} moves {farthest}'s mean by {moved[farthest]:.4f}")
    legend(figure, handles)
    return figure


def forgetting_against_gain(points: pd.DataFrame) -> "Figure | None":
    """Draw one panel per task: how much worse general text became over how much better the task, one point per run.

    Both are made so that up is worse and right is better. Better than the backbone alone, or than the majority class
    where the backbone alone can't answer.
    """
    wanted = ["base", "forgetting.before", "forgetting.after"]
    if not {*wanted, "majority"} <= set(points):
        return None
    known = points.assign(base=points["base"].fillna(points["majority"])).dropna(subset=wanted)
    if known.empty:
        return None
    tasks = sorted(known["task"].unique())
    figure, axes = figure_of(len(tasks), 3, 4.6, 3.8)
    handles: dict[str, object] = {}
    labels: list[list[tuple[float, float, str]]] = []
    for panel, task in zip(axes, tasks, strict=True):
        runs = known[known["task"] == task]
        metric, general = runs["metric"].iloc[0], runs["forgetting_metric"].iloc[0]
        gain = (runs["score"] - runs["base"]) * (1 if higher_is_better(metric) else -1)
        lost = (runs["forgetting.after"] - runs["forgetting.before"]) * (-1 if higher_is_better(general) else 1)
        runs = runs.assign(gain=gain, lost=lost)
        means = runs.groupby(["configuration", "method"])[["gain", "lost"]].mean().reset_index()
        for method in places(runs["method"]):
            color, marker = appearance(method)
            own, mean = runs[runs["method"] == method], means[means["method"] == method]
            panel.plot(own["gain"], own["lost"], marker, **of_run(color))
            [drawn] = panel.plot(mean["gain"], mean["lost"], marker, color=color, markersize=8)
            handles.setdefault(method, drawn)
        panel.axhline(0, linewidth=1, linestyle="--", color="#777777", zorder=1)
        panel.axvline(0, linewidth=1, linestyle="--", color="#777777", zorder=1)
        panel.margins(0.15)
        panel.set_xlabel(f"gain on the task ({metric_name(metric)}), right is better")
        panel.set_ylabel(f"forgotten of general text{f' ({metric_name(general)})' if general else ''}, lower is better")
        forgets = int((means["lost"] > 0).sum())
        title(panel, task, f"{forgets} of {len(means)} {'forgets' if forgets == 1 else 'forget'} general text")
        far = means.reindex((means["gain"].abs() + means["lost"].abs()).sort_values(ascending=False).index)
        labels.append(list(zip(far["gain"], far["lost"], far["configuration"], strict=True)))
    legend(figure, handles)
    for panel, of_panel in zip(axes, labels, strict=True):
        place_labels(panel, [(x, y) for x, y, _ in of_panel], of_panel)
    return figure
