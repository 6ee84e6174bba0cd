"""Neighbors of soft prompts: the vocabulary tokens nearest to each learned vector, and how close together they lie.

Lester et al. 2021 (arXiv 2104.08691, section 7) look up the tokens with the largest cosine to each vector of a learned
prompt and find them to be close in meaning to each other, which those of random vectors are not. That is measured here:
the mean cosine between the embeddings of the nearest tokens, for learned vectors, for random directions and for the
embeddings of tokens drawn at random. Cosines do not see lengths, so a random vector's length does not matter. A prompt
that starts as words is as tight as words are before it has learned anything: what training did shows against them.

The vectors of prompt tuning and P-tuning stand where embeddings of tokens would. Prefix tuning learns keys and values
of every layer; its keys in the first layer are compared with the keys that the vocabulary's tokens have there, standing
alone at the first position. Later layers mix tokens, so no token has a key of its own there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.models.transformers_inner import cache_argument, first_layers_angles, rotate_half

if TYPE_CHECKING:
    from torch import Tensor

    from harness.methods import Adapter

NEAREST = 5
DRAWS = 200
# Tokens that are looked at together: 64 MiB of embeddings that are 4,096 wide.
CHUNK = 4096
PERMUTATIONS = 10_000


class NoNeighbors(ValueError):
    """Why learned vectors can't be compared with the vocabulary, in a sentence."""


@dataclass(frozen=True)
class SoftPrompt:
    """Learned vectors, and the vectors that the vocabulary's tokens have in the same place.

    Attributes:
        places: Which virtual tokens the vectors are of, counted from 0: all but those that are zero and point nowhere,
            as a prompt may that starts as the padding token.
        vectors: Virtual tokens x width, float32.
        layer: 0 where they are keys of the first layer; null where they are input embeddings.
        tokens: How many tokens the vocabulary has.
        embed: Maps token ids to vectors, ids x width, float32.
    """

    places: list[int]
    vectors: "Tensor"
    layer: int | None
    tokens: int
    embed: "Callable[[Tensor], Tensor]"

    def nearest(self, vectors: "Tensor", k: int) -> "tuple[Tensor, Tensor]":
        """The k tokens with the largest cosine to each vector, the nearest first: ids and cosines, vectors x k.

        Tokens whose vector is zero, as a padding token's may be, have no direction and are passed over.
        """
        import torch
        from torch.nn.functional import normalize

        directions = normalize(vectors)
        ids, cosines = torch.empty(len(vectors), 0, dtype=torch.long), torch.empty(len(vectors), 0)
        for start in range(0, self.tokens, CHUNK):
            some = torch.arange(start, min(start + CHUNK, self.tokens))
            embeddings = self.embed(some)
            found = (directions.to(embeddings.device) @ normalize(embeddings).T).cpu()
            found[:, (embeddings == 0).all(dim=1).cpu()] = -torch.inf
            cosines, order = torch.cat([cosines, found], 1).topk(min(k, cosines.shape[1] + len(some)), dim=1)
            ids = torch.cat([ids, some.expand(len(vectors), -1)], 1).gather(1, order)
        return ids, cosines

    def tightness(self, ids: "Tensor") -> "Tensor":
        """The mean cosine over pairs of the tokens of a row; one number per row."""
        from torch.nn.functional import normalize

        rows, k = ids.shape
        directions = normalize(self.embed(ids.flatten())).view(rows, k, -1)
        pairs = directions @ directions.transpose(1, 2)
        return ((pairs.sum((1, 2)) - k) / (k * (k - 1))).cpu()


@dataclass(frozen=True)
class Tightness:
    """How tight the neighborhoods of learned vectors lie against those of random ones.

    Attributes:
        learned: One number a virtual token.
        directions: The same for random directions.
        words: The same for the vectors of tokens drawn from the vocabulary.
    """

    learned: list[float]
    directions: list[float]
    words: list[float]

    def against(self, control: list[float], seed: int = 0) -> tuple[float, float]:
        """The difference of means, learned less control, and its one-sided p-value by permutation.

        The p-value is the share of random ways to call as many of all the vectors learned that give a difference at
        least as large, the observed way included.
        """
        import numpy as np

        count, pooled = len(self.learned), np.array([*self.learned, *control])
        shuffled = np.random.default_rng(seed).permuted(np.tile(pooled, (PERMUTATIONS, 1)), axis=1)
        differences = shuffled[:, :count].mean(axis=1) - shuffled[:, count:].mean(axis=1)
        observed = float(pooled[:count].mean() - pooled[count:].mean())
        # Sums in another order differ in their last bits.
        larger = int((differences >= observed - 1e-9).sum())
        return observed, (1 + larger) / (1 + PERMUTATIONS)


