"""One run, top to bottom: config -> task data -> model -> method -> train -> evaluate -> measure -> track."""

import logging
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness import measure, methods, models
from harness.config import identity as config_identity
from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.measure import speed
from harness.measure.energy import Energy
from harness.methods import card, earlier, saved
from harness.methods.packed import SharedWeights
from harness.models.architectures import Backbone
from harness.models.products import computed_in, products_of
from harness.run import cached_features
from harness.run.after_training import Trained
from harness.run.inputs import Inputs, on_its_backbone
from harness.run.loading import Loaded, load
from harness.run.recording import (
    begin,
    describe,
    judge,
    leave_out_shared_costs,
    why_null,
    write_config,
    write_outcomes,
    write_steps,
)
from harness.run.scores import gather_scores, score_base
from harness.run.watching import RunWatch, watching
from harness.tasks.scoring import evaluate, write_predictions
from harness.tracking import record
from harness.tracking.entries import run_params
from harness.tracking.provenance import provenance
from harness.tracking.record import RunRecord, Status
from harness.training import checkpoint
from harness.training.evaluation import Subject
from harness.training.interrupts import StopAsked
from harness.training.processes import Processes
from harness.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import device as Device
    from torch import dtype as Dtype

    from harness.methods import Adapter
    from harness.training.evaluation import Evaluation

log = logging.getLogger(__name__)

# A run as far as it has come: it gives its trainer out once, and ends with its record.
Page = Generator[Trainer, None, Any]


def run(inputs: Inputs, run_dir: Path, processes: Processes | None = None) -> RunRecord:
    """Carry out a run and write `result.json`, whatever happens; raises only ConfigError.

    Args:
        processes: Those that share its training; null: alone. The first of them records. From there it goes on alone,
            unless the weights are spread over all of them.
    """
    page = begun(Course.of(inputs, run_dir, processes))
    with products_of(inputs.experiment):
        try:
            trainer = next(page)
            try:
                trainer.fit()
            except BaseException as error:
                page.throw(error)
            next(page)
        except StopIteration as ended:
            return ended.value
    raise AssertionError("a run trains once")


def begun(course: "Course") -> Page:
    """A run that stops where it is ready to train, for who goes through it to do so, and gives its record in the end.

    Raises:
        ConfigError: A user's mistake; all else is in the record.
    """
    with watching(course.watch):
        return (yield from _run(course))


def _run(course: "Course") -> Page:
    """Carry out a run and record how it ended."""
    experiment, run_dir, result, processes = course.experiment, course.run_dir, course.result, course.processes
    start = time.perf_counter()
    try:
        yield from _carry_out(replace(course, inputs=on_its_backbone(course.inputs)))
    except ConfigError:
        raise
    except KeyboardInterrupt as interrupt:
        alone = isinstance(interrupt, StopAsked)
        result.provenance["stopped_alone"] = alone
        reason = "stopped where it was watched" if alone else "stopped by the user"
        result.status, result.error = Status.interrupted, f"{reason}; train.resume=true goes on from here"
    except Exception as error:
        result.status, result.error = judge(error)
        log.error("%s: %s", result.status, result.error, exc_info=result.status is Status.failed)
    if not processes.is_first:
        return result
    if result.status in (Status.finished, Status.stopped):
        log.info("%s: %s; %s", result.status, describe(result), run_dir / record.RESULT_FILE)
    result.cost["total_seconds"] = time.perf_counter() - start
    result.ended_at = datetime.now(UTC).isoformat()
    if together := result.provenance.get("packed"):
        leave_out_shared_costs(result, together)
    for name, value in result.cost.items():
        if value is None:
            result.unmeasured.setdefault(f"cost.{name}", why_null(result, experiment))
    try:
        result.write(run_dir)
    except OSError as error:
        result.status = Status.failed
        result.error = f"{run_dir / record.RESULT_FILE} can't be written: {error.strerror}; the run is lost with it"
    return result


