"""Products in bfloat16 on a CPU without instructions for them: torch's own, in the time of float32's."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness import run as runner
from harness.adapters import predict
from harness.config.compose import compose
from harness.config.schema import Precision
from harness.models import cpu_precision, fast_products
from harness.run.together import run_together

# A step between two neighbors among the numbers of bfloat16, as a share of them.
LAST_PLACE = 2**-7
FLAGS = {"with": frozenset({"avx2", "amx_bf16"}), "without": frozenset({"avx2"})}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


PRODUCTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mm": lambda x: x @ drawn(48, 40),
    "linear": lambda x: torch.nn.functional.linear(x, drawn(40, 48), drawn(40)),
    "linear of a batch": lambda x: torch.nn.functional.linear(x.view(4, 16, 48), drawn(40, 48)),
    "bmm": lambda x: x.view(4, 16, 48) @ drawn(4, 48, 40),
    "baddbmm": lambda x: torch.baddbmm(drawn(4, 16, 40), x.view(4, 16, 48), drawn(4, 48, 40), alpha=0.5),
    "addmm": lambda x: torch.addmm(drawn(40), x, drawn(48, 40), beta=2.0),
    "einsum": lambda x: torch.einsum("nbi,bio->nbo", x.view(16, 4, 48), drawn(4, 48, 40)),
}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the processor have instructions for bfloat16, or not."""

    def be(which: str) -> None:
        found = cpu_precision.Processor("a processor", FLAGS[which], 1, torch.__version__)
        monkeypatch.setattr(cpu_precision, "processor", lambda: found)

    return be


class Seen(TorchDispatchMode):
    """Kinds of the operands of the products of matrices that reach torch."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: set[Any] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul"):
            self.kinds |= {leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        return function(*args, **(kwargs or {}))


def wide() -> AbstractContextManager[Any]:
    return fast_products("cpu", Precision.bfloat16)


def results(name: str, context: AbstractContextManager[Any]) -> list[torch.Tensor]:
    """A product, the gradient of what it is made of, and the product again without gradients."""
    x = drawn(64, 48).requires_grad_()
    with context:
        product = PRODUCTS[name](x)
        (product * drawn(*product.shape)).sum().backward()
        with torch.inference_mode():
            return [product.detach(), x.grad, PRODUCTS[name](x)]


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_torchs_but_for_the_last_place(name: str, processor: Callable[[str], None]) -> None:
    """Torch's own kernel rounds the same sum, in another order."""
    processor("without")
    for ours, theirs in zip(results(name, wide()), results(name, nullcontext()), strict=True):
        assert ours.dtype is theirs.dtype is torch.bfloat16
        assert ((ours - theirs).abs() <= LAST_PLACE * theirs.abs().clamp(min=theirs.abs().max() / 16)).all()
        assert (ours == theirs).float().mean() > 0.97


def test_only_bfloat16_alone_is_touched(processor: Callable[[str], None]) -> None:
    """float32 keeps its bits, and a mixture is refused as torch refuses it."""
    processor("without")
    x, y = drawn(8, 8).float(), drawn(8, 8).float().T
    expected = x @ y
    with wide():
        assert torch.equal(x @ y, expected)
        with pytest.raises(RuntimeError, match="dtype"):
            x @ y.bfloat16()


@pytest.mark.parametrize(
    ("which", "device", "precision", "changed"),
    [
        ("without", "cpu", Precision.bfloat16, True),
        ("with", "cpu", Precision.bfloat16, False),
        ("without", "cuda", Precision.bfloat16, False),
        ("without", "cpu", Precision.float32, False),
    ],
)
def test_products_change_where_they_are_slow_alone(
    which: str, device: str, precision: Precision, changed: bool, processor: Callable[[str], None]
) -> None:
    """What a processor or a GPU multiplies itself stays its own."""
    processor(which)
    with Seen() as seen, fast_products(device, precision):
        drawn(8, 8) @ drawn(8, 8)
    assert seen.kinds == {torch.float32 if changed else torch.bfloat16}


def test_they_take_the_time_of_float32(processor: Callable[[str], None]) -> None:
    """As of a step of a small encoder: not more than a few times as long, where torch's own may take thirty times."""
    processor("without")
    left, right = drawn(1024, 384), drawn(384, 384)

    def seconds(x: torch.Tensor, y: torch.Tensor) -> float:
        start = time.perf_counter()
        x @ y
        return time.perf_counter() - start

    ours, theirs = [], []
    for _ in range(10):
        with wide():
            ours.append(seconds(left, right))
        theirs.append(seconds(left.float(), right.float()))
    assert min(ours) < 4 * min(theirs)


@pytest.mark.parametrize("which", FLAGS)
def test_a_run_multiplies_in_what_its_record_says(
    which: str, tiny_experiment: list[str], tmp_path: Path, processor: Callable[[str], None]
) -> None:
    """Training, evaluation and measuring; and what the adapter then answers elsewhere."""
    processor(which)
    options = [*tiny_experiment, "train.max_steps=3", "train.precision=bfloat16", "forgetting.text=null"]
    with Seen() as seen:
        record = runner.run(runner.prepare(compose("config", options)), tmp_path / "run")
    assert record.status == "finished", record.error
    expected = {"with": "bfloat16", "without": "float32"}[which]
    assert record.provenance["precision"] == {"taken": "bfloat16", "why": None, "products": expected}
    assert (torch.bfloat16 in seen.kinds) == (which == "with")
    (tmp_path / "new.csv").write_text("sentence\nword4 word5\n")
    with Seen() as seen:
        assert predict.main([f"adapter={tmp_path / 'run'}", f"data={tmp_path / 'new.csv'}", "out=a.parquet"]) == 0
    assert (torch.bfloat16 in seen.kinds) == (which == "with")


def test_a_pack_multiplies_so_too(tiny_experiment: list[str], tmp_path: Path, processor: Callable[[str], None]) -> None:
    """Its points train on products that they share."""
    processor("without")
    options = [*tiny_experiment, "method=lora", "train.max_steps=2", "train.precision=bfloat16"]
    options += ["measure.costs=false", "forgetting.text=null"]
    points = [(runner.prepare(compose("config", [*options, f"seed={n}"])), tmp_path / str(n)) for n in (1, 2)]
    with Seen() as seen:
        ended = run_together(points)
    assert [record.status for record in ended] == ["finished"] * 2
    assert seen.kinds == {torch.float32}
