"""Parameter counts of peft's configuration classes, as closed forms over shapes, and what each class can go with.

The forms follow peft 0.21's layers: `rows` and `columns` are a matrix's outputs and inputs. What a class can go with
was found by trying it: attaching, three steps, saving, loading, switching off, on every architecture and quantization.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.config.schema import Quantization
from harness.methods.peft_inner import factorization
from harness.models.architectures import Backbone, Kind

if TYPE_CHECKING:
    from torch import nn

NO_QUANTIZATION = (Quantization.none,)
NOT_4BIT = (Quantization.none, Quantization.int8)
NOT_INT8 = (Quantization.none, Quantization.nf4, Quantization.fp4)
ANY_QUANTIZATION = tuple(Quantization)
WITH_CACHE = (
    *("bert", "roberta", "xlm-roberta", "electra"),
    *(
        "gpt2",
        "opt",
        "bloom",
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi3",
        "gpt_neox",
    ),
    *("t5", "mt5", "bart"),
)


class Misfit(Exception):
    """A kind of backbone that a method can't go with; the message is the reason."""


class WrongOption(Exception):
    """An option that these shapes do not allow; the message begins with the option's name and value."""


@dataclass(frozen=True)
class Target:
    """A module that a method changes.

    Attributes:
        name: Its full name.
        rows: Outputs.
        columns: Inputs.
        bias: Whether it has a bias.
        parameters: All that it holds.
        transposed: Whether it is GPT-2's Conv1D.
    """

    name: str
    rows: int
    columns: int
    bias: bool
    parameters: int
    transposed: bool

    @property
    def shape(self) -> str:
        return f"{self.name} is {self.rows} x {self.columns}"


def describe(name: str, module: "nn.Module") -> Target:
    """The shape of a module."""
    rows, columns = width(module)
    return Target(
        name,
        rows,
        columns,
        getattr(module, "bias", None) is not None,
        sum(p.numel() for p in module.parameters()),
        type(module).__name__ == "Conv1D",
    )


def width(module: "nn.Module") -> tuple[int, int]:
    """Output and input width of a linear module, also of GPT-2's Conv1D; (0, 0) for anything else."""
    if type(module).__name__ == "Conv1D":
        return module.weight.shape[1], module.weight.shape[0]  # type: ignore[index,return-value]
    rows, columns = getattr(module, "out_features", 0), getattr(module, "in_features", 0)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else (0, 0)


Count = Callable[[Any, list[Target], Backbone], int]


def each(form: Callable[[Any, Target], int]) -> Count:
    """A form that is a sum over the modules."""
    return lambda config, targets, backbone: sum(form(config, target) for target in targets)


def whole_rank(rank: int, target: Target) -> int:
    """The rank, if the matrix can have it."""
    if rank > min(target.rows, target.columns):
        raise WrongOption(f"r={rank} is too much: {target.shape}, which has no larger rank than its smaller side")
    return rank


def divides(size: int, key: str, target: Target, *widths: int) -> int:
    """The size, if it divides the widths."""
    if any(width % size for width in widths):
        raise WrongOption(f"{key}={size} does not divide the sides: {target.shape}")
    return size


def low_rank(config: Any, target: Target) -> int:
    """B A, of rows x rank and rank x columns."""
    return whole_rank(config.r, target) * (target.rows + target.columns)


def lora(config: Any, target: Target) -> int:
    """The two factors; DoRA adds a magnitude for each output, LoRA-FA freezes A and then trains B alone."""
    extra = target.rows * (config.use_dora + config.lora_bias)
    return low_rank(config, target) + extra


def adalora(config: Any, target: Target) -> int:
    """P diag(E) Q at the rank that training starts with."""
    return config.init_r * (target.rows + target.columns + 1)


def adamss(config: Any, target: Target) -> int:
    """In each of K subspaces of the rows: one direction (1 x r), and a coefficient for each row."""
    if config.subspace_rank != 1 or config.use_dynamic_rank or config.use_asa:
        raise Misfit("only subspace_rank=1 without use_dynamic_rank and use_asa has a size that the weights do not set")
    columns = target.columns + target.bias
    if config.r > min(target.rows, columns):
        raise WrongOption(f"r={config.r} is too much: {target.shape}, which has no larger rank than its smaller side")
    return config.num_subspaces * config.r + target.rows


