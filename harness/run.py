"""One run, top to bottom: config -> task data -> model -> method -> train -> evaluate -> measure -> track."""

import logging
import secrets
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from harness import __version__, checkpoints, config, distributed, forgetting, kept, models, record, tracking
from harness.config import ConfigError, Experiment, TrackingKind
from harness.interrupts import kill_as_interrupt
from harness.methods import trained_parameters
from harness.provenance import command_line
from harness.record import RunRecord, Status
from harness.trained import UNTOUCHED, Trained

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import measure
    from harness.evaluate import Evaluation
    from harness.methods import Adapter
    from harness.tasks import Features, TaskData

log = logging.getLogger(__name__)

NOT_MEASURED = "not measured by this version"


@dataclass(frozen=True)
class Inputs:
    """What a run stands on, found before anything is loaded."""

    experiment: Experiment
    folder: Path
    revisions: dict[str, str]
    identity: str
    # The identity of the same run to its end: what a run that was stopped goes on as.
    whole: str


def prepare(cfg: DictConfig) -> Inputs:
    """Check a configuration and find its files; loads neither weights nor rows.

    Raises:
        ConfigError: Something in the configuration, or a file that it names, is wrong.
    """
    experiment = config.build(cfg)
    folder, model = _backbone(experiment)
    experiment = _as_stored(experiment, folder)
    revisions = {"model": model, **_texts(experiment)}
    to_the_end = replace(experiment, sweep=replace(experiment.sweep, stop_share=None))
    identities = (config.identity(one, revisions, __version__) for one in (experiment, to_the_end))
    return Inputs(experiment, folder, revisions, *identities)


def _backbone(experiment: Experiment) -> tuple[Path, str]:
    """A backbone's folder and the hash of its files."""
    folder = models.resolve(experiment.model)
    return folder, models.revision(experiment.model, folder)


