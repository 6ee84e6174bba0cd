"""Style of every picture: a method's color and marker, axes, labels, and the same bytes for the same numbers."""

import io
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.config.sources import conf_root
from harness.report.scores import MAJORITY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinguished by people who see two primary colors and, through the markers, in gray.
PALETTE = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
}
SHAPES = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "wedge": "v",
    "plus": "P",
    "cross": "X",
    "star": "*",
    "pentagon": "p",
}
COLORS, MARKERS = tuple(PALETTE.values()), tuple(SHAPES.values())
# In the comment at the top of a method's YAML, so that it looks the same in every report without being part of what was
# run; a method that says nothing gets its look by its name.
DRAWN_AS = re.compile(rf"^# Drawn as: ({'|'.join(PALETTE)}) ({'|'.join(SHAPES)})$", re.MULTILINE)
# More methods than this get no legend; the telling points have their names beside them.
LEGEND_LIMIT = 14
# Of more names beside points few find a place, and trying takes long.
MOST_LABELS = 24
# Offsets from a point in points of the page, the nearest first; the far ones get a line.
LABEL_PLACES = (
    *((7, 0), (-7, 0), (0, 7), (0, -7), (6, 6), (-6, 6), (6, -6), (-6, -6)),
    *((14, 14), (-14, 14), (14, -14), (-14, -14), (0, 20), (0, -20), (28, 20), (-28, 20), (28, -20), (-28, -20)),
)
Box = tuple[float, float, float, float]
SETTINGS: Any = {
    "svg.hashsalt": "peft-harness",  # else the ids within an SVG are random
    "svg.fonttype": "none",  # text stays text: it can be searched and takes a tenth of the bytes
    "text.parse_math": False,  # a name with $ in it is a name
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def appearance(method: str) -> tuple[str, str]:
    """Return the color and the marker of a method."""
    place = _place(method)
    return COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]


def _place(method: str) -> int:
    """Number of a look; numbers go through the colors and the markers at once, so the first 63 are all different."""
    kinds = len(COLORS) * len(MARKERS)
    # A name is what a store says: it must not lead anywhere else.
    if re.fullmatch(r"\w+", method):
        for conf in dict.fromkeys([conf_root() / "conf", Path.cwd() / "conf"]):
            if look := _declared(conf / "method" / f"{method}.yaml"):
                return next(n for n in range(kinds) if (COLORS[n % len(COLORS)], MARKERS[n % len(MARKERS)]) == look)
    return kinds + zlib.crc32(method.encode()) % kinds


@cache
def _declared(path: Path) -> tuple[str, str] | None:
    """Color and marker that a method's YAML asks for."""
    found = DRAWN_AS.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return (PALETTE[found[1]], SHAPES[found[2]]) if found else None


def places(methods: Iterable[str]) -> list[str]:
    """Sort methods as legends list them: by their declared looks, then the others by name."""
    return sorted(set(methods), key=lambda name: (_place(name), name))


def figure_of(count: int, columns: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """Make a figure of `count` panels, each `width` x `height` inches, at most `columns` per row.

    Create and save it within `matplotlib.rc_context(SETTINGS)`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(6.5, width * columns), height * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[count:]:
        unused.remove()
    for panel in axes[:count]:
        panel.grid(True, linewidth=0.4, alpha=0.5)
        panel.set_axisbelow(True)
    return figure, axes[:count]


def short(value: float, unit: str = "") -> str:
    """Write a number with three digits at most and a factor of a thousand; a thousand million parameters are 1B."""
    factors = (("T", 1e12), ("G" if unit else "B", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
    factor, size = next((pair for pair in factors if abs(value) >= pair[1]), ("", 1.0))
    return f"{value / size:.3g}{' ' if unit else ''}{factor}{unit}"


def cost_axis(axes: "Axes", values: "pd.Series[float]", label: str, unit: str = "") -> None:
    """Make a horizontal axis of costs: logarithmic where they span a factor of four or more; zero fits on both."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    low, high = float(values.min()), float(values.max())
    if low <= 0 or high < 4 * low:
        axes.set_xscale("symlog" if low <= 0 < high else "linear")
        if low > 0:
            margin = 0.08 * (high - low) or 0.2 * high
            axes.set_xlim(low - margin, high + margin)
            axes.xaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.08, high * (high / low) ** 0.08)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: short(value, unit))
    axes.set_xlabel(label)


