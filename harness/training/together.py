"""Training of several runs at once on one frozen backbone: the batch is shared, all else is each run's own.

Each run is a `Trainer` as if it were alone, with its own optimizer, schedule, evaluations, early stopping, checkpoint
and history; the pack brings their losses about in one forward pass, and one backward pass their gradients.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm.contrib.logging import logging_redirect_tqdm

from harness.methods.packed import CannotPack, Pack
from harness.models import fast_dropout
from harness.models.streams import Stream
from harness.training.batches import Batch
from harness.training.interrupts import deferred_interrupts
from harness.training.memory import is_out_of_memory
from harness.training.trainer import Trainer
from harness.training.watch import Pace

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

# What rounding may make of the largest logit, by the type that is computed in: the pack's products have other shapes.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass
class Member:
    """A run of a pack.

    Attributes:
        stream: Its random numbers.
        error: Why it ended early; null while it trains, and where it ended well.
        over: Whether it trains no more.
    """

    trainer: Trainer
    stream: Stream
    error: BaseException | None = None
    over: bool = False

    def attempt(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Do something of this run alone, with its random numbers; what it raises ends it, and no other."""
        try:
            with self.stream:
                return action(*arguments)
        except (Exception, KeyboardInterrupt) as error:
            self.error, self.over = error, True
            if is_out_of_memory(error):
                self._release()
            return None

    def _release(self) -> None:
        """Let go of what training kept, so that the others of the pack have room."""
        self.error = self.error and self.error.with_traceback(None)
        self.trainer.optimizer.zero_grad(set_to_none=True)
        self.trainer.optimizer.state.clear()

    def end(self) -> None:
        """Have its best weights in its model."""
        self.attempt(self.trainer.end)
        self.over = True


def fit_together(members: Sequence[Member]) -> None:
    """Train runs whose batches are the same, as `Trainer.fit` does one; each has its error or its best weights then.

    Where they can't be computed together, they train one after the other. Where the device's memory is not enough for
    the gradients of all at once, half of them go first. In a step of the optimizer or an evaluation it ends that run:
    half a step can't be taken back.
    """
    for member in members:
        member.attempt(member.trainer.begin)
        member.trainer.state.packed = max(member.trainer.state.packed, len(members))
    with deferred_interrupts() as interrupted, logging_redirect_tqdm():
        waiting = by_step(members)
        while waiting:
            waiting = [*_train(waiting[0], interrupted), *waiting[1:]]


def by_step(members: Sequence[Member]) -> list[list[Member]]:
    """Those that still train, in groups that stand at the same step: a checkpoint may have let some begin later."""
    groups: dict[int, list[Member]] = {}
    for member in members:
        if not member.over:
            groups.setdefault(member.trainer.state.step, []).append(member)
    return list(groups.values())


def _train(group: list[Member], interrupted: Callable[[], bool]) -> list[list[Member]]:
    """Train a group until one of its members is done, or it must be smaller; returns the groups that are left of it."""
    lead = group[0].trainer
    pack: Pack | None = None
    pace = Pace(lead.state.step, lead.steps.total)
    for batches, weight in lead.remaining():
        before = [member.stream.state for member in group]
        try:
            pack = pack or _pack(group, batches[0])
            losses = _gradients(pack, group, batches, weight)
        except (CannotPack, MemoryError, RuntimeError) as error:
            if not isinstance(error, CannotPack) and not is_out_of_memory(error):
                raise
            reason: Exception = error.with_traceback(None)  # which would keep tensors alive
        else:
            for member, loss in zip(group, losses, strict=True):
                if member.attempt(member.trainer.took_step, loss, batches, interrupted()):
                    member.end()
            if pace.is_due():
                log.info("%s, %s runs in one pack", pace.line(lead.state.step, float(losses[0])), len(group))
            if any(member.over for member in group):
                return by_step(group)
            continue
        del pack
        return _smaller(group, before, reason)
    for member in group:
        member.end()
    return []


def _pack(group: list[Member], batch: Batch) -> Pack | None:
    """The pack of a group, which has answered a batch as each of its members does alone; null for a single one."""
    import torch

    if len(group) == 1:
        return None
    trainer = group[0].trainer
    pack = Pack([member.trainer.adapter for member in group], [member.stream for member in group])
    device = trainer.collate.device.type
    with torch.autocast(device, trainer.autocast, enabled=trainer.autocast is not None), fast_dropout(device):
        pack.check(batch.inputs, TOLERANCE[str(trainer.autocast or torch.float32).removeprefix("torch.")])
    return pack


def _gradients(pack: Pack | None, group: list[Member], batches: list[Batch], weight: int) -> "list[Tensor]":
    """Compute every member's gradients of the batches of a step; returns the losses."""
    import torch

    losses = []
    for batch in batches:
        if pack is None:
            with group[0].stream:
                parts = torch.stack([group[0].trainer.part(batch, weight)])
        else:
            with pack.answering():
                parts = torch.stack([member.trainer.part(batch, weight) for member in group])
        # The sum's gradient with respect to each run's parameters is that of its own loss: they share none.
        parts.sum().backward()
        losses.append(parts.detach())
    return list(torch.stack(losses).sum(0))


def _smaller(group: list[Member], before: list[Any], reason: Exception) -> list[list[Member]]:
    """Put a group back to where its step began, in parts that may succeed."""
    import torch

    for member, state in zip(group, before, strict=True):
        member.stream.state = state
        member.trainer.optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if isinstance(reason, CannotPack):
        log.warning("%s: the %s runs of this pack train one after the other", reason, len(group))
        return [[member] for member in group]
    if len(group) == 1:
        group[0].error, group[0].over = reason, True
        return []
    half = (len(group) + 1) // 2
    log.warning("memory is not enough for %s runs at once: %s go first", len(group), half)
    return [group[:half], group[half:]]
