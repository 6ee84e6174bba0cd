"""LoRA points in one pack against one at a time: the same gradients, and what it takes on this CPU.

    HARNESS_REAL_DATA=FOLDER python -m pytest -m slow -s tests/benchmarks/test_packing.py

Both take turns on the same batches of SST-2 (MiniLM, LoRA on query and value, 32 rows a batch), and the medians are
printed; HARNESS_FULL=1 times more steps and packs of up to 8. No ratio is asserted: a CPU's step is bound by
arithmetic, which a pack does not save. What is asserted is that packed gradients are those of each point alone.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
from packed_steps import PackedSteps

from harness import models
from harness.config.build import build
from harness.config.compose import compose
from harness.methods import trained_parameters
from harness.models.architectures import architecture
from harness.training import together
from harness.training.batches import bucketed, collator_for

pytestmark = pytest.mark.slow

FULL = bool(os.environ.get("HARNESS_FULL"))
STEPS, POINTS = (24, (1, 2, 4, 8)) if FULL else (3, (2, 4))
BATCH, ROWS = 32, 640


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def test_packed_gradients_are_the_same_and_a_cpu_gains_nothing(minilm: Path, real_data: Path) -> None:
    """Prints the largest difference of a gradient, and the time of packed steps over that of steps one at a time."""
    task = ["task=glue/sst2", f"task.data_dir={real_data}/glue/sst2", f"task.max_train_rows={ROWS}", "tracking=none"]
    experiment = build(compose("config", ["model=minilm", f"model.path={minilm}", *task, "train.epochs=2"]))
    models.quiet_libraries()
    configuration = models.load_config(minilm, 2, False)
    tokenizer = models.load_tokenizer(minilm, architecture(configuration))
    torch.manual_seed(0)
    backbone = models.load_model(minilm, configuration, experiment, torch.float32)
    features = experiment.task.encode(experiment.task.load().splits["train"], tokenizer)
    collate = collator_for(backbone, tokenizer, torch.device("cpu"))
    order = bucketed([row["length"] for row in features], BATCH, 0, 0)
    for points in POINTS:
        made = PackedSteps(experiment, backbone, features, collate, None, points)
        worst = largest_difference(made, collate(features, order[0]))
        assert worst < 1e-5
        timed: dict[str, list[float]] = {"packed": [], "alone": []}
        for number in range(1 + STEPS):
            batch = collate(features, order[number % len(order)])
            timed["packed"].append(seconds(lambda made=made, batch=batch: made.packed(batch)))
            timed["alone"].append(seconds(lambda made=made, batch=batch: made.one_at_a_time(batch)))
        packed, alone = (median(times[1:]) for times in timed.values())
        print(
            f"\n{points} points: gradients differ by {worst:.1e} at most; a packed step takes {packed:.3f} s, "
            f"{points} steps one at a time {alone:.3f} s: {alone / packed:.2f} times the throughput"
        )


def largest_difference(made: PackedSteps, batch: object) -> float:
    """The largest difference between a packed gradient and the same point's alone, with the same random numbers."""
    before = [member.stream.state for member in made.members]
    together._gradients(made.pack, made.members, [batch], batch.weight)  # type: ignore[attr-defined, list-item]
    worst = 0.0
    for member, state in zip(made.members, before, strict=True):
        trained = trained_parameters(member.trainer.adapter)
        packed = {name: parameter.grad.clone() for name, parameter in trained.items()}
        member.trainer.optimizer.zero_grad()
        member.stream.state = state
        with member.stream:
            member.trainer.part(batch, batch.weight).backward()  # type: ignore[arg-type, attr-defined]
        differences = [float((p.grad - packed[name]).abs().max()) for name, p in trained.items()]
        worst = max(worst, *differences)
        member.trainer.optimizer.zero_grad()
    return worst
