"""Inner names of transformers: what it does not promise to keep, gathered so that an upgrade touches one file.

`cache_argument` bridges a rename: transformers 5.24 calls the models' argument for the key-value cache `cache`, and
before it was `past_key_values`.
"""

import inspect
import sys
from collections.abc import Callable
from copy import copy
from typing import Any

CACHE_ARGUMENTS = ("cache", "past_key_values")
# The names under which attention with a prefix, and of one part of a batch after the other, is known to transformers.
WITH_PREFIX, APART = "harness_prefix", "harness_apart"


def cache_argument(model: Any) -> str | None:
    """Name of the key-value cache among the arguments of a model's forward pass; None where it takes none.

    A model with a head may hand on what it does not name itself, so its backbone is asked after it.
    """
    named, hands_on = _parameters(model)
    if hands_on and model.base_model is not model:
        named |= _parameters(model.base_model)[0]
    return next((name for name in CACHE_ARGUMENTS if name in named), None)


def _parameters(model: Any) -> tuple[set[str], bool]:
    parameters = inspect.signature(model.forward).parameters.values()
    return {one.name for one in parameters}, any(one.kind is one.VAR_KEYWORD for one in parameters)


def rotate_half(states: Any) -> Any:
    """The rotation of rotary position embeddings in Llama's layout; states: ... x head width."""
    from transformers.models.llama import modeling_llama

    return modeling_llama.rotate_half(states)


def first_layers_angles(rotary: Any, config: Any, states: Any, positions: Any) -> Any:
    """Cosines and sines that a rotary embedding turns the first layer's keys by; kinds of layers may differ in them."""
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        return rotary(states, positions, config.layer_types[0])
    return rotary(states, positions)


def is_converted(name: str, skipped: list[str]) -> bool:
    """Whether transformers quantizes the linear layer of that name, some being skipped."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    return should_convert_module(name, skipped)


def hidden_states(states: Any) -> Any:
    """Hidden states (batch x sequence x hidden) as the output that a language model expects of its backbone."""
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)


def has_class(config: Any, name: str) -> bool:
    """Whether an automatic class of transformers, by its name, has a model for a configuration."""
    import transformers

    return type(config) in getattr(transformers, name)._model_mapping


def skeleton_of(config: Any, name: str) -> Any:
    """The model that an automatic class makes of a configuration, without weights; None where it has none."""
    import torch
    import transformers

    if not has_class(config, name):
        return None
    with torch.device("meta"):
        return getattr(transformers, name).from_config(config)


def decoder_prefix(cache: Any) -> Any:
    """The keys and values of a decoder's own attention, as the cache of a decoder that reads an encoder too."""
    from transformers import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(cache, DynamicCache())


def classify_last(model: Any, head: str) -> None:
    """Have a classifier on an encoder with a decoder read the last token, instead of looking where a sequence ends.

    Where it ends is a value, which tensors without data do not have; operators and memory are the same.
    """
    from torch.nn.functional import cross_entropy
    from transformers.modeling_outputs import SequenceClassifierOutput

    def forward(input_ids: Any, attention_mask: Any = None, labels: Any = None, **_: Any) -> Any:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": input_ids}
        states = model.base_model(**inputs, use_cache=False).last_hidden_state
        logits = model.get_submodule(head)(states[:, -1])
        return SequenceClassifierOutput(loss=cross_entropy(logits.float(), labels), logits=logits)

    model.forward = forward


def takes_prefix(attention: Any) -> bool:
    """Whether a module computes attention by a function that its configuration names, so that it can be another."""
    return hasattr(attention, "config") and hasattr(_file_of(attention), "ALL_ATTENTION_FUNCTIONS")


def is_causal(attention: Any) -> bool:
    """Whether a module's queries see the keys of the past alone; where it does not say so, they do."""
    return getattr(attention, "is_causal", True)


