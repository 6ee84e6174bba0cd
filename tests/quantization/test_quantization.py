"""Each scheme gives back what a hand computes, and the study says it of the right matrices."""

import io
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config.errors import ConfigError
from harness.quantization.__main__ import analyze, parse
from harness.quantization.schemes import BLOCK, NORMAL, OUTLIERS, SCHEMES, matrices, measure, synthetic
from harness.report.plots.style import KINDS

TinyModel = Callable[[str], Path]
FEW = [1.0, -0.4, 0.3, 0.02]
# FP4's levels are 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3 and 1 times the largest.
BY_HAND = {
    "int8_tensor": [1, -51 / 127, 38 / 127, 3 / 127],
    "int8_block": [1, -51 / 127, 38 / 127, 3 / 127],
    "int4_tensor": [1, -3 / 7, 2 / 7, 0],
    "int4_block": [1, -3 / 7, 2 / 7, 0],
    "fp4_block": [1, -1 / 3, 1 / 3, 1 / 192],
    "nf4_block": [1, -0.39491749, 0.33791524, 0],
    "nf4_block_double": [1, -0.39491749, 0.33791524, 0],
}


def stored(scheme: str, weights: list[float]) -> list[float]:
    """What comes back for a few weights that begin a block of zeros."""
    block = torch.zeros(BLOCK)
    block[: len(weights)] = torch.tensor(weights)
    return SCHEMES[scheme].store(block)[0][: len(weights)].tolist()


def rows_of(matrix: torch.Tensor) -> dict[str, dict[str, float]]:
    return {row["scheme"]: row for row in measure(matrix)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_few_weights_come_back_as_by_hand(scheme: str) -> None:
    """Each weight becomes the nearest of the scheme's levels; the largest becomes itself."""
    assert stored(scheme, FEW) == pytest.approx(BY_HAND[scheme], abs=1e-6)


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name.endswith("block")])
def test_a_block_has_its_own_scale(scheme: str) -> None:
    """The same weights a hundred times smaller, in the next block, come back a hundred times smaller."""
    weights = torch.zeros(2 * BLOCK)
    weights[:4], weights[BLOCK : BLOCK + 4] = torch.tensor(FEW), torch.tensor(FEW) / 100
    back = SCHEMES[scheme].store(weights)[0]
    assert torch.allclose(back[BLOCK:], back[:BLOCK] / 100, atol=1e-8)


@pytest.mark.parametrize("scheme", ["int8_tensor", "int4_tensor"])
def test_one_scale_a_tensor_drowns_small_blocks(scheme: str) -> None:
    """What a block keeps apart comes back as zero beside weights a thousand times larger."""
    weights = torch.zeros(2 * BLOCK)
    weights[:4], weights[BLOCK : BLOCK + 4] = torch.tensor(FEW), torch.tensor(FEW) / 1000
    assert not SCHEMES[scheme].store(weights)[0][BLOCK:].any()


def test_bits_count_scales_and_what_quantizes_them() -> None:
    """64 blocks: a scale is 32 bits, a quantized one 8, beside 32 for its own scale and 32 for the mean."""
    bits = {name: row["bits_per_weight"] for name, row in rows_of(torch.randn(64, 64)).items()}
    assert bits["int8_tensor"] == 8 + 32 / 4096
    assert bits["int4_tensor"] == 4 + 32 / 4096
    assert bits["int8_block"] == 8.5
    assert bits["int4_block"] == bits["fp4_block"] == bits["nf4_block"] == 4.5
    assert bits["nf4_block_double"] == 4 + (64 * 8 + 32 + 32) / 4096


def test_errors_levels_and_collisions_are_as_by_hand() -> None:
    """Six weights in sevenths: 0 and 0.02 meet at 0, 0.98 and 1 at 7; three neighbors are kept apart."""
    weights, back = [1.0, 0.98, 0.52, 0.45, 0.02, 0.0], [7, 7, 4, 3, 0, 0]
    row = rows_of(torch.tensor(weights).view(2, 3))["int4_tensor"]
    squares = sum((weight - seventh / 7) ** 2 for weight, seventh in zip(weights, back, strict=True))
    assert row["relative_error"] == pytest.approx(math.sqrt(squares / sum(weight**2 for weight in weights)), rel=1e-5)
    assert row["largest_absolute_error"] == pytest.approx(4 / 7 - 0.52, rel=1e-5)
    assert (row["distinct_levels"], row["distinct_weights"]) == (4, 6)
    assert row["collisions"] == row["block_collisions"] == 2 / 5


def test_equal_weights_do_not_collide() -> None:
    """Only weights that differ can come to be the same; a matrix of one number has no neighbors."""
    assert rows_of(torch.tensor([[1.0, 1.0, 0.5, 0.5]]))["int4_tensor"]["collisions"] == 0
    assert math.isnan(rows_of(torch.ones(4, 4))["int4_tensor"]["collisions"])


