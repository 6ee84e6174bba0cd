"""The picture of the claims: each interval beside the range in which its claim holds."""

import math
from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from harness.claims.ledger import Judged
from harness.claims.verdict import Case, Finding
from harness.report.plots.style import COLORS, SETTINGS, encoded
from harness.report.scores import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.17  # inches
# Cases of a claim that are drawn: the others are in the table.
MOST_CASES = 24
# Letters of a label: the name of a case, and where it comes from.
NAME, PLACE = 44, 38
# Unit of a case -> the axis that it is drawn on.
AXES = {
    "score": "difference of scores, or of perplexities as a share (right is better)",
    "change": "difference of scores, or of perplexities as a share (right is better)",
    "ratio": "ratio",
}
LOOKS = {
    Finding.holds: (COLORS[0], "o", COLORS[0]),
    Finding.fails: (COLORS[1], "X", COLORS[1]),
    Finding.undecided: ("#777777", "o", "white"),
}


def draw(judged: Sequence[Judged]) -> dict[str, bytes]:
    """Draw differences and ratios, one row per case; `svg` and `png`, nothing where there are none."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels: dict[str, list[tuple[str, list[Case]]]] = {}
    for one in judged:
        for axis in dict.fromkeys(AXES.values()):
            cases = [case for case in one.cases if AXES.get(case.unit) == axis and _can_be_drawn(case)]
            if cases:
                panels.setdefault(axis, []).append((f"{one.claim.id}: {one.verdict}", cases[:MOST_CASES]))
    if not panels:
        return {}
    rows = {axis: sum(1 + len(cases) for _, cases in groups) for axis, groups in panels.items()}
    with matplotlib.rc_context(SETTINGS):
        # Letters come out wider than they were laid out: more room at the left than the engine leaves by itself.
        layout = ConstrainedLayoutEngine(w_pad=0.2)
        figure = Figure(figsize=(12, ROW * sum(rows.values()) + 0.9 * len(rows) + 0.4), layout=layout)
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=list(rows.values()))[:, 0]
        for panel, (axis, groups) in zip(axes, panels.items(), strict=True):
            _panel(panel, groups, logarithmic=axis == "ratio")
            panel.set_xlabel(axis)
        _legend(figure)
        return {kind: encoded(figure, kind) for kind in ("svg", "png")}


def _can_be_drawn(case: Case) -> bool:
    bounded = case.least > (0 if case.unit == "ratio" else -math.inf) or case.most < math.inf
    return bounded and not math.isnan(case.low)


def _panel(axes: "Axes", groups: Sequence[tuple[str, list[Case]]], logarithmic: bool) -> None:
    cases = [case for _, group in groups for case in group]
    ends = [end for case in cases for end in (case.low, case.high, case.least, case.most) if math.isfinite(end)]
    ends = [end for end in ends if end > 0] if logarithmic else ends
    span = math.log(max(ends) / min(ends)) if logarithmic else max(ends) - min(ends)
    margin = 0.04 * span or 0.1
    if logarithmic:
        axes.set_xscale("log")
        left, right = min(ends) * math.exp(-margin), max(ends) * math.exp(margin)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    else:
        left, right = min(ends) - margin, max(ends) + margin
    axes.set_xlim(left, right)
    places, labels, height = [], [], 0
    for title, group in groups:
        # The heading stands in the row above its cases.
        axes.annotate(title, (0, height), xycoords=("axes fraction", "data"), fontsize=8, va="center", weight="bold")
        height += 1
        for case in group:
            color, marker, face = LOOKS[case.outcome]
            low, high = max(case.least, left), min(case.most, right)
            axes.barh(height, high - low, left=low, height=0.9, color=COLORS[0], alpha=0.13, linewidth=0)
            axes.plot([max(case.low, left), min(case.high, right)], [height] * 2, color=color, linewidth=1.6)
            axes.plot(case.value, height, marker, color=color, markerfacecolor=face, markersize=5)
            places.append(height)
            name, place = (
                shorten(plain(text), width, placeholder=" …")
                for text, width in ((case.name, NAME), (case.evidence, PLACE))
            )
            labels.append(f"{name}  ({place})")
            height += 1
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_ylim(height - 0.4, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D(
            [], [], color=color, marker=marker, markerfacecolor=face, linewidth=1.6, label=f"{outcome}, 95% interval"
        )
        for outcome, (color, marker, face) in LOOKS.items()
    ]
    handles.append(Patch(color=COLORS[0], alpha=0.13, label="where the claim holds"))
    figure.legend(handles=handles, loc="outside upper right", ncols=4, frameon=False, fontsize=8)
