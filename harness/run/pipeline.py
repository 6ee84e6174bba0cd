"""One run, top to bottom: config -> task data -> model -> method -> train -> evaluate -> measure -> track."""

import json
import logging
import secrets
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from harness import measure, methods, models
from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.measure import energy as measure_energy
from harness.measure import speed
from harness.methods import card, earlier, saved, trained_parameters
from harness.models import architectures
from harness.run.after_training import UNTOUCHED, Trained
from harness.run.inputs import Inputs
from harness.tasks import forgetting
from harness.tasks.scoring import evaluate, write_predictions
from harness.tracking import record, uri
from harness.tracking.provenance import provenance
from harness.tracking.record import RunRecord, Status
from harness.training import cache
from harness.training.evaluation import Subject
from harness.training.processes import Processes
from harness.training.trainer import Diverged, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import measure
    from harness.methods import Adapter
    from harness.tasks import TaskData
    from harness.training.batches import Features
    from harness.training.evaluation import Evaluation

log = logging.getLogger(__name__)

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


def run(inputs: Inputs, run_dir: Path, processes: Processes | None = None) -> RunRecord:
    """Carry out a run and write `result.json`, whatever happens; raises only ConfigError.

    Args:
        processes: Those that share its training; null: alone. The first of them records. From there it goes on alone,
            unless the weights are spread over all of them.
    """
    experiment, processes = inputs.experiment, processes or Processes()
    result = begin(inputs)
    start = time.perf_counter()
    try:
        _carry_out(inputs, run_dir, result, processes)
    except ConfigError:
        raise
    except KeyboardInterrupt:
        result.status, result.error = Status.interrupted, "stopped by the user; train.resume=true goes on from here"
    except Exception as error:
        result.status, result.error = _judge(error)
        log.error("%s: %s", result.status, result.error, exc_info=result.status is Status.failed)
    if not processes.is_first:
        return result
    if result.status in (Status.finished, Status.stopped):
        log.info("%s: %s; %s", result.status, describe(result), run_dir / record.RESULT_FILE)
    result.cost["total_seconds"] = time.perf_counter() - start
    result.ended_at = datetime.now(UTC).isoformat()
    for name, value in result.cost.items():
        if value is None:
            result.unmeasured.setdefault(f"cost.{name}", _why_null(result, experiment))
    try:
        result.write(run_dir)
    except OSError as error:
        result.status = Status.failed
        result.error = f"{run_dir / record.RESULT_FILE} can't be written: {error.strerror}; the run is lost with it"
    return result


def _why_null(result: RunRecord, experiment: Experiment) -> str:
    if result.status != Status.finished:
        return f"the run {result.status}"
    return NOT_MEASURED if experiment.measure.costs else "measure.costs=false"


def describe(result: RunRecord) -> str:
    """Where a finished run ended, in one line."""
    metric, cost = result.scores["primary_metric"], result.cost
    split = "validation" if result.scores["validation"] else "development"
    against = "".join(
        f" ({name} {scores[metric]:.3f})"
        for name in ("majority", "base")
        if (scores := result.scores[name]) and metric in scores
    )
    share = cost["trainable_parameters"] / cost["total_parameters"]
    return (
        f"{split} {metric} {result.scores[split][metric]:.3f}{against}; "
        f"{cost['trainable_parameters']:,} parameters trained, {share:.3%} of the model, "
        f"in {cost['train_seconds']:.0f} s at {cost['tokens_per_second']:,.0f} tokens/s"
    )


def recorded_config(experiment: Experiment) -> dict[str, Any]:
    resolved = dict(experiment.resolved)
    if resolved["tracking"]["uri"] is not None:
        resolved["tracking"] = {**resolved["tracking"], "uri": uri.redact(resolved["tracking"]["uri"])}
    return resolved