def boft(config: Any, target: Target) -> int:
    """Blocks of b x b on the diagonal of columns x columns, and a scale for each output."""
    if config.boft_n_butterfly_factor != 1:
        raise WrongOption(
            f"boft_n_butterfly_factor={config.boft_n_butterfly_factor} needs peft's CUDA extension, which is compiled "
            "when it is used; 1 is allowed"
        )
    size = config.boft_block_size or target.columns // config.boft_block_num
    given = "boft_block_size" if config.boft_block_size else "boft_block_num"
    divides(getattr(config, given), given, target, target.columns)
    return target.columns * size + target.rows


def c3a(config: Any, target: Target) -> int:
    """A circulant block of b x b is given by b numbers."""
    size = divides(config.block_size, "block_size", target, target.rows, target.columns)
    return target.rows * target.columns // size


def deft(config: Any, target: Target) -> int:
    """A projection of rows x rank, and what is injected, rank x columns."""
    rank = whole_rank(config.r, target)
    return rank * target.rows + (0 if config.para else rank * target.columns)


def frequencies(config: Any, target: Target) -> int:
    """Chosen coefficients of a transform of the matrix."""
    if config.n_frequency > target.rows * target.columns:
        raise WrongOption(f"n_frequency={config.n_frequency} is more than the entries: {target.shape}")
    return config.n_frequency


def waveft(config: Any, target: Target) -> int:
    if config.proportional_parameters:
        raise WrongOption("proportional_parameters=true is not counted here; false gives every module n_frequency")
    return frequencies(config, target)


def frod(config: Any, target: Target) -> int:
    """A coefficient for each input direction, and a share of the pairs of two different ones."""
    pairs = min(int(target.columns**2 * config.sparse_rate), target.columns * (target.columns - 1))
    return target.columns + (max(1, pairs) if config.sparse_rate > 0 else 0)


def glora(config: Any, target: Target) -> int:
    """Supports A and B of the weight, C of the input, D and E of the bias, each a choice of shapes."""
    matrix = {
        "lora": whole_rank(config.r, target) * (target.rows + target.columns),
        "vector": target.rows,
        "constant": 1,
        "none": 0,
    }
    column = {"lora": config.r * (target.columns + 1), "vector": target.columns, "none": 0}
    row = {"vector": target.rows, "constant": 1, "none": 0}
    bias = column[config.config_C] + 2 * row[config.config_D_E] if target.bias else 0
    return 2 * matrix[config.config_A_B] + bias


def gralora(config: Any, target: Target) -> int:
    """Blocks, k by k, whose factors are as wide together as LoRA's, and a whole low-rank part beside them."""
    divides(config.gralora_k, "gralora_k", target, target.rows, target.columns)
    if config.r % config.gralora_k:
        raise WrongOption(f"gralora_k={config.gralora_k} does not divide r={config.r}")
    whole_rank(config.r, target)
    return (config.r + config.hybrid_r) * (target.rows + target.columns)


def hra(config: Any, target: Target) -> int:
    """A chain of reflections, each given by a vector of the inputs."""
    if config.r > target.columns:
        raise WrongOption(f"r={config.r} reflections are too many: {target.shape}")
    return config.r * target.columns


def ia3(config: Any, targets: list[Target], backbone: Backbone) -> int:
    """A scale for each output, or for each input where the module leaves the feed-forward block."""
    return sum(t.columns if matches(t.name, config.feedforward_modules) else t.rows for t in targets)


def lokr(config: Any, target: Target) -> int:
    """A Kronecker product of a small matrix and a larger one, the larger as a low-rank product if that is smaller."""
    small_rows, large_rows = factorization(target.rows, config.decompose_factor)
    small_columns, large_columns = factorization(target.columns, config.decompose_factor)
    small, large = small_rows * small_columns, large_rows * large_columns
    if config.decompose_both and config.r < max(small_rows, small_columns) / 2:
        small = config.r * (small_rows + small_columns)
    if config.r < max(large_rows, large_columns) / 2:
        large = config.r * (large_rows + large_columns)
    return small + large


