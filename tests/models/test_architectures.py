"""Modules are found by role in every architecture that is described."""

import pytest
from transformers import AutoConfig

from harness.doctor.compatibility import TINY
from harness.methods.peft import find_modules
from harness.methods.peft_counts import matches
from harness.models import empty_model
from harness.models.architectures import ARCHITECTURES, ROLES

# Beside the tiny models, what is described for counting alone.
DIMENSIONS = {**TINY, "bloom": {"vocab_size": 64, "hidden_size": 64, "n_layer": 2, "n_head": 2}}
ENCODER_DECODERS = {name for name, described in ARCHITECTURES.items() if described.pair}


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - ENCODER_DECODERS))
@pytest.mark.parametrize("role", ROLES)
def test_a_role_matches_the_same_projections_in_every_layer(model_type: str, role: str) -> None:
    """As many modules are found as the role has projections, times the layers."""
    backbone = empty_model(AutoConfig.for_model(model_type, num_labels=2, **DIMENSIONS[model_type]))
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


@pytest.mark.parametrize("model_type", sorted(ENCODER_DECODERS))
def test_a_decoder_that_reads_an_encoder_has_a_second_attention(model_type: str) -> None:
    """Two layers of one attention block, two of two, and in mT5 a gate beside the projection into the feed-forward."""
    backbone = empty_model(AutoConfig.for_model(model_type, num_labels=2, **DIMENSIONS[model_type]))
    gated = model_type == "mt5"
    mlp = 4 * (3 if gated else 2)
    counts = {"query": 6, "attention_qv": 12, "attention_kv": 12, "attention": 24, "mlp": mlp, "mlp_output": 4}
    for role, count in {**counts, "all_linear": 24 + mlp}.items():
        names = find_modules([role], backbone, "method.target_modules")
        assert len([name for name, _ in backbone.model.named_modules() if matches(name, names)]) == count


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_the_head_is_what_the_classifier_adds(model_type: str) -> None:
    """All other weights belong to the base model."""
    backbone = empty_model(AutoConfig.for_model(model_type, num_labels=3, **DIMENSIONS[model_type]))
    assert backbone.head
    outside = {name.split(".")[0] for name, _ in backbone.model.named_parameters() if not backbone.is_head(name)}
    assert outside == {backbone.model.base_model_prefix}
