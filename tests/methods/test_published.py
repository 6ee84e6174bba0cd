"""Every count in `published` is reproduced from the architecture, or its difference is shown by arithmetic."""

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf
from published import PEFT_BENCH, ROWS, Row
from transformers import AutoConfig

from harness.config.build import component
from harness.config.errors import ConfigError
from harness.config.sources import conf_root
from harness.models import empty_model
from harness.models.architectures import Backbone, Kind
from harness.models.sizes import logical_parameters
from harness.plan.costs import count

# Drawing which entries of 3,072 x 3,072 are trained takes a quarter of a second for each of 56 matrices.
SLOW = ("peft.FourierFTConfig", "peft.WaveFTConfig")
CASES = [pytest.param(row, id=f"{row.model}-{number}-{row.trained}") for number, row in enumerate(ROWS)]


def is_slow(row: Row) -> bool:
    return row.model == "llama_3_2_3b" and any(v.get("config", {}).get("_target_") in SLOW for _, v in row.parts)


ATTACHED = [
    pytest.param(*case.values, id=case.id, marks=[pytest.mark.slow] if is_slow(case.values[0]) else [])
    for case in CASES
]


def load(group: str, name: str) -> dict[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.load(conf_root() / f"conf/{group}/{name}.yaml"))
    assert isinstance(loaded, dict)
    return loaded


def fresh_skeleton(model: str, kind: Kind) -> Backbone:
    dimensions = load("model", model)["architecture"]
    return empty_model(AutoConfig.for_model(**dimensions, num_labels=2, pad_token_id=0), kind)


@pytest.fixture(scope="session")
def skeleton() -> Callable[[Row], Backbone]:
    """A skeleton for counting, made once a model; nothing may be attached to it."""
    made: dict[tuple[str, Kind], Backbone] = {}

    def find(row: Row) -> Backbone:
        key = (row.model, row.kind)
        if key not in made:
            made[key] = fresh_skeleton(*key)
        return made[key]

    return find


def methods(row: Row) -> list[Any]:
    """The methods of a row as a configuration makes them."""
    return [component({**load("method", name), **values}, "method") for name, values in row.parts]


def head_of(backbone: Backbone) -> int:
    return sum(p.numel() for name, p in backbone.model.named_parameters() if backbone.is_head(name))


@pytest.mark.parametrize("row", CASES)
def test_the_closed_forms_give_a_published_count(row: Row, skeleton: Callable[[Row], Backbone]) -> None:
    """Trained and total, up to the difference that the row explains."""
    backbone = skeleton(row)
    added = sum(method.expected_parameters(backbone) for method in methods(row))
    head = head_of(backbone) if row.with_head else 0
    assert added + head + row.trained_beyond == row.trained
    if row.total is not None:
        assert logical_parameters(backbone.model) + added + row.total_beyond == row.total


@pytest.mark.slow
@pytest.mark.parametrize("row", ATTACHED)
def test_attached_to_a_skeleton_the_method_has_the_published_count(row: Row) -> None:
    """What is attached, counted tensor by tensor, and not only its closed form."""
    counts = [count(method, fresh_skeleton(row.model, row.kind)) for method in methods(row)]
    bare = fresh_skeleton(row.model, row.kind)
    head, total = head_of(bare), logical_parameters(bare.model)
    assert all(counted["head_parameters"] == head for counted in counts)
    added = sum(counted["adapter_parameters"] for counted in counts)
    assert added + (head if row.with_head else 0) + row.trained_beyond == row.trained
    if row.total is not None:
        own_totals = sum(counted["total_parameters"] - total for counted in counts)
        assert total + own_totals + row.total_beyond == row.total


def test_every_published_count_is_in_the_table_and_every_difference_has_a_reason() -> None:
    """64 counts, some of them published twice for one method."""
    assert sum(len(row.sources) for row in ROWS) == 64
    assert all(row.why for row in ROWS if row.trained_beyond or row.total_beyond)


def test_a_string_for_feedforward_modules_names_no_module(skeleton: Callable[[Row], Backbone]) -> None:
    """(IA)3 scales the down-projection's inputs where it is named a feed-forward module, else its outputs."""
    row = next(row for row in ROWS if row.sources == [PEFT_BENCH] and row.trained == 196608)
    assert methods(row)[0].expected_parameters(skeleton(row)) == 32 * (1024 + 1024 + 14336)
    assert row.trained == 32 * (1024 + 1024 + 4096)


def test_bitfit_has_no_biases_on_llama_so_that_the_published_count_is_of_new_ones(
    skeleton: Callable[[Row], Backbone],
) -> None:
    """Training is refused, and the count is that of one new bias per projection."""
    row = next(row for row in ROWS if row.trained == 163840)
    bitfit = component(load("method", "bitfit"), "method")
    with pytest.raises(ConfigError, match="no bias terms"):
        bitfit.expected_parameters(skeleton(row))
    assert row.trained == 32 * (4096 + 1024)