def miss(config: Any, target: Target) -> int:
    """A shard of r x rows that all groups of inputs share; bat and mini cut it otherwise."""
    if config.r > target.columns:
        raise WrongOption(f"r={config.r} is too much: {target.shape}")
    if config.init_weights == "bat":
        divides(config.r, "r", target, target.rows, target.columns)
        return target.rows * config.r
    if config.init_weights == "mini":
        return config.r * divides(config.mini_r, "mini_r", target, target.rows)
    return config.r * target.rows


def oft(config: Any, target: Target) -> int:
    """Blocks of an orthogonal matrix over the inputs, each given by the upper half of a skew matrix."""
    given = config.oft_block_size or config.r
    divides(given, "oft_block_size" if config.oft_block_size else "r", target, target.columns)
    size = config.oft_block_size or target.columns // config.r
    blocks = 1 if config.block_share else target.columns // size
    return blocks * size * (size - 1) // 2


def osf(config: Any, target: Target) -> int:
    """The low singular directions and values; the high ones, `effective_rank` of them, are frozen.

    The first of `rank_pattern` that is found in the module's name comes over it.
    """
    side = min(target.rows, target.columns)
    patterns = [rank for pattern, rank in (config.rank_pattern or {}).items() if re.search(pattern, target.name)]
    share = patterns[0] if patterns else config.effective_rank
    high = side // 2 if share is None else int(share * side) if 0 < share < 1 else int(share)
    if not 0 < high < side:
        raise WrongOption(f"effective_rank={share} leaves nothing to train or to keep: {target.shape}")
    return (side - high) * (target.rows + target.columns + 1)


def peanut(config: Any, target: Target) -> int:
    """A network on the weight's columns: rows to rank to rows, with pairs of rank x rank between."""
    rank = whole_rank(config.r, target)
    return 2 * rank * target.rows + 2 * config.depth * rank**2


