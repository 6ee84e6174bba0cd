"""Diff pruning keeps a sparse difference with hard-concrete gates, and its files are as sparse as that."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_methods import backbone_of, inputs, logits, method_of, train

from harness import models
from harness.config.errors import ConfigError
from harness.config.schema import Quantization
from harness.methods import trained_parameters
from harness.methods.diff_pruning import DiffPrunedWeights, expected_l0, hard_concrete
from harness.models.architectures import Backbone, Kind

CLASSIFICATION = inputs(Kind.classification)


def attached(backbone: Backbone, **changes: Any) -> DiffPrunedWeights:
    return method_of("diff_pruning", **changes).attach(backbone)


def test_a_gate_is_the_stretched_and_cut_sigmoid() -> None:
    """Computed by hand with and without noise."""
    logit = torch.randn(1000, dtype=torch.float64) * 3
    noise = torch.randn(1000, dtype=torch.float64)
    for given in (noise, 0.0):
        gate = [min(1.0, max(0.0, 3 / (1 + math.exp(-float(value))) - 1.5)) for value in logit + given]
        assert torch.allclose(hard_concrete(logit, given), torch.tensor(gate, dtype=torch.float64), atol=1e-12)


def test_gradients_of_gates_and_penalty_are_those_of_finite_differences() -> None:
    """Away from the corners of the gate, in float64."""
    # Away from the ends at logit(5/6) and 0, where the gate has a corner.
    logit = torch.tensor([-3.0, -0.7, 0.3, 0.9, 1.2, 4.0], dtype=torch.float64, requires_grad=True)
    difference = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, w: hard_concrete(a, 0.2) * w, (logit, difference))
    assert torch.autograd.gradcheck(expected_l0, (logit,))


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.0])
def test_as_many_drawn_gates_are_open_as_the_penalty_expects(logit: float) -> None:
    """The share of 200,000 draws is the expected one."""
    torch.manual_seed(0)
    logits_of_gates = torch.full((200_000,), logit)
    drawn = hard_concrete(logits_of_gates, torch.logit(torch.rand(200_000)))
    expected = expected_l0(logits_of_gates).item() / 200_000
    assert expected == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
    assert (drawn > 0).float().mean().item() == pytest.approx(expected, abs=0.005)


def test_the_model_computes_with_weights_plus_gated_differences() -> None:
    """Logits equal those of a copy whose weights were changed by hand."""
    backbone = backbone_of("bert")
    by_hand = copy.deepcopy(backbone.model)
    adapter = attached(backbone)
    torch.nn.init.normal_(adapter.difference, std=0.02)
    torch.nn.init.normal_(adapter.gate_logit)
    start = 0
    for name, parameter in by_hand.named_parameters():
        if not backbone.is_head(name):
            part = slice(start, start + parameter.numel())
            gate = (torch.sigmoid(adapter.gate_logit[part]) * 3 - 1.5).clamp(0, 1)
            parameter.data += (gate * adapter.difference[part]).view_as(parameter).detach()
            start += parameter.numel()
    assert start == adapter.size
    with torch.no_grad():
        assert torch.allclose(logits(backbone), by_hand(**CLASSIFICATION).logits, atol=1e-6)


def test_gradients_reach_every_difference_once() -> None:
    """With open gates the gradient is the weight's own, for tied weights that of both places."""
    backbone = backbone_of("gpt2", Kind.causal_lm)
    plain = copy.deepcopy(backbone.model)
    plain(**inputs(Kind.causal_lm)).loss.backward()
    adapter = attached(backbone, gate_init=20.0)
    adapter.model(**inputs(Kind.causal_lm)).loss.backward()
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    assert torch.allclose(adapter.difference.grad, expected, atol=1e-6)


def test_gates_are_drawn_anew_in_training_only() -> None:
    """Two passes agree in evaluation mode and differ in training mode, without dropout."""
    backbone = backbone_of("bert")
    adapter = attached(backbone, gate_init=0.0)
    torch.nn.init.normal_(adapter.difference, std=0.1)
    for module in backbone.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    backbone.model.config.attention_probs_dropout_prob = 0.0
    assert torch.equal(logits(backbone), logits(backbone))
    backbone.model.train()
    first, second = (backbone.model(**CLASSIFICATION).logits for _ in range(2))
    assert not torch.allclose(first, second)


