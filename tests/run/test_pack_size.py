"""As many points train in one pack as fit in a GPU by the plan of one of them."""

import pytest
import torch
from packed_steps import PackedSteps

from harness import measure
from harness.config.build import build
from harness.config.compose import compose
from harness.config.schema import Quantization
from harness.methods.skeleton import architecture_of, on_its_backbone
from harness.models import empty_model
from harness.run.estimate import CONTEXT_BYTES, Step, predict
from harness.run.pack_size import MOST, Footprint, footprint_of, how_many
from harness.training.batches import Batch, plain_inputs

MB = 10**6


def test_points_are_added_to_one_backbone_until_the_next_is_too_much() -> None:
    """100 MB of backbone and 30 MB for each of three points are 190 MB; a byte less holds two, and so does a fourth."""
    points = [Footprint(100 * MB, 30 * MB)] * 4
    assert how_many(CONTEXT_BYTES + 190 * MB, points) == 3
    assert how_many(CONTEXT_BYTES + 190 * MB - 1, points) == 2
    assert how_many(CONTEXT_BYTES + 190 * MB, [*points[:2], Footprint(100 * MB, 31 * MB)]) == 2


def test_a_point_is_tried_alone_whatever_its_plan_says_and_no_pack_is_larger_than_the_largest() -> None:
    """Memory of nothing, and of everything."""
    points = [Footprint(100 * MB, 30 * MB)] * 20
    assert how_many(0, points) == 1
    assert how_many(10**15, points) == MOST
    assert how_many(10**15, points[:3]) == 3


def test_a_second_quantized_backbone_must_find_room_until_it_is_known_to_be_the_first() -> None:
    """It is loaded to the GPU: twice 100 MB, although two points would train in 160 MB."""
    points = [Footprint(100 * MB, 30 * MB, arriving=100 * MB)] * 2
    assert how_many(CONTEXT_BYTES + 199 * MB, points) == 1
    assert how_many(CONTEXT_BYTES + 200 * MB, points) == 2


def test_more_memory_never_gives_fewer_and_a_larger_batch_never_more() -> None:
    """For points of all sizes, mixed."""
    memories = [CONTEXT_BYTES + room * MB for room in range(0, 2000, 37)]
    for own in (1, 40, 111, 300):
        points = [Footprint((100 + number) * MB, (own + 7 * number) * MB) for number in range(MOST)]
        larger = [Footprint(one.shared, one.own + 5 * MB) for one in points]
        counts = [how_many(memory, points) for memory in memories]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1]
        assert all(how_many(memory, larger) <= count for memory, count in zip(memories, counts, strict=True))


@pytest.mark.slow
def test_the_plan_of_one_step_says_what_a_packed_step_holds() -> None:
    """Tensors of a real step of two points, at its peak, are what the plan of one comes to, within 2%."""
    rows, length, points = 16, 32, 2
    options = ["model=micro_encoder", "tracking=none", "train.precision=float32", f"task.max_length={length}"]
    experiment = on_its_backbone(build(compose("config", options)))
    configuration = architecture_of(experiment)
    one = footprint_of(predict(experiment, configuration, Step(rows, length, "cpu")), Quantization.none)
    backbone = empty_model(configuration, experiment.task.kind, device="cpu")
    inputs = plain_inputs(torch.zeros(rows, length, dtype=torch.long), backbone.kind, backbone.model.config)
    inputs["attention_mask"][:, -1] = 0
    batch = Batch(inputs, list(range(rows)), rows * length, rows * length, rows)
    made = PackedSteps(experiment, backbone, [{"length": length, "weight": 1}] * 2, Given(batch), None, points)
    made.packed(batch)  # which makes the optimizers' state
    models = [member.trainer.adapter.model for member in made.members]
    optimizers = [member.trainer.optimizer for member in made.members]
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    weights = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    with measure.live_bytes(weights) as live:
        made.packed(batch)
    held = measure.storage_bytes(weights) + sum(map(measure.optimizer_bytes, optimizers)) + live.peak
    assert held == pytest.approx(one.shared + points * one.own, rel=0.02)


class Given:
    """Collates whatever rows there are to one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.device = batch, torch.device("cpu")

    def __call__(self, features: object, rows: object) -> Batch:
        return self.batch
