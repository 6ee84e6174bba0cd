"""Record of one run: exactly what tracking stores and reports read."""

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.config.errors import ConfigError

SCHEMA_VERSION = 1
RESULT_FILE = "result.json"
CONFIG_FILE = "config.yaml"
STEPS_FILE = "steps.jsonl"
PREDICTIONS_FILE = "predictions.parquet"
# What each row of the development split came to at each evaluation of the training.
DEVELOPMENT_FILE = "development.parquet"
SOFT_PROMPT_FILE = "soft_prompt.csv"
LOG_FILE = "run.log"
# While a run trains: where it stands.
LIVE_FILE = "live.json"
ADAPTER_FOLDER = "adapter"
TRACKED_FILE = "tracked.json"

# Of the training step that computes most tokens, counted on its tensors.
STEP_MEMORY = ("gradient_bytes", "optimizer_bytes", "activation_bytes", "train_peak_bytes")
MEMORY = ("weight_bytes", *STEP_MEMORY)
# What a GPU's allocator saw meanwhile.
CUDA_MEMORY = ("cuda_allocated_bytes", "cuda_reserved_bytes")
COST_FIELDS = (
    "adapter_parameters",
    "head_parameters",
    "trainable_parameters",
    "total_parameters",
    *MEMORY,
    "evaluation_peak_bytes",
    # A frozen copy of the weights that preferences are held against.
    "reference_bytes",
    # The same figures of that step by prediction: name -> figure.
    "predicted",
    *CUDA_MEMORY,
    # Of the whole process with its libraries.
    "process_peak_bytes",
    "adapter_file_bytes",
    "load_seconds",
    "tokenize_seconds",
    # Of `train.cache_features`: to have the features at hand, computed or found, and the files they lie in.
    "features_seconds",
    "features_bytes",
    "train_seconds",
    "evaluation_seconds",
    "save_seconds",
    "measure_seconds",
    "forgetting_seconds",
    "total_seconds",
    "step_seconds",
    "seconds_to_target",
    "tokens_per_second",
    "padding_share",
    "train_flops",
    "train_flops_per_token",
    "forward_flops_per_token",
    "flops_per_second",
    "flops_ceiling_share",
    "generated_tokens_per_second",
    "latency_ms",
    "swap_ms",
    "energy_joules",
)


class Status(StrEnum):
    """Status of a run that ended; a stopped one ended early on purpose (`sweep.stop_share`) and can go on."""

    finished = "finished"
    stopped = "stopped"
    failed = "failed"
    diverged = "diverged"
    out_of_memory = "out_of_memory"
    interrupted = "interrupted"


def empty_cost() -> dict[str, Any]:
    return dict.fromkeys(COST_FIELDS)


@dataclass
class RunRecord:
    """One run.

    Attributes:
        run_id: Random, 32 hexadecimal digits: one per run, also of two runs of the same point.
        status: How it ended.
        error: One sentence saying why it did not finish; null when it finished.
        identity: SHA-256 over everything that decides the result.
        sweep: `name` (null outside a sweep) and `stage` (`run`, or `tune` and `final` under equal budgets).
        config: The resolved configuration, secrets removed.
        scores: `primary_metric`; `validation`, `development`, `majority` (the commonest answer), `base` (the backbone
            alone): metric name -> value; `forgetting`: `metric`, `before`, `after`, `tokens`.
        cost: The names of `COST_FIELDS`, units in the names; null where not measured.
        unmeasured: Dotted name of a null figure -> the reason.
        provenance: Versions, commit, device, threads, seeds, data and model revisions or file hashes.
        started_at: UTC, ISO 8601.
        ended_at: UTC, ISO 8601.
        schema_version: Changes when the meaning of a field does.
    """

    run_id: str
    status: str
    error: str | None
    identity: str
    sweep: dict[str, Any]
    config: dict[str, Any]
    scores: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=empty_cost)
    unmeasured: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    started_at: str = ""
    ended_at: str = ""
    schema_version: int = SCHEMA_VERSION

    def write(self, folder: Path) -> Path:
        """Write `result.json` atomically: a reader sees the whole file or none."""
        path = folder / RESULT_FILE
        write_atomically(path, json.dumps(finite(asdict(self)), indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return path

    def may_replace(self, folder: Path) -> bool:
        """Whether a folder holds no record, or one of the same run of the same sweep."""
        return of_same_run(folder, self.identity, self.sweep.get("name"))

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """Read a run directory's record.

        Raises:
            ValueError: The file is damaged, or lacks a field; the message names the file.
        """
        path = folder / RESULT_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            known = {f.name for f in fields(cls)}
            return cls(**{key: value for key, value in content.items() if key in known})
        except (UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def of_same_run(folder: Path, identity: str, sweep: str | None) -> bool:
    """Whether a folder holds no record, or one of an earlier start of this run."""
    if not (folder / RESULT_FILE).exists():
        return True
    try:
        held = RunRecord.read(folder)
    except (ValueError, OSError):
        return False
    return (held.identity, held.sweep.get("name")) == (identity, sweep)


def check_free(folder: Path, identity: str, sweep: str | None) -> None:
    """Refuse a folder that holds the record of another run.

    Raises:
        ConfigError: It would be overwritten.
    """
    if not of_same_run(folder, identity, sweep):
        raise ConfigError(
            f"hydra.run.dir={folder}: {RESULT_FILE} there is of another run and is not overwritten; choose another "
            "folder"
        )


def written_since(folder: Path, began: float) -> bool:
    """Whether a run has written its record in `folder` since that time, in seconds since the epoch."""
    result = folder / RESULT_FILE
    return result.exists() and result.stat().st_mtime >= began


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot express, by null, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old content or the new, never a part."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
