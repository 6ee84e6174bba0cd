"""gpu.md, made from the lines of results.jsonl alone."""

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS, PAGE = "results.jsonl", "gpu.md"
STEPS = {
    "tests": "The tests marked gpu",
    "costs": "Memory, time and energy of a training step, and its plan",
    "time": "A step against a bare loop and against Trainer",
    "sweep": "A sweep of four points, two at a time on one device",
    "packed": "LoRA points in one pack, one at a time, and one per process",
    "latency": "Latency, alone, with an adapter and merged, and swaps",
    "glue": "Real rows",
}
CATEGORIES = {
    "weight_bytes": "weights",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "activation_bytes": "activations",
    "train_peak_bytes": "peak",
}
GIGABYTE, MEGABYTE = 10**9, 10**6
Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """The lines of a file of JSON, without one that was being written when its writer was killed."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def write_page(folder: Path) -> None:
    (folder / PAGE).write_text(page(read_lines(folder / RESULTS)))


def page(lines: list[Line]) -> str:
    """The whole page; a step that measured nothing has a heading that says so."""
    tables = {"tests": _tests, "costs": _costs, "time": _time, "sweep": _sweep, "packed": _packed}
    tables |= {"latency": _latency, "glue": _glue}
    parts = ["# One GPU", *_head(lines)]
    for name, title in STEPS.items():
        own = [line for line in lines if line["step"] == name]
        parts += [f"## {title}", *(tables[name](own) if own else ["Nothing was measured."])]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(heading: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    rule = "|---|" + "---:|" * (len(heading) - 1)
    return "\n".join(f"| {' | '.join(row)} |" if row is not None else rule for row in (heading, None, *rows))


def _head(lines: list[Line]) -> list[str]:
    """Device, driver and versions of each start, and how its steps ended."""
    rows = []
    for line in lines:
        if line["step"] == "environment":
            packages = ", ".join(f"{name} {version}" for name, version in line["packages"].items())
            memory = f", {line['memory_bytes'] / GIGABYTE:.1f} GB" if "memory_bytes" in line else ""
            driver = f"driver {line['driver']}, CUDA {line['cuda']}, " if "driver" in line else ""
            rows.append(f"* {line['device']}{memory}; {driver}Python {line['python']}; {packages}")
    if any(line.get("dry") for line in lines if line["step"] == "start"):
        rows.insert(0, "**A dry run: tiny sizes on a CPU; no figure here says anything about a GPU.**\n")
    ends = [line for line in lines if line["step"] == "end"]
    steps = [[line["name"], line["status"], f"{line['seconds']:.0f}", line["error"] or ""] for line in ends]
    return ["\n".join(rows), table(["step", "ended", "seconds", "reason"], steps) if steps else ""]


def _number(value: float | None, form: str = ".3g", unit: float = 1) -> str:
    return "-" if value is None else format(value / unit, form)


def _why(lines: list[Line], *names: str) -> str:
    """A list of what has no figures, and why."""
    told = [line for line in lines if line["status"] != "finished"]
    return "\n".join(
        f"* {' '.join(str(line[name]) for name in names)}: {line['status'].replace('_', ' ')}: {line['error']}"
        for line in told
    )


def _last(lines: list[Line], *names: str) -> list[Line]:
    """The newest line of each point: what was tried again counts."""
    return list({tuple(line.get(name) for name in ("device", *names)): line for line in lines}.values())


def _tests(lines: list[Line]) -> list[str]:
    lines = _last(lines, "test")
    passed = [line for line in lines if line["outcome"] == "passed"]
    rows = [[line["test"], line["outcome"], f"{line['seconds']:.1f}"] for line in lines if line not in passed]
    names: dict[str, list[str]] = {}
    for line in passed:
        name, _, case = line["test"].rstrip("]").partition("[")
        names.setdefault(name, []).append(case)
    listed = "\n".join(f"* {name}: {', '.join(sorted(cases))}" for name, cases in names.items())
    rest = table(["test", "outcome", "seconds"], rows) if rows else ""
    return [f"{len(passed)} of {len(lines)} passed.", listed, rest]


def _costs(lines: list[Line]) -> list[str]:
    lines = _last(lines, "size", "method", "checkpointing")
    done = [line for line in lines if line["status"] == "finished"]
    memory, speed = [], []
    for line in done:
        unit = GIGABYTE if line["train_peak_bytes"] >= GIGABYTE else MEGABYTE
        name = _step(line)
        shape = f"{line['rows']} x {line['length']}"
        cells = []
        for key in CATEGORIES:
            planned = line["planned"].get(key)
            ratio = f" ({planned / line[key]:.3f})" if planned is not None and line[key] else ""
            cells.append(f"{_number(line[key], '.3f', unit)} / {_number(planned, '.3f', unit)}{ratio}")
        allocated = line.get("cuda_allocated_bytes")
        planned = line["planned"].get("train_peak_bytes")
        allocator = _number(allocated, ".3f", unit)
        if allocated and planned is not None:
            allocator += f" ({planned / allocated:.3f})"
        memory.append([name, shape, "GB" if unit == GIGABYTE else "MB", *cells, allocator])
        memory[-1].append(_number(line.get("cuda_reserved_bytes"), ".3f", unit))
        share = line["flops_per_second"] / line["flops_ceiling"]
        speed.append(
            [
                name,
                shape,
                _number(line["step_seconds"], ".1f", 1e-3),
                _number(line["tokens_per_second"], ",.0f"),
                _number(line["flops_per_second"], ".1f", 1e12),
                f"{share:.0%}",
                _number(line["joules_per_step"]),
            ]
        )
    parts = []
    if done:
        parts += [
            "Measured / planned, and planned over measured in brackets. The allocator's peak is held against the "
            "planned peak.",
            table(
                ["step", "rows x tokens", "in", *CATEGORIES.values(), "allocator's peak", "reserved"],
                memory,
            ),
            "The ceiling is a large matrix product here, in the precision of the steps: "
            f"{done[-1]['flops_ceiling'] / 1e12:.3g} TFLOP/s.",
            table(["step", "rows x tokens", "ms", "tokens/s", "TFLOP/s", "of ceiling", "J a step"], speed),
            "\n".join(f"* no joules: {why}" for why in sorted({line["no_joules"] for line in done} - {""})),
        ]
    return [*parts, _why([{**line, "name": _step(line)} for line in lines], "name")]


def _step(line: Line) -> str:
    return f"{line['size']} {line['method']}{', checkpointing' if line['checkpointing'] else ''}"


def _time(lines: list[Line]) -> list[str]:
    lines = _last(lines, "model")
    rows = [
        [
            line["model"],
            str(line["rows"]),
            str(line["steps"]),
            *(_number(line[f"{name}_seconds"], ".2f", 1e-3) for name in ("harness", "bare")),
            _number(line["against_trainer"] * line["trainer_seconds"], ".2f", 1e-3),
            _number(line["trainer_seconds"], ".2f", 1e-3),
            f"{line['against_bare']:.3f}",
            f"{line['against_trainer']:.3f}",
        ]
        for line in lines
        if line["status"] == "finished"
    ]
    heading = [
        "LoRA on",
        "rows",
        "steps",
        "harness ms",
        "bare loop ms",
        "harness mean ms",
        "Trainer mean ms",
        "against bare",
        "against Trainer",
    ]
    return [table(heading, rows) if rows else "", _why(lines, "model")]


def _sweep(lines: list[Line]) -> list[str]:
    parts = [f"```\n{line['table']}\n```" for line in _last(lines) if line.get("table")]
    return [*parts, _why(_last(lines))]


def _packed(lines: list[Line]) -> list[str]:
    shared = {(line["size"], line["points"]): line for line in lines if line["how"] == "slots"}
    rows = []
    for line in _last([line for line in lines if line["how"] == "packed"], "size", "points"):
        packed, alone = line.get("packed_steps_per_second"), line.get("alone_steps_per_second")
        slots = shared.get((line["size"], line["points"]), {}).get("point_steps_per_second")
        rows.append(
            [
                line["size"],
                str(line["points"]),
                _number(packed),
                _number(alone),
                _number(packed / alone if packed and alone else None),
                _number(packed / slots if packed and slots else None),
                _number(line.get("packed_peak_bytes"), ".2f", GIGABYTE),
            ]
        )
    heading = ["backbone", "points", "steps/s packed", "one at a time", "ratio", "ratio to one per process", "peak GB"]
    told = "Steps of points a second; LoRA, rank 8, query and value, 8 rows of 128 tokens each."
    return [table(heading, rows), told, _why(lines, "size", "points", "how")]


def _latency(lines: list[Line]) -> list[str]:
    lines = _last(lines, "size", "method")
    rows = []
    for line in lines:
        for size in line["latency_ms"]["base"] if line["status"] == "finished" else ():
            times = line["latency_ms"]
            cells = [_number(times.get(kind, {}).get(size), ".2f") for kind in ("base", "attached", "merged")]
            rows.append([f"{line['size']} {line['method']}", size, str(line["length"]), *cells])
            rows[-1] += [_number(line["swap_ms"], ".1f"), str(line["repeats"])]
    heading = ["shape and method", "rows", "tokens", "alone ms", "attached ms", "merged ms", "swap ms", "repeats"]
    missing = [f"* {line['method']}: {why}" for line in lines for why in line.get("missing", {}).values()]
    return [table(heading, rows) if rows else "", "\n".join(missing), _why(lines, "size", "method")]


def _glue(lines: list[Line]) -> list[str]:
    lines = list({line["point"]: line for line in lines}.values())
    scores: dict[tuple[str, str, str], list[float]] = {}
    majority: dict[tuple[str, str], float | None] = {}
    for line in lines:
        if line["status"] == "finished":
            scores.setdefault((line["task"], line["metric"], line["method"]), []).append(line["score"])
            majority[line["task"], line["metric"]] = line["majority"]
    tasks, methods = list(majority), list(dict.fromkeys(method for *_, method in scores))
    rows = []
    for task, metric in tasks:
        found = [scores.get((task, metric, method), []) for method in methods]
        cells = [f"{mean(values):.3f} (n={len(values)})" if values else "-" for values in found]
        rows.append([f"{task} {metric}", _number(majority[task, metric], ".3f"), *cells])
    parts = ["Means over seeds; `records.jsonl` has every run."] if rows else []
    return [*parts, table(["task", "majority", *methods], rows) if rows else "", _why(lines, "point")]


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