@dataclass(frozen=True)
class Course:
    """A run on its way: what it stands on, where it writes, and the record that it fills.

    Attributes:
        processes: Those that share its training.
        watch: Takes its steps; null for a process that records nothing.
        weights: Frozen weights that it shares with other runs of its pack; null: alone.
    """

    inputs: Inputs
    run_dir: Path
    result: RunRecord
    processes: Processes
    watch: RunWatch | None
    weights: SharedWeights | None = None

    @classmethod
    def of(
        cls, inputs: Inputs, run_dir: Path, processes: Processes | None, weights: SharedWeights | None = None
    ) -> Self:
        """The course of a run that starts now."""
        result, processes = begin(inputs), processes or Processes()
        watch = RunWatch(run_dir, result, inputs.experiment) if processes.is_first else None
        return cls(inputs, run_dir, result, processes, watch, weights)

    @property
    def experiment(self) -> Experiment:
        return self.inputs.experiment


def _carry_out(course: Course) -> Page:
    """The page to read: every step of a run in its order."""
    import torch

    inputs, run_dir, result, processes = course.inputs, course.run_dir, course.result, course.processes
    experiment = course.experiment
    record.check_free(run_dir, inputs.identity, result.sweep.get("name"))
    saved.check_free(run_dir / record.ADAPTER_FOLDER, inputs.identity)
    write_config(run_dir, result.config)
    models.quiet_libraries()
    device = processes.device or models.choose_device(experiment.train.device.value)
    autocast = models.choose_precision(experiment.train.precision, device)
    seeds = {"seed": experiment.seed, "data_seed": experiment.data_seed}
    result.provenance = provenance(device, autocast or torch.float32, seeds, inputs.revisions)
    precision = experiment.train.precision
    products = computed_in(device.type, precision)
    result.provenance["precision"] = {"taken": precision.name, "why": inputs.why_precision, "products": products.name}
    result.provenance["again"] = list(inputs.again)
    result.provenance["processes"] = processes.count
    result.provenance["distributed"] = experiment.train.distributed.value
    speed.warn_of_others(device)
    energy = Energy(device)
    resident_from_here = speed.reset_peak_resident_size()

    # config -> task data
    loaded = load(inputs, result)
    # -> model
    skeleton, backbone = _load_backbone(course, loaded, autocast)
    # -> method
    subject = _attach(course, loaded, skeleton, backbone, device, autocast)

    def score(split: str, meter: "measure.ForwardMeter | None" = None) -> "Evaluation":
        return evaluate(experiment.task, subject, loaded.features[split], loaded.data.splits[split], meter)

    def sample_ceiling() -> None:
        # At the end a GPU is asked once: before, its products would count in the peaks of its memory.
        if experiment.measure.costs and device.type == "cpu":
            with speed.timed(result.cost, "measure_seconds"):
                speed.flops_ceiling(device, autocast or torch.float32)

    features = cached_features.begin(experiment, loaded, subject, backbone, result)
    # -> train
    sample_ceiling()
    trainer = yield from _train(course, loaded, subject, score)
    if not (processes.is_first or processes.spread):
        return
    sample_ceiling()
    # -> evaluate
    meter = measure.ForwardMeter(subject.model, features.off) if experiment.measure.costs else None
    evaluations = _evaluate(course, loaded, subject, trainer, score, meter)
    features.end()
    # -> measure
    result.cost["process_peak_bytes"] = speed.peak_resident_bytes() if resident_from_here else None
    _save(course, loaded, subject, backbone, evaluations)
    result.cost["energy_joules"] = energy.joules()
    if result.cost["energy_joules"] is None:
        result.unmeasured["cost.energy_joules"] = energy.reason
    _measure(course, loaded, subject, backbone, trainer, meter)


