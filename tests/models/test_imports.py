"""bitsandbytes is imported without torch's compiler, and what it decorates is compiled when it is first called."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.models import loading

ALONE = """
import sys, torch
from harness import models
compiler = torch.compile
models.quiet_libraries()
import peft, bitsandbytes
assert torch.compile is compiler
assert "torch._inductor.compile_fx" not in sys.modules
weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
packed, state = bitsandbytes.functional.quantize_4bit(weights, quant_type="nf4")
print(float((bitsandbytes.functional.dequantize_4bit(packed, state) - weights).abs().mean()))
"""


@pytest.mark.slow
def test_a_process_starts_without_the_compiler() -> None:
    """And quantizes as it does with it: by NF4's mean error on normal weights."""
    told = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert float(told.stdout) == pytest.approx(0.072, abs=0.005)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Functions and options that torch is asked to compile, which are left as they are."""
    asked: list[Any] = []

    def compiler(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        asked.append((function.__name__, options))
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    return asked


@pytest.mark.parametrize("options", [None, {}, {"dynamic": False}])
def test_a_function_is_compiled_once_and_when_it_is_called(
    options: dict[str, Any] | None, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its options and under its name, however it is decorated."""
    found = {}

    def stand_in(name: str) -> None:
        decorator = torch.compile if options is None else torch.compile(**options)

        @decorator
        def twice(number: int) -> int:
            return 2 * number

        found[name] = twice

    monkeypatch.setattr(loading, "import_module", stand_in)
    compiler = torch.compile
    loading.import_bitsandbytes()
    assert torch.compile is compiler
    (twice,) = found.values()
    assert (twice.__name__, compiled) == ("twice", [])
    assert (twice(2), twice(3)) == (4, 6)
    assert compiled == [("twice", options or {})]


def test_without_bitsandbytes_nothing_is_imported(compiled: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is needed for quantized weights alone; torch's compiler is in its place again."""

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(loading, "import_module", missing)
    compiler = torch.compile
    loading.import_bitsandbytes()
    assert torch.compile is compiler
