"""Architectures of transformers: the places of the modules that methods change."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from harness.config.errors import ConfigError, near_misses
from harness.config.schema import Quantization
from harness.models import roles

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ROLES = ("query", "attention_qv", "attention_kv", "attention", "mlp", "mlp_output", "all_linear")


class Kind(Enum):
    """Kind of head on a backbone; the values are peft's names for the same."""

    classification = "SEQ_CLS"
    causal_lm = "CAUSAL_LM"
    seq2seq_lm = "SEQ_2_SEQ_LM"


@dataclass(frozen=True)
class Architecture:
    """Where the modules of one transformers architecture sit.

    Module names are relative to a layer, as in `named_modules()`.

    Attributes:
        layers: Name of the list of layers inside the backbone, as a regular expression.
        query: The query projection; a fused projection counts whole, here and below.
        query_value: The projections that LoRA's authors adapt.
        key_value: The projections that IA3's authors scale.
        attention: All projections of the attention block, the one that leaves it last.
        mlp: All projections of the feed-forward block, the one that enters it first and the one that leaves it last.
        head: Top-level modules that the classification model adds to the backbone and that no checkpoint of the
            backbone holds.
        decoder: true for causal language models, which read the classification score at the last token.
        norm_last: Whether a norm called `final_layer_norm` follows the residual sum behind the feed-forward block.
        pair: true for an encoder with a decoder that reads it.
        found: Whether nobody described this and it was found by names and shapes.
    """

    layers: str
    query: tuple[str, ...]
    query_value: tuple[str, ...]
    key_value: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    head: tuple[str, ...]
    decoder: bool = False
    norm_last: bool = False
    pair: bool = False
    found: bool = False

    @property
    def attention_output(self) -> str:
        """The projection that leaves the attention block, before the residual sum."""
        return self.attention[-1]

    @property
    def mlp_input(self) -> str:
        """A projection that reads what the feed-forward block is given."""
        return self.mlp[0]

    @property
    def mlp_output(self) -> str:
        """The projection that leaves the feed-forward block, before the residual sum."""
        return self.mlp[-1]

    def targets(self, role: str) -> str:
        """A regular expression over full module names for a role of `ROLES`."""
        names = {
            "query": self.query,
            "attention_qv": self.query_value,
            "attention_kv": self.key_value,
            "attention": self.attention,
            "mlp": self.mlp,
            "mlp_output": (self.mlp_output,),
            "all_linear": self.attention + self.mlp,
        }[role]
        return self.layer_modules(names)

    def layer_modules(self, names: tuple[str, ...]) -> str:
        """A regular expression over full module names for modules named relative to a layer."""
        alternatives = "|".join(name.replace(".", r"\.") for name in names)
        return rf"(.*\.)?{self.layers}\.\d+\.({alternatives})"


