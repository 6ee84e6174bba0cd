"""Results that others published, as rows beside ours: the JSON files of peft's method comparison (MetaMathQA).

They lie in https://github.com/huggingface/peft under method_comparison/MetaMathQA/results; nothing is downloaded here.
"""

import hashlib
import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.config.errors import ConfigError
from harness.report.scores import plain
from harness.tracking.entries import run_params

SOURCE = "peft's method comparison"
TASK = "peft/MetaMathQA"
DATA = {"metamath", "gsm8k"}
# GSM8K's test split (Cobbe et al. 2021, arXiv 2110.14168), of which each accuracy is a share.
QUESTIONS = 1319
# Their folder names -> ours, of methods that are the same.
METHODS = {
    "full-finetuning": "full",
    "prefixtuning": "prefix_tuning",
    "ptuning": "p_tuning",
    "adaptionprompt": "adaption_prompt",
}
STATUS = {"success": "finished", "failed": "failed", "canceled": "interrupted"}
# Of peft_config: what tells of the library or the base model, not of the method.
NOT_OF_METHOD = ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode")
# Their training parameters -> ours, where the definition is the same; the others keep their names.
TRAIN = {"max_steps": "max_steps", "batch_size": "batch_size", "grad_norm_clip": "max_grad_norm", "dtype": "precision"}
TRAIN |= {"lr_scheduler": "scheduler", "use_gc": "gradient_checkpointing"}


def read(places: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Read files, and the JSON files of folders, as a store would give runs back; and say what is damaged.

    Raises:
        ConfigError: There is no such file or folder.
    """
    paths: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise ConfigError(f"others={place}: there is no such file or folder")
        paths += sorted(place.rglob("*.json")) if place.is_dir() else [place]
    runs: dict[str, dict[str, Any]] = {}
    damaged = []
    for path in paths:
        try:
            run = _run(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else plain(error)
            damaged.append(f"skipped: {path} is no result of {SOURCE}, or damaged: {reason}")
            continue
        runs.setdefault(run["run_id"], run)
    return sorted(runs.values(), key=lambda run: (run["ended_at"], run["run_id"])), damaged


def _run(content: dict[str, Any]) -> dict[str, Any]:
    info, trained, meta = content["run_info"], content["train_info"], content["meta_info"]
    if set(meta["dataset_info"]) != DATA:
        raise ValueError(f"its data sets are {', '.join(sorted(meta['dataset_info']))}, not those of MetaMathQA")
    told, name = info["train_config"], str(info["experiment_name"])
    family, _, variant = name.partition("/")
    method = METHODS.get(family, family)
    config = {
        "model": {"name": told["model_id"], "path": told["model_id"], "revision": meta["model_info"]["sha"]},
        "task": {"name": TASK, "max_length": told["max_seq_length"]},
        "method": {"name": method, "variant": variant, **_method(info["peft_config"] or {})},
        "train": _train(told),
        "seed": told["seed"],
    }
    began = round(1000 * datetime.fromisoformat(info["created_at"]).timestamp())
    status = STATUS.get(trained["status"], "failed")
    tags = {"method": method, "task": TASK, "model": told["model_id"], "status": status, "stage": "run"}
    identity = hashlib.sha256(json.dumps([name, info["created_at"]]).encode()).hexdigest()
    return {
        "run_id": identity[:32],
        "mlflow_run_id": "",
        "name": f"{name} ({SOURCE})",
        "artifact_uri": "",
        "started_at": began,
        "ended_at": began + round(1000 * info["total_time"]),
        "tags": tags | {"identity": identity, "primary_metric": "accuracy", "error": info["error_msg"]},
        "params": run_params(config),
        "metrics": {key: float(value) for key, value in _metrics(trained, info).items() if value is not None},
        "source": SOURCE,
    }


def _method(given: dict[str, Any]) -> dict[str, Any]:
    """Sort lists that came from sets, whose order says nothing."""
    return {
        key: sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
        for key, value in given.items()
        if key not in NOT_OF_METHOD
    }


def _train(told: dict[str, Any]) -> dict[str, Any]:
    optimizer = told["optimizer_kwargs"]
    rest = {key: value for key, value in told.items() if key not in ("model_id", "max_seq_length", "seed")}
    return {TRAIN.get(key, key): value for key, value in rest.items() if key != "optimizer_kwargs"} | {
        "learning_rate": optimizer.get("lr"),
        **{key: value for key, value in optimizer.items() if key != "lr"},
    }


def _metrics(trained: dict[str, Any], info: dict[str, Any]) -> dict[str, float | None]:
    """Map what is defined as ours is; anything else is left out, as if it were not measured.

    Their accuracy on GSM8K's test rows is taken once, at the end, like ours on the validation split; that on fifty
    validation rows by the way, like ours on the development split. Seconds and tokens are those of training steps, as
    ours are; `train_time` has loading in it. Memory is the allocator's over the whole run, ours that of one step. Their
    forgetting is a loss without the shift by a token. Of full fine-tuning they estimate the size of the file.
    """
    lines = [line for line in trained["metrics"] if isinstance(line, dict)]
    steps = [line["train time"] for line in lines if "train time" in line]
    tokens = next((line["train total tokens"] for line in lines if "train total tokens" in line), None)
    whole = info["peft_config"] is None
    found: dict[str, float | None] = {
        "validation.accuracy": next((line["test accuracy"] for line in lines if "test accuracy" in line), None),
        "validation.rows": QUESTIONS if any("test accuracy" in line for line in lines) else None,
        "development.accuracy": next((x["valid accuracy"] for x in reversed(lines) if "valid accuracy" in x), None),
        "cost.trainable_parameters": trained["num_trainable_params"],
        "cost.total_parameters": trained["num_total_params"],
        "cost.adapter_file_bytes": None if whole else trained["file_size"],
        "cost.train_seconds": math.fsum(steps) if steps else None,
        "cost.tokens_per_second": tokens / math.fsum(steps) if tokens and steps else None,
        "cost.total_seconds": info["total_time"],
    }
    for key, value in found.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{key.partition('.')[2]} is {value!r}, not a number")
    return found
