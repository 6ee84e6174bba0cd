"""Schedule of a training run: its steps, when it evaluates and where it stops, and its learning rate."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from harness.config.schema import Scheduler, TrainConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True)
class Steps:
    """Numbers of optimizer steps.

    Attributes:
        per_epoch: Steps of an epoch.
        total: Steps of the whole run.
        evaluation: Steps between two evaluations.
        last: The step that training stops at; `total` unless the run is stopped on its way.
    """

    per_epoch: int
    total: int
    evaluation: int
    last: int

    @classmethod
    def of(cls, rows: int, settings: TrainConfig, stop_share: float | None) -> Self:
        """The steps of a run over so many rows.

        Args:
            rows: Rows of an epoch.
            settings: conf/train.
            stop_share: Stop at the first evaluation past this share of the steps, so that stopping adds none that the
                whole run has not; null: at the end.
        """
        per_epoch = math.ceil(rows / (settings.batch_size * settings.gradient_accumulation_steps))
        total = settings.max_steps or math.ceil(settings.epochs * per_epoch)
        evaluation = max(1, math.ceil(per_epoch / settings.evaluations_per_epoch))
        # The schedule is of all steps, also where training stops earlier: what goes on must end as if it never had.
        last = total if stop_share is None else min(math.ceil(stop_share * total / evaluation) * evaluation, total)
        return cls(per_epoch, total, evaluation, last)


def make_schedule(optimizer: "Optimizer", settings: TrainConfig, steps: int) -> "LRScheduler":
    """A linear warm-up, then down to zero at the last step: straight, or along a cosine."""
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    warmup = round(settings.warmup_share * steps)
    if settings.scheduler is Scheduler.cosine:
        return get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    return get_linear_schedule_with_warmup(optimizer, warmup, steps)