def neighbors(adapter: "Adapter", tokenizer: Any, k: int = NEAREST) -> list[dict[str, Any]] | None:
    """The nearest tokens of each learned vector; null for a method without a soft prompt.

    Returns:
        One row per virtual token and neighbor: `virtual_token`, `layer` (0 for keys of the first layer, else null),
        `rank` from 1, `token_id`, `token`, `cosine`.

    Raises:
        NoNeighbors: The vectors can't be compared with the vocabulary.
    """
    prompt = soft_prompt(adapter, tokenizer)
    if prompt is None:
        return None
    ids, cosines = prompt.nearest(prompt.vectors, k)
    return [
        {
            "virtual_token": place,
            "layer": prompt.layer,
            "rank": rank,
            "token_id": token,
            "token": tokenizer.convert_ids_to_tokens(token),
            "cosine": cosine,
        }
        for place, row, values in zip(prompt.places, ids.tolist(), cosines.tolist(), strict=True)
        for rank, (token, cosine) in enumerate(zip(row, values, strict=True), 1)
    ]


def tightness(adapter: "Adapter", tokenizer: Any, k: int = NEAREST, seed: int = 0) -> Tightness | None:
    """How tight the k nearest tokens lie, for learned and for random vectors; null for a method without a soft prompt.

    Args:
        k: At least two.
        seed: Decides the random directions and tokens.

    Raises:
        NoNeighbors: The vectors can't be compared with the vocabulary.
    """
    prompt = soft_prompt(adapter, tokenizer)
    return None if prompt is None else _tightness(prompt, k, seed)


def _tightness(prompt: SoftPrompt, k: int, seed: int) -> Tightness:
    import torch

    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(DRAWS, prompt.vectors.shape[1], generator=generator)
    words = prompt.embed(torch.randperm(prompt.tokens, generator=generator)[:DRAWS]).cpu()
    groups = [prompt.vectors, directions, words[(words != 0).any(dim=1)]]
    ids, _ = prompt.nearest(torch.cat(groups), k)
    return Tightness(*(part.tolist() for part in prompt.tightness(ids).split([len(group) for group in groups])))


def table(adapter: "Adapter", tokenizer: Any, k: int = NEAREST, seed: int = 0) -> list[dict[str, Any]] | None:
    """Neighbors of a run's soft prompt, as it keeps them; null for a method that has none.

    Returns:
        One row per virtual token: `virtual_token`, `layer` (0 for keys of the first layer, else null), `norm`, then
        `token_1`, `cosine_1` and so on for the nearest tokens, `tightness`, the mean cosine between these,
        `random_directions` and `random_words`, its mean for random vectors of both kinds, and
        `random_directions_as_tight` and `random_words_as_tight`, the share of them that lie at least as tight.

    Raises:
        NoNeighbors: The vectors can't be compared with the vocabulary.
    """
    prompt = soft_prompt(adapter, tokenizer)
    if prompt is None:
        return None
    ids, cosines = prompt.nearest(prompt.vectors, k)
    tight = _tightness(prompt, k, seed)
    controls = {"random_directions": tight.directions, "random_words": tight.words}
    rows = []
    for number, (place, own) in enumerate(zip(prompt.places, tight.learned, strict=True)):
        nearest: dict[str, Any] = {}
        for rank, (token, cosine) in enumerate(zip(ids[number].tolist(), cosines[number].tolist(), strict=True), 1):
            nearest |= {f"token_{rank}": tokenizer.convert_ids_to_tokens(token), f"cosine_{rank}": cosine}
        rows.append(
            {
                "virtual_token": place,
                "layer": prompt.layer,
                "norm": float(prompt.vectors[number].norm()),
                **nearest,
                "tightness": own,
                **{name: sum(values) / len(values) for name, values in controls.items()},
                **{
                    f"{name}_as_tight": sum(v >= own for v in values) / len(values) for name, values in controls.items()
                },
            }
        )
    return rows


