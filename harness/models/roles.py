"""Roles of modules in an architecture that nobody has described, found by their names and shapes.

A transformer of any maker is a list of like layers, each with an attention block, whose projections are called query,
key and value or are one for all three, and a feed-forward block. Whoever knows better describes the architecture in
`architectures.py`, which comes first.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.models.transformers_inner import has_class, skeleton_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

ATTENTION = re.compile(r"att(n|ention)", re.I)
# Names of a projection: q, query, q_proj, to_q, wq, query_layer and the like.
FUSED = re.compile(r"q_?k_?v|query_?key_?value|c_attn|in_proj", re.I)
FUSED_KEY_VALUE = re.compile(r"(^|_|w)k_?v(_|$)|key_?value", re.I)
QUERY, KEY, VALUE = (re.compile(rf"(^|_|w)({one})(_|$)", re.I) for one in ("q|query", "k|key", "v|value"))
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads")


class Unclear(Exception):
    """The role that no module was found for, and why, in a few words."""


@dataclass(frozen=True)
class Linear:
    """A linear module of a layer, by its name in it, with its outputs and inputs."""

    name: str
    rows: int
    columns: int

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]


def find(config: "PretrainedConfig") -> dict[str, Any]:
    """Where the modules of each role sit: the fields of `Architecture`.

    Builds the model without its weights.

    Raises:
        Unclear: A role has no module, or the model is none of this kind.
    """
    lacking = [name for name in NEEDED if not isinstance(getattr(config, name, None), int)]
    if lacking:
        raise Unclear(f"its configuration has no {lacking[0]}")
    pair = bool(getattr(config, "is_encoder_decoder", False))
    model = skeleton_of(config, "AutoModel")
    if model is None:
        raise Unclear("transformers has no model of it")
    stacks = _stacks(model)
    if len(stacks) != 1 + pair:
        raise Unclear(f"it has {len(stacks)} lists of layers with attention, and {1 + pair} of them would be clear")
    found = [_roles(model.get_submodule(f"{stack}.0"), config.hidden_size) for stack in stacks]
    # An encoder and its decoder name like parts alike, and a decoder has one more attention block.
    roles = {role: tuple(dict.fromkeys(name for each in found for name in each[role])) for role in found[0]}
    alternatives = "|".join(re.escape(stack) for stack in stacks)
    language_model = has_class(config, "AutoModelForCausalLM") and not has_class(config, "AutoModelForMaskedLM")
    return {
        "layers": rf"({alternatives})" if pair else alternatives,
        "query": roles["query"],
        "query_value": roles["query_value"],
        "key_value": roles["key_value"],
        "attention": (*roles["attention_inputs"], _either(roles["attention_outputs"])),
        "mlp": (*roles["mlp_inputs"], _either(roles["mlp_outputs"])),
        "head": _head(config),
        "decoder": language_model and not pair,
        "pair": pair,
    }


def _stacks(model: "nn.Module") -> list[str]:
    """Names of the lists of layers that have attention, those inside of a layer left out."""
    from torch import nn

    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    found: list[str] = []
    for name in lists:
        if not name.startswith(tuple(f"{outer}." for outer in found)) and _has_attention(model.get_submodule(name)):
            found.append(name)
    return found


def _has_attention(stack: "nn.Module") -> bool:
    return any(ATTENTION.search(name) for name, module in stack.named_modules() if _shape(module) != (0, 0))


def _shape(module: "nn.Module") -> tuple[int, int]:
    """Outputs and inputs of a linear module, also of GPT-2's Conv1D; (0, 0) for any other."""
    if type(module).__name__ == "Conv1D":
        return module.weight.shape[1], module.weight.shape[0]  # type: ignore[index,return-value]
    rows, columns = getattr(module, "out_features", 0), getattr(module, "in_features", 0)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else (0, 0)


def _roles(layer: "nn.Module", hidden: int) -> dict[str, list[str]]:
    """Roles of one layer's linear modules."""
    linear = [Linear(name, *_shape(module)) for name, module in layer.named_modules() if _shape(module) != (0, 0)]
    # A number in a name is of a list inside of the layer: experts, of which a row sees only some.
    if numbered := [one for one in linear if re.search(r"(^|\.)\d+\.", one.name)]:
        raise Unclear(f"{numbered[0].name} is one of several in its layer, which rows see in parts")
    attention = [one for one in linear if ATTENTION.search(one.name)]
    rest = [one for one in linear if one not in attention]
    fused = [one for one in attention if FUSED.search(one.leaf)]
    key_value = [one for one in attention if FUSED_KEY_VALUE.search(one.leaf) and one not in fused]
    apart = [one for one in attention if one not in [*fused, *key_value]]
    query, key, value = ([one for one in apart if name.search(one.leaf)] for name in (QUERY, KEY, VALUE))
    inputs = [one for one in attention if one in [*fused, *key_value, *query, *key, *value]]
    # What leaves a block is as wide as the hidden states.
    outputs = [one for one in attention if one not in inputs and one.rows == hidden]
    entries = [one for one in rest if one.columns == hidden and one.rows != hidden]
    leaving = [one for one in rest if one.rows == hidden and one.columns != hidden]
    roles = {
        "query": query or fused,
        "query_value": [*query, *(value or key_value)] if query else fused,
        "key_value": [*key, *value] or key_value or fused,
        "attention_inputs": inputs,
        "attention_outputs": outputs,
        "mlp_inputs": entries,
        "mlp_outputs": leaving,
    }
    for role, modules in roles.items():
        if not modules:
            raise Unclear(f"no module of a layer looks like its {role.replace('_', ' ')}")
    return {role: [one.name for one in modules] for role, modules in roles.items()}


def _either(names: tuple[str, ...]) -> str:
    """A name that stands for several: `Architecture` reads names as regular expressions, in which a dot is a dot."""
    return names[0] if len(names) == 1 else f"({'|'.join(names)})"


def _head(config: "PretrainedConfig") -> tuple[str, ...]:
    """What the classification model adds to the backbone; nothing where transformers has no such model."""
    model = skeleton_of(config, "AutoModelForSequenceClassification")
    if model is None:
        return ()
    children = model.named_children()
    return tuple(n for n, child in children if n != model.base_model_prefix and any(True for _ in child.parameters()))