def test_after_its_share_of_the_steps_exactly_the_target_share_differs() -> None:
    """The largest differences stay, the penalty ends, and the adapter is settled from then on."""
    backbone = backbone_of("bert")
    adapter = attached(backbone, target_share=0.01, prune_at_share=0.5)
    adapter.start(8)
    settled, penalties = [], []
    optimizer = torch.optim.AdamW([adapter.difference, adapter.gate_logit], lr=1e-2)
    for step in range(1, 9):
        penalty = adapter.penalty()
        penalties.append(penalty is not None)
        (adapter.model(**CLASSIFICATION).loss + (penalty if penalty is not None else 0)).backward()
        optimizer.step()
        before = adapter._final().abs()
        adapter.after_step(step)
        if step == 4:
            kept = round(0.01 * adapter.size)
            assert adapter._final().abs().sum().item() == pytest.approx(before.topk(kept).values.sum().item())
        optimizer.zero_grad()
        settled.append(adapter.settled())
    assert settled == [False] * 3 + [True] * 5
    assert penalties == [True] * 4 + [False] * 4
    assert adapter.changed_parameters() == round(0.01 * adapter.size)


def test_the_penalty_closes_gates_and_weights_count_each() -> None:
    """It is the weighted expected number of open gates, and its gradient closes every one."""
    adapter = attached(backbone_of("bert"), l0_weight=0.5, gate_init=5.0)
    penalty = adapter.penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.5 * adapter.size / (1 + math.exp(-5)), rel=1e-5)
    penalty.backward()
    assert (adapter.gate_logit.grad > 0).all()


def test_gates_and_kept_differences_learn_at_their_own_rates_and_do_not_decay() -> None:
    """After pruning, the differences learn faster by the factor that was set."""
    adapter = attached(backbone_of("bert"), gate_learning_rate=0.2, fixed_rate_factor=7.0)
    trained = trained_parameters(adapter)
    settings: Any = SimpleNamespace(learning_rate=1e-3, weight_decay=0.1)
    optimizer = adapter.optimizer(trained, settings)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(trained)
    assert groups[id(adapter.gate_logit)]["lr"] == 0.2
    for parameter in adapter.adapter_parameters().values():
        assert groups[id(parameter)]["weight_decay"] == 0.0
    for factor in (1.0, 7.0):
        before = adapter.difference.detach().clone()
        adapter.model(**CLASSIFICATION).loss.backward()
        optimizer.step()
        # The first step of Adam is as long as the learning rate.
        assert (adapter.difference - before).abs().max().item() == pytest.approx(factor * 1e-3, rel=1e-2)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
        adapter.prune()
        optimizer.zero_grad()


def test_a_language_model_without_a_new_head_has_its_optimizer_too() -> None:
    """Differences and gates are its two groups."""
    adapter = attached(backbone_of("gpt2", Kind.causal_lm))
    settings: Any = SimpleNamespace(learning_rate=1e-3, weight_decay=0.1)
    assert len(adapter.optimizer(adapter.adapter_parameters(), settings).param_groups) == 2


def trained_and_pruned(backbone: Backbone, **changes: Any) -> DiffPrunedWeights:
    adapter = attached(backbone, **changes)
    train(adapter, backbone.kind)
    adapter.prune()
    return adapter


