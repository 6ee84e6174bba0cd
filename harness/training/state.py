"""State of a training run, and what it has cost so far."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.tracking.record import CUDA_MEMORY, STEP_MEMORY
from harness.training.evaluation import outcomes_of_rows

# Left out of the median step time: the first steps fill caches and make the optimizer's state.
WARM_UP_STEPS = 3


class Diverged(Exception):
    """The loss is not a finite number."""


@dataclass
class TrainingState:
    """Where a training run stands; all of it goes into a checkpoint."""

    step: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    best_score: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    # Of the step that was counted; empty before.
    step_costs: dict[str, Any] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    # What each row of the development split came to: an entry per evaluation, with its `step`.
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    # How many runs trained together at most, this one among them; 0 where it trained alone.
    packed: int = 0

    def note_rows(self, columns: Mapping[str, list[Any]], metric: str) -> None:
        """Note what each development row came to at an evaluation after this step."""
        self.outcomes.append({"step": self.step, **outcomes_of_rows(columns, metric)})

    def costs(self) -> dict[str, Any]:
        """Costs of the training so far, with the names of `RunRecord.cost`."""
        seconds = {"train_seconds": self.train_seconds, "evaluation_seconds": self.evaluation_seconds}
        if not self.step:
            return seconds
        if self.packed:
            return {**seconds, "train_seconds": None, "padding_share": 1 - self.tokens / self.padded_tokens}
        times = self.step_seconds[WARM_UP_STEPS:] or self.step_seconds
        costs = {
            **seconds,
            "tokens_per_second": self.tokens / self.train_seconds,
            "padding_share": 1 - self.tokens / self.padded_tokens,
            "step_seconds": statistics.median(times) if times else None,
        }
        counted = self.step_costs
        if not counted:
            return costs
        # Operations grow with the tokens that are computed, padding too: steps of another shape count by those.
        flops = counted["flops"] / counted["padded_tokens"] * self.padded_tokens
        return {
            **costs,
            **{name: counted[name] for name in (*STEP_MEMORY, *CUDA_MEMORY)},
            "train_flops": flops,
            "train_flops_per_token": flops / self.tokens,
            "flops_per_second": flops / self.train_seconds,
        }
