"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290): TRL's loss in the harness's training loop.

The reference is the model itself with its adapter switched off, so there is no second model. It computes first: methods
that train the backbone's own weights put the originals in their place for it, and no backward pass survives a change of
the weights it goes through.
"""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.config.errors import ConfigError
from harness.methods.peft_inner import adapted_layer, copied_module
from harness.tasks.trl_inner import (
    disable_dropout,
    fused_output_layer,
    given_references,
    no_checkpointing,
    preference_loss,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from trl import DPOTrainer

    from harness.measure import ForwardMeter
    from harness.methods import Adapter
    from harness.training.batches import Batch, Features
    from harness.training.evaluation import Subject


class LogProbabilities(NamedTuple):
    """Of whole answers given their prompts, in nats: one of each per pair."""

    chosen: "Tensor"
    rejected: "Tensor"


def loss(adapter: "Adapter", batch: "Batch", beta: float, dropout: bool) -> "Tensor":
    """Equation 7 of the paper, the mean over the pairs of a batch.

    What a method adds to a language model's own loss inside its forward pass, as AdaLoRA does, is no part of it.

    Args:
        batch: The chosen answers' rows and below them the rejected ones'; targets `completion_mask`, which marks the
            answers.
        beta: The weight of staying close to the reference.
        dropout: Whether the model computes with its dropout; the reference has none.
    """
    if not dropout:
        disable_dropout(adapter.model)
    trainer = _trainer(beta)
    reference = reference_log_probabilities(adapter, batch)
    given = {"ref_chosen_logps": reference.chosen, "ref_rejected_logps": reference.rejected}
    with _fused_output_layer(adapter.model):
        return preference_loss(trainer, adapter.model, {**_arguments(batch), **given})


def rehearse(adapter: "Adapter", batch: "Batch", dropout: bool) -> "Tensor":
    """The passes of `loss` on tensors without values, of which TRL would read some for its log.

    Args:
        batch: Inputs with `labels`.
        dropout: As in `loss`.
    """
    import torch

    def answers() -> "Tensor":
        return adapter.model(**batch.inputs, use_cache=False, fused_lm_head=True).log_probs.sum(dim=1)

    if not dropout:
        disable_dropout(adapter.model)
    with _fused_output_layer(adapter.model), _reference(adapter), torch.no_grad():
        reference = answers()
    with _fused_output_layer(adapter.model):
        return (answers() - reference).sum()


def log_probabilities(adapter: "Adapter", batch: "Batch") -> LogProbabilities:
    """Log-probabilities of the answers under the model with its adapter, without a gradient."""
    with _fused_output_layer(adapter.model):
        return _ask(adapter.model, batch)


def reference_log_probabilities(adapter: "Adapter", batch: "Batch") -> LogProbabilities:
    """Log-probabilities of the answers under the model without its adapter, without a gradient or dropout."""
    with _fused_output_layer(adapter.model), _reference(adapter):
        return _ask(adapter.model, batch)


def log_probabilities_of_rows(
    subject: "Subject", features: "list[Features]", meter: "ForwardMeter | None" = None
) -> "Iterator[tuple[Batch, LogProbabilities, LogProbabilities]]":
    """Each batch with what the model and what the reference gives its answers; to be used inside `Subject.computing`.

    Args:
        meter: Counts the model's pass over the first batch, which has the longest rows.
    """
    for number, batch in enumerate(subject.batches(features)):
        with meter.counting(batch.tokens) if meter and number == 0 else nullcontext():
            policy = log_probabilities(subject.adapter, batch)
        yield batch, policy, reference_log_probabilities(subject.adapter, batch)


def _ask(model: "nn.Module", batch: "Batch") -> LogProbabilities:
    return LogProbabilities(*_trainer().compute_ref_log_probs(model, _arguments(batch)))


def _arguments(batch: "Batch") -> "dict[str, Tensor]":
    return {**batch.inputs, **batch.targets}


@contextmanager
def _reference(adapter: "Adapter") -> Iterator[None]:
    """The adapter off and evaluation mode; every module then goes back to the mode it was in."""
    import torch

    modes = {module: module.training for module in adapter.model.modules()}
    adapter.model.eval()
    # Autocast keeps the weights that it has rounded, and would use the adapted ones here and the originals after.
    torch.clear_autocast_cache()
    try:
        with adapter.disabled():
            yield
    finally:
        torch.clear_autocast_cache()
        for module, training in modes.items():
            module.training = training


@contextmanager
def _fused_output_layer(model: "nn.Module") -> Iterator[None]:
    """TRL's output layer, which gives the answers' log-probabilities without holding all logits; gone afterwards.

    Raises:
        ConfigError: The method changes the output layer, of which TRL multiplies by the weights alone.
    """
    from peft import PeftModel

    backbone: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(backbone.get_output_embeddings(), (adapted_layer(), copied_module())):
        raise ConfigError(
            "method: it changes the output layer, which TRL's preference loss leaves unadapted; choose another method, "
            "or other target_modules"
        )
    plain = backbone.forward
    # Some methods of peft call the backbone's forward pass through a copy of the reference to it.
    callers = [module for module in model.modules() if vars(module).get("forward") == plain]
    with fused_output_layer(backbone):
        for caller in callers:
            caller.forward = backbone.forward
        try:
            yield
        finally:
            for caller in callers:
                caller.forward = plain


@cache
def _trainer(beta: float = 1.0) -> "DPOTrainer":
    """TRL's trainer around a stand-in of a few weights; its methods are then given the real model.

    Around the real one the constructor would round a quantized model's adapter to bfloat16, refuse a quantized backbone
    whose adapter is not peft's, add a copy of the adapter as the reference, and put its own tokens and tags into the
    configuration.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    sizes: dict[str, Any] = {"hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1}
    shape = LlamaConfig(vocab_size=2, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes)
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="a", eos_token="b", pad_token="b")
    # Iterable, as a finite set would be mapped, shown with a progress bar and cached in files.
    pairs = Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "b"}]).to_iterable_dataset()
    with tempfile.TemporaryDirectory() as folder, _nothing_else_changed():
        unwanted = no_checkpointing(DPOConfig)
        arguments = DPOConfig(folder, beta=beta, bf16=False, max_steps=1, report_to="none", use_cpu=True, **unwanted)
        trainer = DPOTrainer(
            LlamaForCausalLM(shape),
            ref_model=LlamaForCausalLM(shape),
            args=arguments,
            train_dataset=pairs,
            processing_class=tokenizer,
        )
    return given_references(trainer)


@contextmanager
def _nothing_else_changed() -> Iterator[None]:
    """Random state as before, since TRL seeds it, and nothing reported over the network of how TRL is used."""
    import numpy
    import torch
    from huggingface_hub import constants

    states, silent = (random.getstate(), numpy.random.get_state()), constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = silent
        random.setstate(states[0])
        numpy.random.set_state(states[1])