def _load_backbone(course: Course, loaded: Loaded, autocast: "Dtype | None") -> tuple[Backbone, Backbone]:
    """The backbone without weights, and with them."""
    import torch

    experiment, method = course.experiment, course.experiment.method
    torch.manual_seed(experiment.seed)
    quantization = models.choose_quantization(experiment)
    skeleton = models.empty_model(loaded.configuration, experiment.task.kind, quantization)
    models.set_checkpointing(skeleton.model, experiment.train.gradient_checkpointing)
    method.expected_parameters(skeleton)  # refuses what can't go together before the weights are read
    with speed.timed(course.result.cost, "load_seconds"):
        folder, dtype = course.inputs.folder, autocast or torch.float32
        backbone = earlier.load_model(folder, loaded.configuration, experiment, dtype)
        if course.weights is not None:
            course.weights.share(backbone)
    course.result.provenance["renewed_head"] = list(backbone.renewed)
    backbone.model.config.pad_token_id = loaded.tokenizer.pad_token_id
    models.set_checkpointing(backbone.model, experiment.train.gradient_checkpointing)
    return skeleton, backbone


def _attach(
    course: Course,
    loaded: Loaded,
    skeleton: Backbone,
    backbone: Backbone,
    device: "Device",
    autocast: "Dtype | None",
) -> Subject:
    """The method on its backbone, both on the device, ready to be trained and scored."""
    experiment, cost, processes = course.experiment, course.result.cost, course.processes
    adapter = experiment.method.attach(backbone)
    expected = experiment.method.expected_parameters(replace(skeleton, head=backbone.head))
    cost |= methods.parameters(adapter, expected)
    trained = methods.prepare_trained(adapter).values()
    processes.spread_frozen(map(backbone.model.get_submodule, backbone.layers()), [*trained, *adapter.kept_whole()])
    adapter.model.to(device)
    cost["weight_bytes"] = measure.weight_bytes(adapter.model)
    log.info("%s", "; ".join(f"{len(rows)} {split} rows" for split, rows in loaded.data.splits.items()))
    trains, of = cost["trainable_parameters"], cost["total_parameters"]
    log.info("%s trains %s of %s parameters", experiment.method.name, trains, of)
    collate = experiment.task.collator(backbone, loaded.tokenizer, device)
    return Subject(adapter, loaded.tokenizer, collate, experiment.evaluate.batch_size, autocast)


def _train(
    course: Course, loaded: Loaded, subject: Subject, score: "Callable[[str], Evaluation]"
) -> Generator[Trainer, None, Trainer]:
    """Make the trainer and hand it out to train, and record what it cost however it ended."""
    import torch

    experiment, result = course.experiment, course.result
    torch.manual_seed(experiment.seed)
    trainer = Trainer(
        subject.adapter,
        loaded.trained_on,
        collate=subject.collate,
        settings=experiment.train,
        data_seed=experiment.data_seed,
        autocast=subject.autocast,
        loss=lambda batch: experiment.task.loss(subject.adapter, batch),
        score=None if experiment.train.all_rows else lambda: score("development"),
        primary_metric=experiment.task.primary_metric,
        identity=course.inputs.whole,
        metered=experiment.measure.costs,
        processes=course.processes,
        stop_share=experiment.sweep.stop_share,
        watch=course.watch,
    )
    decisive = _decisive(course.inputs)
    if experiment.train.resume and not trainer.checkpoint.is_file():
        log.warning("train.resume=true: %s; training starts anew", checkpoint.missing(trainer.checkpoint, decisive))
    try:
        yield trainer
    finally:
        if course.processes.is_first and trainer.checkpoint.is_file():
            checkpoint.note(trainer.checkpoint, decisive)
        if course.processes.is_first:
            write_outcomes(course.run_dir, trainer.state.outcomes, loaded.data.splits["development"])
        write_steps(course.run_dir, trainer.state.history)
        result.cost |= trainer.state.costs()
        counted = trainer.state.step_costs
        metered = ("rows", "length", "tokens", "flops", "seconds")
        result.provenance["metered_step"] = {name: counted[name] for name in metered if name in counted}
        if trainer.state.packed:
            result.provenance["packed"] = trainer.state.packed
    return trainer


