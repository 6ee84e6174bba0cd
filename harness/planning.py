"""A planned experiment: its costs, the devices that they fit on, and how that is printed and drawn."""

import csv
import io
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.tracking.record import MEMORY

# Makers count in powers of ten or of two; the smaller of the two readings promises less.
DEVICE_GIGABYTES = (8, 16, 24, 40, 80, 141)
GIGABYTE = 10**9
# What CUDA's context and the workspace of its matrix products take before the first tensor: 0.3 to 0.6 GB.
CONTEXT_BYTES = 600 * 10**6
PICTURES = ("png", "svg")
# Rows of a table, and bars of a picture.
PAGE = 60
FORMATS = ("table", "json", "csv", "markdown")
COLUMNS = {
    "adapter": "adapter_parameters",
    "head": "head_parameters",
    "total": "total_parameters",
    "weights": "weight_bytes",
    "gradients": "gradient_bytes",
    "optimizer": "optimizer_bytes",
    "activations": "activation_bytes",
    "peak": "train_peak_bytes",
    "file": "adapter_file_bytes",
}
# What the bars of a picture are made of.
PARTS = ("weights", "gradients", "optimizer", "activations", "other")


@dataclass(frozen=True)
class Settings:
    """The keys `plan.` of the command line.

    Attributes:
        batch_size: Rows of the step; null for `train.batch_size`.
        length: Tokens of each row; null for `task.max_length`.
        device: cpu or cuda; null for what `train.device` takes here.
        tasks: Adapters that are kept for one backbone.
        format: How the points are printed.
        picture: A file to draw the memory into; null for none.
    """

    batch_size: int | None = None
    length: int | None = None
    device: str | None = None
    tasks: int = 10
    format: str = "table"
    picture: str | None = None


def read_settings(given: dict[str, str]) -> Settings:
    """Check `plan.` keys.

    Raises:
        ConfigError: A key is unknown, or its value is not allowed.
    """
    from harness.config.errors import near_misses

    valid = list(Settings.__dataclass_fields__)
    values: dict[str, Any] = {}
    for key, text in given.items():
        if key not in valid:
            raise ConfigError(f"plan.{key}: no such key; {near_misses(key, valid)}")
        if key in ("batch_size", "length", "tasks"):
            if not text.isdecimal() or int(text) < 1:
                raise ConfigError(f"plan.{key}={text}: a whole number from 1 on is needed")
            values[key] = int(text)
            continue
        allowed = {"device": ("cpu", "cuda"), "format": FORMATS}.get(key)
        if allowed and text not in allowed:
            raise ConfigError(f"plan.{key}={text}: {' or '.join(allowed)} is allowed")
        if key == "picture" and Path(text).suffix[1:] not in PICTURES:
            raise ConfigError(f"plan.picture={text}: a file that ends in .png or .svg is needed")
        values[key] = text
    return Settings(**values)


def fits(cost: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """For each size of device, whether the step fits, and the largest batch of which all is known to.

    Weights, gradients and optimizer state do not grow with the rows, all else does by as much for each.
    """
    if cost["train_peak_bytes"] is None:
        return []
    fixed = cost["weight_bytes"] + cost["gradient_bytes"] + cost["optimizer_bytes"]
    # Where weights are trained their gradients come while activations go: the peak can lie below the two together.
    a_row = max(cost["train_peak_bytes"] - fixed, cost["activation_bytes"], 1) / rows
    answers = []
    for size in DEVICE_GIGABYTES:
        room = size * GIGABYTE - CONTEXT_BYTES
        fit = cost["train_peak_bytes"] <= room
        most = max(int((room - fixed) // a_row), 0)
        answers.append({"gigabytes": size, "fits": fit, "largest_batch": max(most, rows) if fit else min(most, rows)})
    return answers


def storage(cost: dict[str, Any], backbone_parameters: int, tasks: int) -> dict[str, int | None]:
    """Bytes of files for so many tasks: an adapter each beside one float32 backbone, or a whole model each."""
    backbone = 4 * backbone_parameters
    file = cost["adapter_file_bytes"]
    return {
        "tasks": tasks,
        "adapters_bytes": None if file is None else backbone + tasks * file,
        "copies_bytes": tasks * (backbone + 4 * cost["head_parameters"]),
    }


def steps(experiment: Experiment) -> tuple[int | None, str]:
    """Optimizer steps of the whole training, or the reason why they are not known beforehand."""
    train, task = experiment.train, experiment.task
    if train.max_steps is not None:
        return train.max_steps, ""
    rows = task.max_train_rows
    made = getattr(task, "generator_rows", None)
    if made and "train" in made:
        there = made["train"]
        if "development" not in made:
            there -= min(task.max_development_rows, round(task.development_share * there))
        rows = min(rows or there, there)
    if rows is None:
        return None, "the number of rows is not known without the data; task.max_train_rows or train.max_steps tells it"
    return math.ceil(train.epochs * math.ceil(rows / (train.batch_size * train.gradient_accumulation_steps))), ""


def readable(value: int | None, is_bytes: bool) -> str:
    """Three figures of a count in thousands, millions ..., or of bytes in binary units; json has every digit."""
    if value is None:
        return "-"
    base, units = (1024, ["B", "KiB", "MiB", "GiB", "TiB"]) if is_bytes else (1000, ["", "K", "M", "B", "T"])
    amount = float(value)
    while amount >= 999.5 and len(units) > 1:
        amount, units = amount / base, units[1:]
    return f"{amount:.3g} {units[0]}".rstrip()


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
    """Print a row a point that can be run; the overrides name it."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shared = [text for text in points[0]["overrides"] if all(text in point["overrides"] for point in points)]
    step = points[0]["step"]
    what = f"A training step of {step['rows']} x {step['length']} tokens on {step['device']}"
    # Tight, so that figures fit; a pipe or a file has no width to keep to.
    title = " ".join([f"{what}:" if shared else what, *shared])
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run" if len(points) == 1 else "point", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        own = [text for text in point["overrides"] if text not in shared]
        table.add_row("\n".join(own) or "this", *cells(point))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if len(points) == 1:
        _print_one(points[0])


def _print_one(point: dict[str, Any]) -> None:
    """What a single point says beside its row: devices, storage, and what is not known."""
    for device in point["fits"]:
        answer = f"batches up to {device['largest_batch']}" if device["largest_batch"] else "does not fit"
        print(f" {device['gigabytes']:>4} GB: {answer}")
    kept = point["storage"]
    adapters, copies = (readable(kept[key], True) for key in ("adapters_bytes", "copies_bytes"))
    print(f" {kept['tasks']} tasks: {adapters} as adapters with one backbone, {copies} as whole models")
    for name, reason in point["unmeasured"].items():
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


# Of a record's costs, those that a plan has.
PLANNED = (*COLUMNS.values(), "trainable_parameters", "train_flops_per_token", "train_flops")


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
    """Draw a stacked bar a point, with the sizes of devices that lie in its range as lines.

    Raises:
        ConfigError: The file can't be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from harness.reporting.plots import COLOURS, SETTINGS, encoded

    shared = [text for text in points[0]["overrides"] if all(text in point["overrides"] for point in points)]
    names = [" ".join(t for t in p["overrides"] if t not in shared) or "this" for p in points]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8, 1.6 + 0.35 * len(points)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        parts = [memory(point["cost"]) for point in points]
        starts = [0.0] * len(points)
        for kind, colour, values in zip(PARTS, COLOURS, zip(*parts, strict=True), strict=False):
            axes.barh(range(len(points)), values, left=starts, color=colour, label=kind, height=0.7)
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
