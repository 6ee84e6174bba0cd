"""Prefix tuning inside attention: learned keys and values in front of those that an encoder or a decoder computes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.methods.bottleneck import AddedModules
from harness.methods.defaults import MethodDefaults
from harness.methods.size import Knob
from harness.models.transformers_inner import PrefixHandle, is_causal, takes_prefix

if TYPE_CHECKING:
    from torch import nn

    from harness.methods.layers import Prefix
    from harness.models.architectures import Backbone


class Block(Enum):
    """Attention blocks by what they are: an encoder's, a decoder's to itself, and a decoder's to an encoder."""

    encoder = "encoder"
    decoder = "decoder"
    cross = "cross"


@dataclass(frozen=True)
class AttentionPrefix(MethodDefaults):
    """softmax(q [P_K; K]^T) [P_V; V] with P_K and P_V learned in each layer (Li and Liang 2021, arXiv 2101.00190).

    Section 4.1 has a prefix for the encoder and one for the decoder. The authors' code for BART (in their repository
    XiangLi1999/PrefixTuning, seq2seq/prefixTuning.py) has three, for the encoder's self-attention, the decoder's, and
    the decoder's attention to the encoder, each made by a network of its own as in section 4.3. A prefix has no
    position, so texts keep theirs, and it lies in no cache. It starts from random numbers, not from the keys and values
    of words as section 7.4 has it for few examples.

    Attributes:
        num_virtual_tokens: Length of each prefix.
        blocks: The attention blocks that have one; of those named, a backbone has one or more.
        projection_dim: Width of the network that makes the prefixes of one kind of block in all layers,
            tanh(E W_1 + b_1) W_2 + b_2; null where they are trained directly.
    """

    num_virtual_tokens: int
    blocks: list[Block]
    projection_dim: int | None

    def size(self) -> Knob:
        return Knob("num_virtual_tokens")

    def check(self, key: str) -> None:
        for name in ("num_virtual_tokens", "projection_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{key}.{name}={value}: 1 or more is needed")
        if not self.blocks or len(set(self.blocks)) < len(self.blocks):
            given, all_blocks = _listed(self.blocks), _listed(Block)
            raise ConfigError(f"{key}.blocks=[{given}]: one or more of {all_blocks} is needed, each once")

    def sites(self, backbone: "Backbone") -> dict[str, tuple[Block, int]]:
        """Full names of the attention modules, what each is, and the width of its keys, all heads side by side.

        Raises:
            ConfigError: The backbone has none, or no place for keys and values in front of its own.
        """
        kind = backbone.model.config.model_type
        found = {site: (_block(backbone, site), width) for site, width in _attention(backbone).items()}
        if not all(takes_prefix(backbone.model.get_submodule(site)) for site in found):
            raise ConfigError(
                f"method={self.name}: the attention of {kind} is computed in its own way, which lets no other keys and "
                "values in; choose another method, such as prompt_tuning"
            )
        chosen = {site: what for site, what in found.items() if what[0] in self.blocks}
        if not chosen:
            there = _listed(dict.fromkeys(block for block, _ in found.values()))
            raise ConfigError(
                f"method.blocks=[{_listed(self.blocks)}]: {kind} has no such attention; what it has is [{there}]"
            )
        return chosen

    def selects(self, backbone: "Backbone") -> set[str]:
        """None of the backbone's own parameters."""
        return set()

    def expected_parameters(self, backbone: "Backbone") -> int:
        """2 tokens width at each site; with a network what it reads and its layers, the last one at each site."""
        sites = self.sites(backbone).values()
        if self.projection_dim is None:
            return sum(2 * self.num_virtual_tokens * width for _, width in sites)
        hidden, inner = backbone.model.config.hidden_size, self.projection_dim
        shared = self.num_virtual_tokens * hidden + (hidden + 1) * inner
        return len({block for block, _ in sites}) * shared + sum((inner + 1) * 2 * width for _, width in sites)

    def layers(self, backbone: "Backbone") -> "dict[str, Prefix]":
        """A new prefix for each site."""
        from harness.methods.layers import Prefix, PrefixNetwork

        sites, device, tokens = self.sites(backbone), backbone.model.device, self.num_virtual_tokens
        network: dict[Block, PrefixNetwork | None] = dict.fromkeys(Block)
        if self.projection_dim is not None:
            hidden = backbone.model.config.hidden_size
            for block in {block for block, _ in sites.values()}:
                network[block] = PrefixNetwork(tokens, hidden, self.projection_dim, device)
        return {site: Prefix(tokens, width, network[block], device) for site, (block, width) in sites.items()}

    def connect(self, backbone: "Backbone", site: str, prefix: "nn.Module") -> list[PrefixHandle]:
        """Put one prefix in front of the keys and values of its attention module."""
        return [PrefixHandle(backbone.model.get_submodule(site), prefix)]

    def attach(self, backbone: "Backbone") -> "Prefixes":
        return Prefixes(backbone, self, self.layers(backbone))

    def restore(self, backbone: "Backbone", folder: Path) -> "Prefixes":
        return self.attach(backbone).load(folder)


class Prefixes(AddedModules):
    """Prefixes in a frozen backbone."""

    def merge(self) -> "nn.Module":
        raise ValueError(
            f"{self.method.name} can't be merged: its keys and values belong to no token, and no weights of the "
            "backbone's compute them"
        )


def _listed(blocks: Iterable[Block]) -> str:
    return ", ".join(block.value for block in blocks)


def _attention(backbone: "Backbone") -> dict[str, int]:
    """Full names of the modules that compute attention, in the backbone's order, and the width of their keys."""
    config: Any = backbone.model.config
    pattern = re.compile(backbone.architecture.layer_modules(backbone.architecture.key_value))
    widths: dict[str, list[int]] = {}
    for name, module in backbone.model.named_modules():
        if pattern.fullmatch(name):
            widths.setdefault(name.rpartition(".")[0], []).append(getattr(module, "out_features", 0))
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # One projection for more than keys is as wide as all that comes out of it.
    return {site: found[0] if len(found) > 1 else heads * head for site, found in widths.items()}


def _block(backbone: "Backbone", site: str) -> Block:
    if not backbone.architecture.pair:
        return Block.decoder if backbone.architecture.decoder else Block.encoder
    if "encoder" in site.split("."):
        return Block.encoder
    return Block.decoder if is_causal(backbone.model.get_submodule(site)) else Block.cross