def place_labels(
    axes: "Axes", points: Sequence[tuple[float, float]], labels: Sequence[tuple[float, float, str]]
) -> None:
    """Write texts beside their points, most important first, leaving out those that find no free place.

    Args:
        axes: Complete but for the texts: their places depend on its limits.
        points: What no text may cover, in the units of the data.
        labels: x, y and text.
    """
    if not labels:
        return
    figure: Any = axes.figure
    settle(figure)
    renderer = figure.canvas.get_renderer()
    inside = axes.get_window_extent(renderer)
    # Left, bottom, right and top of what is covered already, in pixels.
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in axes.transData.transform(list(points))]
    look: Any = {"textcoords": "offset points", "fontsize": 8}
    look["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
    for x, y, text in labels[:MOST_LABELS]:
        note = axes.annotate(text, (x, y), (0, 0), **look)
        size = note.get_window_extent(renderer)
        note.remove()
        at_x, at_y = axes.transData.transform((x, y))
        boxes = [_beside(at_x, at_y, size.width, size.height, *place, figure.dpi / 72) for place in LABEL_PLACES]
        for (dx, dy), box in zip(LABEL_PLACES, boxes, strict=True):
            within = inside.contains(box[0], box[1]) and inside.contains(box[2], box[3])
            if within and not _covered(box, np.array(taken)):
                arrow = {"arrowstyle": "-", "linewidth": 0.5, "color": "#777777"} if max(abs(dx), abs(dy)) > 8 else None
                note = axes.annotate(text, (x, y), (dx, dy), **look, **_alignment(dx, dy), arrowprops=arrow)
                note.set_in_layout(False)
                taken.append(box)
                break


def _alignment(dx: float, dy: float) -> dict[str, Any]:
    """How a text lies at an offset from its point: away from it."""
    return {
        "horizontalalignment": "left" if dx > 0 else "right" if dx < 0 else "center",
        "verticalalignment": "bottom" if dy > 0 else "top" if dy < 0 else "center",
    }


def _beside(x: float, y: float, width: float, height: float, dx: float, dy: float, scale: float) -> Box:
    """Left, bottom, right and top of a text at an offset in points from a point in pixels."""
    left = x + dx * scale - (0 if dx > 0 else width if dx < 0 else width / 2)
    bottom = y + dy * scale - (0 if dy > 0 else height if dy < 0 else height / 2)
    return left, bottom, left + width, bottom + height


def _covered(box: Box, taken: np.ndarray) -> bool:
    left, bottom, right, top = box
    apart = (taken[:, 0] > right) | (taken[:, 2] < left) | (taken[:, 1] > top) | (taken[:, 3] < bottom)
    return not apart.all()


def settle(figure: Any) -> None:
    """Find the places of all axes, once: searching for them takes longer than drawing."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def legend(figure: "Figure", handles: dict[str, Any]) -> None:
    """List methods beside the panels, unless there are so many that nobody could tell them apart."""
    methods = [name for name in places(handles) if name != MAJORITY]
    if len(methods) <= LEGEND_LIMIT:
        order = methods + [MAJORITY] * (MAJORITY in handles)
        figure.legend([handles[name] for name in order], order, loc="outside right upper", frameon=False)


def encoded(figure: Any, kind: str) -> bytes:
    """A figure as the content of a file, `svg` or `png`."""
    settle(figure)
    stream = io.BytesIO()
    # No date, no program: the same store gives the same bytes.
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(stream, format=kind, dpi=150, metadata=metadata)
    return stream.getvalue()