def _decisive(inputs: Inputs) -> dict[str, str]:
    """What decides the run that a checkpoint is of: dotted keys of the configuration, and hashes of files."""
    content = config_identity.decisive(inputs.to_the_end, inputs.revisions)
    return run_params({**content.pop("config"), "hash": content})


def _evaluate(
    course: Course,
    loaded: Loaded,
    subject: Subject,
    trainer: Trainer,
    score: "Callable[..., Evaluation]",
    meter: "measure.ForwardMeter | None",
) -> "dict[str, Evaluation]":
    """The scores of the trained model, and of the backbone alone where it can answer."""
    experiment, result, splits = course.experiment, course.result, loaded.data.splits
    evaluations: dict[str, Evaluation] = {}
    if not experiment.train.all_rows:
        evaluations["development"] = trainer.best_evaluation or score("development")
    if not experiment.untouched:
        evaluations |= {split: score(split, meter) for split in splits if split not in ("train", "development")}
        seconds = sum(e.seconds for split, e in evaluations.items() if split != "development")
        result.cost["evaluation_seconds"] += seconds
        result.cost |= evaluations["validation"].costs
    result.scores |= gather_scores(experiment, loaded.data, evaluations, result.unmeasured)
    with speed.timed(result.cost, "measure_seconds"):
        result.scores["base"] = score_base(experiment, subject.adapter, score, result)
    return evaluations


def _save(
    course: Course, loaded: Loaded, subject: Subject, backbone: Backbone, evaluations: "dict[str, Evaluation]"
) -> None:
    """Write the predictions, and the adapter with what brings it back."""
    with speed.timed(course.result.cost, "save_seconds"):
        if evaluations:
            rows = {split: loaded.data.splits[split] for split in evaluations}
            write_predictions(course.run_dir / record.PREDICTIONS_FILE, evaluations, rows)
        folder = course.run_dir / record.ADAPTER_FOLDER
        _save_adapter(subject.adapter, backbone.head, folder, course.inputs, course.result)


def _measure(
    course: Course,
    loaded: Loaded,
    subject: Subject,
    backbone: Backbone,
    trainer: Trainer,
    meter: "measure.ForwardMeter | None",
) -> None:
    """Take the figures that come after training; the adapter is used up by them."""
    result = course.result
    measured = Trained(
        course.experiment,
        course.inputs.folder,
        course.run_dir,
        loaded.configuration,
        backbone,
        subject,
        loaded.features,
        trainer,
        loaded.text,
        result,
    )
    with speed.timed(result.cost, "forgetting_seconds"):
        measured.ask_for_general_text()
    with speed.timed(result.cost, "measure_seconds"):
        measured.measure(meter)
    if trainer.stopped:
        result.status = Status.stopped
        result.provenance["checkpoint"] = str(trainer.checkpoint)
    else:
        trainer.discard_checkpoint()


def _save_adapter(adapter: "Adapter", head: tuple[str, ...], folder: Path, inputs: Inputs, result: RunRecord) -> None:
    """Save adapter and head with what brings them back and a model card; measures the bytes of their weights."""
    experiment = inputs.experiment
    with saved.whole_folder(folder, experiment.train.keep_adapter) as partial:
        adapter.save(partial)
        earlier.name_base(partial, experiment.model)
        result.cost["adapter_file_bytes"] = sum(path.stat().st_size for path in partial.glob(models.WEIGHTS))
        if experiment.train.keep_adapter:
            packages = result.provenance["packages"]
            manifest = saved.write_manifest(
                partial, experiment, inputs.identity, inputs.revisions["model"], head, packages
            )
            card.write_card(partial, manifest, result)
