"""Methods as conf/method/ describes them on tiny random backbones, and a few steps of training."""

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from omegaconf import OmegaConf
from tiny import random_backbone

from harness.config.build import component
from harness.config.sources import conf_root
from harness.doctor.compatibility import words
from harness.methods import trained_parameters
from harness.models.architectures import Backbone, Kind
from harness.training.batches import plain_inputs


def method_of(name: str, **changes: Any) -> Any:
    """The method that conf/method/ describes, with other hyper-parameters; checked."""
    values = OmegaConf.to_container(OmegaConf.load(conf_root() / f"conf/method/{name}.yaml"))
    return component({**values, **changes}, "method")


_original = cache(random_backbone)


def backbone_of(architecture: str, kind: Kind = Kind.classification) -> Backbone:
    """A tiny random backbone, the same every time."""
    original = _original(architecture, kind)
    return replace(original, model=copy.deepcopy(original.model))


def inputs(kind: Kind, configuration: Any = None) -> dict[str, torch.Tensor]:
    return plain_inputs(words(8, 12), kind, configuration)


def logits(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model.eval()(**inputs(backbone.kind, backbone.model.config)).logits


def train(adapter: Any, kind: Kind, steps: int = 3, autocast: bool = False) -> tuple[float, float]:
    """A few steps on one batch without dropout; returns the loss before and after."""
    trained = trained_parameters(adapter)
    optimizer = torch.optim.AdamW(trained.values(), lr=5e-3)
    losses = []
    for _ in range(steps + 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = adapter.model(**inputs(kind, adapter.model.config)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses[0], losses[-1]