def test_neighbors_within_blocks_are_sought_in_each_block() -> None:
    """Two blocks hold the same two close weights; over the tensor 0.5 and 0.51 are neighbors once, in blocks twice."""
    weights = torch.zeros(2, BLOCK)
    weights[:, :3] = torch.tensor([1.0, 0.51, 0.5])
    weights[1, 0] = 100
    row = rows_of(weights)["int8_block"]
    # Rounded to 127ths of 1 they stay apart, to 127ths of 100 they meet, and so do 0 and they not.
    assert row["block_collisions"] == 1 / 6


@pytest.mark.parametrize(("scheme", "kind"), [("nf4_block", "nf4"), ("fp4_block", "fp4")])
def test_bitsandbytes_takes_the_nearest_level_of_each_block(scheme: str, kind: str) -> None:
    """The formula in float64, largest absolute value times nearest level, gives what the library gives."""
    from bitsandbytes.functional import get_4bit_type

    blocks = torch.randn(200, BLOCK, generator=torch.Generator().manual_seed(0))
    scales, levels = blocks.double().abs().amax(1, keepdim=True), get_4bit_type(kind, device="cpu").double()
    nearest = levels[((blocks.double() / scales)[..., None] - levels).abs().argmin(-1)] * scales
    assert torch.allclose(SCHEMES[scheme].store(blocks.flatten())[0].double(), nearest.flatten(), atol=1e-6)


def test_bitsandbytes_eight_bits_are_127ths_of_the_largest() -> None:
    """Rounding in float64 gives what the library gives, but for weights so near the middle that it takes the other."""
    blocks = torch.randn(2000, BLOCK, generator=torch.Generator().manual_seed(0))
    steps = blocks.double().abs().amax(1, keepdim=True) / 127
    back = SCHEMES["int8_block"].store(blocks.flatten())[0].view_as(blocks).double()
    apart = (back - (blocks / steps).round() * steps).abs() / steps
    assert (apart > 1e-3).double().mean() < 0.005
    assert ((back - blocks).abs() / steps).max() < 0.52


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "nf4_block_double"])
def test_what_comes_back_comes_back_unchanged(scheme: str) -> None:
    """Levels are their own nearest levels. Scales that are quantized themselves change, and with them the levels."""
    once = SCHEMES[scheme].store(torch.randn(100 * BLOCK, generator=torch.Generator().manual_seed(0)))[0]
    assert torch.allclose(SCHEMES[scheme].store(once)[0], once, atol=1e-6)


def test_blocks_bear_outliers_and_nf4_suits_normal_weights() -> None:
    """On outliers one scale per block leaves far less error; on normal weights NF4 leaves least of 4 bits."""
    made = synthetic(0)
    normal, outliers = rows_of(made[NORMAL]), rows_of(made[OUTLIERS])
    for bits in ("int8", "int4"):
        assert outliers[f"{bits}_block"]["relative_error"] < outliers[f"{bits}_tensor"]["relative_error"] / 4
        assert outliers[f"{bits}_block"]["block_collisions"] < outliers[f"{bits}_tensor"]["block_collisions"]
    least = normal["nf4_block"]["relative_error"]
    assert least < normal["int4_block"]["relative_error"] < normal["int4_tensor"]["relative_error"]
    assert least < normal["fp4_block"]["relative_error"]
    assert normal["nf4_block_double"]["relative_error"] == pytest.approx(least, rel=0.02)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_come_back_as_zeros(scheme: str) -> None:
    """A matrix of zeros has no relative error, and a size that is no multiple of a block is no trouble."""
    row = rows_of(torch.zeros(3, 43))[scheme]
    assert row["largest_absolute_error"] == 0
    assert math.isnan(row["relative_error"])


def test_the_control_is_the_seeds() -> None:
    """The same seed gives the same matrices; a thousandth of the weights is made 20 times as large."""
    first, again, other = synthetic(0), synthetic(0), synthetic(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[NORMAL], other[NORMAL])
    changed = first[NORMAL] != first[OUTLIERS]
    assert int(changed.sum()) == 262
    assert torch.allclose(first[OUTLIERS][changed], 20 * first[NORMAL][changed])


# --- The command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "count", "name", "shape"),
    [
        ("bert", 12, "encoder.layer.0.intermediate.dense", (128, 64)),
        ("llama", 14, "layers.1.self_attn.k_proj", (32, 64)),
        ("gpt2", 8, "h.0.attn.c_attn", (192, 64)),
    ],
)
def test_the_linear_matrices_of_the_layers_are_found(
    model_type: str, count: int, name: str, shape: tuple[int, int], tiny_model: TinyModel
) -> None:
    """No embedding, head or norm is among them, whatever stands before their names; rows are outputs."""
    folder = tiny_model(model_type)
    found = matrices(folder)
    assert len(found) == count
    assert found[name].read().shape == shape
    (ours,) = [
        weight for key, weight in load_file(folder / "model.safetensors").items() if key.endswith(f"{name}.weight")
    ]
    assert torch.equal(found[name].read(), ours.T if model_type == "gpt2" else ours)


