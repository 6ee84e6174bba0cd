"""How much of a fair comparison some hours have room for: methods that fit, and the largest comparison that ends."""

import math
from dataclasses import dataclass
from pathlib import Path

from harness.choose.state import Candidate
from harness.config.errors import ConfigError
from harness.plan.costs import GIGABYTE, plan_point
from harness.tracking.record import RESULT_FILE, RunRecord

# Steps of a run that is only timed.
TIMED_STEPS = 6
# What a run takes beyond its steps and what was seen in a few of them: scoring validation, latency, other work here.
SLACK = 1.3
# Seed of the first runs after tuning, on which methods are dropped; the survivors get the further ones.
FIRST_SEED = 1


@dataclass(frozen=True)
class Size:
    """Size of a comparison: learning rates tried of each method, and fresh seeds of those that survive."""

    trials: int
    seeds: int

    @property
    def runs(self) -> int:
        """Runs of a method until its first seed is scored. Each trial runs to its end.

        Of so few, what is stopped early is too often the best: reports/choose has what stopping them costs.
        """
        return self.trials + 1

    def hours(self, candidates: list[Candidate], workers: int, start_seconds: float = 0.0) -> float:
        """What it takes, if the slowest half survives, with the start of workers for each of its two sweeps."""
        seconds = sorted((one.run_seconds or 0.0 for one in candidates), reverse=True)
        further = sum(seconds[: survivors(len(seconds))]) * (self.seeds - 1)
        together = sum(seconds) * self.runs + further
        # A method's own runs come one after the other: more workers than methods don't help.
        return (2 * start_seconds + together / max(1, min(workers, len(seconds)))) / 3600


# The largest first; under three seeds nothing can be told apart.
SIZES = (Size(3, 5), Size(3, 3), Size(1, 3))


def survivors(methods: int) -> int:
    """Methods that get further seeds: the better half, two at least."""
    return max(min(2, methods), math.ceil(methods / 2))


def plan(methods: list[str], overrides: list[str]) -> list[Candidate]:
    """Plan each method's training step; what can't go with the backbone is refused.

    Raises:
        ConfigError: No method can.
    """
    found = []
    for name in methods:
        try:
            peak = plan_point("config", [*overrides, f"method={name}"])["cost"]["train_peak_bytes"]
        except ConfigError as error:
            found.append(Candidate(name, refused=str(error)))
        else:
            found.append(Candidate(name, peak))
    if all(one.refused for one in found):
        raise ConfigError("\n".join(dict.fromkeys(one.refused for one in found)))
    return found


def fit(candidates: list[Candidate], memory: int, around: int) -> None:
    """Refuse what does not fit.

    Args:
        memory: Bytes that there are.
        around: Bytes that a device takes beside the tensors.

    Raises:
        ConfigError: No method is left.
    """
    planned = {one.name: one.peak_bytes + around for one in candidates if one.peak_bytes is not None}
    for one in candidates:
        needed = planned.get(one.name, 0)
        if not one.refused and needed > memory:
            one.refused = f"it needs {as_memory(needed)}, {as_memory(needed - memory, needed)} more than there is"
    if all(one.refused for one in candidates):
        least = min(planned, key=lambda name: planned[name])
        raise ConfigError(
            f"memory={as_memory(memory)}: no method fits; the smallest, {least}, needs {as_memory(planned[least])}; "
            "a smaller train.batch_size or task.max_length needs less"
        )


def take_times(candidates: list[Candidate], folder: Path) -> float:
    """Take from the records of timed runs how long a whole run of each method takes; refuse those that failed.

    Returns:
        Seconds of all of these runs together.
    """
    records = {}
    for path in folder.rglob(RESULT_FILE):
        record = RunRecord.read(path.parent)
        records[record.config["method"]["name"]] = record
    for one in candidates:
        if one.name not in records:
            one.refused = "it could not be run"
        elif (record := records[one.name]).status != "finished":
            one.refused = f"a run of {TIMED_STEPS} steps {record.status}: {record.error}"
        else:
            one.run_seconds = seconds_of(record)
    return sum(record.cost["total_seconds"] or 0.0 for record in records.values())


def seconds_of(record: RunRecord) -> float:
    """What a whole run takes, where one of a few steps left this record."""
    train, cost = record.config["train"], record.cost
    batch = train["batch_size"] * train["gradient_accumulation_steps"]
    an_epoch = math.ceil(record.provenance["data"]["rows"]["train"] / batch)
    steps = max(TIMED_STEPS, math.ceil(train["epochs"] * an_epoch))
    scoring = max(0.0, cost["train_seconds"] - TIMED_STEPS * cost["step_seconds"])
    evaluations = max(1, round(train["epochs"] * train["evaluations_per_epoch"]))
    around = cost["total_seconds"] - cost["train_seconds"]
    return SLACK * (around + steps * cost["step_seconds"] + evaluations * scoring)


def choose_size(candidates: list[Candidate], hours: float, workers: int, start_seconds: float = 0.0) -> Size:
    """The largest comparison that ends within some hours.

    Raises:
        ConfigError: None does.
    """
    for size in SIZES:
        if size.hours(candidates, workers, start_seconds) <= hours:
            return size
    least = SIZES[-1]
    needed = least.hours(candidates, workers, start_seconds)
    slowest = max(candidates, key=lambda one: one.run_seconds or 0.0)
    raise ConfigError(
        f"hours={hours:g}: the smallest fair comparison of these {len(candidates)} methods, a run of {least.trials} "
        f"trial and {least.seeds} seeds each, takes about {needed:.2g} hours (a run of "
        f"{slowest.name}, the slowest, {slowest.run_seconds:.0f} s); give more hours, fewer methods=, fewer "
        "train.epochs or task.max_train_rows"
    )


def as_memory(count: float, largest: float | None = None) -> str:
    """Bytes as people write memory, in the unit of the largest number that stands beside."""
    if (largest or count) >= GIGABYTE / 2:
        return f"{count / GIGABYTE:.2f} GB"
    return f"{1000 * count / GIGABYTE:,.0f} MB"
