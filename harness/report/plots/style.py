"""Style of every picture: a method's color and marker, axes, labels, and the same bytes for the same numbers."""

import io
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.config.sources import conf_root
from harness.report.scores import MAJORITY
from harness.report.words import metric_name
from harness.training.metrics import higher_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinguished by people who see two primary colors and, through the markers, in gray; purple,
# orange and sky are darkened until each has a contrast of 3:1 with a white page as with a dark one.
PALETTE = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#C0699A",
    "orange": "#BF7E00",
    "sky": "#3A94CC",
    "black": "#000000",
}
# The luminance of several shades of one color, the darkest and the lightest that have that contrast with both pages.
SHADES = (0.135, 0.29)
# What is dark on a light page is light on a dark one: the dark twin of a picture lies in the same SVG file, and beside
# a PNG. Colors of marks stay: they can be seen on both.
INK, GROUND = "#000000", "#ffffff"
TWINS = {
    GROUND: "#16181b",
    INK: "#e6e6e6",
    "#555555": "#e6e6e6",
    "#777777": "#aaaaaa",
    "#b0b0b0": "#555555",
}
KINDS = ("svg", "png", "dark.png")
# Where matplotlib's artists have their colors.
COLORED = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")
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
# Of bitmaps. Places are found at it too: letters are as wide as their pixels, and a line of many would end outside.
DPI = 150
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


def shades(points: pd.DataFrame) -> list[str]:
    """Color of each row's configuration: its method's, and where a task has several of a method, shades of that.

    Args:
        points: Columns task, method, configuration.
    """
    found = {}
    for (task, method), group in points.groupby(["task", "method"], sort=False):
        names = sorted(group["configuration"].unique(), key=_by_number)
        color = appearance(str(method))[0]
        for place, name in enumerate(names):
            found[task, name] = color if len(names) == 1 else _shade(color, place / (len(names) - 1))
    return [found[key] for key in zip(points["task"], points["configuration"], strict=True)]