@pytest.mark.slow
def test_a_study_is_the_same_bytes_twice_and_complete(tiny_model: TinyModel, tmp_path: Path) -> None:
    """A row for each matrix and scheme, a page that begins with what was found, and a picture of each kind."""
    folders = [analyze(*parse([f"model.path={tiny_model('gpt2')}", f"out={tmp_path / name}"])) for name in ("a", "b")]
    contents = [{path.name: path.read_bytes() for path in sorted(folder.iterdir())} for folder in folders]
    assert contents[0] == contents[1]
    assert set(contents[0]) == {f"quantization_error.{kind}" for kind in ("csv", "md", *KINDS)}
    table = pd.read_csv(io.BytesIO(contents[0]["quantization_error.csv"]))
    assert len(table) == (8 + 2) * len(SCHEMES)
    assert table.notna().all(axis=None)
    page = contents[0]["quantization_error.md"].decode()
    assert page.split("\n")[2].startswith("Over the 8 linear weight matrices in the layers of gpt2")
    mean = table[(table["origin"] == "model") & (table["scheme"] == "nf4_block")]["relative_error"].mean()
    assert f"| NF4, blocks of 64 | 4.500 | {mean:.2%} |" in page


@pytest.mark.slow
def test_a_matrix_can_be_chosen_to_be_drawn(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The picture's title and the page name it."""
    arguments = [f"model.path={tiny_model('llama')}", "matrix=layers.1.mlp.up_proj", f"out={tmp_path}"]
    analyze(*parse(arguments))
    assert "layers.1.mlp.up_proj" in (tmp_path / "quantization_error.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["micro_decoder"], "micro_decoder: .* arguments are key=value; .*Valid: matrix, model, model.path"),
        (["modle=micro_decoder"], "modle=micro_decoder: there is no key modle; did you mean model"),
        (["model.quantization=nf4"], "model.quantization=nf4: there is no key model.quantization"),
        (["model=micro_decodr"], "model=micro_decodr: there is no such model; did you mean micro_decoder"),
        (["seed=many"], "seed=many: a whole number is allowed"),
        (["seed=-1"], "seed=-1: a whole number from 0"),
    ],
)
def test_a_wrong_argument_is_told_in_one_sentence(arguments: list[str], sentence: str) -> None:
    """The sentence has the key, what was given and what is allowed."""
    with pytest.raises(ConfigError, match=sentence) as error:
        parse(arguments)
    assert "\n" not in str(error.value)


def spoil(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = "layers.0.mlp.up_proj.weight"
    key = f"model.{name}"
    if how == "pickled":
        torch.save(tensors, folder / "pytorch_model.bin")
        weights.unlink()
    elif how == "damaged":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "none":
        save_file({"model.embed_tokens.weight": tensors["model.embed_tokens.weight"]}, weights)
    elif how == "some":
        del tensors[key]
        save_file(tensors, weights)
    elif how == "quantized":
        save_file({**tensors, key: tensors[key].to(torch.uint8)}, weights)
    else:
        save_file({**tensors, key: tensors[key] * math.nan}, weights)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("pickled", r"pytorch_model\.bin is a pickle"),
        ("damaged", r"model\.safetensors can't be read"),
        ("none", "14 of the 14 linear weight matrices of the layers are not in its files"),
        ("some", r"1 of the 14 .*, layers\.0\.mlp\.up_proj\.weight for one"),
        ("quantized", r"up_proj\.weight is stored as uint8: it was quantized before"),
        ("not finite", r"up_proj\.weight holds values that are not finite"),
    ],
)
def test_weights_that_can_not_be_measured_are_told_in_one_sentence(
    how: str, sentence: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """The folder is named, and what is wrong with it."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    spoil(folder, how)
    with pytest.raises(ConfigError, match=sentence) as error:
        analyze(*parse([f"model.path={folder}"]))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_matrix_that_is_not_there_is_told_before_anything_is_measured(tiny_model: TinyModel, tmp_path: Path) -> None:
    """What may have been meant is named, and no folder is made."""
    arguments = [f"model.path={tiny_model('llama')}", "matrix=layers.1.mlp.up", f"out={tmp_path / 'none'}"]
    with pytest.raises(ConfigError, match=r"matrix=layers\.1\.mlp\.up: .*did you mean layers\.1\.mlp\.up_proj"):
        analyze(*parse(arguments))
    assert not (tmp_path / "none").exists()


def test_a_folder_that_can_not_be_written_is_told(tiny_model: TinyModel) -> None:
    """The key, the folder and the system's reason."""
    with pytest.raises(ConfigError, match=r"out=/proc/none: /proc/none can't be written \("):
        analyze(*parse([f"model.path={tiny_model('llama')}", "out=/proc/none"]))


def test_a_mistake_ends_the_command_with_status_2_and_no_stack_trace() -> None:
    """A folder that is not there is one line."""
    command = [sys.executable, "-m", "harness.quantization", "model.path=/nowhere/at/all"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "model.path=/nowhere/at/all: there is no such folder\n"
