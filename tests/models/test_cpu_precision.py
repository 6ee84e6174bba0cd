"""What train.precision=auto computes in on a CPU: tried once where there are instructions, else float32, and why."""

import json
from pathlib import Path

import pytest

from harness.config.errors import ConfigError
from harness.config.schema import Precision, Quantization
from harness.models import cpu_precision
from harness.models.cpu_precision import VARIABLE
from harness.models.precision import automatic

FACTS = "processor\t: 0\nmodel name\t: {name}\nflags\t\t: fpu sse2 avx2 {more}\nbugs\t\t: bf16_of_no_matter\n"


class Machine:
    """A processor with these flags, whose products gain so much, and a cache of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.monkeypatch, self.folder, self.tried = monkeypatch, folder, 0
        monkeypatch.delenv(VARIABLE, raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    def choose(self, flags: str, gain: float, name: str = "a processor") -> cpu_precision.Choice:
        """As a process that starts now."""
        facts = self.folder / "cpuinfo"
        facts.write_text(FACTS.format(name=name, more=flags))
        self.monkeypatch.setattr(cpu_precision, "CPU_FACTS", facts)
        self.monkeypatch.setattr(cpu_precision, "gain", lambda: self._try(gain))
        forget()
        return cpu_precision.choose()

    def _try(self, gain: float) -> float:
        self.tried += 1
        return gain

    @property
    def kept(self) -> list[Path]:
        return sorted((self.folder / "cache").rglob("*.*"))


def forget() -> None:
    cpu_precision._choose.cache_clear()
    cpu_precision.processor.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    yield Machine(monkeypatch, tmp_path)
    forget()


def test_without_instructions_nothing_is_tried(machine: Machine) -> None:
    """float32 is taken, and why is said; the same where the system tells no instructions."""
    choice = machine.choose("", 7)
    assert (choice.precision, machine.tried, machine.kept) == (Precision.float32, 0, [])
    assert str(choice) == "float32: this processor has no instructions for bfloat16"
    machine.monkeypatch.setattr(cpu_precision, "CPU_FACTS", machine.folder / "none")
    forget()
    assert str(cpu_precision.choose()) == "float32: the instructions of this processor are not known"


@pytest.mark.parametrize("flag", sorted(cpu_precision.INSTRUCTIONS))
def test_what_is_faster_by_a_clear_margin_is_taken_and_kept(machine: Machine, flag: str) -> None:
    """A later process reads what the first one found, also where it would find something else."""
    choice = machine.choose(flag, 6.94)
    assert str(choice) == "bfloat16: 6.9 times float32's products on this processor"
    assert machine.choose(flag, 0.1) == choice
    assert machine.tried == 1
    (file,) = machine.kept
    assert json.loads(file.read_text())["processor"] == "a processor"


def test_a_small_gain_is_none(machine: Machine) -> None:
    """Clocks vary: float32 stays unless bfloat16 gains half as much again, and emulation is no gain at all."""
    assert str(machine.choose("amx_bf16", 1.49)).startswith("float32: bfloat16 has 1.5 times float32's products")
    assert machine.choose("amx_bf16", 0.04, "another").precision is Precision.float32
    assert machine.choose("amx_bf16", 1.5, "a third").precision is Precision.bfloat16


def test_another_processor_thread_count_or_torch_is_tried_anew(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept choice is of one machine."""
    machine.choose("amx_bf16", 7)
    machine.choose("amx_bf16", 7, "another")
    machine.choose("amx_bf16 avx512f", 7)
    monkeypatch.setenv("OMP_NUM_THREADS", "63")
    machine.choose("amx_bf16", 7)
    monkeypatch.setattr(cpu_precision, "version", lambda package: "9.9")
    machine.choose("amx_bf16", 7)
    assert (machine.tried, len(machine.kept)) == (5, 5)


def test_a_damaged_or_impossible_cache_is_no_obstacle(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be read is tried again and replaced; where nothing can be kept, each process tries."""
    machine.choose("amx_bf16", 7)
    (file,) = machine.kept
    file.write_text("{")
    assert machine.choose("amx_bf16", 7).precision is Precision.bfloat16
    assert json.loads(file.read_text())["precision"] == "bfloat16"
    assert machine.tried == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert machine.choose("amx_bf16", 7).precision is Precision.bfloat16
    assert machine.tried == 3


def test_of_two_that_try_at_once_the_first_decides(machine: Machine) -> None:
    """All runs of a machine agree."""
    first = machine.choose("amx_bf16", 7)
    here = cpu_precision.processor()
    assert here is not None
    assert cpu_precision._keep(here, cpu_precision.decide(0.5)) == first
    assert [file.suffix for file in machine.kept] == [".json"]


def test_a_fleet_of_mixed_machines_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment fixes the precision, and nothing is tried; a word that is none is refused."""
    monkeypatch.setenv(VARIABLE, "bfloat16")
    assert str(machine.choose("", 7)) == "bfloat16: HARNESS_CPU_PRECISION fixes it"
    assert machine.tried == 0
    monkeypatch.setenv(VARIABLE, "half")
    with pytest.raises(ConfigError, match="HARNESS_CPU_PRECISION=half: float32 or bfloat16 is allowed"):
        cpu_precision.choose()


def test_packed_weights_are_computed_in_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its processor is made for; a GPU computes in bfloat16 with them too."""
    monkeypatch.setenv(VARIABLE, "bfloat16")
    assert automatic("cpu", Quantization.none).precision is Precision.bfloat16
    assert str(automatic("cpu", Quantization.nf4)) == "float32: nf4 weights are unpacked into it on a CPU"
    assert automatic("cuda", Quantization.nf4).precision is Precision.bfloat16


def test_the_trial_sees_what_this_processor_is_made_for() -> None:
    """Emulated, bfloat16 has a fraction of float32's products; a gain needs the instructions."""
    here = cpu_precision.processor()
    if here is None or here.flags & cpu_precision.INSTRUCTIONS:
        pytest.skip("this processor has, or may have, instructions for bfloat16: how much they gain is its own affair")
    assert 0 < cpu_precision.gain() < cpu_precision.MARGIN


def test_the_trial_gains_where_there_are_tiles() -> None:
    """AMX multiplies bfloat16 several times as fast as AVX-512 multiplies float32."""
    here = cpu_precision.processor()
    if here is None or "amx_bf16" not in here.flags:
        pytest.skip("this processor has no AMX")
    assert cpu_precision.gain() > cpu_precision.MARGIN
