"""Tables of which method works on which backbone: for a terminal, as Markdown and as JSON."""

import platform
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.config.schema import Quantization
from harness.config.version import __version__
from harness.config.versions import installed_versions, untested
from harness.doctor.machine import WITHOUT_TRYING, machine, quantized_support, summary
from harness.models.architectures import Kind

if TYPE_CHECKING:
    from rich.console import Console

    from harness.doctor.compatibility import Finding

# What so many architectures, nf4 and int8 leave of 80 columns.
METHOD_WIDTH, ARCHITECTURES_WIDE = 18, 13
MARKDOWN_COMMAND = "harness-doctor doctor.format=markdown > reports/methods.md"


def as_json(findings: "list[Finding]") -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "harness": __version__,
        "python": platform.python_version(),
        "packages": installed_versions(),
        "untested": untested(),
        "machine": machine(),
        "quantization": quantized_support(),
        "methods": [
            {
                "method": finding.method,
                "architecture": finding.architecture,
                "kind": finding.kind.name,
                "quantization": finding.quantization.value,
                "works": finding.works,
                "refusal": finding.refusal,
                "tried": finding.tried,
                "failure": finding.failure,
            }
            for finding in findings
        ],
    }


@dataclass(frozen=True)
class Grid:
    """One table: one row per method, `yes` or the number of a reason in each cell."""

    title: str
    architectures: list[str]
    rows: dict[str, list[str]]


def grids(findings: "list[Finding]") -> tuple[list[Grid], list[str]]:
    """A table for each kind of head, and the reasons that they number from 1.

    Columns are the architectures, unquantized, then nf4 and int8: there `yes` says that all works that works
    unquantized.
    """
    reasons = Reasons(findings)
    tables = []
    for kind in Kind:
        of_kind = [finding for finding in findings if finding.kind is kind]
        if not of_kind:
            continue
        architectures = list(dict.fromkeys(finding.architecture for finding in of_kind))
        rows: dict[str, list[str]] = {}
        for method in dict.fromkeys(finding.method for finding in of_kind):
            own = {(f.architecture, f.quantization): f for f in of_kind if f.method == method}
            plain = [own[name, Quantization.none] for name in architectures]
            allowed = [finding.architecture for finding in plain if finding.works]
            rows[method] = [reasons.cell([finding]) for finding in plain]
            for stored in (Quantization.nf4, Quantization.int8):
                rows[method].append(reasons.cell([own[name, stored] for name in allowed]))
        tables.append(Grid(kind.name, architectures, rows))
    return tables, reasons.legend()


class Reasons:
    """Numbers reasons in the order they are met; the same sentence about several backbones or methods is one reason."""

    def __init__(self, findings: "list[Finding]") -> None:
        # Of each reason: placeholder -> what it stood for.
        self._about: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self._numbers: dict[str, int] = {}
        for finding in findings:
            if not finding.works:
                for placeholder, value in _names(finding).items():
                    about = self._about[_general(finding)][placeholder]
                    about += [value] if value not in about else []

    def cell(self, findings: "list[Finding]") -> str:
        """`yes` where all work, else the numbers of the reasons; a dash where there is nothing to ask."""
        if not findings:
            return "-"
        general = dict.fromkeys(_general(finding) for finding in findings if not finding.works)
        numbers = [str(self._numbers.setdefault(reason, len(self._numbers) + 1)) for reason in general]
        return ", ".join(numbers) or "yes"

    def legend(self) -> list[str]:
        """The reasons that a cell names, in the order of their numbers."""
        return [self._particular(reason) for reason in self._numbers]

    def _particular(self, reason: str) -> str:
        for placeholder, values in self._about[reason].items():
            reason = reason.replace(placeholder, "/".join(values))
        return reason