def _as_stored(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with its backbone quantized as the checkpoint is already, for every rule and the record."""
    found = checkpoints.as_stored(experiment.model, folder)
    if not found:
        return experiment
    told = {**experiment.resolved["model"], **found, "quantization": found["quantization"].value}
    return replace(
        experiment, model=replace(experiment.model, **found), resolved={**experiment.resolved, "model": told}
    )


def _texts(experiment: Experiment) -> dict[str, str]:
    """The hashes of the rows and of the general text that a run reads."""
    return {"data": experiment.task.revision(), "forgetting": forgetting.revision(experiment.forgetting.text)}


def identify(cfg: DictConfig) -> str:
    """The identity of the run that a configuration describes, without loading a model."""
    return prepare(cfg).identity


class Identities:
    """The identities of the runs that many configurations describe, as `identify` gives them.

    In the life of this object each different section is checked once, and each backbone and data set asked once for
    the hashes of its files: what changes on disk afterwards is seen by the next.
    """

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}
        config.register_resolvers()

    def __call__(self, plain: dict[str, Any]) -> str:
        """The identity of a resolved configuration.

        Args:
            plain: Its sections as plain values, without Hydra's own.

        Raises:
            ConfigError: Something in it, or a file that it names, is wrong.
        """
        if (plain.get("sweep") or {}).get("budget") is not None:
            plain = self._within_budget(plain)
        experiment = config.assemble(plain, self._section)
        resolved = experiment.resolved
        folder, model = self._once("backbone", resolved["model"], lambda: _backbone(experiment))
        experiment = _as_stored(experiment, folder)
        texts = self._once("texts", (resolved["task"], resolved["forgetting"]), lambda: _texts(experiment))
        return config.identity(experiment, {"model": model, **texts}, __version__)

    def _section(self, key: str, values: Any) -> tuple[Any, Any]:
        return self._once(key, values, lambda: config.make_section(key, values))

    def _within_budget(self, plain: dict[str, Any]) -> dict[str, Any]:
        """The configuration with the size that a budget comes to, which depends on neither seed nor training."""
        sweep = plain["sweep"]
        decisive = [plain.get(key) for key in ("model", "task", "method")], sweep["budget"]
        sized = self._once("sized", decisive, lambda: config.assemble(plain, self._section).resolved["method"])
        return {**plain, "method": sized, "sweep": {**sweep, "budget": None}}

    def _once(self, kind: str, given: Any, make: "Callable[[], Any]") -> Any:
        # Not by equality: 1, 1.0 and true are equal, and a seed may not be true.
        place = f"{kind} {given!r}"
        if place not in self.made:
            self.made[place] = make()
        return self.made[place]


def job(cfg: DictConfig) -> dict[str, Any]:
    """Run one point in the current Hydra job and record how it ended, also when it failed.

    Returns:
        status, error, identity, run_id, scores, run_dir, seconds, tracked, checkpoint (of a run that was stopped).

    Raises:
        ConfigError: A user's mistake, found before anything was computed.
    """
    from hydra.core.hydra_config import HydraConfig

    inputs = prepare(cfg)
    store, hydra = inputs.experiment.tracking, HydraConfig.get()
    # A sweep asked before its first point; if the store fails meanwhile, the others run and keep their records.
    if store.kind is not TrackingKind.none and OmegaConf.is_missing(hydra.job, "num"):
        tracking.check(str(store.uri))
    run_dir = Path(hydra.runtime.output_dir)
    processes = distributed.wanted(inputs.experiment)
    with kill_as_interrupt():
        result = run(inputs, run_dir) if processes == 1 else _run_together(inputs, run_dir, processes)
    return {
        "status": result.status,
        "error": result.error,
        "identity": result.identity,
        "run_id": result.run_id,
        "scores": result.scores,
        "run_dir": str(run_dir),
        "seconds": result.cost["total_seconds"],
        "tracked": _track(result, run_dir, inputs.experiment),
        "checkpoint": result.provenance.get("checkpoint"),
    }


def _run_together(inputs: Inputs, run_dir: Path, count: int) -> RunRecord:
    """Carry out a run on several processes, the first of which records it."""
    _write_config(run_dir, _recorded_config(inputs.experiment))
    result = distributed.run(inputs.experiment, count, run_dir)
    if result is None:
        result = begin(inputs)
        result.status, result.error = Status.failed, f"one of its {count} processes ended; what it wrote says why"
        result.ended_at = datetime.now(UTC).isoformat()
        result.cost["total_seconds"] = None
        result.unmeasured["cost.total_seconds"] = "the run failed"
    result.provenance["command"] = command_line()
    result.write(run_dir)
    return result


def begin(inputs: Inputs) -> RunRecord:
    """The record of a run that starts now."""
    experiment = inputs.experiment
    return RunRecord(
        run_id=secrets.token_hex(16),
        status=Status.finished,
        error=None,
        identity=inputs.identity,
        sweep={"name": experiment.sweep.name, "stage": experiment.sweep.stage.value},
        config=_recorded_config(experiment),
        scores={"primary_metric": experiment.task.primary_metric},
        started_at=datetime.now(UTC).isoformat(),
    )


def run(inputs: Inputs, run_dir: Path, processes: distributed.Processes | None = None) -> RunRecord:
    """Carry out a run and write `result.json`, whatever happens; raises only ConfigError.

    Args:
        processes: Those that share its training; null: alone. The first of them records. From there it goes on alone,
            unless the weights are spread over all of them.
    """
    experiment, processes = inputs.experiment, processes or distributed.Processes()
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


def _recorded_config(experiment: Experiment) -> dict[str, Any]:
    resolved = dict(experiment.resolved)
    if resolved["tracking"]["uri"] is not None:
        resolved["tracking"] = {**resolved["tracking"], "uri": tracking.redact(resolved["tracking"]["uri"])}
    return resolved


def _carry_out(inputs: Inputs, run_dir: Path, result: RunRecord, processes: distributed.Processes) -> None:
    """The page to read: every step of a run in its order."""
    import torch

    from harness import architectures, measure, speed
    from harness.evaluate import Subject, evaluate, write_predictions
    from harness.methods import saved
    from harness.provenance import provenance
    from harness.train import Trainer

    experiment, cost = inputs.experiment, result.cost
    task, method = experiment.task, experiment.method
    saved.check_free(run_dir / record.ADAPTER_FOLDER, inputs.identity)
    _write_config(run_dir, result.config)
    models.quiet_libraries()
    device = processes.device or models.choose_device(experiment.train.device.value)
    autocast = models.choose_precision(experiment.train.precision, device)
    seeds = {"seed": experiment.seed, "data_seed": experiment.data_seed}
    result.provenance = provenance(device, autocast or torch.float32, seeds, inputs.revisions)
    result.provenance["processes"] = processes.count
    result.provenance["distributed"] = experiment.train.distributed.value
    speed.warn_of_others(device)
    energy = speed.Energy(device)
    resident_from_here = speed.reset_peak_resident_size()

    # config -> task data
    kept.new_run()
    rows_of = inputs.revisions["data"], experiment.resolved["task"]
    backbone_of = inputs.revisions["model"], experiment.resolved["model"]
    with speed.timed(cost, "load_seconds"):
        data = kept.once("rows", rows_of, task.load)
    result.provenance["data"] = dict(data.notes)
    configuration = models.load_config(inputs.folder, task.labels_count, task.regression, getattr(task, "labels", None))
    architecture = architectures.architecture(configuration)
    tokenizer = kept.once("tokenizer", backbone_of, lambda: models.load_tokenizer(inputs.folder, architecture))
    task.check_method(method)
    models.check_fit(inputs.folder, tokenizer, configuration, task.lengths(), method.virtual_tokens())
    with speed.timed(cost, "tokenize_seconds"):
        features = kept.once(
            "features",
            (rows_of, backbone_of),
            lambda: {split: task.encode(rows, tokenizer) for split, rows in data.splits.items()},
        )
    result.provenance["from_earlier_run"] = kept.used()
    wanted = experiment.forgetting
    text = forgetting.read_text(wanted.text, tokenizer, wanted.tokens) if wanted.text else None
    trained_on = _with_something_to_learn(features, experiment, result)

    # -> model
    torch.manual_seed(experiment.seed)
    skeleton = models.empty_model(configuration, task.kind, models.choose_quantization(experiment))
    models.set_checkpointing(skeleton.model, experiment.train.gradient_checkpointing)
    method.expected_parameters(skeleton)  # refuses what can't go together before the weights are read
    with speed.timed(cost, "load_seconds"):
        backbone = models.load_model(inputs.folder, configuration, experiment, autocast or torch.float32)
    result.provenance["renewed_head"] = list(backbone.renewed)
    backbone.model.config.pad_token_id = tokenizer.pad_token_id
    models.set_checkpointing(backbone.model, experiment.train.gradient_checkpointing)

    # -> method
    adapter = method.attach(backbone)
    cost |= measure.parameters(adapter, method.expected_parameters(replace(skeleton, head=backbone.head)))
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
        collate,
        experiment.train,
        experiment.data_seed,
        autocast,
        lambda batch: task.loss(adapter, batch),
        lambda: score("development"),
        task.primary_metric,
        inputs.whole,
        experiment.measure.costs,
        processes,
        experiment.sweep.stop_share,
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
    measured = Trained(inputs, run_dir, configuration, backbone, subject, features, trainer, text, result)
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
    from harness.methods import card, saved

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


def _write_config(run_dir: Path, resolved: dict[str, Any]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    record.write_atomically(run_dir / record.CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(resolved)))


def _write_steps(run_dir: Path, history: list[dict[str, float]]) -> None:
    import json

    lines = [json.dumps(record.finite(line)) + "\n" for line in history]
    record.write_atomically(run_dir / record.STEPS_FILE, "".join(lines))


def _judge(error: Exception) -> tuple[Status, str]:
    """How a run ended that raised, and one sentence saying why."""
    import torch

    from harness.train import Diverged

    sentence = str(error).strip().split("\n")[0] or type(error).__name__
    if isinstance(error, Diverged):
        return Status.diverged, sentence
    allocation_failed = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or allocation_failed:
        advice = "a smaller train.batch_size or task.max_length, or train.gradient_checkpointing=true, needs less"
        return Status.out_of_memory, f"{sentence}; {advice}"
    return Status.failed, f"{type(error).__name__}: {sentence}"


def _track(result: RunRecord, run_dir: Path, experiment: Experiment) -> bool | None:
    """Send a recorded run to the store; what can't be sent stays in the run directory and can be sent later.

    Returns:
        Whether the store has it; null where no store is wanted, or there is no record to send.
    """
    store = experiment.tracking
    if store.kind is TrackingKind.none or not (run_dir / record.RESULT_FILE).exists():
        return None
    try:
        tracking.send(run_dir, str(store.uri), store.experiment)
    except Exception as error:  # any failure of a store, of its database or of the network to it
        sentence = tracking.redact(str(error).strip().split("\n")[0])
        log.error(
            "the run is safe in %s but could not be tracked (%s); send it later: harness-report --sync %s",
            run_dir,
            sentence,
            run_dir,
        )
        return False
    return True
