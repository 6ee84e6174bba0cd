"""Plots of the HTML page that show a run where the pointer is, drawn by Bokeh in the browser."""

import json
import math
from typing import Any

import pandas as pd

from harness.report.plots.costs import COSTS
from harness.report.plots.scores import sizes
from harness.report.plots.style import appearance, score_label, shades
from harness.report.scores import LEARNING_RATE, MAJORITY

BOKEH_MARKERS = dict(
    zip("os^DvPX*p", "circle square triangle diamond inverted_triangle plus square_pin star hex".split(), strict=True)
)
HEIGHT = 420
SHOWN = ("name", "configuration", "seed", "rate", "y", "color")


def script() -> str:
    """Return Bokeh's own script, without the parts for widgets, tables and mathematics."""
    from bokeh.resources import Resources

    # The second part would have it log every step to the console.
    return str(Resources(mode="inline", components=["bokeh"]).js_raw[0])


def runs_plot(points: pd.DataFrame) -> dict[str, Any] | None:
    """Describe the plot of every run's score over a cost, learning rate or size that the reader chooses.

    Args:
        points: One row per run (`pictures.points`).
    """
    columns: dict[str, list[Any]] = _common(points) | {"y": _numbers(points["score"])}
    columns["marker"] = [BOKEH_MARKERS[appearance(str(method))[1]] for method in points["method"]]
    across = [(cost.column, cost.label, cost.unit) for cost in COSTS.values()] + [
        (LEARNING_RATE, "learning rate", None)
    ]
    across += [(column, column.removeprefix("param.method."), None) for column in sizes(points)]
    known = []
    for column, label, unit in across:
        numbers = pd.to_numeric(points[column], errors="coerce") if column in points else pd.Series(dtype=float)
        # The axis is logarithmic.
        columns[column] = _numbers(numbers.where(numbers > 0))
        if any(number is not None for number in columns[column]):
            known.append({"column": column, "label": label, "unit": unit})
    if not known:
        return None
    metrics, majority = {}, {}
    for task, group in points.groupby("task"):
        metrics[str(task)] = score_label(group["metric"].iloc[0], group["split"].iloc[0])
        answered = group["majority"].dropna()
        if len(answered) and group["split"].iloc[0] == "validation":
            majority[str(task)] = float(answered.iloc[-1])
    return _plot("runs", "scatter", columns, known, metrics, (*SHOWN, "marker"), majority)


def curves_plot(points: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Any] | None:
    """Describe the plot of every run's development score by step.

    Args:
        points: One row per run (`pictures.points`).
        curves: Of `curves.load`.
    """
    lines = curves.merge(points[["run_id", "metric"]], on="run_id")
    lines = lines[lines["name"] == lines["metric"]].sort_values(["run_id", "step"])
    lines = lines[lines.groupby("run_id")["step"].transform("nunique") > 1]
    of_run = dict(list(lines.groupby("run_id")))
    points = points[points["run_id"].isin(list(of_run))]
    if points.empty:
        return None
    columns = _common(points) | {
        "steps": [of_run[run]["step"].tolist() for run in points["run_id"]],
        "y": [_numbers(of_run[run]["value"]) for run in points["run_id"]],
    }
    metrics = {str(task): score_label(group["metric"].iloc[0], "development") for task, group in points.groupby("task")}
    return _plot("curves", "lines", columns, [{"column": "steps", "label": "step", "unit": None}], metrics, SHOWN, {})


def _common(points: pd.DataFrame) -> dict[str, list[Any]]:
    rates = pd.to_numeric(points[LEARNING_RATE], errors="coerce") if LEARNING_RATE in points else None
    return {
        "task": points["task"].astype(str).tolist(),
        "name": points["name"].astype(str).tolist(),
        "configuration": points["configuration"].astype(str).tolist(),
        "seed": ["–" if pd.isna(seed) else str(seed) for seed in points["seed"]],
        "rate": ["–"] * len(points) if rates is None else [f"{rate:g}" for rate in rates],
        "color": shades(points),
    }


