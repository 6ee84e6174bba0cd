"""Study of quantization error, by block size and by levels: `python -m harness.quantization`.

Every linear weight matrix of a backbone's layers is quantized in seven ways and compared with what it was. It reads the
matrices one at a time and writes a CSV file, a page and a picture.

    python -m harness.quantization model=micro_decoder
    python -m harness.quantization model=minilm model.path=FOLDER out=quantization_minilm

One scale per tensor lets a single large weight coarsen all others; one scale per block of 64 keeps its effect within
the block (Dettmers et al. 2022, arXiv 2110.02861, section 2.1). NF4 puts its 16 levels at quantiles of a normal
distribution, which trained weights come near to, and quantizes the scales in turn (Dettmers et al. 2023, arXiv
2305.14314, section 3).
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from harness.config.build import typed
from harness.config.command import carry_out, key_values, options, writing
from harness.config.compose import compose
from harness.config.errors import ConfigError, near_misses
from harness.config.schema import LARGEST_SEED, ModelConfig
from harness.methods.earlier import resolve
from harness.models import quiet_libraries
from harness.quantization.schemes import matrices, tabulate

if TYPE_CHECKING:
    import pandas as pd

MODEL_KEYS = ("model", "model.path", "model.revision")


@dataclass
class Study:
    """Options of `python -m harness.quantization` beside the model, as `key=value`.

    Attributes:
        out: Folder to write.
        matrix: The matrix whose weights are drawn; the one that int4 with one scale per tensor spoils most if null.
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
    given = key_values(arguments, [*MODEL_KEYS, *(field.name for field in fields(Study))])
    overrides = [f"{key}={given.pop(key)}" for key in MODEL_KEYS if key in given]
    study = options(Study, given)
    if not 0 <= study.seed <= LARGEST_SEED:
        raise ConfigError(f"seed={study.seed}: a whole number from 0 to {LARGEST_SEED} is allowed")
    composed = OmegaConf.to_container(compose("config", overrides).model, resolve=True, enum_to_str=True)
    model: ModelConfig = typed(ModelConfig, composed, "model")
    if model.path is not None and not any(override.startswith("model=") for override in overrides):
        # The name is that of the backbone which the path stands in for.
        model.name = Path(model.path).expanduser().resolve().name
    return model, study


def hardest(table: "pd.DataFrame") -> str:
    """The name of the backbone's matrix that int4 with one scale per tensor spoils most."""
    ours = table[(table["origin"] == "model") & (table["scheme"] == "int4_tensor")]
    return str(ours.set_index("matrix")["relative_error"].idxmax())


# --- The command ----------------------------------------------------------------------------------------------------


def analyze(model: ModelConfig, study: Study) -> Path:
    """Measures a backbone, writes table, page and picture, and returns the folder.

    Raises:
        ConfigError: The backbone can't be read or the folder can't be written.
    """
    from harness.quantization.page import HEADER, page, picture, rows
    from harness.report import terminal
    from harness.report.cells import Table

    folder = resolve(model)
    quiet_libraries()
    found = matrices(folder)
    if study.matrix is not None and study.matrix not in found:
        raise ConfigError(f"matrix={study.matrix}: no such matrix of the layers; {near_misses(study.matrix, found)}")
    out = Path(study.out).expanduser()
    with writing("out", study.out):
        out.mkdir(parents=True, exist_ok=True)
        table = tabulate(found, study.seed)
        name = study.matrix or hardest(table)
        contents = {
            "csv": table.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode(),
            "md": page(table, model.name, name).encode(),
            **picture(table, name, found[name].read()),
        }
        for kind, content in contents.items():
            (out / f"quantization_error.{kind}").write_bytes(content)
    cells = [tuple(row) for row in rows(table)]
    later = ("largest absolute error", "levels", "collisions", "least to most")
    terminal.show(
        [Table(f"Quantization error of {model.name}", tuple(HEADER), cells, text_columns=("scheme",), secondary=later)]
    )
    return out


def main() -> int:
    """Carry out the command and return its exit status."""
    return carry_out(lambda arguments: print(f"{analyze(*parse(arguments))}/quantization_error.md"), str(__doc__))


if __name__ == "__main__":
    sys.exit(main())
