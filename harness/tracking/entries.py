"""Entries of a run in a store: its name, tags, flat parameters, metrics and description, as plain values."""

import json
import math
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.config.versions import DECIDING
from harness.tracking.record import RESULT_FILE, RunRecord

# The status of a record whose run is on its way.
RUNNING = "running"
PROVENANCE = "provenance."
# Not worth a column: the store knows where it is, and Hydra's own settings do not decide a result.
LEFT_OUT = ("hydra", "tracking")


def run_name(record: RunRecord) -> str:
    """Say what a run is, such as `lora r=8 lr=2e-3 s0 micro/sentiment`."""
    method, train = record.config.get("method"), record.config.get("train")
    parts = [_choice(record, "method")]
    if isinstance(method, dict) and method.get("rank") is not None:
        parts.append(f"r={method['rank']}")
    if isinstance(train, dict) and isinstance(train.get("learning_rate"), int | float):
        parts.append(f"lr={_short(train['learning_rate'])}")
    seed, order = record.config.get("seed"), record.config.get("data_seed")
    parts.append(f"s{seed}" if order in (None, seed) else f"s{seed}/{order}")
    parts.append(_choice(record, "task"))
    if record.sweep.get("stage") == "tune":
        parts.append("(trial)")
    return " ".join(parts)[:250]


def _short(rate: float) -> str:
    """A learning rate as people write it: 2e-3, 1.5e-4."""
    digits, _, exponent = f"{rate:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def run_tags(record: RunRecord) -> dict[str, str]:
    """Return what runs are searched and grouped by."""
    git = record.provenance.get("git") or {}
    tags = {
        "method": _choice(record, "method"),
        "task": _choice(record, "task"),
        "model": _choice(record, "model"),
        "backbone": (record.provenance.get("revisions") or {}).get("model"),
        "status": record.status,
        "error": record.error,
        "identity": record.identity,
        "sweep": record.sweep.get("name"),
        "stage": record.sweep.get("stage") or "run",
        "primary_metric": record.scores.get("primary_metric"),
        "mlflow.source.name": "harness",
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.note.content": description(record),
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def run_provenance(record: RunRecord) -> dict[str, str]:
    """Return what a report says of a run's making, as parameters below `provenance.`: no one searches by it."""
    git, packages = record.provenance.get("git") or {}, record.provenance.get("packages") or {}
    revisions = record.provenance.get("revisions") or {}
    made = {
        "data_revision": revisions.get("data"),
        "forgetting_revision": revisions.get("forgetting"),
        "forgetting_metric": (record.scores.get("forgetting") or {}).get("metric"),
        "git_commit": git.get("commit"),
        "git_dirty": git.get("dirty"),
        "harness.version": record.provenance.get("harness"),
        "results_version": record.provenance.get("results_version"),
        "untested": "; ".join((record.provenance.get("untested") or {}).values()) or None,
        "device": record.provenance.get("device_type"),
        "dtype": record.provenance.get("dtype"),
        "precision": _precision(record.provenance.get("precision") or {}),
        "cached_features": (record.provenance.get("cached_features") or {}).get("behind"),
        **{f"version.{name}": packages.get(name) for name in DECIDING},
    }
    return {PROVENANCE + key: str(value) for key, value in made.items() if value is not None}


def _precision(taken: dict[str, Any]) -> str | None:
    """What `train.precision=auto` took and why; null where it was asked for by name."""
    return f"{taken['taken']}: {taken['why']}" if taken.get("why") else None


def as_read(run: dict[str, Any]) -> dict[str, Any]:
    """A run of a store as its readers know it, with what `run_provenance` says among its tags, as runs once had it."""
    made = {key: value for key, value in run["params"].items() if key.startswith(PROVENANCE)}
    params = {key: value for key, value in run["params"].items() if key not in made}
    tags = {key.removeprefix(PROVENANCE): value for key, value in made.items()} | run["tags"]
    return run | {"params": params, "tags": tags}


def description(record: RunRecord) -> str:
    """Tell a run in a sentence or three."""
    text = f"{_choice(record, 'method')} on {_choice(record, 'task')} with {_choice(record, 'model')}: {record.status}."
    metric, scores = record.scores.get("primary_metric"), final_metrics(record)
    for split in ("validation", "development"):
        if f"{split}.{metric}" in scores:
            text += f" {split} {metric} {scores[f'{split}.{metric}']:.4f}"
            majority = scores.get(f"majority.{metric}")
            text += "." if majority is None else f" (majority class {majority:.4f})."
            break
    trainable, total = record.cost.get("trainable_parameters"), record.cost.get("total_parameters")
    if trainable is not None and total:
        text += f" Trains {trainable:,} of {total:,} parameters ({trainable / total:.2%})."
    text += f"\n\n{record.error}" if record.error else ""
    again = record.provenance.get("again")
    if again:
        text += f"\n\nThe same run again, or a part of it changed:\n\n    {shlex.join(again)}"
    if record.status == RUNNING:
        text += "\n\nTo stop it after its step, with a checkpoint, give it the tag `harness.stop`."
    return text


def run_params(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a configuration to dotted keys, without nulls, empty containers and names with a leading underscore."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if value is None or value in ({}, []) or str(key).startswith("_") or prefix + str(key) in LEFT_OUT:
            continue
        if isinstance(value, dict):
            flat |= run_params(value, f"{prefix}{_allowed(key)}.")
        else:
            flat[prefix + _allowed(key)] = value if isinstance(value, str) else json.dumps(value)
    return flat


def final_metrics(record: RunRecord) -> dict[str, float]:
    """Return the scores and costs that were measured, such as `validation.accuracy` and `cost.train_seconds`."""
    sections = {key: value for key, value in record.scores.items() if key != "primary_metric"} | {"cost": record.cost}
    return {key: number for name, values in sections.items() for key, number in _numbers(values, name).items()}


def step_metrics(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Read the metrics by step; a name without a dot or slash becomes `train.*`; a line cut short is skipped."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(KeyError, TypeError, ValueError, AttributeError):
                yield step_numbers(json.loads(line))


def step_numbers(line: dict[str, Any]) -> tuple[int, dict[str, float]]:
    """The step and the metrics of a line of `steps.jsonl`."""
    numbers: dict[str, float] = {}
    for key, value in line.items():
        if key != "step":
            numbers |= _numbers(value, _allowed(key) if re.search("[./]", key) else f"train.{_allowed(key)}")
    return int(line["step"]), numbers


def milliseconds(moment: str, run_dir: Path) -> int:
    """Convert a record's ISO 8601 moment; a record without one is as old as its file."""
    try:
        parsed = datetime.fromisoformat(moment)
    except ValueError:
        return int(1000 * (run_dir / RESULT_FILE).stat().st_mtime)
    return round(1000 * (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())


def _choice(record: RunRecord, group: str) -> str:
    """Return the name of the chosen model, task or method; a run that failed early may lack it."""
    chosen = record.config.get(group)
    return str((chosen.get("name") if isinstance(chosen, dict) else chosen) or "unknown")


def _allowed(key: Any) -> str:
    """Replace the characters that MLflow does not allow in names."""
    return re.sub(r"[^\w .:/-]", "_", str(key))


def _numbers(values: Any, name: str) -> dict[str, float]:
    """Flatten what is a finite number; a truth value is none."""
    if isinstance(values, dict):
        return {
            key: number
            for part, value in values.items()
            for key, number in _numbers(value, f"{name}.{_allowed(part)}").items()
        }
    if isinstance(values, int | float) and not isinstance(values, bool) and math.isfinite(values):
        return {name: float(values)}
    return {}
