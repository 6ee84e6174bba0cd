"""Diagnosis of an installation: versions, devices, quantization, and which method works on which backbone."""

import json
import os
import platform
import re
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError, near_misses
from harness.config.schema import Quantization
from harness.config.version import __version__
from harness.config.versions import installed_versions, untested

if TYPE_CHECKING:
    from torch import device as Device

    from harness.doctor.compatibility import Finding

USAGE = """harness-doctor: versions, devices, 4- and 8-bit support, and which method works on which backbone.

  harness-doctor                                   everything
  harness-doctor doctor.methods=lora,ia3           these methods only
  harness-doctor doctor.live=true                  train a step of each pair instead of asking the rules (minutes)
  harness-doctor doctor.format=json                for programs
  harness-doctor doctor.format=markdown            for documents

The table is what a run would be told before it loads a model. Exit status: 1 when doctor.live=true finds that the
rules allow what fails or refuse what trains, 2 for a wrong argument.
"""
DISAGREE, MISTAKEN = 1, 2
GIB = 2**30
# What thirteen architectures, nf4 and int8 leave of 80 columns.
METHOD_WIDTH = 18
# The rules were checked against the tested versions by trying; a newer library may refuse what they allow.
WITHOUT_TRYING = "the tables below hold for the tested versions; doctor.live=true tries every pair with these"
MARKDOWN_COMMAND = "harness-doctor doctor.format=markdown > reports/methods.md"


class Format(Enum):
    table = "table"
    json = "json"
    markdown = "markdown"


@dataclass(frozen=True)
class Options:
    """Options of the command line; null methods are all of them."""

    format: Format
    methods: list[str] | None
    live: bool


def main() -> int:
    """Parse the command line, look, print, and return the exit status."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    try:
        options = parse(arguments)
        findings = examine(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return MISTAKEN
    if options.format is Format.json:
        print(json.dumps(as_json(findings), indent=2))
    elif options.format is Format.markdown:
        print(markdown(findings))
    else:
        print_tables(findings)
    disagreements = [finding for finding in findings if finding.disagrees]
    for finding in disagreements:
        said = f"refused ({finding.refusal})" if finding.refusal else "allowed"
        became = finding.failure or "it trained"
        print(f"{_pair(finding)}: {said}, but tried: {became}", file=sys.stderr)
    return DISAGREE if disagreements else 0


def parse(arguments: list[str]) -> Options:
    """Options from `doctor.key=value` arguments.

    Raises:
        ConfigError: A key or value is unknown.
    """
    given = {"doctor.format": Format.table.name, "doctor.methods": "", "doctor.live": "false"}
    valid = {"doctor.format": list(Format.__members__), "doctor.live": ["true", "false"]}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if key not in given or not separator:
            raise ConfigError(f"{argument}: no such option; {near_misses(key, given)}, each as key=value")
        if value not in valid.get(key, [value]):
            raise ConfigError(f"{argument}: {' or '.join(valid[key])} is allowed")
        given[key] = value
    names = [name for name in given["doctor.methods"].strip("[]").split(",") if name]
    return Options(Format[given["doctor.format"]], names or None, given["doctor.live"] == "true")


def examine(options: Options) -> "list[Finding]":
    """The table of methods and backbones: what the rules say, or what becomes of trying."""
    from tqdm import tqdm

    from harness.doctor.compatibility import ask, attempt, experiments
    from harness.models import quiet_libraries

    quiet_libraries()
    tasks = experiments(options.methods)
    findings = ask(tasks)
    if not options.live:
        return findings
    with tempfile.TemporaryDirectory() as folder:
        tried = attempt(findings, tasks, Path(folder))
        return list(tqdm(tried, total=len(findings), desc="trying", disable=not sys.stderr.isatty()))


def machine() -> dict[str, Any]:
    """Processor, memory and GPUs."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "cores": psutil.cpu_count(logical=False),
        "hardware_threads": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "available_memory_bytes": memory.available,
        "instructions": instructions(),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
    }