def test_the_saved_file_is_sparse_and_says_how_much_changed(tmp_path: Path) -> None:
    """Places and differences give the trained weights back bit by bit."""
    backbone = backbone_of("bert")
    adapter = trained_and_pruned(backbone)
    adapter.save(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    changed = round(0.005 * adapter.size)
    assert sum(len(t) for name, t in saved.items() if name.endswith(".differences")) == changed
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["changed_parameters"] == changed
    assert config["changed_share"] == changed / adapter.size
    weights = dict(backbone.model.named_parameters())
    sums = adapter._sums()
    for name in adapter.selected:
        dense = weights[name].detach().flatten().clone()
        dense[saved[f"{name}.places"].long()] += saved[f"{name}.differences"]
        assert torch.equal(dense.view_as(weights[name]), sums[name])


def test_a_checkpoint_holds_the_places(tmp_path: Path) -> None:
    """A resumed adapter trains on to the same bits; before pruning there is nothing to hold."""
    adapter = trained_and_pruned(backbone_of("bert"))
    resumed = attached(backbone_of("bert"))
    assert attached(backbone_of("bert")).state() == {}
    for name, parameter in trained_parameters(resumed).items():
        parameter.data.copy_(trained_parameters(adapter)[name])
    resumed.load_state(adapter.state())
    assert resumed.settled()
    for both in (adapter, resumed):
        train(both, Kind.classification)
    assert torch.equal(adapter._final(), resumed._final())


@pytest.mark.parametrize(("architecture", "kind"), [("bert", Kind.classification), ("gpt2", Kind.causal_lm)])
def test_merged_the_logits_are_the_same_and_the_adapter_goes_on(architecture: str, kind: Kind) -> None:
    """The merged model has the names of a plain one."""
    backbone = backbone_of(architecture, kind)
    adapter = trained_and_pruned(backbone)
    expected, names = logits(backbone), {name for name, _ in backbone.model.named_parameters()}
    merged = adapter.merge()
    with torch.no_grad():
        assert torch.equal(merged.eval()(**inputs(kind)).logits, expected)
    assert {name for name, _ in merged.named_parameters()} == names - {"adapters.difference", "adapters.gate_logit"}
    assert torch.equal(logits(backbone), expected)


def test_without_embeddings_tables_and_what_is_tied_to_them_stay() -> None:
    """GPT-2's tied output layer is left out with its embeddings."""
    backbone = backbone_of("gpt2", Kind.causal_lm)
    adapter = attached(backbone, embeddings=False)
    assert "transformer.wte.weight" in attached(backbone_of("gpt2", Kind.causal_lm)).selected
    assert not {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"} & set(adapter.selected)
    expected = method_of("diff_pruning", embeddings=False).expected_parameters(backbone_of("gpt2", Kind.causal_lm))
    assert expected == 2 * adapter.size


def test_a_model_that_fails_while_computing_has_its_own_weights_back() -> None:
    """After an error every parameter is the original object."""
    backbone = backbone_of("bert")
    adapter = attached(backbone)
    with pytest.raises(IndexError):
        backbone.model(input_ids=torch.tensor([[10_000]]))
    assert all(dict(backbone.model.named_parameters())[name] is p for name, p in adapter.selected.items())


def test_a_quantized_or_checkpointing_backbone_is_refused() -> None:
    """A difference can't be added to packed weights."""
    from dataclasses import replace

    method, backbone = method_of("diff_pruning"), backbone_of("bert")
    with pytest.raises(ConfigError, match="a difference can't be added to nf4 weights"):
        method.expected_parameters(replace(backbone, quantization=Quantization.nf4))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # renamed by transformers 5
def test_layers_computed_again_in_the_backward_pass_are_refused() -> None:
    """Gradient checkpointing is named with what is needed."""
    backbone = backbone_of("bert")
    models.set_checkpointing(backbone.model, True)
    with pytest.raises(ConfigError, match=r"train\.gradient_checkpointing=false is needed"):
        method_of("diff_pruning").expected_parameters(backbone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_share": 0}, r"method\.target_share=0\.0: a share above 0"),
        ({"target_share": 1.5}, r"method\.target_share=1\.5: a share above 0"),
        ({"prune_at_share": -1}, r"method\.prune_at_share=-1\.0: a share above 0"),
        ({"l0_weight": -1}, r"method\.l0_weight=-1\.0: zero or a positive"),
        ({"fixed_rate_factor": 0}, r"method\.fixed_rate_factor=0\.0: a positive"),
        ({"gate_learning_rate": 0}, r"method\.gate_learning_rate=0\.0: a positive"),
        ({"gate_init": math.inf}, r"method\.gate_init=inf: a finite"),
    ],
)
def test_impossible_hyper_parameters_are_refused(changes: dict[str, Any], message: str) -> None:
    """Each is named with what is allowed."""
    with pytest.raises(ConfigError, match=message):
        method_of("diff_pruning", **changes)


@pytest.mark.parametrize("damage", ["missing", "truncated", "a tensor short", "places outside", "places twice", "head"])
def test_a_damaged_or_foreign_file_is_refused(damage: str, tmp_path: Path) -> None:
    """Missing, cut, incomplete or contradictory places raise ValueError."""
    adapter = trained_and_pruned(backbone_of("bert"))
    adapter.save(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    some = max((name for name in tensors if name.endswith(".places")), key=lambda name: len(tensors[name]))
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        if damage == "a tensor short":
            del tensors[some]
        elif damage == "places outside":
            tensors[some][-1] = 2**30
        elif damage == "places twice":
            tensors[some][1] = tensors[some][0]
        else:
            tensors["classifier.weight"] = torch.zeros(3, 64)
        save_file(tensors, path)
    with pytest.raises(ValueError, match="adapter"):
        method_of("diff_pruning").restore(backbone_of("bert"), tmp_path)
