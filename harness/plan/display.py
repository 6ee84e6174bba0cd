"""A planned experiment: its costs, the devices that they fit on, and how that is printed and drawn."""

import csv
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config.errors import ConfigError
from harness.plan.costs import COLUMNS, DEVICE_GIGABYTES, GIGABYTE, PLANNED
from harness.tracking.record import MEMORY

# Rows of a table, and bars of a picture.
PAGE = 60
# What the bars of a picture are made of.
PARTS = ("weights", "gradients", "optimizer", "activations", "other")


def readable(value: int | None, is_bytes: bool) -> str:
    """Three figures of a count or of bytes, in the powers of ten that reports use; json has every digit."""
    if value is None:
        return "-"
    if not is_bytes and abs(value) < 999_500:
        return f"{value:,}"
    units = ["B", "kB", "MB", "GB", "TB"] if is_bytes else ["", "thousand", "million", "billion", "trillion"]
    amount = float(value)
    while amount >= 999.5 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.3g} {units[0]}"


def cells(point: dict[str, Any]) -> list[str]:
    """A point's row, without what names it."""
    cost = point["cost"]
    figures = [readable(cost[key], key.endswith("_bytes")) for key in COLUMNS.values()]
    flops = cost["train_flops_per_token"]
    share = 100 * cost["trainable_parameters"] / cost["total_parameters"]
    least = next((str(device["gigabytes"]) for device in point["fits"] if device["fits"]), "none")
    fitting = f"{least} GB" if point["fits"] and least != "none" else least if point["fits"] else "-"
    return [*figures, readable(None if flops is None else round(flops), False), f"{share:.3g}%", fitting]


HEADINGS = [*COLUMNS, "FLOPs/token", "trained", "fits on"]


def print_table(points: list[dict[str, Any]]) -> None:
    """Print one row per point that can be run; the overrides name it."""
    shared = [text for text in points[0]["overrides"] if all(text in point["overrides"] for point in points)]
    step = points[0]["step"]
    answers = f", answers of {step['target_length']}," if step["target_length"] else ""
    what = f"A training step of {step['rows']} x {step['length']} tokens{answers} on {step['device']}"
    # Tight, so that figures fit; a pipe or a file has no width to keep to.
    title = " ".join([f"{what}:" if shared else what, *shared])
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run" if len(points) == 1 else "point", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        own = [text for text in point["overrides"] if text not in shared]
        table.add_row(Text("\n".join(own) or "this"), *cells(point))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if len(points) == 1:
        _print_one(points[0])


def _print_one(point: dict[str, Any]) -> None:
    """Lines below a single point's row: precision, devices, storage, and what is not known."""
    if point["precision"]["why"]:
        print(f" train.precision=auto takes {point['precision']['taken']}: {point['precision']['why']}")
    for device in point["fits"]:
        answer = f"batches up to {device['largest_batch']}" if device["largest_batch"] else "does not fit"
        pack = f"; packs of {size} by sweep.pack=auto" if (size := device["largest_pack"] or 0) > 1 else ""
        print(f" {device['gigabytes']:>4} GB: {answer}{pack}")
    stored = point["storage"]
    adapters, copies = (readable(stored[key], True) for key in ("adapters_bytes", "copies_bytes"))
    print(f" {stored['tasks']} tasks: {adapters} as adapters with one backbone, {copies} as whole models")
    for name, reason in [*(("task", text) for text in point["assumed"]), *point["unmeasured"].items()]:
        print(f" {name}: {reason}")


class Stream:
    """Points are printed as they come, so that a grid of any size needs no more memory than its next point.

    A table alone waits for a page of rows, whose widths make its columns. Leaving the context ends the document.
    """

    def __init__(self, form: str) -> None:
        self.form = form
        self._count = 0
        self._waiting: list[dict[str, Any]] = []

    def __enter__(self) -> "Stream":
        if self.form == "json":
            print('{"points": [', end="")
        return self

    def add(self, point: dict[str, Any]) -> None:
        if self.form == "json":
            print("," if self._count else "", json.dumps(point, indent=2), sep="\n", end="", flush=True)
        elif "cost" not in point:
            return
        elif self.form == "table":
            self._waiting.append(point)
            if len(self._waiting) == PAGE:
                print_table(self._waiting)
                self._waiting.clear()
        else:
            if not self._count:
                self._heading(point)
            self._row(point)
        self._count += 1

    def _heading(self, point: dict[str, Any]) -> None:
        if self.form == "csv":
            print(_line(["point", *_scalars(point)]), flush=True)
        else:
            print("| point |", " | ".join(HEADINGS), "|")
            print("|---|" + "---:|" * len(HEADINGS), flush=True)

    def _row(self, point: dict[str, Any]) -> None:
        name = " ".join(point["overrides"])
        if self.form == "csv":
            print(_line([name, *_scalars(point).values()]), flush=True)
        else:
            print("|", name.replace("|", "\\|") or "this", "|", " | ".join(cells(point)), "|", flush=True)

    def __exit__(self, *exception: Any) -> None:
        if self.form == "json":
            print("\n]}")
        elif self._waiting:
            print_table(self._waiting)


def _scalars(point: dict[str, Any]) -> dict[str, Any]:
    devices = {f"largest_batch_{size}_gb": None for size in DEVICE_GIGABYTES}
    devices |= {f"largest_batch_{device['gigabytes']}_gb": device["largest_batch"] for device in point["fits"]}
    figures = {name: value for name, value in point["cost"].items() if name in PLANNED}
    return {**point["step"], **figures, **devices, **point["storage"]}


def _line(values: Iterable[Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(values)
    return stream.getvalue()


def memory(cost: dict[str, Any]) -> list[float]:
    """Gigabytes at the peak by `PARTS`; what is not there at that moment is taken from the activations."""
    *static, activations, peak = (cost[name] for name in MEMORY)
    rest = max(peak - sum(static), 0)
    activations = min(activations, rest)
    return [value / GIGABYTE for value in (*static, activations, rest - activations)]


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Draw one stacked bar per point, with the sizes of devices that lie in its range as lines.

    Raises:
        ConfigError: The file can't be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from harness.report.plots.style import COLORS, SETTINGS, encoded

    shared = [text for text in points[0]["overrides"] if all(text in point["overrides"] for point in points)]
    names = [" ".join(t for t in p["overrides"] if t not in shared) or "this" for p in points]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8, 1.6 + 0.35 * len(points)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        parts = [memory(point["cost"]) for point in points]
        starts = [0.0] * len(points)
        for kind, color, values in zip(PARTS, COLORS, zip(*parts, strict=True), strict=False):
            axes.barh(range(len(points)), values, left=starts, color=color, label=kind, height=0.7)
            starts = [start + value for start, value in zip(starts, values, strict=True)]
        highest = max(starts)
        for size in DEVICE_GIGABYTES:
            if size <= 1.3 * highest:
                axes.axvline(size, linestyle="--", linewidth=1, color="#555555")
                axes.annotate(f"{size} GB", (size, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom")
        axes.set_yticks(range(len(points)), names)
        axes.invert_yaxis()
        axes.set_xlabel("GB at the peak of a training step")
        figure.suptitle(" ".join(shared), x=0.01, ha="left", fontsize=10)
        figure.legend(loc="outside lower center", ncols=len(PARTS), frameon=False)
        try:
            path.write_bytes(encoded(figure, path.suffix[1:]))
        except OSError as error:
            raise ConfigError(f"plan.picture={path}: can't be written: {error.strerror}") from error