def psoft(config: Any, target: Target) -> int:
    """An orthogonal matrix inside the main subspace, and two vectors of scales."""
    rank = whole_rank(config.r, target)
    return (rank * (rank - 1) // 2 if config.psoft_orth else rank**2) + rank * (config.psoft_mag_a + config.psoft_mag_b)


def randlora(config: Any, target: Target) -> int:
    """As many random bases of rank r as give full rank, each scaled along both of its sides."""
    side = min(target.rows, target.columns)
    bases = math.ceil(whole_rank(config.r, target) and side / config.r)
    return bases * (config.r + side)


def road(config: Any, target: Target) -> int:
    """An angle and a length for each pair of outputs, each output, or both ways."""
    divides(config.group_size, "group_size", target, target.rows)
    return {"road_1": 1, "road_2": 2, "road_4": 4}[str(getattr(config.variant, "value", config.variant))] * target.rows


def shira(config: Any, target: Target) -> int:
    """As many scattered entries as LoRA of the same rank has."""
    entries = config.r * (target.rows + target.columns)
    if entries > target.rows * target.columns:
        raise WrongOption(f"r={config.r} asks for {entries} entries: {target.shape}")
    return entries


def supertuning(config: Any, target: Target) -> int:
    """The largest entries, and a low-rank part if r is given."""
    entries = int(target.rows * target.columns * (1 - config.sparsity))
    if not entries:
        raise WrongOption(f"sparsity={config.sparsity} leaves no entry to train: {target.shape}")
    return entries + (low_rank(config, target) if config.r else 0)


def tinylora(config: Any, targets: list[Target], backbone: Backbone) -> int:
    """Numbers, u of them, for each group of modules."""
    for target in targets:
        whole_rank(config.r, target)
    return config.u * max(1, round(len(targets) * (1 - config.weight_tying)))


def unilora(config: Any, targets: list[Target], backbone: Backbone) -> int:
    """One vector, from which all entries of LoRA's matrices are taken."""
    for target in targets:
        whole_rank(config.r, target)
    return config.theta_d_length


def vblora(config: Any, targets: list[Target], backbone: Backbone) -> int:
    """A bank of vectors for all, and for each piece of each factor its preference among them."""
    total = config.num_vectors * config.vector_length
    if config.topk > config.num_vectors:
        raise WrongOption(f"topk={config.topk} is more than num_vectors={config.num_vectors}")
    for target in targets:
        whole_rank(config.r, target)
        size = divides(config.vector_length, "vector_length", target, target.rows, target.columns)
        total += config.r * (target.rows + target.columns) // size * config.num_vectors
    return total


def adaption_prompt(config: Any, targets: list[Target], backbone: Backbone) -> int:
    """A prompt and a gate for each of the top layers."""
    layers = backbone.model.config.num_hidden_layers
    if config.adapter_layers > layers:
        raise WrongOption(f"adapter_layers={config.adapter_layers} is too much: the backbone has {layers}")
    return config.adapter_layers * (config.adapter_len * backbone.model.config.hidden_size + 1)


def prompt(config: Any, targets: list[Target], backbone: Backbone) -> int:
    """An embedding for each virtual token; beside a decoder of its own the encoder alone reads them."""
    of_classifier(backbone)
    return config.num_virtual_tokens * config.token_dim


def of_classifier(backbone: Backbone) -> None:
    """Refuse a classifier that puts its score together from token ids, which virtual tokens have not.

    Raises:
        Misfit: It is one.
    """
    if backbone.kind is Kind.classification and backbone.model.config.is_encoder_decoder:
        raise Misfit("transformers' classifier on an encoder with a decoder reads token ids alone, no virtual tokens")


def p_tuning(config: Any, targets: list[Target], backbone: Backbone) -> int:
    """The embeddings and the network that makes the prompt of them, both trained."""
    width, hidden = config.token_dim, config.encoder_hidden_size or config.token_dim
    of_classifier(backbone)
    embeddings = config.num_virtual_tokens * width
    if str(getattr(config.encoder_reparameterization_type, "value", config.encoder_reparameterization_type)) == "MLP":
        return embeddings + hidden * (width + 1) + hidden * (hidden + 1) + width * (hidden + 1)
    inputs = [width] + [2 * hidden] * (config.encoder_num_layers - 1)
    # Two directions, four gates, a bias for what comes in and one for what comes round.
    lstm = sum(2 * 4 * hidden * (size + hidden + 2) for size in inputs)
    return embeddings + lstm + 2 * hidden * (2 * hidden + 1) + width * (2 * hidden + 1)


def prefix(config: Any, targets: list[Target], backbone: Backbone) -> int:
    """A key and a value for each virtual token and layer (of a pair, the decoder's); or a network that makes them."""
    of_classifier(backbone)
    configuration = backbone.model.config
    heads = getattr(configuration, "num_key_value_heads", None) or config.num_attention_heads
    values = 2 * config.num_layers * heads * (config.token_dim // config.num_attention_heads)
    if not config.prefix_projection:
        return config.num_virtual_tokens * values
    width = values // (2 * config.num_layers)
    hidden = config.encoder_hidden_size or width
    return config.num_virtual_tokens * width + hidden * (width + 1) + values * (hidden + 1)


def trainable_tokens(config: Any, targets: list[Target], backbone: Backbone) -> int:
    """The embeddings of the chosen tokens."""
    rows, columns = backbone.model.get_input_embeddings().weight.shape  # type: ignore[misc]
    beyond = [index for index in config.token_indices if not 0 <= index < rows]
    if beyond:
        raise WrongOption(f"token_indices={beyond} is beyond the vocabulary: it has {rows} tokens")
    return len(set(config.token_indices)) * int(columns)


def matches(name: str, targets: Any) -> bool:
    """Whether peft takes a module, by its full name, for one of a list of names or endings."""
    return any(name == target or name.endswith(f".{target}") for target in targets)
