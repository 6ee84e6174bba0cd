"""Pictures of what a score costs: the Pareto front, memory by category, and how near predictions come."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.report.plots.style import (
    COLORS,
    LEGEND_LIMIT,
    appearance,
    cost_axis,
    figure_of,
    legend,
    majority_line,
    of_run,
    place_labels,
    score_label,
    short,
    title,
)
from harness.tracking.record import MEMORY
from harness.training.metrics import higher_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Named where not all can be: those that everything else is held against.
REFERENCES = ("full", "head", "bitfit", "lora")
# Each darker than the next, and all of 3:1 with a white page as with a dark one.
CATEGORIES = {
    "weight_bytes": ("weights", "#666666"),
    "gradient_bytes": ("gradients", "#0077BB"),
    "optimizer_bytes": ("optimizer", "#B5608F"),
    "activation_bytes": ("activations", "#C98500"),
}
# Of points that nobody asked for.
REST = "#8A8A8A"
CATEGORY_MARKERS = dict(zip(MEMORY, "sD^ov", strict=True))


@dataclass(frozen=True)
class Cost:
    """A column of the runs, and how its axis is called; without a unit it is counted."""

    column: str
    label: str
    unit: str = ""


COSTS = {
    "parameters": Cost("cost.trainable_parameters", "trainable parameters"),
    "memory": Cost("cost.train_peak_bytes", "peak memory of a training step (bytes)", "B"),
    "flops": Cost("cost.train_flops_per_token", "operations per token in training (FLOP)", "FLOP"),
    "seconds": Cost("cost.train_seconds", "training time (seconds)", "s"),
}


def front(costs: "pd.Series[float]", scores: "pd.Series[float]", higher: bool) -> "pd.Series[bool]":
    """Tell which points no other one beats: none has a score at least as good for less, or a better one for the same.

    Args:
        costs: Lower is better.
        scores: On the same index.
        higher: Whether a higher score is better.
    """
    better = scores if higher else -scores
    order = pd.DataFrame({"cost": costs, "score": better}).sort_values(["cost", "score"], ascending=[True, False])
    best = order["score"].cummax()
    return ((order["score"] > best.shift(fill_value=-math.inf)) & order["cost"].notna()).reindex(costs.index)


def score_against_cost(points: pd.DataFrame, cost: Cost) -> "Figure | None":
    """Draw one panel per task, score over a cost, with the Pareto front; nothing where no run has that cost.

    Args:
        points: One row per run (`pictures.points`).
        cost: One of `COSTS`.
    """
    points = points[points[cost.column].notna()] if cost.column in points else points.iloc[:0]
    if points.empty:
        return None
    tasks = sorted(points["task"].unique())
    figure, axes = figure_of(len(tasks), 3, 4.6, 3.8)
    handles: dict[str, object] = {}
    wanted = [
        _panel(panel, task, points[points["task"] == task], cost, handles)
        for panel, task in zip(axes, tasks, strict=True)
    ]
    legend(figure, handles)
    for panel, (means, labels) in zip(axes, wanted, strict=True):
        place_labels(panel, list(zip(means["x"], means["score"], strict=True)), labels)
    return figure


def _panel(
    axes: "Axes", task: str, points: pd.DataFrame, cost: Cost, handles: dict[str, object]
) -> tuple[pd.DataFrame, list[tuple[float, float, str]]]:
    """Draw each run as a faint mark, each configuration as its mean with the sample standard deviation.

    Among many methods only the front and the references have their deviation drawn.

    Returns:
        The means, and the labels that they want, most important first.
    """
    metric = points["metric"].iloc[0]
    grouped = points.assign(x=points[cost.column]).groupby(["configuration", "method"], sort=True)
    means = grouped.agg(x=("x", "mean"), score=("score", "mean"), std=("score", "std")).reset_index()
    crowded = means["method"].nunique() > LEGEND_LIMIT
    means["front"] = front(means["x"], means["score"], higher_is_better(metric))
    cost_axis(axes, means["x"], cost.label, cost.unit)
    axes.set_ylabel(score_label(metric, points["split"].iloc[0]))
    axes.margins(y=0.14)
    line = means[means["front"]].sort_values("x")
    title(axes, task, f"not beaten at their cost, {len(line)} of {len(means)}: {_named(line['configuration'])}")
    axes.plot(line["x"], line["score"], drawstyle="steps-post", color="#777777", linewidth=1.2, zorder=1)
    # Without a legend a color says nothing: one for what has a name beside it, gray for the rest.
    looks = {
        str(method): (COLORS[0] if method in REFERENCES else REST, "o") if crowded else appearance(str(method))
        for method in means["method"].unique()
    }
    for method, runs in points.groupby("method", sort=True):
        color, marker = looks[str(method)]
        axes.plot(runs[cost.column], runs["score"], marker, **of_run(color, 3.5))
    for (method, on_front), rows in means.groupby(["method", "front"], sort=True):
        telling = on_front or not crowded or method in REFERENCES
        color, marker = looks[method]
        color = COLORS[0] if crowded and on_front else color
        drawn = axes.errorbar(
            rows["x"],
            rows["score"],
            rows["std"] if telling and rows["std"].notna().any() else None,
            fmt=marker,
            color=color,
            markersize=8 if on_front else 6,
            markeredgecolor="black" if on_front else "none",
            elinewidth=0.7,
            capsize=2,
        )
        handles.setdefault(method, drawn)
    majority = points["majority"].dropna()
    if len(majority):
        majority_line(axes, majority.iloc[-1])
    best = means.sort_values("score", ascending=not higher_is_better(metric))
    named = pd.concat([line, best[best["method"].isin(REFERENCES)], best.head(3), best.tail(3)])
    named = named.drop_duplicates("configuration")
    return means, list(zip(named["x"], named["score"], named["configuration"], strict=True))


def _named(names: "pd.Series[str]", room: int = 34) -> str:
    """List names, the last of the front first, as far as a title has room."""
    listed: list[str] = []
    for name in names[::-1]:
        if listed and len(", ".join([*listed, name])) > room:
            return f"{', '.join(listed)}\u00a0..."
        listed.append(name if len(name) <= room else f"{name[: room - 4]}\u00a0...")
    return ", ".join(listed)


def memory_by_category(points: pd.DataFrame) -> "Figure | None":
    """Draw one bar per configuration: what its training step held, stacked by category, least at the top."""
    names = [f"cost.{name}" for name in CATEGORIES]
    peak = "cost.train_peak_bytes"
    if not {*names, peak} <= set(points):
        return None
    measured = points.dropna(subset=[*names, peak])
    if measured.empty:
        return None
    means = measured.groupby(["task", "configuration"])[[*names, peak]].mean().reset_index()
    tasks = sorted(means["task"].unique())
    most = int(means.groupby("task").size().max())
    figure, axes = figure_of(len(tasks), 2, 6.5, 0.19 * most + 1.1)
    for panel, task in zip(axes, tasks, strict=True):
        rows = means[means["task"] == task].sort_values([peak, "configuration"], ascending=False)
        begin = pd.Series(0.0, rows.index)
        for name, (label, color) in CATEGORIES.items():
            width = rows[f"cost.{name}"]
            panel.barh(rows["configuration"], width, left=begin, color=color, label=label, height=0.75)
            begin = begin + width
        panel.plot(rows[peak], rows["configuration"], "|", color="black", markersize=8, label="measured peak")
        panel.xaxis.set_major_formatter(lambda value, _: short(value, "B"))
        panel.set_xlabel("memory of the training step with most tokens (bytes)")
        least, most_held = rows.iloc[-1], rows.iloc[0]
        span = f"{least['configuration']} holds {short(least[peak], 'B')}"
        if len(rows) > 1:
            span += f", {most_held['configuration']} {short(most_held[peak], 'B')}"
        title(panel, task, span)
        panel.grid(False, axis="y")
        panel.margins(y=0.01)
        panel.tick_params(axis="y", labelsize=8, length=0)
    handles, labels = axes[0].get_legend_handles_labels()
    order = [*range(1, len(labels)), 0]
    figure.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        loc="outside upper center",
        ncols=5,
        frameon=False,
        fontsize=9,
        columnspacing=1.2,
        handlelength=1.2,
    )
    return figure


def predicted_against_measured(points: pd.DataFrame) -> "Figure | None":
    """Draw how far off each run's prediction is, by category, over what was measured; the dashed line is exact."""
    names = [name for name in MEMORY if {f"cost.{name}", f"cost.predicted.{name}"} <= set(points)]
    rows = []
    for name in names:
        measured, predicted = points[f"cost.{name}"], points[f"cost.predicted.{name}"]
        held = (measured > 0) & predicted.notna()
        off = 100 * (predicted[held] / measured[held] - 1)
        rows.append(pd.DataFrame({"name": name, "measured": measured[held], "predicted": predicted[held], "off": off}))
    pairs = pd.concat(rows) if rows else pd.DataFrame()
    if pairs.empty:
        return None
    figure, (left, right) = figure_of(2, 2, 4.8, 4.2)
    for name, group in pairs.groupby("name", sort=False):
        _, color = CATEGORIES.get(name, ("", "#D55E00"))
        look: Any = {"color": color, "markersize": 6, "mew": 0.5, "markeredgecolor": "black", "alpha": 0.75}
        label = name.removesuffix("_bytes").removeprefix("train_")
        left.plot(group["measured"], group["predicted"], CATEGORY_MARKERS[name], label=label, **look)
        right.plot(group["measured"], group["off"], CATEGORY_MARKERS[name], **look)
    left.axline((1, 1), slope=1, linestyle="--", linewidth=1, color="#777777", zorder=1)
    right.axhline(0, linestyle="--", linewidth=1, color="#777777", zorder=1)
    left.set_yscale("log")
    left.set_ylim(pairs[["measured", "predicted"]].min().min() / 2, pairs[["measured", "predicted"]].max().max() * 2)
    left.yaxis.set_major_formatter(lambda value, _: short(value, "B"))
    left.set_ylabel("predicted (bytes)")
    right.set_ylabel("predicted less measured (% of measured)")
    farthest = pairs["off"].abs().max()
    left.set_title(f"Predictions are off by {farthest:.3g}% at most", loc="left", fontsize=9.5)
    right.set_title(f"Half of them by {pairs['off'].abs().median():.2g}% or less", loc="left", fontsize=9.5)
    right.set_ylim(-1.15 * max(farthest, 0.5), 1.15 * max(farthest, 0.5))
    for panel in (left, right):
        cost_axis(panel, pairs["measured"], "measured (bytes)", "B")
    left.legend(frameon=False)
    return figure
