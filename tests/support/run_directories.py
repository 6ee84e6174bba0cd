"""Run directories and stores to test tracking and reports with, written by the code that writes the real ones."""

import atexit
import itertools
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from harness import tracking
from harness.tracking.record import RESULT_FILE, STEPS_FILE, RunRecord, empty_cost

_numbers = itertools.count(1)


def write_run(
    folder: Path,
    method: str = "lora",
    task: str = "micro/sentiment",
    seed: int = 0,
    score: float | None = 0.9,
    development: float | None = 0.8,
    majority: float | None = 0.5,
    status: str = "finished",
    error: str | None = None,
    sweep: str | None = "grid",
    stage: str = "run",
    identity: str | None = None,
    learning_rate: float = 1e-3,
    model: str = "micro_encoder",
    options: dict[str, Any] | None = None,
    cost: dict[str, Any] | None = None,
    steps: list[dict[str, Any]] | None = None,
    scores: dict[str, Any] | None = None,
    ended_at: str | None = None,
    data_seed: int | None = None,
    search: dict[str, Any] | None = None,
) -> Path:
    """Write one run directory below `folder`; every call makes a run of its own, later than those before."""
    number = next(_numbers)
    done = status == "finished"
    measured = {
        "trainable_parameters": 1000,
        "total_parameters": 20_000,
        "train_seconds": 10.0,
        "tokens_per_second": 2000.0,
        "adapter_file_bytes": 4096,
    }
    found = {
        "primary_metric": "accuracy",
        "validation": {"accuracy": score, "loss": 0.5} if done and stage != "tune" else None,
        "development": {"accuracy": development} if done else None,
        "majority": {"accuracy": majority} if done and stage != "tune" else None,
        "forgetting": None,
    }
    run_dir = folder / f"{number:04d}"
    run_dir.mkdir(parents=True)
    RunRecord(
        run_id=f"{number:032x}",
        status=status,
        error=error,
        identity=identity or f"identity-{number}",
        sweep={"name": sweep, "stage": stage},
        config={
            "model": {"name": model, "path": "/models/x", "revision": None, "_target_": "x"},
            "task": {"name": task},
            "method": {
                "name": method,
                "learning_rate": learning_rate,
                "learning_rates": [1e-4, 1e-3],
                **(options or {}),
            },
            "train": {"learning_rate": learning_rate, "epochs": 3, "batch_size": 32},
            "seed": seed,
            "data_seed": seed if data_seed is None else data_seed,
            "evaluate": {"validation": stage != "tune"},
            "sweep": {"name": sweep, "stage": stage, **(search or {})},
            "tracking": {"kind": "local", "uri": "sqlite:///mlflow.db", "experiment": "peft-harness"},
        },
        scores=found if scores is None else scores,
        cost=empty_cost() | (measured if done else {}) | (cost or {}),
        provenance={"git": {"commit": "0123abc", "dirty": False}, "harness": "0.1.0"},
        started_at="2026-11-01T10:00:00+00:00",
        ended_at=ended_at or f"2026-11-01T11:{number // 60 % 60:02d}:{number % 60:02d}+00:00",
    ).write(run_dir)
    if steps is not None:
        (run_dir / STEPS_FILE).write_text("".join(json.dumps(line) + "\n" for line in steps), encoding="utf-8")
    return run_dir


def new_store(folder: Path) -> str:
    """Return the URI of a new SQLite store in `folder`: a copy, since creating one takes seconds."""
    path = folder / "mlflow.db"
    shutil.copyfile(_template(), path)
    return f"sqlite:///{path}"


def store_of(folder: Path, *run_dirs: Path) -> str:
    """Send run directories to a new store and return its URI."""
    uri = new_store(folder)
    for run_dir in run_dirs:
        assert (run_dir / RESULT_FILE).is_file()
        tracking.send(run_dir, uri, "tests")
    return uri


@cache
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="harness-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tracking.create(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"
