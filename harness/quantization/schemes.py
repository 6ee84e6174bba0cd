"""Schemes of quantization, and what each leaves of a matrix."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from harness.config.errors import ConfigError
from harness.methods.peft_counts import width
from harness.models import WEIGHTS, empty_model, load_config

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


BLOCK = 64
SCALE_BITS = 32
# The control: what each scheme does to a normal matrix, and to the same with a weight in a thousand 20 times as large.
SYNTHETIC_SIDE = 512
OUTLIER_SHARE, OUTLIER_FACTOR = 1 / 1000, 20
NORMAL, OUTLIERS = "normal", "normal with outliers"


@dataclass(frozen=True)
class Scheme:
    """A way to store a weight matrix.

    Attributes:
        label: What tables and pictures call it.
        bits: Bits of a weight's code.
        store: Quantizes weights (flat, float32, a whole number of blocks); returns the weights that come back and the
            bits that were kept beside the codes. Tables of levels do not count: they are the same for all matrices.
    """

    label: str
    bits: int
    store: "Callable[[Tensor], tuple[Tensor, int]]"


def uniform(weights: "Tensor", bits: int, block: int | None = None) -> "tuple[Tensor, int]":
    """Rounds to evenly spaced levels from -max|w| to max|w| of the tensor or the block, zero among them."""
    blocks = weights.view(-1, block or weights.numel())
    largest = 2 ** (bits - 1) - 1
    scales = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-38) / largest
    return ((blocks / scales).round() * scales).flatten(), SCALE_BITS * len(blocks)


def int8_blocks(weights: "Tensor") -> "tuple[Tensor, int]":
    """Bitsandbytes' 8-bit blocks with evenly spaced levels."""
    from bitsandbytes import functional

    codes, state = functional.quantize_blockwise(weights, code=functional.create_linear_map(), blocksize=BLOCK)
    return functional.dequantize_blockwise(codes, state), _bits(state.absmax)


def four_bits(weights: "Tensor", kind: str, double: bool = False) -> "tuple[Tensor, int]":
    """Bitsandbytes' 4-bit blocks; `double` quantizes the scales to 8 bits in blocks of 256."""
    from bitsandbytes import functional

    # With an odd number of columns bitsandbytes compiles a kernel first; a row of whole blocks has an even one.
    codes, state = functional.quantize_4bit(weights, blocksize=BLOCK, quant_type=kind, compress_statistics=double)
    beside = [state.absmax, state.offset, state.state2.absmax] if double else [state.absmax]
    return functional.dequantize_4bit(codes, state).flatten(), sum(map(_bits, beside))


def _bits(tensor: "Tensor") -> int:
    return 8 * tensor.element_size() * tensor.numel()


SCHEMES = {
    "int8_tensor": Scheme("int8, one scale per tensor", 8, lambda weights: uniform(weights, 8)),
    "int8_block": Scheme(f"int8, blocks of {BLOCK}", 8, int8_blocks),
    "int4_tensor": Scheme("int4, one scale per tensor", 4, lambda weights: uniform(weights, 4)),
    "int4_block": Scheme(f"int4, blocks of {BLOCK}", 4, lambda weights: uniform(weights, 4, BLOCK)),
    "fp4_block": Scheme(f"FP4, blocks of {BLOCK}", 4, lambda weights: four_bits(weights, "fp4")),
    "nf4_block": Scheme(f"NF4, blocks of {BLOCK}", 4, lambda weights: four_bits(weights, "nf4")),
    "nf4_block_double": Scheme("NF4, scales quantized too", 4, lambda weights: four_bits(weights, "nf4", double=True)),
}


def measure(matrix: "Tensor") -> list[dict[str, Any]]:
    """Quantizes a matrix by every scheme.

    Returns:
        One row per scheme: `bits_per_weight`, scales included; `relative_error`, root mean squared error over the root
        mean square of the weights (NaN where all are zero); `largest_absolute_error`; `distinct_levels`, different
        values that come back, of `distinct_weights`; `collisions` over the tensor and `block_collisions` within blocks.
    """
    from torch import float64, unique
    from torch.linalg import vector_norm
    from torch.nn.functional import pad

    weights = matrix.float().flatten()
    size, missing = len(weights), -len(weights) % BLOCK
    power = vector_norm(weights, dtype=float64)
    # Infinite fillers come last in their block's order, and `collisions` leaves them out.
    views = {"collisions": weights, "block_collisions": pad(weights, (0, missing), value=math.inf).view(-1, BLOCK)}
    orders = {name: view.argsort(dim=-1, stable=True) for name, view in views.items()}
    distinct, rows = len(unique(weights)), []
    for name, scheme in SCHEMES.items():
        padded, beside = scheme.store(pad(weights, (0, missing)))
        found = padded[:size]
        back = {"collisions": found, "block_collisions": padded.view(-1, BLOCK)}
        error = found - weights
        rows.append(
            {
                "scheme": name,
                "bits_per_weight": scheme.bits + beside / size,
                "relative_error": float(vector_norm(error, dtype=float64) / power),
                "largest_absolute_error": float(error.abs().max()),
                "distinct_levels": len(unique(found)),
                "distinct_weights": distinct,
                **{key: collisions(views[key], back[key], orders[key]) for key in views},
            }
        )
    return rows


