"""Modules are found by role in every architecture, and an unknown one is refused with what to write."""

from types import SimpleNamespace

import pytest
from conftest import TINY
from transformers import AutoConfig

from harness.architectures import ARCHITECTURES, ROLES, architecture
from harness.config import ConfigError
from harness.methods.peft import find_modules
from harness.methods.peft_counts import matches
from harness.models import empty_model


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
@pytest.mark.parametrize("role", ROLES)
def test_a_role_matches_the_same_projections_in_every_layer(model_type: str, role: str) -> None:
    backbone = empty_model(AutoConfig.for_model(model_type, num_labels=2, **TINY[model_type]))
    names = find_modules([role], backbone, "method.target_modules")
    found = [name for name, _ in backbone.model.named_modules() if matches(name, names)]
    layers = 1 if model_type == "albert" else 2  # ALBERT's layers share one set of weights
    described = backbone.architecture
    roles = {
        "query": described.query,
        "attention_qv": described.query_value,
        "attention_kv": described.key_value,
        "attention": described.attention,
        "mlp": described.mlp,
        "mlp_output": described.mlp[-1:],
        "all_linear": described.attention + described.mlp,
    }
    assert len(found) == layers * len(roles[role])


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_the_head_is_what_the_classifier_adds(model_type: str) -> None:
    backbone = empty_model(AutoConfig.for_model(model_type, num_labels=3, **TINY[model_type]))
    assert backbone.head
    outside = {name.split(".")[0] for name, _ in backbone.model.named_parameters() if not backbone.is_head(name)}
    assert outside == {backbone.model.base_model_prefix}


def test_an_unknown_architecture_is_refused_with_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"'bart' is not described; add it to ARCHITECTURES"):
        architecture(SimpleNamespace(model_type="bart"))  # type: ignore[arg-type]
