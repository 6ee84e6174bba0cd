"""LoRA's family: what its members add to it, and AdaLoRA's schedule."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import method_of, random_backbone

from harness.config.errors import ConfigError
from harness.doctor.compatibility import words
from harness.methods import trained_parameters
from harness.models.architectures import Kind
from harness.training.batches import plain_inputs

TinyModel = Callable[[str], Path]
INPUTS = plain_inputs(words(8, 12), Kind.classification)
SETTINGS: Any = SimpleNamespace(learning_rate=1e-3, weight_decay=0.0)


@pytest.mark.parametrize(
    ("name", "override", "sentence"),
    [
        ("lora", "method.rank=0", r"method\.rank=0: a rank of 1 or more is needed"),
        ("lora", "method.alpha=0", r"method\.alpha=0\.0: a positive number"),
        ("lora", "method.dropout=1", r"method\.dropout=1\.0: a share"),
        ("lora", "method.target_modules=[]", r"method\.target_modules=\[\]: name a role"),
        ("lora", "method.loraplus_lr_ratio=0.5", r"loraplus_lr_ratio=0\.5: a number from 1 on"),
        ("lora", "method.init_weights=eva", r"init_weights"),
        ("lora_fa", "method.loraplus_lr_ratio=4", r"freeze_a=true: brings an optimizer of its own, which excludes"),
        ("lora_fa", "method.use_dora=true", r"freeze_a=true: .* knows no use_dora"),
        ("adalora", "method.target_rank=12", r"target_rank=12: initial_rank=12 must be larger"),
        ("adalora", "method.final_share=0.95", r"with warmup_share it leaves no steps to cut in"),
        ("adalora", "method.interval=0", r"interval=0: at least one step"),
        ("adalora", "method.beta1=1", r"beta1=1\.0: a number between 0 and 1"),
    ],
)
def test_impossible_values_are_refused(name: str, override: str, sentence: str) -> None:
    """Each is named with what is allowed, for plain LoRA and its variants."""
    with pytest.raises(ConfigError, match=sentence):
        method_of(name, override)


@pytest.mark.slow
def test_rank_stabilized_lora_divides_by_the_root_of_the_rank() -> None:
    """The scale is alpha over the square root of the rank."""
    layer = (
        method_of("rslora")
        .attach(random_backbone("bert"))
        .model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    )
    assert layer.scaling["default"] == pytest.approx(16 / 8**0.5)


def test_pissa_starts_from_the_main_singular_directions_and_gives_the_weights_back() -> None:
    """Detached or disabled, the original weights are there bit by bit."""
    plain = random_backbone("bert")
    weight = plain.model.get_submodule("bert.encoder.layer.0.attention.self.query").weight
    original = weight.detach().clone()
    adapter = method_of("pissa").attach(plain)
    values = torch.linalg.svdvals(original)
    assert torch.allclose(torch.linalg.svdvals(weight.detach())[: 64 - 8], values[8:], atol=1e-5)
    with adapter.disabled():
        assert torch.equal(weight, original)
    assert not torch.equal(weight, original)
    adapter.detach()
    assert torch.equal(weight, original)


def test_in_lora_plus_b_learns_faster_than_a() -> None:
    """Every trained parameter is in a group, and B's rate is sixteen times A's."""
    adapter = method_of("lora_plus").attach(random_backbone("bert"))
    trained = trained_parameters(adapter)
    optimizer = adapter.optimizer(trained, SETTINGS)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rate) == {id(p) for p in trained.values()}
    for name, parameter in adapter.adapter_parameters().items():
        assert rate[id(parameter)] == pytest.approx(16e-3 if ".lora_B." in name else 1e-3)


def test_lora_fa_trains_b_alone() -> None:
    """The loss falls while A stays as it was drawn."""
    method = method_of("lora_fa")
    adapter = method.attach(random_backbone("bert"))
    assert all(".lora_B." in name for name in adapter.adapter_parameters())
    assert sum(p.numel() for p in adapter.adapter_parameters().values()) == 4 * 8 * 64
    frozen = {name: p.detach().clone() for name, p in adapter.model.named_parameters() if ".lora_A." in name}
    optimizer = adapter.optimizer(trained_parameters(adapter), SETTINGS)
    losses = []
    for _ in range(4):
        loss = adapter.model(**INPUTS).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(adapter.model.get_parameter(name), value) for name, value in frozen.items())


@pytest.mark.filterwarnings("ignore")  # bitsandbytes says what it lacks on this machine
def test_qlora_has_the_optimizer_of_bitsandbytes_with_the_same_groups() -> None:
    """It holds all trained parameters, and the presets store the weights in nf4 and int8."""
    from bitsandbytes import optim

    adapter = method_of("lora", "method.optimizer=paged_adamw").attach(random_backbone("bert"))
    trained = trained_parameters(adapter)
    optimizer = adapter.optimizer(trained, SETTINGS)
    assert isinstance(optimizer, optim.AdamW)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in trained.values()}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]
    assert method_of("qlora").quantization().value == "nf4"
    assert method_of("lora_int8").quantization().value == "int8"


def steps(adapter: Any, optimizer: Any, first: int, last: int) -> list[float]:
    adapter.model.train()
    losses = []
    for step in range(first, last + 1):
        optimizer.zero_grad()
        loss = adapter.model(**INPUTS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        adapter.after_step(step)
    return losses


def ranks(adapter: Any) -> int:
    return sum(int((p != 0).sum()) for name, p in adapter.model.named_parameters() if ".lora_E." in name)


def adalora(total_steps: int = 20) -> tuple[Any, Any]:
    plain = random_backbone("bert")
    for module in plain.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(3)
    adapter = method_of("adalora", "method.interval=2", "method.target_rank=4").attach(plain)
    optimizer = torch.optim.AdamW(trained_parameters(adapter).values(), lr=5e-3)
    adapter.start(total_steps)
    return adapter, optimizer


def test_adalora_cuts_to_its_budget_and_then_no_more() -> None:
    """Ranks fall from 12 to 4 per layer between the warm-up and the last phase."""
    adapter, optimizer = adalora()
    steps(adapter, optimizer, 1, 2)
    assert ranks(adapter) == 4 * 12
    steps(adapter, optimizer, 3, 6)
    assert 4 * 4 < ranks(adapter) < 4 * 12
    steps(adapter, optimizer, 7, 11)
    assert not adapter.settled()
    steps(adapter, optimizer, 12, 12)
    assert adapter.settled()
    assert ranks(adapter) == 4 * 4
    steps(adapter, optimizer, 13, 20)
    assert ranks(adapter) == 4 * 4


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 7, 12, 15])
def test_adalora_goes_on_where_it_stopped(cut: int, tmp_path: Path) -> None:
    """From a checkpoint in any phase the losses are the same."""
    whole, optimizer = adalora()
    steps(whole, optimizer, 1, cut)
    trained = trained_parameters(whole)
    saved = {
        "trained": {name: p.detach().clone() for name, p in trained.items()},
        "optimizer": optimizer.state_dict(),
        "method": whole.state(),
    }
    torch.save(saved, tmp_path / "checkpoint.pt")
    rest = steps(whole, optimizer, cut + 1, 20)

    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed, fresh = adalora()
    for name, parameter in trained_parameters(resumed).items():
        parameter.data.copy_(state["trained"][name])
    fresh.load_state_dict(state["optimizer"])
    resumed.load_state(state["method"])
    assert steps(resumed, fresh, cut + 1, 20) == rest
    assert resumed.settled()


@pytest.mark.parametrize("total_steps", [1, 2, 3, 50])
def test_adalora_fits_its_schedule_into_any_run(total_steps: int) -> None:
    """Even few steps end at the target rank; a single step cuts nothing."""
    adapter, optimizer = adalora(total_steps)
    steps(adapter, optimizer, 1, total_steps)
    assert adapter.settled()
    assert ranks(adapter) == (4 * 12 if total_steps == 1 else 4 * 4)
