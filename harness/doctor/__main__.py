"""Diagnosis of an installation: versions, devices, quantization, and which method works on which backbone."""

import json
import sys
import tempfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.command import DONE, FAILED, carry_out, key_value
from harness.config.errors import ConfigError
from harness.config.schema import Precision, Quantization
from harness.doctor.tables import as_json, markdown, print_tables

if TYPE_CHECKING:
    from harness.doctor.compatibility import Finding

USAGE = """harness-doctor: versions, devices, 4- and 8-bit support, and which method works on which backbone.

  harness-doctor                                   everything
  harness-doctor doctor.methods=lora,ia3           these methods only
  harness-doctor doctor.live=true                  train a step of each pair instead of asking the rules (minutes)
  harness-doctor doctor.live=true doctor.precision=bfloat16     the same in another precision than float32
  harness-doctor doctor.format=json                for programs
  harness-doctor doctor.format=markdown            for documents

The table is what a run would be told before it loads a model. Exit status: 1 when doctor.live=true finds that the
rules allow what fails or refuse what trains, 2 for a wrong argument.
"""


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
    precision: Precision


def main() -> int:
    """Carry out the command and return its exit status."""
    return carry_out(diagnose, USAGE)


def diagnose(arguments: list[str]) -> int:
    """Look, print, and return the exit status.

    Raises:
        ConfigError: An argument is wrong.
    """
    options = parse(arguments)
    findings = examine(options)
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
    return FAILED if disagreements else DONE


def parse(arguments: list[str]) -> Options:
    """Options from `doctor.key=value` arguments.

    Raises:
        ConfigError: A key or value is unknown.
    """
    given = {"doctor.format": Format.table.name, "doctor.methods": "", "doctor.live": "false"}
    given["doctor.precision"] = Precision.float32.name
    valid = {"doctor.format": list(Format.__members__), "doctor.live": ["true", "false"]}
    valid["doctor.precision"] = [Precision.float32.name, Precision.bfloat16.name]
    for argument in arguments:
        key, value = key_value(argument, list(given))
        if value not in valid.get(key, [value]):
            raise ConfigError(f"{argument}: {' or '.join(valid[key])} is allowed")
        given[key] = value
    names = [name for name in given["doctor.methods"].strip("[]").split(",") if name]
    live, precision = given["doctor.live"] == "true", Precision[given["doctor.precision"]]
    return Options(Format[given["doctor.format"]], names or None, live, precision)


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
        tried = attempt(findings, tasks, Path(folder), options.precision)
        return list(tqdm(tried, total=len(findings), desc="trying", disable=not sys.stderr.isatty()))


def _pair(finding: "Finding") -> str:
    stored = "" if finding.quantization is Quantization.none else f" in {finding.quantization.value}"
    return f"{finding.method} on {finding.architecture} ({finding.kind.name}){stored}"


if __name__ == "__main__":
    sys.exit(main())