BERT = Architecture(
    layers=r"encoder\.layer",
    query=("attention.self.query",),
    query_value=("attention.self.query", "attention.self.value"),
    key_value=("attention.self.key", "attention.self.value"),
    attention=("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    mlp=("intermediate.dense", "output.dense"),
    head=("classifier",),
)
LLAMA = Architecture(
    layers=r"layers",
    query=("self_attn.q_proj",),
    query_value=("self_attn.q_proj", "self_attn.v_proj"),
    key_value=("self_attn.k_proj", "self_attn.v_proj"),
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    mlp=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    head=("score",),
    decoder=True,
)
# Its names are regular expressions, since the blocks differ: an encoder's are self-attention and feed-forward, in a
# decoder's attention to the encoder comes between the two. The feed-forward's way in is `wi`, or gated `wi_0`, `wi_1`.
T5 = Architecture(
    layers=r"block",
    query=("layer.[01].(Self|EncDec)Attention.q",),
    query_value=("layer.[01].(Self|EncDec)Attention.[qv]",),
    key_value=("layer.[01].(Self|EncDec)Attention.[kv]",),
    attention=("layer.[01].(Self|EncDec)Attention.[qkv]", "layer.[01].(Self|EncDec)Attention.o"),
    mlp=("layer.[12].DenseReluDense.wi(_[01])?", "layer.[12].DenseReluDense.wo"),
    head=("classification_head",),
    pair=True,
)
BART = Architecture(
    layers=r"(encoder|decoder)\.layers",
    query=("(self|encoder)_attn.q_proj",),
    query_value=("(self|encoder)_attn.[qv]_proj",),
    key_value=("(self|encoder)_attn.[kv]_proj",),
    attention=("(self|encoder)_attn.[qkv]_proj", "(self|encoder)_attn.out_proj"),
    mlp=("fc1", "fc2"),
    head=("classification_head",),
    norm_last=True,
    pair=True,
)
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), BERT),
    "deberta-v2": Architecture(
        layers=r"encoder\.layer",
        query=("attention.self.query_proj",),
        query_value=("attention.self.query_proj", "attention.self.value_proj"),
        key_value=("attention.self.key_proj", "attention.self.value_proj"),
        attention=(
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
            "attention.output.dense",
        ),
        mlp=BERT.mlp,
        head=("pooler", "classifier"),
    ),
    "distilbert": Architecture(
        layers=r"transformer\.layer",
        query=("attention.q_lin",),
        query_value=("attention.q_lin", "attention.v_lin"),
        key_value=("attention.k_lin", "attention.v_lin"),
        attention=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        mlp=("ffn.lin1", "ffn.lin2"),
        head=("pre_classifier", "classifier"),
    ),
    "albert": Architecture(
        layers=r"albert_layer_groups\.\d+\.albert_layers",
        query=("attention.query",),
        query_value=("attention.query", "attention.value"),
        key_value=("attention.key", "attention.value"),
        attention=("attention.query", "attention.key", "attention.value", "attention.dense"),
        mlp=("ffn", "ffn_output"),
        head=("classifier",),
    ),
    "modernbert": Architecture(
        layers=r"layers",
        query=("attn.Wqkv",),
        query_value=("attn.Wqkv",),
        key_value=("attn.Wqkv",),
        attention=("attn.Wqkv", "attn.Wo"),
        mlp=("mlp.Wi", "mlp.Wo"),
        head=("head", "classifier"),
    ),
    "gpt2": Architecture(
        layers=r"h",
        query=("attn.c_attn",),
        query_value=("attn.c_attn",),
        key_value=("attn.c_attn",),
        attention=("attn.c_attn", "attn.c_proj"),
        mlp=("mlp.c_fc", "mlp.c_proj"),
        head=("score",),
        decoder=True,
    ),
    "opt": Architecture(
        layers=r"decoder\.layers",
        query=LLAMA.query,
        query_value=LLAMA.query_value,
        key_value=LLAMA.key_value,
        attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
        mlp=("fc1", "fc2"),
        head=("score",),
        decoder=True,
    ),
    **dict.fromkeys(("llama", "qwen2", "mistral", "gemma", "qwen3", "gemma2", "gemma3_text"), LLAMA),
    "phi3": Architecture(
        layers=r"layers",
        query=("self_attn.qkv_proj",),
        query_value=("self_attn.qkv_proj",),
        key_value=("self_attn.qkv_proj",),
        attention=("self_attn.qkv_proj", "self_attn.o_proj"),
        mlp=("mlp.gate_up_proj", "mlp.down_proj"),
        head=("score",),
        decoder=True,
    ),
    "gpt_neox": Architecture(
        layers=r"layers",
        query=("attention.query_key_value",),
        query_value=("attention.query_key_value",),
        key_value=("attention.query_key_value",),
        attention=("attention.query_key_value", "attention.dense"),
        mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        head=("score",),
        decoder=True,
    ),
    "bloom": Architecture(
        layers=r"h",
        query=("self_attention.query_key_value",),
        query_value=("self_attention.query_key_value",),
        key_value=("self_attention.query_key_value",),
        attention=("self_attention.query_key_value", "self_attention.dense"),
        mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        head=("score",),
        decoder=True,
    ),
    "t5": T5,
    "mt5": T5,
    "bart": BART,
}


def architecture(config: "PretrainedConfig") -> Architecture:
    """Look up where a model's modules sit; of an architecture that is not described, find it by names and shapes.

    Raises:
        ConfigError: It is not described and not clear; the message says what to write.
    """
    known = ARCHITECTURES.get(config.model_type)
    if known is not None:
        return known
    try:
        return Architecture(**roles.find(config), found=True)
    except roles.Unclear as reason:
        raise ConfigError(
            f"model.path: architecture {config.model_type!r} is not described, and its parts are not clear by their "
            f"names and shapes: {reason}; add it to ARCHITECTURES in harness/models/architectures.py (layer list, "
            f"projections, head); {near_misses(config.model_type, ARCHITECTURES)}"
        ) from None


@dataclass(frozen=True)
class Backbone:
    """A model and where its modules sit.

    Attributes:
        model: The backbone with its head; may be on the meta device.
        architecture: Where the modules sit.
        head: Dotted names of the modules that are new and trained by every method; none for a language model.
        kind: What the head is for.
        quantization: How the linear layers are stored, or will be once loaded.
        renewed: Modules of the head that the checkpoint had for another task, and that were drawn anew.
    """

    model: "PreTrainedModel"
    architecture: Architecture
    head: tuple[str, ...]
    kind: Kind = Kind.classification
    quantization: Quantization = Quantization.none
    renewed: tuple[str, ...] = ()

    def is_head(self, name: str) -> bool:
        """Whether a parameter, by its name in `model.named_parameters()`, belongs to the head."""
        return name.startswith(tuple(f"{module}." for module in self.head))

    def layers(self) -> list[str]:
        """Full names of the layers, the one that sees the input first; layers that share weights come once."""
        pattern = re.compile(rf"(.*\.)?{self.architecture.layers}\.\d+")
        return [name for name, _ in self.model.named_modules() if pattern.fullmatch(name)]