# --- Where the vectors are, and what they are compared with ---------------------------------------------------------


def soft_prompt(adapter: "Adapter", tokenizer: Any) -> SoftPrompt | None:
    """The vectors that an adapter has learned in the place of tokens; null for a method that learns none.

    Raises:
        NoNeighbors: They can't be compared with the vocabulary.
    """
    import torch

    model: Any = adapter.model
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return None
    base = model.get_base_model()
    embeddings: Any = base.get_input_embeddings()

    @torch.no_grad()
    def embed(ids: "Tensor") -> "Tensor":
        return embeddings(ids.to(embeddings.weight.device)).float()

    vectors, in_cache = _learned(model, config), config.peft_type.value == "PREFIX_TUNING"
    if in_cache:
        vectors = _keys(vectors, config, base)
    if not vectors.isfinite().all():
        raise NoNeighbors("the learned vectors hold numbers that are not finite")
    places = vectors.any(dim=1).nonzero()[:, 0].tolist()
    if not places:
        raise NoNeighbors("all learned vectors are zero, and point nowhere")
    tokens = min(len(tokenizer), embeddings.num_embeddings)
    return SoftPrompt(
        places, vectors[places], 0 if in_cache else None, tokens, partial(first_keys, base) if in_cache else embed
    )


def _learned(model: Any, config: Any) -> "Tensor":
    """The prompt as it is saved: what a network makes of it, where there is one; virtual tokens x width."""
    import torch

    encoder = model.prompt_encoder[model.active_adapter]
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            # A prompt that was loaded is kept without the network that made it.
            saved = encoder.embedding.weight if config.inference_mode else None
            prompt = model.get_prompt_embedding_to_save(model.active_adapter) if saved is None else saved
    finally:
        encoder.train(training)
    return prompt.detach().float().cpu()


def _keys(prefix: "Tensor", config: Any, base: Any) -> "Tensor":
    """The first layer's keys of a prefix, virtual tokens x width, as they would be at the first position.

    Raises:
        NoNeighbors: The architecture has no such keys, or turns them in a way that is not known here.
    """
    import torch

    if base.config.is_encoder_decoder:
        raise NoNeighbors("the prefix of an encoder-decoder stands before its decoder, which reads no tokens alone")
    count, heads = len(prefix), config.num_attention_heads
    keys = prefix.view(count, 2 * config.num_layers, heads, -1)[:, 0]
    rotary: Any = next((m for name, m in base.named_modules() if name.rpartition(".")[2] == "rotary_emb"), None)
    if rotary is not None:
        # Keys in the cache are turned by the angles of their position; turning back compares them with the first's.
        turns = first_layers_angles(rotary, base.config, prefix, torch.arange(count)[None])
        cosine, sine = (part[0][:, None] for part in turns)
        if cosine.shape[-1] != keys.shape[-1]:
            raise NoNeighbors("only a part of each key carries its position, which is not known here")
        keys = keys * cosine - rotate_half(keys) * sine
    return keys.flatten(1)


def first_keys(base: Any, ids: "Tensor") -> "Tensor":
    """The keys that tokens have in the first layer when each stands alone; ids x width, all heads side by side.

    The model itself computes them, embeddings, positions and norms included, as far as its first cache.

    Raises:
        NoNeighbors: The model keeps no keys in a cache.
    """
    import torch
    from transformers import DynamicCache

    class Reached(Exception):
        pass

    class FirstKeys(DynamicCache):
        def update(self, key_states: "Tensor", *args: Any, **kwargs: Any) -> Any:
            raise Reached(key_states)

    name = cache_argument(base.base_model)
    if name is None:
        raise NoNeighbors(f"{type(base.base_model).__name__} keeps no keys in a cache")
    training = base.training
    base.eval()
    try:
        with torch.no_grad():
            base.base_model(**{"input_ids": ids.to(base.device)[:, None], name: FirstKeys()})
    except Reached as reached:
        return reached.args[0].flatten(1).float()
    finally:
        base.train(training)
    raise NoNeighbors(f"{type(base.base_model).__name__} keeps no keys in a cache")
