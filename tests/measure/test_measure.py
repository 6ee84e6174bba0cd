"""Bytes and parameters are counted on the tensors, each storage once, quantization state included."""

import pytest
import torch

from harness import measure, methods, models
from harness.models import sizes as models_sizes


def test_shared_storage_counts_once() -> None:
    """Two layers with tied weights take the bytes and parameters of one."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert measure.weight_bytes(model) == 64
    assert models_sizes.logical_parameters(model) == 16


def test_gradients_and_optimizer_state_of_a_known_model() -> None:
    """10 x 5 weights and 10 biases: 60 numbers; Adam keeps two moments and a step count for each tensor."""
    model = torch.nn.Linear(5, 10)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 5)).sum().backward()
    assert measure.gradient_bytes(model) == 60 * 4
    optimizer.step()
    assert measure.optimizer_bytes(optimizer) == 2 * 60 * 4 + 2 * 4


def test_frozen_weights_have_no_gradient_bytes() -> None:
    """Only the bias of a layer with frozen weights has a gradient."""
    model = torch.nn.Linear(5, 10)
    model.weight.requires_grad = False
    model(torch.ones(1, 5)).sum().backward()
    assert measure.gradient_bytes(model) == 40


def test_parameters_that_differ_from_the_closed_form_are_refused() -> None:
    """A method that trains more or less than it says stops the run."""

    class Wrong:
        def adapter_parameters(self) -> dict:
            return {"a": torch.nn.Parameter(torch.ones(3))}

        def head_parameters(self) -> dict:
            return {}

    with pytest.raises(AssertionError, match="trains 3 parameters, its closed form says 4"):
        methods.parameters(Wrong(), 4)  # type: ignore[arg-type]


def test_four_bit_weights_count_unpacked_and_their_state_counts() -> None:
    """64 x 64 weights at NF4: half a byte each, a float32 scale for each block of 64, and the codebook of 16."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compress_statistics=False)
    layer.weight = bitsandbytes.nn.Params4bit(
        torch.randn(64, 64), requires_grad=False, quant_type="nf4", compress_statistics=False
    )
    layer = layer.to("cpu")
    assert models_sizes.logical_parameters(layer) == 64 * 64
    assert measure.weight_bytes(layer) == 64 * 64 // 2 + 64 * 4 + 16 * 4


def two_layers() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


def metered_step(model: torch.nn.Module, rows: int = 3) -> measure.StepCosts:
    """The second step of AdamW on rows of four numbers; the loss is the sum of the output."""
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.ones(rows, 4)
    model(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    costs = measure.StepCosts(rows, rows, 1, rows)
    with measure.StepMeter(model, optimizer, costs) as meter:
        meter.forward_begins()
        loss = model(x).sum()
        meter.forward_ended()
        loss.backward()
        optimizer.step()
        meter.step_ended()
    return costs


def test_the_bytes_of_a_known_step_by_category() -> None:
    """3 rows, 4 -> 8 -> 2: the rectified 3 x 8 is kept for the backward pass, and the loss is there; 58 weights."""
    costs = metered_step(two_layers())
    assert costs.activation_bytes == 3 * 8 * 4 + 4
    assert costs.gradient_bytes == 58 * 4
    assert costs.optimizer_bytes == 2 * 58 * 4 + 4 * 4
    assert costs.train_peak_bytes >= 58 * 4 + costs.optimizer_bytes + costs.gradient_bytes


def test_the_operations_of_a_known_step() -> None:
    """Forward 2 x 3 x (4 x 8 + 8 x 2); backward as many for the weights, and the second layer's for its input."""
    forward = 2 * 3 * (4 * 8 + 8 * 2)
    assert metered_step(two_layers()).flops == 2 * forward + 2 * 3 * 8 * 2


def test_activations_grow_with_the_rows_and_nothing_else_does() -> None:
    """Gradients and optimizer state are the same for 3 rows and for 30."""
    few, many = metered_step(two_layers(), 3), metered_step(two_layers(), 30)
    assert many.activation_bytes - 4 == 10 * (few.activation_bytes - 4)
    assert (many.gradient_bytes, many.optimizer_bytes) == (few.gradient_bytes, few.optimizer_bytes)


def test_what_is_freed_no_longer_lives() -> None:
    """The peak stays, views count once, and after the last reference nothing is left."""
    with measure.live_bytes([]) as live:
        kept = torch.ones(10)
        torch.ones(100)
        assert live.live == 40
        assert live.peak == 440
        view = kept[2:]
        assert live.live == 40
        del kept, view
        assert live.live == 0


def test_a_sparse_tensor_is_its_indices_and_values() -> None:
    """Both are counted, as live bytes and as storage."""
    with measure.live_bytes([]) as live:
        diagonal = torch.arange(4).repeat(2, 1)
        sparse = torch.sparse_coo_tensor(diagonal, torch.ones(4), (4, 4), check_invariants=False)
        del diagonal
    assert measure.storage_bytes([sparse]) == 2 * 4 * 8 + 4 * 4
    assert live.live == measure.storage_bytes([sparse])


def test_attention_on_a_cpu_is_counted() -> None:
    """Scores and their product with the values: 2 x 2 x heads x length squared x width."""
    q = torch.ones(1, 2, 16, 8)
    with measure.flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 2 * 2 * 2 * 16 * 16 * 8


def test_a_forward_pass_is_counted_by_its_tokens() -> None:
    """Operations per token and peak bytes are those computed by hand."""
    model = two_layers()
    meter, x = measure.ForwardMeter(model), torch.ones(3, 4)
    with torch.inference_mode(), meter.counting(tokens=3):
        model(x)
    assert meter.flops_per_token == 2 * (4 * 8 + 8 * 2)
    assert meter.peak_bytes == 58 * 4 + 2 * 3 * 8 * 4  # both sides of the rectifier


def test_what_gradient_checkpointing_computes_again_does_not_outlive_its_layer_while_it_is_counted() -> None:
    """As the backward pass goes from layer to layer, no more is held than when the last layer had been passed."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 2}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=64, pad_token_id=0, **sizes))
    models.quiet_libraries()
    models.set_checkpointing(model, True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "q_proj" in name
    model.train()
    tokens = torch.ones(2, 8, dtype=torch.long)
    held = []
    with measure.flop_counter(), measure.live_bytes(list(model.parameters())) as live:
        for layer in model.model.layers:
            layer.input_layernorm.register_forward_pre_hook(lambda *_: held.append(live.live))
        model(input_ids=tokens, labels=torch.zeros(2, dtype=torch.long)).loss.backward()
    again = held[sizes["num_hidden_layers"] :]
    assert len(again) == sizes["num_hidden_layers"]
    # What comes on top: gradients of weights.
    gradients = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert again[-1] - again[0] < (again[0] - held[0]) + gradients
