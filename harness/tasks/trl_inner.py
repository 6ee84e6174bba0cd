"""Inner names of trl: what it does not promise to keep, gathered so that an upgrade touches one file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from trl import DPOConfig, DPOTrainer

# What DPOTrainer.compute_loss reads of the fused output layer.
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


def disable_dropout(model: "nn.Module") -> None:
    """Set every dropout's probability to zero, for good."""
    from trl.trainer.utils import disable_dropout_in_model

    disable_dropout_in_model(model)


@contextmanager
def fused_output_layer(backbone: Any) -> Iterator[None]:
    """A language model's forward pass that gives log-probabilities without holding all logits; gone afterwards."""
    from trl.trainer import utils

    utils.add_fused_lm_head(backbone, outputs=OUTPUTS)
    # Logits are computed in a buffer as wide as this, also for a vocabulary of a few hundred.
    width = utils._CHUNKED_LOGPROB_CHUNK_SIZE
    utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(width, backbone.get_output_embeddings().weight.shape[0])
    try:
        yield
    finally:
        utils._CHUNKED_LOGPROB_CHUNK_SIZE = width
        del backbone.forward


def no_checkpointing(configuration: type["DPOConfig"]) -> dict[str, Any]:
    """Switch off what transformers 5.23 calls activation checkpointing, and 5.17 gradient checkpointing."""
    names = {field.name for field in fields(configuration)}
    return {"activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing": False}


def given_references(trainer: "DPOTrainer") -> "DPOTrainer":
    """The trainer, told that the reference's log-probabilities come with each batch."""
    trainer.precompute_ref_logps = True
    return trainer


def preference_loss(trainer: "DPOTrainer", model: "nn.Module", inputs: dict[str, Any]) -> Any:
    """`compute_loss`, without the figures that it keeps of every call for a log that is never written."""
    value = trainer.compute_loss(model, inputs)
    trainer._metrics["train"].clear()
    return value