def _numbers(values: "pd.Series[float]") -> list[float | None]:
    """Write seven digits, which no pixel shows; what is not known is null."""
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in values]


def _plot(
    place: str,
    kind: str,
    columns: dict[str, list[Any]],
    across: list[dict[str, Any]],
    metrics: dict[str, str],
    shown: tuple[str, ...],
    majority: dict[str, float],
) -> dict[str, Any]:
    """Describe a plot that shows the first task and cost; page.js fills it with the rows of those that are chosen."""
    from bokeh.embed import json_item
    from bokeh.models import ColumnDataSource, FixedTicker, HoverTool

    scatter = kind == "scatter"
    tasks = sorted(metrics)
    rows = [
        row
        for row, (task, x) in enumerate(zip(columns["task"], columns[across[0]["column"]], strict=True))
        if task == tasks[0] and x is not None
    ]
    source = ColumnDataSource(
        {"x": [columns[across[0]["column"]][row] for row in rows]}
        | {name: [columns[name][row] for row in rows] for name in shown}
    )
    drawn = _axes(scatter, across[0]["label"], metrics[tasks[0]])
    told = "@at" if scatter else "$snap_x{0}"
    tips = [("run", "@name"), ("method", "@configuration"), ("seed", "@seed"), ("learning rate", "@rate")]
    tips += [("score", "@y{0.0000}" if scatter else "$snap_y{0.0000}")]
    renderer: Any
    if scatter:
        renderer = drawn.scatter(
            "x", "y", source=source, marker="marker", size=10, color="color", alpha=0.9, line_color="#888888"
        )
        hover = HoverTool(tooltips=tips, renderers=[renderer])
        # page.js chooses them, and writes them as the pictures do.
        drawn.xaxis.ticker = FixedTicker(ticks=[])
    else:
        renderer = drawn.multi_line("x", "y", source=source, color="color", alpha=1.0, line_width=1.8)
        hover = HoverTool(tooltips=tips, renderers=[renderer], line_policy="nearest")
    drawn.add_tools(hover)
    if majority:
        _add_majority(drawn, majority.get(tasks[0]))
    item = _renumbered(json.loads(json.dumps(json_item(drawn))), place, {})
    found = {"place": place, "item": item, "columns": columns, "across": across, "shown": list(shown)}
    return found | {"metrics": metrics, "tasks": tasks, "tips": tips, "at": told, "majority": majority}


def _axes(scatter: bool, label: str, score: str) -> Any:
    """Make an empty figure, of costs on a logarithmic scale or of steps."""
    from bokeh.plotting import figure

    drawn = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        x_axis_type="log" if scatter else "linear",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        active_drag=None,
        active_scroll=None,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        x_axis_label=label,
        y_axis_label=score,
    )
    drawn.toolbar.logo = None
    drawn.grid.grid_line_color, drawn.grid.grid_line_alpha = "#888888", 0.3
    drawn.axis.axis_label_text_font_style = "normal"
    return drawn


def _add_majority(drawn: Any, score: float | None) -> None:
    """Add the line of the commonest answer, with its name; page.js draws it over the range of the costs."""
    from bokeh.models import ColumnDataSource
    from bokeh.models.annotations.labels import Label

    line = ColumnDataSource({"x": [], "y": []})
    drawn.line("x", "y", source=line, line_dash="dashed", line_color="#777777")
    name = Label(x=6, x_units="screen", y=score or 0.0, y_offset=2, text=MAJORITY, text_font_size="12px")
    name.visible = score is not None
    drawn.add_layout(name)


def _renumbered(item: Any, place: str, names: dict[str, str]) -> Any:
    """Name Bokeh's objects in the order of their appearance, so that the same report is the same bytes."""
    if isinstance(item, list):
        return [_renumbered(part, place, names) for part in item]
    if not isinstance(item, dict):
        return item
    return {
        key: names.setdefault(part, f"{place}-{len(names) + 1}")
        if key in ("id", "root_id")
        else _renumbered(part, place, names)
        for key, part in item.items()
    }
