"""Inner names of transformers: what it does not promise to keep, gathered so that an upgrade touches one file.

`cache_argument` bridges a rename: transformers 5.24 calls the models' argument for the key-value cache `cache`, and
before it was `past_key_values`.
"""

import inspect
from typing import Any

CACHE_ARGUMENTS = ("cache", "past_key_values")


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
