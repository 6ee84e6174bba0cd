"""Keys and answers that most methods share."""

from dataclasses import dataclass, field
from typing import Any

from harness.config.schema import Experiment, Quantization
from harness.methods.budget import solve
from harness.methods.size import Knob


@dataclass(frozen=True)
class MethodDefaults:
    """The keys of every method, and what most methods answer; implementations of `Method` inherit it.

    Attributes:
        learning_rate: Where `train.learning_rate` comes from unless it is given.
        learning_rates: What equal-budget sweeps try: these, or any between the ends.
        second_range: One more hyper-parameter for them (`hydra.sweeper.second_range=true`): its key and such values.
    """

    name: str
    learning_rate: float
    learning_rates: list[float]
    second_range: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def check(self, key: str) -> None:
        """Nothing to refuse."""

    def quantization(self) -> Quantization | None:
        return None

    def size(self) -> Knob | None:
        return None

    def virtual_tokens(self) -> int:
        return 0

    def trains_alone(self) -> str | None:
        return "only LoRA has a packed form"

    def within_budget(self, experiment: Experiment, values: dict[str, Any]) -> dict[str, Any]:
        return solve(experiment, values)
