"""Tiny random backbones and the methods of conf/method/, the same every time."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from harness import models
from harness.config.build import build
from harness.config.compose import compose
from harness.doctor.compatibility import TINY
from harness.models.architectures import Backbone, Kind


def method_of(name: str, *overrides: str) -> Any:
    return build(compose("config", [f"method={name}", *overrides])).method


def random_backbone(model_type: str, kind: Kind = Kind.classification, folder: Path | None = None) -> Backbone:
    """A backbone in evaluation mode; where the method wants a tokenizer, that of a folder."""
    torch.manual_seed(7)
    backbone = models.empty_model(
        AutoConfig.for_model(model_type, num_labels=2, **TINY[model_type]), kind, device="cpu"
    )
    backbone.model.eval()
    if folder is not None:
        backbone.model.config.name_or_path = str(folder)
    return backbone
