"""How many runs fit in one pack: the plan of a step, with one frozen backbone in place of one for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from harness.config.schema import Experiment, Quantization
from harness.methods.skeleton import architecture_of, on_its_backbone
from harness.models import choose_quantization
from harness.run.estimate import CONTEXT_BYTES, Step, predict

# Runs in the largest pack that is made unasked. Optimizers, clipping and evaluations take turns, so that each further
# run gains less, and a worker that dies takes its whole pack along; packs of more than 8 were never tried.
MOST = 8


@dataclass(frozen=True)
class Footprint:
    """Bytes of a run on a GPU, by its plan.

    Attributes:
        shared: Frozen weights, which the runs of a pack hold once.
        own: What each run holds for itself: trained weights, gradients, optimizer state, and what grows with the batch.
        arriving: Weights of a further backbone that are on the GPU before they are found to be shared.
    """

    shared: int
    own: int
    arriving: int = 0


def how_many(memory: int, footprints: Sequence[Footprint]) -> int:
    """The number of runs, from the first on, that fit in a GPU together; one, where not even the first does.

    Args:
        memory: Free bytes.
        footprints: Of runs that may train in one pack.
    """
    room = memory - CONTEXT_BYTES
    shared = accumulate((one.shared for one in footprints), max)
    own = accumulate(one.own for one in footprints)
    fitting = 1
    for count, (once, each, one) in enumerate(zip(shared, own, footprints, strict=True), start=1):
        # By the time that the rows come, what arrived has gone.
        needed = once + max(each, one.arriving if count > 1 else 0)
        if needed > room or count > MOST:
            break
        fitting = count
    return fitting


def footprint(experiment: Experiment) -> Footprint:
    """The footprint of a run on a GPU, by the plan of one of its steps.

    Raises:
        ConfigError: The method can't go with the backbone.
        Unpredictable: Nothing true can be said beforehand.
    """
    experiment = on_its_backbone(experiment)
    task = experiment.task
    step = Step(experiment.train.batch_size * task.sequences(), task.max_length, "cuda", task.target_length())
    cost = predict(experiment, architecture_of(experiment), step)
    return footprint_of(cost, choose_quantization(experiment))


def footprint_of(cost: dict[str, float], quantization: Quantization) -> Footprint:
    """The footprint that follows from a step's planned costs, which have the names of `RunRecord.cost`.

    Trained weights have as many bytes as their gradients. All that is beside weights, gradients and optimizer state
    counts as growing with the batch.
    """
    weights, gradients, optimizer = (int(cost[f"{name}_bytes"]) for name in ("weight", "gradient", "optimizer"))
    passing = max(int(cost["train_peak_bytes"]) - weights - gradients - optimizer, int(cost["activation_bytes"]))
    shared = weights - gradients
    # Quantized weights are loaded to the GPU; others come through the machine's memory.
    arriving = 0 if quantization is Quantization.none else shared
    return Footprint(shared, 2 * gradients + optimizer + passing, arriving)
