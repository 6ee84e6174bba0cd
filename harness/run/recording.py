"""Record of a run: how it begins, its configuration and its steps as files, and where it ended in one line."""

import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from harness.config.schema import Experiment
from harness.run.inputs import Inputs
from harness.tasks.scoring import row_ids
from harness.tracking import record, uri
from harness.tracking.record import RunRecord, Status
from harness.training.batches import Row
from harness.training.memory import is_out_of_memory
from harness.training.state import Diverged

# Of a run in a pack, what is of itself: counts, and its file.
OWN_COSTS = (
    "adapter_parameters",
    "head_parameters",
    "trainable_parameters",
    "total_parameters",
    "adapter_file_bytes",
    "padding_share",
)
NOT_MEASURED = "not measured by this version"


def begin(inputs: Inputs) -> RunRecord:
    """The record of a run that starts now."""
    experiment = inputs.experiment
    return RunRecord(
        run_id=secrets.token_hex(16),
        status=Status.finished,
        error=None,
        identity=inputs.identity,
        sweep={"name": experiment.sweep.name, "stage": experiment.sweep.stage.value},
        config=recorded_config(experiment),
        scores={"primary_metric": experiment.task.primary_metric},
        started_at=datetime.now(UTC).isoformat(),
    )


def why_null(result: RunRecord, experiment: Experiment) -> str:
    """Why a cost has no value."""
    if result.status != Status.finished:
        return f"the run {result.status}"
    return NOT_MEASURED if experiment.measure.costs else "measure.costs=false"


def leave_out_shared_costs(result: RunRecord, together: int) -> None:
    """Leave out every second and byte of a run that trained in a pack: they are the pack's."""
    for name in result.cost:
        if name not in OWN_COSTS:
            result.cost[name] = None
            result.unmeasured[f"cost.{name}"] = f"packed, K={together}: it trained with other runs on one backbone"


def describe(result: RunRecord) -> str:
    """Where a finished run ended, in one line."""
    metric, cost = result.scores["primary_metric"], result.cost
    split = "validation" if result.scores["validation"] else "development"
    scored = f"{split} {metric} {result.scores[split][metric]:.3f}" if result.scores[split] else "not scored"
    against = "".join(
        f" ({name} {scores[metric]:.3f})"
        for name in ("majority", "base")
        if (scores := result.scores[name]) and metric in scores
    )
    share = cost["trainable_parameters"] / cost["total_parameters"]
    seconds = cost["train_seconds"]
    pace = "in a pack" if seconds is None else f"in {seconds:.0f} s at {cost['tokens_per_second']:,.0f} tokens/s"
    return f"{scored}{against}; {cost['trainable_parameters']:,} parameters trained, {share:.3%} of the model, {pace}"


def judge(error: Exception) -> tuple[Status, str]:
    """How a run ended that raised, and one sentence saying why."""
    sentence = str(error).strip().split("\n")[0] or type(error).__name__
    if isinstance(error, Diverged):
        return Status.diverged, sentence
    if is_out_of_memory(error):
        # What a GPU's allocator goes on to say is of its innards.
        sentence = sentence.partition(" Including non-PyTorch memory")[0].rstrip(".")
        advice = "a smaller train.batch_size or task.max_length, or train.gradient_checkpointing=true, needs less"
        return Status.out_of_memory, f"{sentence}; {advice}"
    return Status.failed, f"{type(error).__name__}: {sentence}"


def recorded_config(experiment: Experiment) -> dict[str, Any]:
    resolved = dict(experiment.resolved)
    if resolved["tracking"]["uri"] is not None:
        resolved["tracking"] = {**resolved["tracking"], "uri": uri.redact(resolved["tracking"]["uri"])}
    return resolved


def write_config(run_dir: Path, resolved: dict[str, Any]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    record.write_atomically(run_dir / record.CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(resolved)))


def write_steps(run_dir: Path, history: list[dict[str, float]]) -> None:
    lines = [json.dumps(record.finite(line)) + "\n" for line in history]
    record.write_atomically(run_dir / record.STEPS_FILE, "".join(lines))


def write_outcomes(run_dir: Path, outcomes: list[dict[str, Any]], rows: list[Row]) -> None:
    """Write what the rows of the development split came to at each evaluation: step, idx, and what the metric needs."""
    found = [dict(one) for one in outcomes if len(one) > 1]
    if not found:
        return
    import pandas as pd

    idx = row_ids(rows)
    frame = pd.concat([pd.DataFrame({"step": one.pop("step"), "idx": one.pop("idx", idx), **one}) for one in found])
    if not pd.api.types.is_integer_dtype(frame["idx"]):
        frame["idx"] = frame["idx"].map(str)
    frame.to_parquet(run_dir / record.DEVELOPMENT_FILE, index=False)
