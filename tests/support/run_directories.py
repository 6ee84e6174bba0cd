"""Run directories and stores to test tracking and reports with, written by the code that writes the real ones."""

import atexit
import itertools
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness import tracking
from harness.config.version import RESULTS_VERSION, __version__
from harness.tracking.record import RESULT_FILE, STEPS_FILE, RunRecord, empty_cost

_numbers = itertools.count(1)
# Costs of every run that finished.
MEASURED = {
    "trainable_parameters": 1000,
    "total_parameters": 20_000,
    "train_seconds": 10.0,
    "tokens_per_second": 2000.0,
    "adapter_file_bytes": 4096,
}


@dataclass(frozen=True)
class SampleRun:
    """Run with a default for everything; a test says what matters to it.

    Attributes:
        score: Of the validation split; a trial has none.
        development: Of the development split.
        majority: Of the commonest answer.
        identity: Null for one of its own.
        options: Further hyper-parameters of the method.
        search: Further keys of the sweep, as a tuned run has them.
        cost: Costs beside or in place of the usual ones.
        steps: Lines of steps.jsonl; null for no such file.
        scores: In place of all those above.
        ended_at: Null for a time after all runs before.
        revisions: Hashes of the files behind it.
    """

    method: str = "lora"
    task: str = "micro/sentiment"
    model: str = "micro_encoder"
    seed: int = 0
    data_seed: int | None = None
    learning_rate: float = 1e-3
    options: dict[str, Any] = field(default_factory=dict)
    sweep: str | None = "grid"
    stage: str = "run"
    search: dict[str, Any] = field(default_factory=dict)
    identity: str | None = None
    status: str = "finished"
    error: str | None = None
    score: float | None = 0.9
    development: float | None = 0.8
    majority: float | None = 0.5
    scores: dict[str, Any] | None = None
    cost: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] | None = None
    ended_at: str | None = None
    cached_features: dict[str, Any] | None = None
    revisions: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write one run directory below `folder`; every call makes a run of its own, later than those before."""
        number = next(_numbers)
        run_dir = folder / f"{number:04d}"
        run_dir.mkdir(parents=True)
        self.record(number).write(run_dir)
        if self.steps is not None:
            text = "".join(json.dumps(line) + "\n" for line in self.steps)
            (run_dir / STEPS_FILE).write_text(text, encoding="utf-8")
        return run_dir

    def record(self, number: int) -> RunRecord:
        """The record of the run, which its number sets apart from all others."""
        done = self.status == "finished"
        return RunRecord(
            run_id=f"{number:032x}",
            status=self.status,
            error=self.error,
            identity=self.identity or f"identity-{number}",
            sweep={"name": self.sweep, "stage": self.stage},
            config=self.config(),
            scores=self.scored() if self.scores is None else self.scores,
            cost=empty_cost() | (MEASURED if done else {}) | self.cost,
            provenance={
                "git": {"commit": "0123abc", "dirty": False},
                "harness": __version__,
                "results_version": RESULTS_VERSION,
                "device_type": "cpu",
                "dtype": "float32",
                "cached_features": self.cached_features,
                "revisions": self.revisions,
            },
            started_at="2026-11-01T10:00:00+00:00",
            ended_at=self.ended_at or f"2026-11-01T11:{number // 60 % 60:02d}:{number % 60:02d}+00:00",
        )

    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        rates = {"learning_rate": 1e-3, "learning_rates": [1e-4, 1e-3]}
        return {
            "model": {"name": self.model, "path": "/models/x", "revision": None, "_target_": "x"},
            "task": {"name": self.task},
            "method": {"name": self.method, **rates, **self.options},
            "train": {"learning_rate": self.learning_rate, "epochs": 3, "batch_size": 32},
            "seed": self.seed,
            "data_seed": self.seed if self.data_seed is None else self.data_seed,
            "evaluate": {"validation": self.stage != "tune"},
            "sweep": {"name": self.sweep, "stage": self.stage, **self.search},
            "tracking": {"kind": "local", "uri": "sqlite:///mlflow.db", "experiment": "peft-harness"},
        }

    def scored(self) -> dict[str, Any]:
        """The scores by split: none of a run that did not finish, none on validation of a trial."""
        done = self.status == "finished"
        final = done and self.stage != "tune"
        return {
            "primary_metric": "accuracy",
            "validation": {"accuracy": self.score, "loss": 0.5} if final else None,
            "development": {"accuracy": self.development} if done else None,
            "majority": {"accuracy": self.majority} if final else None,
            "forgetting": None,
        }


def write_run(folder: Path, method: str = "lora", **changes: Any) -> Path:
    """Write the run directory of a `SampleRun`."""
    return SampleRun(method, **changes).write(folder)


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