def collisions(weights: "Tensor", found: "Tensor", order: "Tensor") -> float:
    """The share of neighboring weights that are distinguished no longer.

    Neighbors are two weights of a row that follow each other by size and differ; they collide where the same value
    comes back for both.

    Args:
        weights: The weights, each row looked at for itself.
        found: What came back for them.
        order: Positions of each row's weights by size.
    """
    weights, found = weights.gather(-1, order), found.gather(-1, order)
    neighbors = (weights[..., 1:] != weights[..., :-1]) & weights[..., 1:].isfinite()
    merged = neighbors & (found[..., 1:] == found[..., :-1])
    count = int(neighbors.sum())
    return int(merged.sum()) / count if count else math.nan


def synthetic(seed: int) -> "dict[str, Tensor]":
    """A matrix of standard normal numbers, and the same with a few of them made large."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(SYNTHETIC_SIDE, SYNTHETIC_SIDE, generator=generator)
    few = torch.randperm(normal.numel(), generator=generator)[: round(OUTLIER_SHARE * normal.numel())]
    outliers = normal.flatten().clone()
    outliers[few] *= OUTLIER_FACTOR
    return {NORMAL: normal, OUTLIERS: outliers.view_as(normal)}


@dataclass(frozen=True)
class Stored:
    """Where a weight matrix lies.

    Attributes:
        file: A safetensors file.
        key: Its name there.
        transposed: Whether it is kept as inputs x outputs, as in GPT-2; it is quantized the other way round.
    """

    file: Path
    key: str
    transposed: bool

    def read(self) -> "Tensor":
        """The matrix, outputs x inputs, as float32.

        Raises:
            ConfigError: It is quantized already, or holds values that are not finite.
        """
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as file:
            matrix = file.get_tensor(self.key)
        if not matrix.is_floating_point():
            kind = str(matrix.dtype).removeprefix("torch.")
            raise ConfigError(f"model.path={self.file.parent}: {self.key} is stored as {kind}: it was quantized before")
        if not matrix.isfinite().all():
            raise ConfigError(f"model.path={self.file.parent}: {self.key} holds values that are not finite")
        return (matrix.T if self.transposed else matrix).float().contiguous()


def matrices(folder: Path) -> dict[str, Stored]:
    """The weights of the linear modules inside a backbone's layers, by module name, in the model's order.

    Embeddings, heads and poolers are left out: they stay in full precision where a backbone is quantized here.

    Raises:
        ConfigError: The architecture is unknown, a file is damaged, or such a weight is missing.
    """
    from safetensors import SafetensorError, safe_open

    backbone = empty_model(load_config(folder, None, False))
    model: Any = backbone.model
    inside = re.compile(rf"(.*\.)?{backbone.architecture.layers}\.\d+\..+")
    linear = {
        name: type(module).__name__ == "Conv1D"
        for name, module in model.base_model.named_modules()
        if inside.fullmatch(name) and width(module) != (0, 0)
    }
    stored: dict[str, tuple[Path, str]] = {}
    for path in sorted(folder.glob(WEIGHTS)):
        try:
            with safe_open(path, framework="pt") as file:
                # A model with a head is stored with the backbone's name before each of its weights.
                stored |= {key.removeprefix(f"{model.base_model_prefix}."): (path, key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ConfigError(f"model.path={folder}: {path.name} can't be read: {error}") from error
    lacking = [name for name in linear if f"{name}.weight" not in stored]
    if lacking or not linear:
        raise ConfigError(
            f"model.path={folder}: {len(lacking)} of the {len(linear)} linear weight matrices of the layers are not in "
            f"its files{f', {lacking[0]}.weight for one' if lacking else ''}; is it of another architecture?"
        )
    return {name: Stored(*stored[f"{name}.weight"], transposed) for name, transposed in linear.items()}


def tabulate(found: dict[str, Stored], seed: int) -> "pd.DataFrame":
    """Measures the backbone's and the synthetic matrices, one row per matrix and scheme; a bar shows how far it is."""
    import pandas as pd

    def origins() -> "Iterator[tuple[str, str, Tensor]]":
        for name, stored in tqdm(found.items(), unit="matrix", disable=None):
            yield "model", name, stored.read()
        for name, matrix in synthetic(seed).items():
            yield "synthetic", name, matrix

    return pd.DataFrame(
        {"origin": origin, "matrix": name, "rows": matrix.shape[0], "columns": matrix.shape[1], **row}
        for origin, name, matrix in origins()
        for row in measure(matrix)
    )
