"""What one scale a block and levels that fit the weights buy: `python -m harness.quantization`.

Every linear weight matrix of a backbone's layers is quantized in seven ways and compared with what it was. It reads the
matrices one at a time and writes a CSV file, a page and a picture.

    python -m harness.quantization model=micro_decoder
    python -m harness.quantization model=minilm model.path=FOLDER out=quantization_minilm

One scale a tensor lets a single large weight coarsen all others; a scale for each block of 64 keeps its effect within
the block (Dettmers et al. 2022, arXiv 2110.02861, section 2.1). NF4 puts its 16 levels at quantiles of a normal
distribution, which trained weights come near to, and quantizes the scales in turn (Dettmers et al. 2023, arXiv
2305.14314, section 3).
"""

import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.build import typed
from harness.config.errors import ConfigError, key_values, near_misses
from harness.config.schema import LARGEST_SEED, ModelConfig

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

BLOCK = 64
SCALE_BITS = 32
MODEL_KEYS = ("model", "model.path", "model.revision")
# The control: what each scheme does to a normal matrix, and to the same with a weight in a thousand 20 times as large.
SYNTHETIC_SIDE = 512
OUTLIER_SHARE, OUTLIER_FACTOR = 1 / 1000, 20
NORMAL, OUTLIERS = "normal", "normal with outliers"


@dataclass
class Study:
    """What `python -m harness.quantization` can be told beside the model, as `key=value`.

    Attributes:
        out: Folder to write.
        matrix: The matrix whose weights are drawn; the one that int4 with one scale a tensor spoils most unless given.
        seed: Decides the synthetic matrices.
    """

    out: str = "quantization_error"
    matrix: str | None = None
    seed: int = 0


def parse(arguments: list[str]) -> tuple[ModelConfig, Study]:
    """Reads `key=value` arguments; `model` and its keys are those of `harness`.

    Raises:
        ConfigError: A key is unknown or given without a value, a value is of the wrong type, or there is no such model.
    """
    from harness.config.compose import compose

    given = key_values(arguments, [*MODEL_KEYS, *(field.name for field in fields(Study))])
    overrides = [f"{key}={given.pop(key)}" for key in MODEL_KEYS if key in given]
    try:
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Study), given))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}={given[str(error.full_key)]}: a whole number is allowed") from error
    assert isinstance(study, Study)
    if not 0 <= study.seed <= LARGEST_SEED:
        raise ConfigError(f"seed={study.seed}: a whole number from 0 to {LARGEST_SEED} is allowed")
    composed = OmegaConf.to_container(compose("config", overrides).model, resolve=True, enum_to_str=True)
    model: ModelConfig = typed(ModelConfig, composed, "model")
    if model.path is not None and not any(override.startswith("model=") for override in overrides):
        # The name is that of the backbone which the path stands in for.
        model.name = Path(model.path).expanduser().resolve().name
    return model, study


# --- The schemes ----------------------------------------------------------------------------------------------------


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
    "int8_tensor": Scheme("int8, one scale a tensor", 8, lambda weights: uniform(weights, 8)),
    "int8_block": Scheme(f"int8, blocks of {BLOCK}", 8, int8_blocks),
    "int4_tensor": Scheme("int4, one scale a tensor", 4, lambda weights: uniform(weights, 4)),
    "int4_block": Scheme(f"int4, blocks of {BLOCK}", 4, lambda weights: uniform(weights, 4, BLOCK)),
    "fp4_block": Scheme(f"FP4, blocks of {BLOCK}", 4, lambda weights: four_bits(weights, "fp4")),
    "nf4_block": Scheme(f"NF4, blocks of {BLOCK}", 4, lambda weights: four_bits(weights, "nf4")),
    "nf4_block_double": Scheme("NF4, scales quantized too", 4, lambda weights: four_bits(weights, "nf4", double=True)),
}


def measure(matrix: "Tensor") -> list[dict[str, Any]]:
    """Quantizes a matrix by every scheme.

    Returns:
        A row a scheme: `bits_per_weight`, scales included; `relative_error`, root mean squared error over the root mean
        square of the weights (NaN where all are zero); `largest_absolute_error`; `distinct_levels`, different values
        that come back, of `distinct_weights`; `collisions` over the tensor and `block_collisions` within blocks.
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
    """The share of neighbouring weights that are told apart no longer.

    Neighbours are two weights of a row that follow each other by size and differ; they collide where the same value
    comes back for both.

    Args:
        weights: The weights, each row looked at for itself.
        found: What came back for them.
        order: Positions of each row's weights by size.
    """
    weights, found = weights.gather(-1, order), found.gather(-1, order)
    neighbours = (weights[..., 1:] != weights[..., :-1]) & weights[..., 1:].isfinite()
    merged = neighbours & (found[..., 1:] == found[..., :-1])
    count = int(neighbours.sum())
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


# --- The matrices of a backbone -------------------------------------------------------------------------------------


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

    from harness.methods.peft_counts import width
    from harness.models import WEIGHTS, empty_model, load_config

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
    """Measures the backbone's matrices and the synthetic ones, a row a matrix and scheme; a bar shows how far it is."""
    import pandas as pd
    from tqdm import tqdm

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


def hardest(table: "pd.DataFrame") -> str:
    """The name of the backbone's matrix that int4 with one scale a tensor spoils most."""
    ours = table[(table["origin"] == "model") & (table["scheme"] == "int4_tensor")]
    return str(ours.set_index("matrix")["relative_error"].idxmax())


# --- The command ----------------------------------------------------------------------------------------------------


def analyse(model: ModelConfig, told: Study) -> Path:
    """Measures a backbone, writes table, page and picture, and returns the folder.

    Raises:
        ConfigError: The backbone can't be read or the folder can't be written.
    """
    from harness.methods.earlier import resolve
    from harness.models import quiet_libraries
    from harness.reporting.quantization import page, picture

    folder = resolve(model)
    quiet_libraries()
    found = matrices(folder)
    if told.matrix is not None and told.matrix not in found:
        raise ConfigError(f"matrix={told.matrix}: no such matrix of the layers; {near_misses(told.matrix, found)}")
    out = Path(told.out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
        table = tabulate(found, told.seed)
        name = told.matrix or hardest(table)
        contents = {
            "csv": table.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode(),
            "md": page(table, model.name, name).encode(),
            **picture(table, name, found[name].read()),
        }
        for kind, content in contents.items():
            (out / f"quantization_error.{kind}").write_bytes(content)
    except OSError as error:
        raise ConfigError(f"out={told.out}: {error.filename} can't be written ({error.strerror})") from error
    return out


def main() -> int:
    """Runs the command; a mistake of the user's is told in one sentence, with exit status 2."""
    try:
        out = analyse(*parse(sys.argv[1:]))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{out}/quantization_error.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
