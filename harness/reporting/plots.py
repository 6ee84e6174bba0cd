"""Pictures of the main table, the same bytes for the same numbers."""

import io
import math
import zlib
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.reporting.scores import MAJORITY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by people who see two primary colours and, through the markers, in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p")
# Fixed places, so that a method looks the same in every report; one that is not listed gets its place by its name.
METHODS = (
    "full head bitfit lora houlsby pfeiffer parallel_adapter prompt_tuning p_tuning prefix_tuning rslora dora adalora "
    "lora_int8 qlora ia3 diff_pruning"
).split()
COLUMNS = 3
SETTINGS: Any = {
    "svg.hashsalt": "peft-harness",  # else the ids within an SVG are random
    "text.parse_math": False,  # a name with $ in it is a name
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def appearance(method: str) -> tuple[str, str]:
    """Return the colour and the marker of a method."""
    place = _place(method)
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def _place(method: str) -> int:
    kinds = len(COLOURS) * len(MARKERS)
    return METHODS.index(method) if method in METHODS else len(METHODS) + zlib.crc32(method.encode()) % kinds


def score_against_parameters(summary: pd.DataFrame, points: pd.DataFrame) -> dict[str, bytes]:
    """Draw a panel a task, score over trainable parameters; return the picture as `svg` and as `png`.

    Args:
        summary: The main table (`scores.summary`).
        points: Each run behind it: task, method, score, trainable_parameters.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = sorted(summary["task"].unique())
    columns = min(COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(max(6.5, 4.2 * columns), 3.6 * rows + 0.6), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        handles: dict[str, Any] = {}
        for panel, task in zip(panels, tasks, strict=False):
            _panel(panel, summary[summary["task"] == task], points[points["task"] == task], handles)
            panel.set_title(task, loc="left")
        for panel in panels[len(tasks) :]:
            panel.set_axis_off()
        order = sorted(handles, key=lambda name: (name == MAJORITY, _place(name), name))
        figure.legend([handles[name] for name in order], order, loc="outside right upper", frameon=False)
        return {kind: encoded(figure, kind) for kind in ("svg", "png")}


def _panel(axes: "Axes", summary: pd.DataFrame, points: pd.DataFrame, handles: dict[str, Any]) -> None:
    """Draw each run as a faint point, each configuration as its mean with the sample standard deviation."""
    scored = summary[(summary["configuration"] != MAJORITY) & summary["mean"].notna()]
    scored = scored[scored["trainable_parameters"].notna()]
    _parameter_axis(axes, scored["trainable_parameters"])
    for _, run in points.iterrows():
        colour, marker = appearance(run["method"])
        axes.plot(run["trainable_parameters"], run["score"], marker, color=colour, alpha=0.45, markersize=4, mew=0)
    for _, row in scored.iterrows():
        colour, marker = appearance(row["method"])
        spread = None if math.isnan(row["std"]) else row["std"]
        handle = axes.errorbar(
            row["trainable_parameters"], row["mean"], spread, fmt=marker, color=colour, markersize=8, capsize=3
        )
        handles.setdefault(row["method"], handle)
    for _, row in summary[summary["configuration"] == MAJORITY].iterrows():
        line = axes.axhline(row["mean"], linestyle="--", linewidth=1, color="#777777")
        handles.setdefault(MAJORITY, line)
    axes.set_ylabel(f"{summary['metric'].iloc[0] or 'score'} ({summary['split'].iloc[0]})")
    axes.margins(y=0.12)
    axes.grid(True, linewidth=0.4, alpha=0.5)


def _parameter_axis(axes: "Axes", counts: "pd.Series[float]") -> None:
    """Make a logarithmic axis of at least a decade, so that it has labels; zero, of no training at all, fits too."""
    low, high = (counts.min(), counts.max()) if len(counts) else (1.0, 10.0)
    axes.set_xscale("symlog" if low <= 0 else "log")
    if low > 0:
        margin = 1.6 if high > 10 * low else 10**0.5
        axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_formatter(lambda value, _: _count(value))
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel("trainable parameters")


def _count(value: float) -> str:
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def encoded(figure: Any, kind: str) -> bytes:
    """A figure as the content of a file, `svg` or `png`."""
    stream = io.BytesIO()
    # No date, no program: the same store gives the same bytes.
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(stream, format=kind, dpi=150, metadata=metadata)
    return stream.getvalue()