def _names(finding: "Finding") -> dict[str, str]:
    """Names that make the same reason read differently, and the control character that stands for each."""
    stored = {} if finding.quantization is Quantization.none else {"\2": finding.quantization.value}
    return {"\0": finding.architecture, "\1": finding.method, **stored}


def _general(finding: "Finding") -> str:
    """A reason with the names of its method, architecture and quantization taken out."""
    reason = finding.failure if finding.tried else finding.refusal
    assert reason is not None
    reason = reason.removeprefix(f"method={finding.method}: ")
    for placeholder, value in _names(finding).items():
        # A method's name may be an everyday word, such as head.
        before = "(?<=method=)" if value == finding.method else ""
        reason = re.sub(rf"{before}\b{re.escape(value)}\b", placeholder, reason)
    return reason


def print_tables(findings: "list[Finding]") -> None:
    """Print for a terminal of 80 columns."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False)
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in summary().items():
        facts.add_row(name, escape(value))
    console.print(facts)
    tables, legend = grids(findings)
    for grid in tables:
        _print_grid(console, grid)
    reasons = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for number, reason in enumerate(legend, start=1):
        reasons.add_row(f"[bold red]{number}[/]", escape(reason))
    console.print(reasons)


def _print_grid(console: "Console", grid: Grid) -> None:
    """Print a table in parts that fit the width; the last has the columns of quantized backbones."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    columns = [*short_names(grid.architectures), "nf4", "int8"]
    for first in range(0, len(grid.architectures), ARCHITECTURES_WIDE):
        last = min(first + ARCHITECTURES_WIDE, len(grid.architectures))
        whole = last == len(grid.architectures)
        end = "; nf4 and int8: whether all that works unquantized works so." if whole else "; going on below."
        shown = ", ".join(grid.architectures[first:last])
        console.print(f"\n{grid.title}: yes, or the number of the reason below. Columns: {shown}{end}")
        places = [*range(first, last), *([len(columns) - 2, len(columns) - 1] if whole else [])]
        table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        table.add_column("method", overflow="fold", min_width=METHOD_WIDTH, max_width=METHOD_WIDTH)
        for place in places:
            table.add_column(columns[place], min_width=3)
        for method, cells in grid.rows.items():
            # What works is the rule; what does not stands out, where a terminal shows colors.
            shown_cells = (cells[place] for place in places)
            table.add_row(method, *(cell if cell in ("yes", "-") else f"[bold red]{cell}[/]" for cell in shown_cells))
        console.print(table)


def short_names(names: list[str]) -> list[str]:
    """Three letters of each name: its first ones, or the first two and the last where that is not clear."""
    first = [name[:3] for name in names]
    return [short if first.count(short) == 1 else name[:2] + name[-1] for short, name in zip(first, names, strict=True)]


def markdown(findings: "list[Finding]") -> str:
    """The tables and reasons as a document; the versions are what they hold for."""
    versions = ", ".join(f"{name} {found}" for name, found in installed_versions().items() if found)
    lines = [
        f"<!-- Made by {MARKDOWN_COMMAND} -->",
        "# Which method works on which backbone",
        "",
        "Computed from the methods' own rules, on skeletons without weights: this is what a run is told before it "
        "loads a model. A number is that of the reason below. Under nf4 and int8 stands whether all that works "
        "unquantized works so.",
        "",
        f"peft-harness {__version__} with {versions}.",
        *(["", f"**Untested**: {'; '.join([*untested().values(), WITHOUT_TRYING])}."] if untested() else []),
    ]
    tables, legend = grids(findings)
    for grid in tables:
        columns = ["method", *grid.architectures, "nf4", "int8"]
        lines += ["", f"## {grid.title}", "", _row(columns), "|" + " --- |" * len(columns)]
        lines += [_row([method, *cells]) for method, cells in grid.rows.items()]
    lines += ["", "## Reasons", "", *(f"{number}. {_escaped(reason)}" for number, reason in enumerate(legend, start=1))]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]|~<>])", r"\\\1", text)
