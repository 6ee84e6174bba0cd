"""Inner names of peft: what it does not promise to keep, gathered so that an upgrade touches one file."""

from types import MethodType
from typing import Any, NamedTuple

from harness.models.transformers_inner import cache_argument, decoder_prefix


def config_classes() -> list[type]:
    """Every configuration class that peft knows."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return list(PEFT_TYPE_TO_CONFIG_MAPPING.values())


def adapted_layer() -> Any:
    """The class of all layers that peft puts around a module of the backbone."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return BaseTunerLayer


def copied_module() -> Any:
    """The class that peft puts around a module it trains a copy of, as a head."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    return AuxiliaryTrainingWrapper


class LowRank(NamedTuple):
    """LoRA on one matrix.

    Attributes:
        a: rank x in.
        b: out x rank.
        scale: What their product is multiplied by.
        dropout: Of what A reads; an identity where there is none.
    """

    a: Any
    b: Any
    scale: float
    dropout: Any


def low_rank_parts(layer: Any) -> LowRank | None:
    """The matrices of a layer that peft adapted by LoRA as its paper has it; None for any other."""
    if "default" not in getattr(layer, "lora_A", ()) or layer.lora_variant or layer.lora_bias["default"]:
        return None
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return LowRank(a, b, layer.scaling["default"], layer.lora_dropout["default"]) if a.ndim == 2 else None


def factorization(size: int, factor: int) -> tuple[int, int]:
    """The two factors of a side that LoKr's Kronecker product is made of."""
    from peft.tuners.lokr.layer import factorization as of_lokr

    return of_lokr(size, factor)


def hand_over_prefix(model: Any) -> Any:
    """Have a `PeftModel` of prefix tuning give its prefix by the name that the backbone calls its cache.

    peft 0.21 knows the name `past_key_values` alone. Where the models name it otherwise, peft's classifiers refuse and
    its language models are answered with a warning.

    Returns:
        A handle that takes the renaming back, where there was any to do.

    Raises:
        ValueError: The backbone takes no cache.
    """
    base = model.get_base_model()
    name = cache_argument(base)
    if name is None:
        raise ValueError(f"{type(base).__name__} takes no key-value cache, in which the prefix would lie")
    if base.config.is_encoder_decoder:
        model.get_prompt = MethodType(_decoder_prompt, model)
    if hasattr(model, "_prefix_tuning_forward"):
        # Bound to the model, so that a copy of the model gets a method of its own.
        model._prefix_tuning_forward = MethodType(_prefix_tuning_forward, model)

    def rename(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if "past_key_values" in kwargs:
            kwargs[name] = kwargs.pop("past_key_values")
        return args, kwargs

    return base.register_forward_pre_hook(rename, with_kwargs=True)


def _decoder_prompt(model: Any, batch_size: int, *args: Any, **kwargs: Any) -> Any:
    """A prefix for each layer of a decoder beside an encoder.

    Peft 0.21 gives such a decoder half of the prefix's layers, each twice, and nothing learns from the other half.
    """
    return decoder_prefix(type(model).get_prompt(model, batch_size, *args, **kwargs))


def _prefix_tuning_forward(model: Any, **arguments: Any) -> Any:
    """A classifier's forward pass after its prefix, through the backbone's own."""
    rows = arguments["input_ids"] if arguments["input_ids"] is not None else arguments["inputs_embeds"]
    return model.base_model(**arguments, past_key_values=model.get_prompt(len(rows)))
