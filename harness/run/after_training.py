"""Measurements of a model once it is trained and scored: none of them changes a score."""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.measure import speed
from harness.methods import soft_prompts
from harness.models.architectures import Kind
from harness.run import estimate, latency
from harness.tasks import forgetting
from harness.tracking import record
from harness.tracking.record import RunRecord

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from harness.measure import ForwardMeter
    from harness.models.architectures import Backbone
    from harness.training.batches import Features
    from harness.training.evaluation import Subject
    from harness.training.trainer import Trainer

log = logging.getLogger(__name__)

SPREAD_PEAKS = "train.distributed=fsdp: a layer's weights come and go while it computes, which is not counted"
SPREAD_TIMES = "train.distributed=fsdp: no process holds the whole model"


@dataclass(frozen=True)
class Trained:
    """A run whose model is trained, scored and saved.

    Attributes:
        folder: The backbone's files.
        run_dir: Where the run writes.
        text: What forgetting is measured on; null: not measured.
        result: Takes the figures, or the reason why there is none.
    """

    experiment: Experiment
    folder: Path
    run_dir: Path
    configuration: "PretrainedConfig"
    backbone: "Backbone"
    subject: "Subject"
    features: "dict[str, list[Features]]"
    trainer: "Trainer"
    text: list[str] | None
    result: RunRecord

    def measure(self, meter: "ForwardMeter | None") -> None:
        """Take all figures; the adapter is used up afterwards.

        Args:
            meter: What counted the evaluation; null where costs are not wanted.
        """
        self._predict()
        self._soft_prompt()
        self._name_what_has_no_value()
        if meter is not None:
            self.result.cost |= {
                "evaluation_peak_bytes": meter.peak_bytes,
                "forward_flops_per_token": meter.flops_per_token,
            }
            if self.trainer.processes.spread:
                self._leave_out_what_needs_whole_weights()
                return
            # Last, because merging uses the adapter up.
            self._speed()
            self._swap()

    def _leave_out_what_needs_whole_weights(self) -> None:
        peaks = dict.fromkeys(("activation_bytes", "train_peak_bytes", "evaluation_peak_bytes"), SPREAD_PEAKS)
        times = dict.fromkeys(("latency_ms", "swap_ms", "flops_ceiling_share"), SPREAD_TIMES)
        for name, reason in {**peaks, **times}.items():
            self.result.cost[name] = None
            self.result.unmeasured[f"cost.{name}"] = reason

    def _predict(self) -> None:
        """Predict the step that was counted from the architecture alone: reports hold one against the other."""
        counted = self.trainer.state.step_costs
        if not self.experiment.measure.predict or not counted:
            self.result.unmeasured["cost.predicted"] = "measure.predict=false" if counted else "no step was counted"
            return
        device = self.trainer.collate.device.type
        step = estimate.Step(counted["rows"], counted["length"], device, counted.get("target_length"))
        try:
            predicted = estimate.predict(self.experiment, self.configuration, step)
        # The model is trained and scored: a step that can't be planned must not lose it.
        except (estimate.Unpredictable, ConfigError) as reason:
            self.result.unmeasured["cost.predicted"] = str(reason)
            return
        # Of the whole run, as what is counted: operations grow with the tokens that are computed, padding too.
        computed = self.trainer.state.padded_tokens
        predicted["train_flops"] = round(predicted["train_flops_per_token"] * computed)
        self.result.cost["predicted"] = predicted

    def ask_for_general_text(self) -> None:
        """Measure forgetting: general text before, adapter off, and after."""
        scores, subject, unmeasured = self.result.scores, self.subject, self.result.unmeasured
        scores["forgetting"] = None
        if self.text is None or self.experiment.untouched:
            unmeasured["scores.forgetting"] = self.experiment.untouched if self.text else "forgetting.text=null"
            return
        model = self.experiment.model
        if not model.pretrained and self.backbone.kind is Kind.classification:
            unmeasured["scores.forgetting"] = "model.pretrained=false: random weights know nothing to forget"
            return
        try:
            scores["forgetting"] = asdict(
                forgetting.measure(
                    subject, self.backbone, self.folder, self.text, self.experiment.method.virtual_tokens()
                )
            )
        except forgetting.CannotMeasure as reason:
            unmeasured["scores.forgetting"] = str(reason)

    def _soft_prompt(self) -> None:
        """Write which words of the vocabulary a learned prompt stands near to, where the method has one."""
        import pandas as pd

        if self.experiment.untouched:
            return
        try:
            rows = soft_prompts.table(self.subject.adapter, self.subject.tokenizer)
        except soft_prompts.NoNeighbors as reason:
            log.info("%s is not written: %s", record.SOFT_PROMPT_FILE, reason)
        else:
            if rows is not None:
                pd.DataFrame(rows).to_csv(self.run_dir / record.SOFT_PROMPT_FILE, index=False)

    def _name_what_has_no_value(self) -> None:
        settings, cost, unmeasured = self.experiment.measure, self.result.cost, self.result.unmeasured
        cost["seconds_to_target"] = self.trainer.seconds_to(settings.target_score)
        if settings.target_score is None:
            unmeasured["cost.seconds_to_target"] = "measure.target_score=null: no score to reach was given"
        elif cost["seconds_to_target"] is None:
            unmeasured["cost.seconds_to_target"] = f"the development split never had {settings.target_score}"
        if self.trainer.collate.device.type != "cuda":
            unmeasured |= {f"cost.cuda_{name}_bytes": "no GPU was used" for name in ("allocated", "reserved")}
        absent = {"generated_tokens_per_second": "the task's answers are not generated"}
        absent |= {"reference_bytes": "the task needs no reference"}
        unmeasured |= {f"cost.{name}": reason for name, reason in absent.items() if cost[name] is None}
        if self.experiment.untouched:
            names = ("evaluation_peak_bytes", "forward_flops_per_token", "latency_ms", "generated_tokens_per_second")
            unmeasured |= {f"cost.{name}": self.experiment.untouched for name in names}

    def _speed(self) -> None:
        """Latency, and the share of the device's ceiling that training reached."""
        import torch

        if self.experiment.untouched:
            return
        cost, device = self.result.cost, self.trainer.collate.device
        if cost["flops_per_second"]:
            precision = self.trainer.autocast or torch.float32
            ceiling = speed.flops_ceiling(device, precision)
            # What the steps reached was possible here, whatever the products did.
            cost["flops_ceiling_share"] = cost["flops_per_second"] / max(ceiling, cost["flops_per_second"])
            self.result.provenance["flops_ceiling"] = ceiling
        rows = self.features["validation"]
        by_length = sorted(range(len(rows)), key=lambda index: rows[index]["length"])
        median = by_length[len(by_length) // 2]
        sizes = {1, self.experiment.measure.latency_batch_size}
        batches = [self.trainer.collate(rows, [median] * size) for size in sizes]
        share = latency.LATENCY_SHARE * cost["train_seconds"]
        with self.subject.computing():
            timed = latency.latency(self.subject.adapter, batches, share, device)
        cost["latency_ms"] = timed.milliseconds
        self.result.unmeasured |= {f"cost.latency_ms.{name}": reason for name, reason in timed.missing.items()}
        self.result.provenance["latency"] = {"tokens": batches[0].tokens, "repeats": timed.repeats}

    def _swap(self) -> None:
        """Take the adapter off and put the saved one on: what switching between two of them takes."""
        folder = self.run_dir / record.ADAPTER_FOLDER
        if not folder.is_dir():
            self.result.unmeasured["cost.swap_ms"] = "train.keep_adapter=false: there is no saved adapter to put on"
            return
        start = time.perf_counter()
        try:
            self.subject.adapter.detach()
            self.experiment.method.restore(self.backbone, folder)
        except ValueError as error:
            self.result.unmeasured["cost.swap_ms"] = str(error)
        else:
            self.result.cost["swap_ms"] = 1000 * (time.perf_counter() - start)