def instructions() -> dict[str, bool]:
    """Whether the CPU has the vector instructions that matter to speed; without the last, bfloat16 is slow."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    path = Path("/proc/cpuinfo")
    flags = set(re.findall(r"\w+", path.read_text())) if path.is_file() else set()
    return {
        "AVX2": capability.startswith(("AVX2", "AVX512")),
        "AVX-512": capability.startswith("AVX512"),
        "bfloat16": bool(flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}),
    }


def quantized_support() -> dict[str, str]:
    """Quantize a small layer in each way, evaluate and train it, and say how it went."""
    import logging
    import warnings

    from harness.models import choose_device

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    device, found = choose_device("auto"), {}
    for kind in (Quantization.nf4, Quantization.fp4, Quantization.int8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found[kind.value] = f"works on {device.type}, relative error {probe(kind, device):.1%}"
            except Exception as error:  # bitsandbytes fails in many ways: no library, no kernel, no memory
                found[kind.value] = f"fails on {device.type}: {(str(error).strip() or repr(error)).splitlines()[0]}"
    return found


def probe(kind: Quantization, device: "Device") -> float:
    """The relative error of a quantized layer of 128 x 128 on normal inputs.

    Raises:
        Exception: Whatever bitsandbytes raises where it does not work.
        ValueError: The gradient of the input is not finite.
    """
    import torch
    from bitsandbytes import nn as quantized

    from harness.models import keep_trainable

    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(128, 128, generator=generator) for _ in range(2))
    layer: Any
    if kind is Quantization.int8:
        layer = quantized.Linear8bitLt(128, 128, bias=False, has_fp16_weights=False)
        layer.weight = quantized.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        layer = quantized.Linear4bit(128, 128, bias=False, quant_type=kind.value, compute_dtype=torch.float32)
        layer.weight = quantized.Params4bit(weight.clone(), requires_grad=False, quant_type=kind.value)
    layer = layer.to(device)
    keep_trainable(layer)
    with torch.inference_mode():
        layer.eval()(x.to(device))  # as between two epochs
    x = x.to(device).requires_grad_()
    output = layer.train()(x)
    output.sum().backward()
    if x.grad is None or not torch.isfinite(x.grad).all():
        raise ValueError("the backward pass gives no finite gradient")
    exact = x.detach() @ weight.to(device).T
    return float((output.detach() - exact).norm() / exact.norm())


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
    from harness.models.architectures import Kind

    reasons = Reasons(findings)
    tables = []
    for kind in (Kind.classification, Kind.causal_lm):
        of_kind = [finding for finding in findings if finding.kind is kind]
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


def _pair(finding: "Finding") -> str:
    stored = "" if finding.quantization is Quantization.none else f" in {finding.quantization.value}"
    return f"{finding.method} on {finding.architecture} ({finding.kind.name}){stored}"


def print_tables(findings: "list[Finding]") -> None:
    """Print for a terminal of 80 columns."""
    from rich.box import SIMPLE_HEAD
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
        console.print(
            f"\n{grid.title}: yes, or the number of the reason below. Columns: {', '.join(grid.architectures)}; "
            "nf4 and int8: whether all that works unquantized works so."
        )
        table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        table.add_column("method", overflow="fold", min_width=METHOD_WIDTH, max_width=METHOD_WIDTH)
        for name in (*grid.architectures, "nf4", "int8"):
            table.add_column(name if name == "int8" else name[:3], min_width=3)
        for method, cells in grid.rows.items():
            table.add_row(method, *cells)
        console.print(table)
    reasons = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for number, reason in enumerate(legend, start=1):
        reasons.add_row(str(number), escape(reason))
    console.print(reasons)


def summary() -> dict[str, str]:
    """Versions, devices and quantization, a line each."""
    here, versions = machine(), installed_versions()
    able = ", ".join(name if has else f"no {name}" for name, has in here["instructions"].items())
    memory = f"{here['memory_bytes'] / GIB:.1f} GiB of memory, {here['available_memory_bytes'] / GIB:.1f} free"
    gpus = [f"{gpu['name']}, {gpu['memory_bytes'] / GIB:.1f} GiB" for gpu in here["gpus"]]
    return {
        "harness": f"{__version__} on Python {platform.python_version()}, {here['platform']}",
        "packages": ", ".join(f"{name} {found or 'not installed'}" for name, found in versions.items()),
        "CPU": f"{here['cores']} cores, {here['torch_threads']} threads in torch, {memory}; {able}",
        "GPU": "; ".join(gpus) or "none that torch sees",
        **quantized_support(),
        **({"untested": "; ".join([*untested().values(), WITHOUT_TRYING])} if untested() else {}),
    }


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


if __name__ == "__main__":
    sys.exit(main())