def _carry_out(inputs: Inputs, run_dir: Path, result: RunRecord, processes: Processes) -> None:
    """The page to read: every step of a run in its order."""
    import torch

    experiment, cost = inputs.experiment, result.cost
    task, method = experiment.task, experiment.method
    saved.check_free(run_dir / record.ADAPTER_FOLDER, inputs.identity)
    write_config(run_dir, result.config)
    models.quiet_libraries()
    device = processes.device or models.choose_device(experiment.train.device.value)
    autocast = models.choose_precision(experiment.train.precision, device)
    seeds = {"seed": experiment.seed, "data_seed": experiment.data_seed}
    result.provenance = provenance(device, autocast or torch.float32, seeds, inputs.revisions)
    result.provenance["processes"] = processes.count
    result.provenance["distributed"] = experiment.train.distributed.value
    speed.warn_of_others(device)
    energy = measure_energy.Energy(device)
    resident_from_here = speed.reset_peak_resident_size()

    # config -> task data
    cache.new_run()
    rows_of = inputs.revisions["data"], experiment.resolved["task"]
    backbone_of = inputs.revisions["model"], experiment.resolved["model"]
    with speed.timed(cost, "load_seconds"):
        data = cache.once("rows", rows_of, task.load)
    result.provenance["data"] = dict(data.notes)
    configuration = models.load_config(inputs.folder, task.labels_count, task.regression)
    architecture = architectures.architecture(configuration)
    tokenizer = cache.once("tokenizer", backbone_of, lambda: models.load_tokenizer(inputs.folder, architecture))
    task.check_method(method)
    models.check_fit(inputs.folder, tokenizer, configuration, task.lengths(), method.virtual_tokens())
    with speed.timed(cost, "tokenize_seconds"):
        features = cache.once(
            "features",
            (rows_of, backbone_of),
            lambda: {split: task.encode(rows, tokenizer) for split, rows in data.splits.items()},
        )
    result.provenance["from_earlier_run"] = cache.used()
    wanted = experiment.forgetting
    text = forgetting.read_text(wanted.text, tokenizer, wanted.tokens) if wanted.text else None
    trained_on = _with_something_to_learn(features, experiment, result)

    # -> model
    torch.manual_seed(experiment.seed)
    skeleton = models.empty_model(configuration, task.kind, models.choose_quantization(experiment))
    models.set_checkpointing(skeleton.model, experiment.train.gradient_checkpointing)
    method.expected_parameters(skeleton)  # refuses what can't go together before the weights are read
    with speed.timed(cost, "load_seconds"):
        backbone = earlier.load_model(inputs.folder, configuration, experiment, autocast or torch.float32)
    backbone.model.config.pad_token_id = tokenizer.pad_token_id
    models.set_checkpointing(backbone.model, experiment.train.gradient_checkpointing)

    # -> method
    adapter = method.attach(backbone)
    cost |= methods.parameters(adapter, method.expected_parameters(replace(skeleton, head=backbone.head)))
    trained = trained_parameters(adapter).values()
    for parameter in trained:
        # Frozen weights stay in the precision that is computed in; trained ones need float32 for small steps.
        parameter.data = parameter.data.float()
    processes.spread_frozen(map(backbone.model.get_submodule, backbone.layers()), [*trained, *adapter.kept_whole()])
    adapter.model.to(device)
    cost["weight_bytes"] = measure.weight_bytes(adapter.model)
    collate = task.collator(backbone, tokenizer, device)
    subject = Subject(adapter, tokenizer, collate, experiment.evaluate.batch_size, autocast)

    def score(split: str, meter: "measure.ForwardMeter | None" = None) -> "Evaluation":
        return evaluate(task, subject, features[split], data.splits[split], meter)

    log.info("%s", "; ".join(f"{len(rows)} {split} rows" for split, rows in data.splits.items()))
    log.info("%s trains %s of %s parameters", method.name, cost["trainable_parameters"], cost["total_parameters"])

    # -> train
    torch.manual_seed(experiment.seed)
    trainer = Trainer(
        adapter,
        trained_on,
        collate=collate,
        settings=experiment.train,
        data_seed=experiment.data_seed,
        autocast=autocast,
        loss=lambda batch: task.loss(adapter, batch),
        score=lambda: score("development"),
        primary_metric=task.primary_metric,
        identity=inputs.whole,
        metered=experiment.measure.costs,
        processes=processes,
        stop_share=experiment.sweep.stop_share,
    )
    try:
        trainer.fit()
    finally:
        _write_steps(run_dir, trainer.progress.history)
        cost |= trainer.costs()
        counted = trainer.progress.step_costs
        metered = ("rows", "length", "tokens", "flops", "seconds")
        result.provenance["metered_step"] = {name: counted[name] for name in metered if name in counted}
    if not (processes.is_first or processes.spread):
        return

    # -> evaluate
    meter = measure.ForwardMeter(adapter.model) if experiment.measure.costs else None
    evaluations = {"development": trainer.best_evaluation or score("development")}
    if experiment.evaluate.validation:
        evaluations |= {split: score(split, meter) for split in data.splits if split not in ("train", "development")}
        cost["evaluation_seconds"] += sum(e.seconds for split, e in evaluations.items() if split != "development")
        cost |= evaluations["validation"].costs
    result.scores |= gather_scores(task, data, evaluations, result.unmeasured)
    with speed.timed(cost, "measure_seconds"):
        result.scores["base"] = _score_base(experiment, adapter, score, result)

    # -> measure
    cost["process_peak_bytes"] = speed.peak_resident_bytes() if resident_from_here else None
    with speed.timed(cost, "save_seconds"):
        rows = {split: data.splits[split] for split in evaluations}
        write_predictions(run_dir / record.PREDICTIONS_FILE, evaluations, rows)
        _save_adapter(adapter, backbone.head, run_dir / record.ADAPTER_FOLDER, inputs, result)
    cost["energy_joules"] = energy.joules()
    if cost["energy_joules"] is None:
        result.unmeasured["cost.energy_joules"] = energy.reason
    measured = Trained(
        experiment, inputs.folder, run_dir, configuration, backbone, subject, features, trainer, text, result
    )
    with speed.timed(cost, "forgetting_seconds"):
        measured.ask_for_general_text()
    with speed.timed(cost, "measure_seconds"):
        measured.measure(meter)
    if trainer.stopped:
        result.status = Status.stopped
        result.provenance["checkpoint"] = str(trainer.checkpoint)
    else:
        trainer.discard_checkpoint()


