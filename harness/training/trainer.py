"""Training: AdamW over length-bucketed batches, checkpoints that lose nothing, the best weights kept.

The loop is ours because the run needs what transformers' Trainer does not give: batches from length buckets that a
resumed run finds again, tokens counted without padding, evaluation kept out of training time, and a stop on the first
loss that is not finite. tests/benchmarks compares its step time with a plain loop's and with Trainer's.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from harness import measure
from harness.config.schema import TrainConfig
from harness.measure.speed import SystemLoad
from harness.methods import Adapter, trained_parameters
from harness.methods.optimizer import make_optimizer
from harness.models import fast_dropout
from harness.training import checkpoint
from harness.training.batches import Batch, Collate, Features, Order
from harness.training.evaluation import Evaluation
from harness.training.interrupts import StopAsked, deferred_interrupts
from harness.training.metered import largest_step, meter_of
from harness.training.metrics import higher_is_better
from harness.training.processes import Processes
from harness.training.schedule import Steps, make_schedule
from harness.training.state import Diverged, TrainingState
from harness.training.watch import Pace, Unwatched, Watch

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as Dtype

log = logging.getLogger(__name__)

LOG_STEPS = 10


class Trainer:
    """Trains an adapter and its head.

    Args:
        adapter: What is trained.
        features: Encoded training rows.
        collate: Makes batches on the device.
        settings: conf/train.
        data_seed: Decides the order of the rows.
        autocast: Lower precision to compute in; null computes in the weights' own.
        loss: The loss of a batch, a mean over what its weight counts.
        score: Scores the development split; null: nothing is scored, and the last weights stay.
        primary_metric: The metric that chooses the best weights.
        identity: Names the checkpoint, so that the same experiment finds it again.
        metered: Count the memory and the operations of one step; the scores are the same bits without.
        processes: Share each batch and take the same steps; null: this process is alone.
        stop_share: Stop at the first evaluation past this share of the steps and keep a checkpoint; null: at the end.
        watch: Takes each line of the history as it is made, and may ask to stop; null: nobody does.
    """

    def __init__(
        self,
        adapter: Adapter,
        features: list[Features],
        *,
        collate: Collate,
        settings: TrainConfig,
        data_seed: int,
        autocast: "Dtype | None",
        loss: "Callable[[Batch], Tensor]",
        score: Callable[[], Evaluation] | None,
        primary_metric: str,
        identity: str,
        metered: bool = True,
        processes: Processes | None = None,
        stop_share: float | None = None,
        watch: "Watch | None" = None,
    ) -> None:
        self.adapter = adapter
        self.features = features
        self.collate = collate
        self.settings = settings
        self.autocast = autocast
        self.loss = loss
        self.score = score
        self.primary_metric = primary_metric
        self.processes = processes or Processes()
        self.watch = watch or Unwatched()
        self.higher_is_better = higher_is_better(primary_metric)
        # Of the best weights; null after a resumption, when the best may lie before it.
        self.best_evaluation: Evaluation | None = None
        self.trained = trained_parameters(adapter)
        self.order = Order.of(features, settings, data_seed)
        self.steps = Steps.of(len(features), settings, stop_share)
        self.stopped = False
        self.optimizer = adapter.optimizer(self.trained, settings) or make_optimizer(self.trained, settings)
        self.schedule = make_schedule(self.optimizer, settings, self.steps.total)
        size = settings.gradient_accumulation_steps
        self.metered_step = largest_step(self.order, size, self.steps.total) if metered else None
        self.state = TrainingState()
        self._timed_step, self._timed_seconds = 0, 0.0
        self.load = SystemLoad(collate.device)
        self.best: dict[str, Tensor] = {}
        self.checkpoint = Path(settings.checkpoint_dir) / identity / checkpoint.CHECKPOINT_FILE

    def fit(self) -> TrainingState:
        """Train to the end, or to early stopping; the best weights are in the model afterwards.

        Raises:
            Diverged: The loss is NaN or infinite.
            KeyboardInterrupt: Ctrl-C or SIGTERM came, or the watch asked to stop (`StopAsked`). The step, and its
                evaluation, were finished first and a checkpoint written, unless a signal came twice.
        """
        self.begin()
        bar = tqdm(total=self.steps.total, initial=self.state.step, desc="train", unit="step", disable=None)
        with deferred_interrupts() as interrupted, bar, logging_redirect_tqdm():
            pace = Pace(self.state.step, self.steps.total)
            start = time.perf_counter()
            for micro_batches, weight in self.remaining():
                loss = self._read(self._step(micro_batches, weight))
                self.state.train_seconds += time.perf_counter() - start
                self._report(loss, bar)
                if bar.disable and self.processes.is_first and pace.is_due():
                    log.info("%s", pace.line(self.state.step, loss, self.state.tokens / self.state.train_seconds))
                if self._is_over(interrupted()):
                    break
                start = time.perf_counter()
        return self.end()

    def begin(self) -> None:
        """Make ready for the first step, or for the next one after a checkpoint."""
        self.adapter.start(self.steps.total)
        self.processes.part_random_numbers()
        if self.settings.resume:
            self._restore()
        self._saved_at = time.monotonic()
        self._timed_step, self._timed_seconds = self.state.step, self.state.train_seconds
        self.adapter.model.train()
        self.watch.begin(self.state.history, self.steps.total)

    def took_step(self, loss: "Tensor", batches: list[Batch], interrupted: bool) -> bool:
        """Take a step along the gradients that are there, as one of several runs in a pack; whether it was the last.

        Raises:
            Diverged, KeyboardInterrupt: As `fit`.
        """
        self._take_step(loss, batches, None)
        read = self._read(loss)
        if read is not None and self._report_is_due():
            self._note_loss(read)  # the pack's time is nobody's
        return self._is_over(interrupted) or self.state.step == self.steps.last

    def _is_over(self, interrupted: bool) -> bool:
        """Evaluate and save where it is due; whether training has stalled."""
        if self._evaluation_is_due():
            self._evaluate()
            if self._stalled():
                return True
        # One process's interruption is everyone's: the others would wait for it for ever.
        asked = self.watch.stop_asked()
        stop, due = map(bool, self.processes.sums([interrupted or asked, self._save_is_due()]))
        if stop or due:
            self.save_checkpoint()
        if stop:
            raise StopAsked if asked and not interrupted else KeyboardInterrupt
        return False

    def end(self) -> TrainingState:
        """Put the best weights into the model; keep a checkpoint of a run that is stopped on its way."""
        self.stopped = self.steps.last < self.steps.total and not self._stalled()
        if self.stopped:
            self.save_checkpoint()
        self._load(self.best)
        return self.state

    def remaining(self) -> "Iterator[tuple[list[Batch], int]]":
        """This process's batches of each optimizer step from where the run stands, and the weight of all processes'."""
        while self.state.step < self.steps.last:
            epoch, done = divmod(self.state.step, self.steps.per_epoch)
            order = self.order.epoch(epoch)
            size = self.settings.gradient_accumulation_steps
            for first in range(done * size, len(order), size):
                together = order[first : first + size]
                batches = [batch for indices in together if (batch := self._share(indices))]
                weight = sum(self.features[row]["weight"] for indices in together for row in indices)
                yield batches, weight
                if self.state.step == self.steps.last:
                    return

    def _share(self, indices: list[int]) -> Batch | None:
        """This process's part of a batch; null where it has none and need not take part."""
        rows = self.processes.share(indices)
        if rows:
            return self.collate(self.features, rows)
        if not self.processes.spread:
            return None
        return replace(self.collate(self.features, indices[:1]), tokens=0, padded_tokens=0, weight=0)

    def _step(self, micro_batches: list[Batch], weight: int) -> "Tensor":
        """One optimizer step; returns the loss, a mean over all of its batches."""
        counted = self.state.step == self.metered_step and micro_batches
        with meter_of(self.adapter, self.optimizer, micro_batches) if counted else nullcontext() as meter:
            loss = self._descend(micro_batches, weight, meter)
        if meter is not None:
            self.state.step_costs = asdict(meter.costs)
        return loss

    def _descend(self, micro_batches: list[Batch], weight: int, meter: "measure.StepMeter | None") -> "Tensor":
        import torch

        loss = torch.zeros((), device=self.collate.device)
        for batch in micro_batches:
            if meter:
                meter.forward_begins()
            part = self.part(batch, weight)
            if meter:
                meter.forward_ended()
            part.backward()
            loss += part.detach()
        return self._take_step(loss, micro_batches, meter)

    def part(self, batch: Batch, weight: int) -> "Tensor":
        """The loss of one of the batches of a step, weighted so that they give the gradient of one large batch."""
        import torch

        device = self.collate.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None), fast_dropout(device):
            return self.loss(batch) * (batch.weight / weight)

    def _take_step(self, loss: "Tensor", micro_batches: list[Batch], meter: "measure.StepMeter | None") -> "Tensor":
        """Step along the gradients that are there; returns the loss over all processes."""
        import torch

        read = [sum(b.tokens for b in micro_batches), sum(b.padded_tokens for b in micro_batches)]
        tokens, padded_tokens = self.processes.sums(read)
        self.state.tokens += int(tokens)
        self.state.padded_tokens += int(padded_tokens)
        self.processes.sum_gradients(self.trained.values())
        loss = self.processes.sum_tensor(loss)
        penalty = self.adapter.penalty()
        if penalty is not None:
            penalty.backward()
            loss += penalty.detach()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), self.settings.max_grad_norm)
        self.optimizer.step()
        if meter:
            meter.step_ended()
        self.state.step += 1
        self.adapter.after_step(self.state.step)
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _evaluation_is_due(self) -> bool:
        last, due = self.state.step == self.steps.total, self.state.step % self.steps.evaluation == 0
        return self.score is not None and (last or due)

    def _report_is_due(self) -> bool:
        return self.state.step % LOG_STEPS == 0 or self.state.step in (1, self.steps.total)

    def _read(self, loss: "Tensor") -> float | None:
        """The loss as a number: at every step on a CPU, now and then on a GPU, which it makes wait; else null."""
        if self.collate.device.type != "cpu" and not self._report_is_due() and not self._evaluation_is_due():
            return None
        value = float(loss)
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} at step {self.state.step}; a smaller learning rate may help")
        return value

    def _report(self, loss: float | None, bar: Any) -> None:
        """Show where training stands; note how long a step took since the device was last waited for."""
        bar.update()
        if loss is None:
            return
        step, seconds = self.state.step, self.state.train_seconds
        taken = (seconds - self._timed_seconds) / (step - self._timed_step)
        if self.metered_step is not None and self._timed_step <= self.metered_step < step:
            self.state.step_costs["seconds"] = taken
        else:
            self.state.step_seconds.append(taken)
        self._timed_step, self._timed_seconds = step, seconds
        if self._report_is_due():
            tokens_per_second = self.state.tokens / seconds
            self._note_loss(loss, tokens_per_second=tokens_per_second, train_seconds=seconds, **self.load.sample())
            bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s")

    def _note_loss(self, loss: float, **further: float) -> None:
        rate = float(self.schedule.get_last_lr()[0])
        self._note({"step": self.state.step, "loss": loss, "learning_rate": rate, **further})

    def _evaluate(self) -> None:
        evaluation = self.score()  # type: ignore[misc]  # due only where there is one
        evaluation.scores = self.processes.of_first(evaluation.scores)
        self.adapter.model.train()
        primary = evaluation.scores[self.primary_metric]
        self.state.evaluation_seconds += evaluation.seconds
        if not math.isfinite(evaluation.scores["loss"]):
            raise Diverged(f"the development loss is {evaluation.scores['loss']} at step {self.state.step}")
        self._note(
            {
                "step": self.state.step,
                **({} if self.state.packed else {"train_seconds": self.state.train_seconds}),
                **{f"development.{name}": value for name, value in evaluation.scores.items()},
            }
        )
        self.state.note_rows(evaluation.columns, self.primary_metric)
        if self.processes.is_first:
            best = self.state.best_score
            praise = "" if best is None or self._better(primary, best) else f" (the best so far: {best:.4f})"
            place = f"step {self.state.step} of {self.steps.total}"
            log.info("%s: development %s %.4f%s", place, self.primary_metric, primary, praise)
        if not self.adapter.settled() and self.state.step < self.steps.total:
            return  # the method is still changing what it trains: these weights can't be the final ones
        if self.state.best_score is None or self._better(primary, self.state.best_score):
            self.state.best_score = primary
            self.state.best_step = self.state.step
            self.state.evaluations_without_gain = 0
            self.best_evaluation = evaluation
            self.best = {name: p.detach().clone() for name, p in self.trained.items()}
        else:
            self.state.evaluations_without_gain += 1

    def _note(self, line: dict[str, Any]) -> None:
        self.state.history.append(line)
        self.watch.line(line)

    def _better(self, score: float, other: float) -> bool:
        return score > other if self.higher_is_better else score < other

    def _stalled(self) -> bool:
        patience = self.settings.early_stopping_patience
        return patience is not None and self.state.evaluations_without_gain >= patience

    def _load(self, weights: "dict[str, Tensor]") -> None:
        import torch

        with torch.no_grad():
            for name, value in weights.items():
                self.trained[name].copy_(value)

    def _save_is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= 60 * self.settings.checkpoint_minutes

    def save_checkpoint(self) -> None:
        """Write everything the run needs to go on.

        Only between steps, after the evaluation that belongs to one: anywhere else the state is of no single moment.
        """
        self._saved_at = time.monotonic()
        random = self.processes.of_all(checkpoint.random_state())
        if not self.processes.is_first:
            return
        state = {
            "progress": asdict(self.state),
            "trained": {name: p.detach() for name, p in self.trained.items()},
            "best": self.best,
            "method": self.adapter.state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random,
        }
        checkpoint.write(self.checkpoint, state)

    def _restore(self) -> None:
        state = checkpoint.read(self.checkpoint, self.collate.device)
        if state is None or state["progress"]["step"] > self.steps.last:
            return  # there is none, or it is of a run that went on from here before
        self.state = TrainingState(**state["progress"])
        self._load(state["trained"])
        self.best = state["best"]
        self.adapter.load_state(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        # One state per process; with more of them than there were, the further ones have drawn nothing yet.
        if self.processes.rank < len(state["random"]):
            checkpoint.set_random_state(state["random"][self.processes.rank])

    def seconds_to(self, target: float | None) -> float | None:
        """Seconds of training until the development split first had this score of the primary metric, or better."""
        if target is None:
            return None
        name = f"development.{self.primary_metric}"
        for line in self.state.history:
            if name in line and not self._better(target, line[name]):
                return line["train_seconds"]
        return None

    def discard_checkpoint(self) -> None:
        """Remove the checkpoint of a run that needs it no more."""
        if self.processes.is_first:
            checkpoint.discard(self.checkpoint)
