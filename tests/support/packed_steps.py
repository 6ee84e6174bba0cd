"""Steps of LoRA points in one pack, and of the same points one at a time, on one copy of a backbone."""

import copy
from dataclasses import replace
from typing import Any

import torch

from harness.config.schema import Experiment
from harness.methods import prepare_trained
from harness.models.architectures import Backbone
from harness.models.streams import Stream
from harness.training import together
from harness.training.batches import Batch
from harness.training.together import Member
from harness.training.trainer import Trainer


class PackedSteps:
    """Points of one method that differ in their random start, ready to take steps.

    Args:
        backbone: Plain; each point is attached to a copy of its structure on the same weights.
        collate: Makes batches of `features` on the device.
    """

    def __init__(
        self,
        experiment: Experiment,
        backbone: Backbone,
        features: list[Any],
        collate: Any,
        autocast: torch.dtype | None,
        points: int,
    ) -> None:
        self.members = []
        for _ in range(points):
            shared = [*backbone.model.parameters(), *backbone.model.buffers()]
            model = copy.deepcopy(backbone.model, {id(tensor): tensor for tensor in shared})
            adapter = experiment.method.attach(replace(backbone, model=model))
            prepare_trained(adapter)
            adapter.model.to(collate.device)
            adapter.model.train()
            trainer = Trainer(
                adapter,
                features,
                collate=collate,
                settings=experiment.train,
                data_seed=0,
                autocast=autocast,
                loss=lambda batch, adapter=adapter: experiment.task.loss(adapter, batch),
                score=lambda: None,  # type: ignore[arg-type, return-value]  # no step is evaluated
                primary_metric=experiment.task.primary_metric,
                identity="steps",
                metered=False,
            )
            self.members.append(Member(trainer, Stream(collate.device)))
        self.pack = together._pack(self.members, collate(features, [0, 1]))

    def packed(self, batch: Batch) -> None:
        """One step of all points at once."""
        losses = together._gradients(self.pack, self.members, [batch], batch.weight)
        for member, loss in zip(self.members, losses, strict=True):
            member.trainer._take_step(loss, [batch], None)

    def one_at_a_time(self, batch: Batch) -> None:
        """One step of each point, after one another."""
        for member in self.members:
            with member.stream:
                member.trainer._step([batch], batch.weight)