def _with_something_to_learn(
    features: "dict[str, list[Features]]", experiment: Experiment, result: RunRecord
) -> "list[Features]":
    """The training rows that something can be learnt from; notes in provenance how many answers were cut off.

    Raises:
        ConfigError: None is left.
    """
    cut = {
        split: {"whole": sum(not row["weight"] for row in rows), "in_part": sum(row.get("cut", False) for row in rows)}
        for split, rows in features.items()
    }
    result.provenance["data"]["answers_cut_off"] = cut
    for split, rows in features.items():
        if not any(row["weight"] for row in rows):
            raise ConfigError(
                f"task.max_length={experiment.task.max_length}: it cuts the answer off every one of {len(rows)} "
                f"{split} rows; a larger one is needed"
            )
        if any(cut[split].values()):
            whole, part = cut[split].values()
            log.warning("task.max_length cuts the answers of %d %s rows off whole, of %d in part", whole, split, part)
    return experiment.task.train_on(features["train"])


def _score_base(
    experiment: Experiment, adapter: "Adapter", score: "Callable[[str], Evaluation]", result: RunRecord
) -> dict[str, float] | None:
    """The validation scores of the backbone alone, where it can answer without a new head."""
    if experiment.task.labels_count is not None:
        result.unmeasured["scores.base"] = "the task needs a new head, which the backbone alone has not"
    elif experiment.task.against_backbone():
        result.unmeasured["scores.base"] = "the scores are held against the backbone alone already"
    elif not (experiment.evaluate.validation and experiment.evaluate.base):
        which = "base" if experiment.evaluate.validation else "validation"
        result.unmeasured["scores.base"] = f"evaluate.{which}=false"
    else:
        with adapter.disabled():
            return score("validation").scores
    return None


def _save_adapter(adapter: "Adapter", head: tuple[str, ...], folder: Path, inputs: Inputs, result: RunRecord) -> None:
    """Save adapter and head with what brings them back and a model card; measures the bytes of their weights."""
    experiment = inputs.experiment
    with saved.whole_folder(folder, experiment.train.keep_adapter) as partial:
        adapter.save(partial)
        result.cost["adapter_file_bytes"] = sum(path.stat().st_size for path in partial.glob(models.WEIGHTS))
        if experiment.train.keep_adapter:
            packages = result.provenance["packages"]
            manifest = saved.write_manifest(
                partial, experiment, inputs.identity, inputs.revisions["model"], head, packages
            )
            card.write_card(partial, manifest, result)


def gather_scores(
    task: Any, data: "TaskData", evaluations: "dict[str, Evaluation]", unmeasured: dict[str, str]
) -> dict[str, Any]:
    """Scores by split; further evaluation splits are validation metrics with the split's name in front."""
    scores: dict[str, Any] = {"development": evaluations["development"].scores, "validation": None, "majority": None}
    if "validation" not in evaluations:
        unmeasured |= {"scores.validation": UNTOUCHED, "scores.majority": UNTOUCHED}
        return scores
    validation = dict(evaluations["validation"].scores)
    for split in sorted(set(evaluations) - {"development", "validation"}):
        validation |= {f"{split}.{name}": value for name, value in evaluations[split].scores.items()}
    majority = task.majority(data, "validation")
    if majority is None:
        unmeasured["scores.majority"] = "no one answer is common to the rows"
    return {**scores, "validation": validation, "majority": majority}


def write_config(run_dir: Path, resolved: dict[str, Any]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    record.write_atomically(run_dir / record.CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(resolved)))


def _write_steps(run_dir: Path, history: list[dict[str, float]]) -> None:
    lines = [json.dumps(record.finite(line)) + "\n" for line in history]
    record.write_atomically(run_dir / record.STEPS_FILE, "".join(lines))


def _judge(error: Exception) -> tuple[Status, str]:
    """How a run ended that raised, and one sentence saying why."""
    import torch

    sentence = str(error).strip().split("\n")[0] or type(error).__name__
    if isinstance(error, Diverged):
        return Status.diverged, sentence
    allocation_failed = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or allocation_failed:
        advice = "a smaller train.batch_size or task.max_length, or train.gradient_checkpointing=true, needs less"
        return Status.out_of_memory, f"{sentence}; {advice}"
    return Status.failed, f"{type(error).__name__}: {sentence}"