class PrefixHandle:
    """Keys and values in front of those that an attention module computes, until they are removed.

    They come in where the module's own are ready, behind positions and cache, so that neither knows of them.

    Args:
        attention: Reads the name of its function in a configuration of its own from now on, in place of the model's.
        prefix: A module whose output is keys and values, 2 x tokens x width, all heads side by side.
    """

    def __init__(self, attention: Any, prefix: Any) -> None:
        if not hasattr(attention, "prefixes"):
            # A list, since a module that is an attribute would be the attention's own; several methods may put one.
            attention.prefixes = []
            _attend_by(attention, WITH_PREFIX, attend_with_prefixes)
        attention.prefixes.append(prefix)
        self._attention, self._prefix = attention, prefix

    def remove(self) -> None:
        attention = self._attention
        attention.prefixes.remove(self._prefix)
        if not attention.prefixes:
            attention.config = attention.config_without
            del attention.prefixes, attention.config_without


def attend_with_prefixes(
    attention: Any, query: Any, key: Any, value: Any, mask: Any, position_bias: Any = None, **further: Any
) -> Any:
    """The attention that a module would compute, every query seeing the prefixes too.

    Args:
        query: Batch x heads x queries x head width.
        key: Batch x key heads x keys x head width; `value` too.
        mask: Batch x heads x queries x keys, or 1 for one of the first two; null for all, or for the past.
        position_bias: The same shape; zero for a prefix.
    """
    import torch
    from torch.nn.functional import pad

    name, attend = _own_attention(attention)
    states = torch.cat([prefix() for prefix in attention.prefixes], dim=1)
    tokens, (rows, heads, keys, _), queries = states.shape[1], key.shape, query.shape[2]
    in_front = states.to(key.dtype).unflatten(2, (heads, -1)).transpose(1, 2).unsqueeze(1).expand(2, rows, -1, -1, -1)
    causal = further.get("is_causal")
    if mask is None and queries > 1 and name != "eager" and (is_causal(attention) if causal is None else causal):
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=key.device).tril()
    if mask is not None:
        mask = pad(mask, (tokens, 0), value=mask.dtype is torch.bool)
    if position_bias is not None:
        further["position_bias"] = pad(position_bias, (tokens, 0))
    key, value = (torch.cat(both, dim=2) for both in zip(in_front, (key, value), strict=True))
    return attend(attention, query, key, value, mask, **further)


def loss_of(model: Any, logits: Any, labels: Any) -> Any:
    """The loss that a model with a head computes from its logits (batch x classes, or batch x sequence x words)."""
    named = {"logits": logits, "pooled_logits": logits, "vocab_size": logits.shape[-1], "config": model.config}
    return model.loss_function(labels=labels, **named)


def run_attention_apart(model: Any, apart: Callable[..., Any]) -> None:
    """Have attention that drops weights in training be computed on parts of a batch, one after the other.

    Where a module draws no masks, it computes on the whole batch as before.

    Args:
        apart: Takes tensors whose first dimension is the batch's rows and a function of some rows of each, and puts
            together what that gives.
    """
    from transformers import PreTrainedModel

    for module in model.modules():
        # A whole model goes by the same name in its configuration when it makes the mask.
        if takes_prefix(module) and not isinstance(module, PreTrainedModel):
            module.apart = apart
            _attend_by(module, APART, attend_apart)


def attend_apart(
    attention: Any, query: Any, key: Any, value: Any, mask: Any, dropout: float = 0.0, **further: Any
) -> Any:
    """The attention that a module would compute, its dropout drawn for one part of the batch after the other."""
    _, attend = _own_attention(attention)
    if not dropout:
        return attend(attention, query, key, value, mask, dropout=dropout, **further)
    states = [query, key, value] if mask is None else [query, key, value, mask]

    def compute(query: Any, key: Any, value: Any, mask: Any = None) -> Any:
        return attend(attention, query, key, value, mask, dropout=dropout, **further)[0]

    return attention.apart(states, compute), None


def _attend_by(attention: Any, name: str, function: Callable[..., Any]) -> None:
    """Have a module attend by a function of ours, in a configuration of its own; the one before is kept beside it."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)
    attention.config_without, attention.config = attention.config, copy(attention.config)
    attention.config._attn_implementation_internal = name


def _own_attention(attention: Any) -> tuple[str, Callable[..., Any]]:
    """Name and function by which a module attends when left alone."""
    name, file = attention.config_without._attn_implementation, _file_of(attention)
    return name, file.ALL_ATTENTION_FUNCTIONS.get_interface(name, file.eager_attention_forward)


def _file_of(module: Any) -> Any:
    """The file of transformers that defines a module's class."""
    return sys.modules[type(module).__module__]
