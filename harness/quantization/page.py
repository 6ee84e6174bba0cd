"""The page and the picture of a quantization study, the same bytes for the same numbers."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.quantization.schemes import BLOCK, NORMAL, OUTLIER_FACTOR, OUTLIER_SHARE, OUTLIERS, SCHEMES, SYNTHETIC_SIDE
from harness.report.markdown import with_twin
from harness.report.plots.style import COLORS, SETTINGS, files, of_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

BINS = 120
# The weights that are drawn, in root mean squares: all but 2 in 100,000 of normal ones.
BULK = 4.3
SPREAD = 0.22
DEFINITIONS = f"""
- *Bits a weight* counts codes and scales (32 bits each unless they are quantized themselves), not the table of levels.
- *Relative error* is the root mean squared error over the root mean square of the weights.
- *Levels* are the different values that come back.
- *Collisions* are the share of neighboring weights for which the same value comes back; neighbors are two weights
  that follow each other by size and differ. Over the whole matrix they mostly lie in different blocks, whose levels
  differ. Within blocks, neighbors are sought among {BLOCK} consecutive weights: there the schemes are on equal terms.
- Embeddings, heads and poolers are left out: they stay in full precision where a backbone is quantized.

Dettmers et al. 2022 (arXiv 2110.02861) have blocks of their own scale, Dettmers et al. 2023 (arXiv 2305.14314) NF4 and
quantized scales.
"""


HEADER = [
    *("scheme", "bits per weight", "relative error", "least to most", "largest absolute error", "levels", "collisions"),
    "within blocks",
]


def rows(table: pd.DataFrame) -> list[list[str]]:
    """One row per scheme: means over the matrices of the backbone, under `HEADER`."""
    grouped = table[table["origin"] == "model"].groupby("scheme", sort=False)
    least, most = grouped["relative_error"].min(), grouped["relative_error"].max()
    return [
        [
            SCHEMES[name].label,
            f"{row['bits_per_weight']:.3f}",
            f"{row['relative_error']:.2%}",
            f"{least[name]:.2%} to {most[name]:.2%}",
            f"{row['largest_absolute_error']:.4f}",
            f"{row['distinct_levels']:,.0f}",
            f"{row['collisions']:.2%}",
            f"{row['block_collisions']:.2%}",
        ]
        for name, row in grouped.mean(numeric_only=True).iterrows()
    ]


def page(table: pd.DataFrame, model: str, matrix: str) -> str:
    """Writes the study as Markdown, its findings first.

    Args:
        table: One row per matrix and scheme (`schemes.tabulate`).
        model: What the backbone is called.
        matrix: The matrix that was drawn.
    """
    ours = table[table["origin"] == "model"]
    means = ours.groupby("scheme", sort=False).mean(numeric_only=True)
    error, bits, merged = means["relative_error"], means["bits_per_weight"], means["block_collisions"]
    findings = (
        f"Over the {ours['matrix'].nunique()} linear weight matrices in the layers of {model}, 4-bit integers with one "
        f"scale per tensor are off by {error['int4_tensor']:.1%} of the weights' root mean square. A scale for each "
        f"block of {BLOCK} makes that {error['int4_block']:.1%}, and NF4's levels in the same blocks make it "
        f"{error['nf4_block']:.1%}, all three at {bits['int4_tensor']:.2f} to {bits['nf4_block']:.2f} bits per weight; "
        f"quantizing NF4's scales too takes it to {bits['nf4_block_double']:.2f} bits and "
        f"{error['nf4_block_double']:.1%}. Within a block, one 8-bit scale per tensor returns the same value for "
        f"{merged['int8_tensor']:.1%} of neighboring weights, one scale per block for {merged['int8_block']:.1%}."
    )
    control = table[table["origin"] == "synthetic"].set_index(["matrix", "scheme"])
    shown = ("relative_error", "block_collisions")
    controls = [
        [
            scheme.label,
            *(f"{control.loc[(kind, name), figure]:.2%}" for kind in (NORMAL, OUTLIERS) for figure in shown),
        ]
        for name, scheme in SCHEMES.items()
    ]
    return "\n".join(
        [
            f"# Quantization error of {model}\n",
            f"{findings}\n",
            f"{with_twin('quantization_error', f'Relative error by scheme, and the levels on {matrix}')}\n",
            "Means over the matrices:\n",
            *_table(HEADER, rows(table)),
            f"\nThe control is a matrix of {SYNTHETIC_SIDE} x {SYNTHETIC_SIDE} standard normal numbers, and the same "
            f"with {OUTLIER_SHARE:.1%} of them made {OUTLIER_FACTOR} times as large:\n",
            *_table(["scheme", "normal: error", "within blocks", "with outliers: error", "within blocks"], controls),
            DEFINITIONS,
        ]
    )


def _table(header: list[str], cells_of: list[list[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, ruler, *cells_of)]


def picture(table: pd.DataFrame, name: str, weights: "Tensor") -> dict[str, bytes]:
    """Draws the errors of all matrices by scheme, and on one matrix where the levels lie; returns contents by ending.

    Args:
        table: One row per matrix and scheme.
        name: The matrix whose weights are drawn.
        weights: That matrix.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(12.5, 5), layout="constrained")
        FigureCanvasAgg(figure)
        halves = figure.add_gridspec(1, 2, width_ratios=[1.05, 1])
        right = halves[1].subgridspec(2, 1, height_ratios=[1, 1], hspace=0.02)
        _errors(figure.add_subplot(halves[0]), table)
        histogram = figure.add_subplot(right[0])
        _histogram(histogram, name, weights)
        _levels(figure.add_subplot(right[1], sharex=histogram), weights)
        return files(figure)


