"""Latency is a median over turns, energy is read where there is a counter, and the peak size is the process's own."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from harness.measure import energy as measure_energy
from harness.measure import speed
from harness.run import latency
from harness.training.batches import Batch

CPU = torch.device("cpu")


class Sleeper:
    """An adapter whose forward passes are counted."""

    def __init__(self, mergeable: bool) -> None:
        self.passes: list[str] = []
        self.mergeable = mergeable
        self.state = "attached"
        self.model = self

    def eval(self) -> None: ...

    def __call__(self, **inputs: torch.Tensor) -> None:
        self.passes.append(self.state)

    @contextmanager
    def disabled(self):  # type: ignore[no-untyped-def]
        self.state = "base"
        yield
        self.state = "attached"

    def merge(self) -> "Sleeper":
        if not self.mergeable:
            raise ValueError("it is in front of the text, not in the weights")
        self.state = "merged"
        return self


def batches(*rows: int) -> list[Batch]:
    return [Batch({"input_ids": torch.ones(n, 2)}, list(range(n)), 2 * n, 2 * n, n) for n in rows]


def test_base_and_adapter_take_turns_and_the_merged_model_comes_last() -> None:
    """After one warm-up each is timed as often as the fewest repeats say."""
    adapter = Sleeper(mergeable=True)
    timed = latency.latency(adapter, batches(1), seconds=0, device=CPU)  # type: ignore[arg-type]
    turns = latency.FEWEST_REPEATS + 1
    assert adapter.passes == ["base", "attached"] * turns + ["merged"] * turns
    assert {name: set(by_rows) for name, by_rows in timed.milliseconds.items()} == {
        "base": {"1"},
        "attached": {"1"},
        "merged": {"1"},
    }
    assert timed.repeats == latency.FEWEST_REPEATS


def test_a_method_that_cannot_be_merged_says_why() -> None:
    """The merged time is missing with a reason, and the others are there for every batch size."""
    timed = latency.latency(Sleeper(mergeable=False), batches(1, 4), seconds=0, device=CPU)  # type: ignore[arg-type]
    assert set(timed.milliseconds) == {"base", "attached"}
    assert set(timed.milliseconds["base"]) == {"1", "4"}
    assert timed.missing == {"merged": "it is in front of the text, not in the weights"}


def test_the_ceiling_does_not_move_the_random_numbers_of_the_run() -> None:
    """The generator's state is the same after the speed of the machine was measured."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert speed.flops_ceiling(CPU, torch.float32) > 0
    assert torch.equal(torch.rand(1), expected)


def test_the_ceiling_is_the_best_of_all_moments_in_one_precision_on_the_same_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow moment does not lower it; another precision, or other threads, have their own."""
    monkeypatch.setattr(speed, "_ceilings", {})
    best = max(speed.flops_ceiling(CPU, torch.float32) for _ in range(3))
    assert speed.flops_ceiling(CPU, torch.float32) >= best
    [place] = speed._ceilings
    speed._ceilings[place] = 1e30
    assert speed.flops_ceiling(CPU, torch.float32) == 1e30
    assert speed.flops_ceiling(CPU, torch.float64) < 1e30
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert speed.flops_ceiling(CPU, torch.float32) < 1e30
    finally:
        torch.set_num_threads(threads)


def test_where_a_product_is_slow_the_ceiling_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As bfloat16 is on a processor without its instructions, where products at each moment took most of a run."""
    monkeypatch.setattr(speed, "_ceilings", {})
    speed.flops_ceiling(CPU, torch.float32)
    [place] = speed._ceilings
    speed._ceilings[place] = 1.0
    assert speed.flops_ceiling(CPU, torch.float32) == 1.0
    monkeypatch.setattr(speed, "_ceilings", {})
    monkeypatch.setattr(speed, "LONG_SECONDS", 0.0)
    made = []
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: made.append(torch.mm(one, other)))
    speed.flops_ceiling(CPU, torch.float32)
    assert len(made) == 1


PEAKS = """
import mmap
from harness.measure import speed

print(speed.reset_peak_resident_size())
with mmap.mmap(-1, 200_000_000) as block:
    block.write(b"x" * len(block))
print(speed.peak_resident_bytes())
speed.reset_peak_resident_size()
print(speed.peak_resident_bytes())
"""


def test_the_peak_resident_size_falls_after_a_reset() -> None:
    """In a process of its own: one that has run tests may hold enough memory for the block already."""
    printed = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True).stdout
    possible, high, low = printed.split()
    if possible == "False":
        pytest.skip("this system does not reset the peak resident size")
    assert int(high) - int(low) > 150_000_000


def test_energy_is_the_sum_of_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a package do not count twice, and a counter that started anew gives no figure."""
    counters = [tmp_path / f"intel-rapl:{number}" / "energy_uj" for number in range(2)]
    for counter in counters:
        counter.parent.mkdir()
        counter.write_text("1000000\n")
    # A part of the first package: counted in it already.
    (tmp_path / "intel-rapl:0:0").mkdir()
    (tmp_path / "intel-rapl:0:0/energy_uj").write_text("5\n")
    monkeypatch.setattr(measure_energy, "RAPL", tmp_path)
    energy = measure_energy.Energy(CPU)
    counters[1].write_text("3500000\n")
    assert energy.joules() == 2.5
    counters[1].write_text("0\n")
    assert energy.joules() is None
    assert "restarted" in energy.reason


def test_without_a_counter_there_is_a_reason_and_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty powercap folder gives null and a sentence."""
    monkeypatch.setattr(measure_energy, "RAPL", tmp_path)
    energy = measure_energy.Energy(CPU)
    assert energy.joules() is None
    assert "no energy counter" in energy.reason


def test_the_machines_load_is_sampled_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run has no sample of it, and a longer one no more than it asks for."""
    load = speed.SystemLoad(torch.device("cpu"))
    assert load.sample() == {}
    monkeypatch.setattr(speed, "SYSTEM_SECONDS", 0)
    found = load.sample()
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100
    assert found["system/system_memory_usage_megabytes"] > 0
    assert 0 < found["system/system_memory_usage_percentage"] <= 100
    assert all(name.startswith("system/") for name in found)
