"""Backbones: found, fingerprinted, loaded, described and counted; may import `config`."""

from harness.models.dropout import fast_dropout
from harness.models.hub import WEIGHTS, digest, resolve, revision
from harness.models.loading import (
    MODEL_CLASSES,
    check_fit,
    check_head,
    check_positions,
    empty_model,
    load_config,
    load_model,
    load_tokenizer,
    model_class,
    positions_of,
    quiet_libraries,
    set_checkpointing,
    with_start,
)
from harness.models.precision import (
    choose_device,
    choose_precision,
    choose_quantization,
    device_type,
    keep_trainable,
    never_quantized,
    settled,
)
from harness.models.products import fast_products

__all__ = [
    "MODEL_CLASSES",
    "WEIGHTS",
    "check_fit",
    "check_head",
    "check_positions",
    "choose_device",
    "choose_precision",
    "choose_quantization",
    "device_type",
    "digest",
    "empty_model",
    "fast_dropout",
    "fast_products",
    "keep_trainable",
    "load_config",
    "load_model",
    "load_tokenizer",
    "model_class",
    "never_quantized",
    "positions_of",
    "quiet_libraries",
    "resolve",
    "revision",
    "set_checkpointing",
    "settled",
    "with_start",
]
