"""Pictures of the claims: how many cases each holds and fails in, and of one claim its intervals beside its range."""

import math
from collections import Counter
from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from harness.claims.ledger import Judged
from harness.claims.verdict import Case, Finding
from harness.report.plots.style import COLORS, SETTINGS, encoded, files
from harness.report.scores import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW, BAR = 0.2, 0.3  # inches
# Cases of a claim that are drawn, so that they fit a screen: the others are in the table.
MOST_CASES = 24
# Letters of a label: of a case, and of a claim.
NAME, SENTENCE = 58, 84
# Unit of a case -> the axis that it is drawn on.
AXES = {
    "score": "difference of scores, or of perplexities as a share (right is better)",
    "change": "difference of scores, or of perplexities as a share (right is better)",
    "ratio": "ratio",
}
UNDECIDED = "#777777"
LOOKS = {
    Finding.holds: (COLORS[0], "o", COLORS[0]),
    Finding.fails: (COLORS[1], "X", COLORS[1]),
    Finding.undecided: (UNDECIDED, "o", "white"),
}


def draw(judged: Sequence[Judged]) -> dict[str, bytes]:
    """Draw one bar per claim, its cases by outcome; `svg` and `png`, nothing where no case has evidence."""
    counts = [Counter(case.outcome for case in one.cases) for one in judged]
    if not any(count[kind] for count in counts for kind in LOOKS):
        return {}
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        figure = _figure(11, BAR * len(judged) + 0.9)
        axes = figure.subplots()
        begin = [0.0] * len(judged)
        for outcome, (color, _, _) in LOOKS.items():
            width = [count[outcome] for count in counts]
            axes.barh(range(len(judged)), width, left=begin, color=color, height=0.7, label=str(outcome))
            begin = [start + more for start, more in zip(begin, width, strict=True)]
        for place, (one, end) in enumerate(zip(judged, begin, strict=True)):
            axes.annotate(str(one.verdict), (end, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
        texts = [shorten(plain(one.claim.claim), SENTENCE, placeholder=" …") for one in judged]
        axes.set_yticks(range(len(judged)), texts, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.22, y=0.01)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("cases with evidence")
        figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8)
        return files(figure)


def draw_claim(one: Judged) -> str:
    """Draw the differences and ratios of a claim, one row per case, as an SVG document; nothing where there is none."""
    panels = {
        axis: [case for case in one.cases if AXES.get(case.unit) == axis and _can_be_drawn(case)][:MOST_CASES]
        for axis in dict.fromkeys(AXES.values())
    }
    panels = {axis: cases for axis, cases in panels.items() if cases}
    if not panels:
        return ""
    import matplotlib

    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": one.claim.id}):
        heights = [len(cases) + 2.5 for cases in panels.values()]
        figure = _figure(10, ROW * sum(heights) + 0.5)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for panel, (axis, cases) in zip(axes, panels.items(), strict=True):
            _panel(panel, cases, logarithmic=axis == "ratio")
            panel.set_xlabel(axis)
        _legend(figure)
        return encoded(figure, "svg").decode()


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Letters come out wider than they were laid out: more room at the left than the engine leaves by itself.
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.2))
    FigureCanvasAgg(figure)
    return figure


def _can_be_drawn(case: Case) -> bool:
    bounded = case.least > (0 if case.unit == "ratio" else -math.inf) or case.most < math.inf
    return bounded and not math.isnan(case.low)


def _panel(axes: "Axes", cases: Sequence[Case], logarithmic: bool) -> None:
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
    for height, case in enumerate(cases):
        color, marker, face = LOOKS[case.outcome]
        low, high = max(case.least, left), min(case.most, right)
        axes.barh(height, high - low, left=low, height=0.9, color=COLORS[0], alpha=0.13, linewidth=0)
        axes.plot([max(case.low, left), min(case.high, right)], [height] * 2, color=color, linewidth=1.6)
        axes.plot(case.value, height, marker, color=color, markerfacecolor=face, markersize=5)
    labels = [shorten(plain(case.name), NAME, placeholder=" …") for case in cases]
    axes.set_yticks(range(len(cases)), labels, fontsize=8)
    axes.set_ylim(len(cases) - 0.4, -0.7)
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