def _errors(axes: "Axes", table: pd.DataFrame) -> None:
    """Draws one row per scheme: one point per matrix, their mean as a bar, and the two synthetic matrices."""
    ours, control = table[table["origin"] == "model"], table[table["origin"] == "synthetic"]
    handles: dict[str, Any] = {}
    points: Any = of_run(COLORS[0])
    for place, scheme in enumerate(SCHEMES):
        found = ours.loc[ours["scheme"] == scheme, "relative_error"].to_numpy()
        heights = [place - 0.1 + SPREAD * (2 * (i + 0.5) / len(found) - 1) for i in range(len(found))]
        handles["a matrix of the backbone"] = axes.plot(found, heights, "o", **points)[0]
        ends = [place - 0.38, place + 0.18]
        handles["their mean"] = axes.plot([found.mean()] * 2, ends, color="black", linewidth=2)[0]
        for kind, marker, color in ((NORMAL, "D", COLORS[4]), (OUTLIERS, "X", COLORS[1])):
            value = control.loc[(control["scheme"] == scheme) & (control["matrix"] == kind), "relative_error"]
            style: Any = {"color": color, "markeredgecolor": "black", "markersize": 7, "mew": 0.7}
            handles[f"synthetic, {kind}"] = axes.plot(value, [place + 0.32], marker, **style)[0]
    bits = ours.groupby("scheme")["bits_per_weight"].mean()
    labels = [f"{scheme.label}\n{bits[name]:.2f} bits per weight" for name, scheme in SCHEMES.items()]
    axes.set_yticks(range(len(SCHEMES)), labels)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel("relative error (root mean squared error / root mean square of the weights)")
    axes.grid(True, axis="x", which="both", linewidth=0.4, alpha=0.5)
    axes.set_title("What quantization leaves", loc="left")
    axes.legend(
        handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=2, frameon=False
    )


def _block(weights: "Tensor") -> "Tensor":
    """The block whose largest weight is the median of all blocks'."""
    blocks = weights.flatten()[: weights.numel() // BLOCK * BLOCK].view(-1, BLOCK)
    return blocks[blocks.abs().amax(dim=1).argsort(stable=True)[len(blocks) // 2]]


def _histogram(axes: "Axes", name: str, weights: "Tensor") -> None:
    """Draws the bulk of the weights of a matrix: outliers can lie a hundred times as far out."""
    values = weights.flatten()
    edge = max(BULK * float(values.square().mean().sqrt()), 1.1 * float(_block(weights).abs().max()))
    heights, edges = np.histogram(values.numpy(), bins=BINS, range=(-edge, edge))
    axes.stairs(heights / len(values), edges, fill=True, color="#777777")
    axes.set_xlim(-edge, edge)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.set_ylabel("weights in a bin")
    axes.tick_params(labelbottom=False)
    outside = 1 - heights.sum() / len(values)
    axes.set_title(
        f"{name}\n{weights.shape[0]} x {weights.shape[1]} weights\n{outside:.3%} of them outside",
        loc="left",
        fontsize=11,
    )


def _levels(axes: "Axes", weights: "Tensor") -> None:
    """Draws the levels of three schemes; those of blocks for one block, whose weights stand below."""
    from bitsandbytes.functional import get_4bit_type
    from torch import arange

    block, even = _block(weights), arange(-7, 8) / 7
    rows = {
        "int4, the tensor": even * weights.abs().max(),
        f"int4, a block of {BLOCK}": even * block.abs().max(),
        "NF4, the same block": get_4bit_type("nf4", device="cpu") * block.abs().max(),
    }
    edge = axes.get_xlim()[1]
    labels = []
    for place, ((label, levels), color) in enumerate(zip(rows.items(), (COLORS[1], COLORS[0], COLORS[2]), strict=True)):
        axes.vlines(levels.numpy(), place - 0.32, place + 0.32, color=color, linewidth=1.4)
        labels.append(f"{label}\n{int((levels.abs() <= edge).sum())} of {len(levels)} levels are here")
    axes.set_xlim(-edge, edge)
    axes.plot(block.numpy(), [len(rows)] * BLOCK, "|", color="black", markersize=9, markeredgewidth=0.6)
    axes.set_yticks(range(len(rows) + 1), [*labels, f"the block's {BLOCK} weights"])
    axes.invert_yaxis()
    axes.set_xlabel("weight")
    axes.grid(True, axis="x", linewidth=0.4, alpha=0.5)