def _by_number(name: str) -> list[tuple[float, str]]:
    """A key that sorts rank=2 before rank=16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(name))
    return [(float(part), "") if place % 2 else (0.0, part) for place, part in enumerate(parts)]


def _shade(color: str, share: float) -> str:
    """A color of the same hue, from the darkest shade to the lightest."""
    linear = [_linear(int(color[at : at + 2], 16) / 255) for at in (1, 3, 5)]
    wanted = SHADES[0] + share * (SHADES[1] - SHADES[0])
    light = luminance(color)
    scaled = [wanted if light == 0 else min(1.0, part * wanted / light) for part in linear]
    # What a part at its limit lacks, the others get as white.
    missing = max(0.0, wanted - (0.2126 * scaled[0] + 0.7152 * scaled[1] + 0.0722 * scaled[2]))
    whole = [min(1.0, part + missing) for part in scaled]
    return "#" + "".join(f"{round(255 * _encoded(part)):02X}" for part in whole)


def luminance(color: str) -> float:
    """Relative luminance of `#rrggbb`, from 0 to 1 (WCAG 2.2)."""
    red, green, blue = (_linear(int(color[at : at + 2], 16) / 255) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(part: float) -> float:
    return part / 12.92 if part <= 0.04045 else float(((part + 0.055) / 1.055) ** 2.4)


def _encoded(part: float) -> float:
    return 12.92 * part if part <= 0.0031308 else float(1.055 * part ** (1 / 2.4) - 0.055)


def of_run(color: str, size: float = 4.0) -> dict[str, Any]:
    """Look of the mark of a single run, beside the filled mark of the mean: faint by its form, not by its contrast."""
    return {"color": color, "markerfacecolor": "none", "markersize": size, "markeredgewidth": 0.6}


def score_label(metric: str, split: str) -> str:
    """Label of an axis of scores, with the direction that is better."""
    better = "higher" if higher_is_better(metric) else "lower"
    return f"{metric_name(metric)} ({split}), {better} is better"


def title(axes: "Axes", task: str, finding: str, letters: int = 46) -> None:
    """Write above a panel what it shows, below the task that it is of, in lines of so many letters at most."""
    text = "\n".join([task if len(task) <= letters else f"{task[: letters - 4]} ...", *wrap(finding, letters)])
    axes.set_title(text, loc="left", fontsize=9.5)


def majority_line(axes: "Axes", score: float, across: bool = True) -> Any:
    """Draw the score of the commonest answer, with its name on it."""
    look: Any = {"linestyle": "--", "linewidth": 1, "color": "#777777"}
    text: Any = {"fontsize": 8, "textcoords": "offset points", "color": "#555555"}
    if across:
        axes.annotate(MAJORITY, (0.99, score), (0, 2), xycoords=("axes fraction", "data"), ha="right", **text)
        return axes.axhline(score, **look)
    axes.annotate(MAJORITY, (score, 0.01), (3, 2), xycoords=("data", "axes fraction"), **text)
    return axes.axvline(score, **look)


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
    figure = Figure(figsize=(max(6.5, width * columns), height * rows + 0.3), dpi=DPI, layout="constrained")
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
    """List methods beside the panels, unless there are so many that nobody could tell them apart, or one alone."""
    methods = places(handles)
    if 1 < len(methods) <= LEGEND_LIMIT:
        figure.legend([handles[name] for name in methods], methods, loc="outside right upper", frameon=False)


def files(figure: Any) -> dict[str, bytes]:
    """A figure as the contents of files, by their `KINDS`; it is dark afterwards."""
    found = {kind: encoded(figure, kind) for kind in ("svg", "png")}
    darken(figure)
    return found | {"dark.png": encoded(figure, "png")}


def encoded(figure: Any, kind: str) -> bytes:
    """A figure as the content of a file, `svg` or `png`."""
    settle(figure)
    stream = io.BytesIO()
    # No date, no program: the same store gives the same bytes.
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(stream, format=kind, dpi=DPI, metadata=metadata)
    content = stream.getvalue()
    return content if kind != "svg" else content.replace(b"</style>", f"\n{_dark_style()}</style>".encode(), 1)


def _dark_style() -> str:
    """Rules by which an SVG document is its own dark twin."""
    rules = [f'text:not([style*="fill"]) {{ fill: {TWINS[INK]} }}']
    for light, dark in TWINS.items():
        rules += [f'[style*="{part}: {light}"] {{ {part}: {dark} !important }}' for part in ("fill", "stroke")]
    return "\n".join(["@media (prefers-color-scheme: dark) {", *rules, "}"])


def darken(figure: Any) -> None:
    """Give a figure the colors of its dark twin."""
    settle(figure)
    artists = figure.findobj()
    # A text's box and a note's arrow are no children of theirs.
    artists += [patch for one in artists if hasattr(one, "get_bbox_patch") and (patch := one.get_bbox_patch())]
    artists += [one.arrow_patch for one in artists if getattr(one, "arrow_patch", None)]
    for artist in artists:
        for part in COLORED:
            if (get := getattr(artist, f"get_{part}", None)) and (change := getattr(artist, f"set_{part}", None)):
                now = get()
                if (twin := _twin(now)) is not None:
                    change(twin)


def _twin(color: Any) -> Any:
    """The dark twin of a color, or of each of several; null where there is none."""
    from matplotlib.colors import to_hex, to_rgba

    if isinstance(color, np.ndarray) and color.ndim == 2:
        twins = [_twin(one) for one in color]
        changed = any(twin is not None for twin in twins)
        return [one if twin is None else twin for one, twin in zip(color, twins, strict=True)] if changed else None
    alpha = to_rgba(color)[3]
    twin = TWINS.get(to_hex(color)) if alpha else None
    return None if twin is None else to_rgba(twin, alpha)
