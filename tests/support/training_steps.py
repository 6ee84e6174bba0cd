"""The steps that training is timed by: the harness's own, and the loop that anyone would write."""

from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from harness.methods.optimizer import make_optimizer
from harness.training.batches import Batch
from harness.training.schedule import make_schedule
from harness.training.trainer import Trainer


def harness_step(trainer: Trainer) -> Callable[[Batch], None]:
    """A step of a run, its bookkeeping included."""
    trainer.state.train_seconds = 1e-9  # what fit counts; the report divides by it
    trainer.adapter.model.train()
    bar = tqdm(disable=True)
    return lambda batch: trainer._report(trainer._read(trainer._step([batch], batch.weight)), bar)


def bare_step(model: Any, settings: Any, autocast: torch.dtype | None = None) -> Callable[[Batch], None]:
    """A step of a loop with the harness's optimizer, schedule and precision, and nothing beside."""
    model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(trained, settings)
    schedule = make_schedule(optimizer, settings, 1000)

    def step(batch: Batch) -> None:
        with torch.autocast(batch.inputs["input_ids"].device.type, autocast, enabled=autocast is not None):
            loss = model(**batch.inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return step
