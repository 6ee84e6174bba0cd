"""Which method to use: planned, timed, tuned and raced within some hours, the cheapest of the best is named."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness.choose import answer, budget
from harness.choose.budget import FIRST_SEED, TIMED_STEPS, Size
from harness.choose.state import Candidate, Choice, load
from harness.config.command import FAILED, MISTAKEN, carry_out, interrupted, key_values, options
from harness.config.compose import compose
from harness.config.errors import ConfigError, near_misses
from harness.config.mistakes import choices, key_of
from harness.plan.costs import GIGABYTE
from harness.run.estimate import CONTEXT_BYTES
from harness.sweep.sweepers import DECIDED
from harness.training.interrupts import kill_as_interrupt

# What practitioners choose among; each with learning rates of its own.
METHODS = ("full", "head", "bitfit", "houlsby", "lora", "ia3", "prefix_tuning", "qlora")

USAGE = f"""harness-choose: which fine-tuning method to use on your data, model and machine, within some hours.

  harness-choose task=table task.file=tickets.csv task.text=text task.label=category model=FOLDER hours=2
  harness-choose task=glue/rte model=roberta_base memory=24GB methods=lora,bitfit,full
  harness-choose task=glue/rte model=roberta_base --dry-run

Takes the overrides of harness. Each method is planned, and what does not fit is named with by how much; a few steps of
the others are timed; then each is tuned on the development split with the same number of trials, the worse half of the
methods is dropped, the rest get fresh seeds, and validation is scored once. It ends with a paragraph, a table and a
page that has the commands to train, predict and export. The runs are a sweep like any other; the same command goes on
where it stopped.

  hours=H              how long it may take (2)
  memory=24GB          what there is: the GPU's, or what is free here, unless said otherwise
  methods=NAME,...     all for every one; by default {", ".join(METHODS)}
  out=FOLDER           where the page goes, and what the command goes on from (choice)
  --dry-run            only the plan: nothing is trained, and weights need not be there
"""
MEMORY = re.compile(r"(\d+(?:\.\d+)?) *(GB|MB)", re.IGNORECASE)
# Beside what the sweeper decides.
OURS = {
    **DECIDED,
    "method": "methods=NAME,...",
    "hydra/sweeper": "nothing: it is equal_budget",
    "sweep.name": "out=FOLDER to keep questions apart",
}
# How long a sweep that is told to stop has to write what it has.
GRACE_SECONDS = 60


@dataclass
class Options:
    """Options of the command line."""

    hours: float = 2.0
    memory: str | None = None
    methods: str = ",".join(METHODS)
    out: str = "choice"
    dry_run: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command and return its exit status."""
    return carry_out(choose, USAGE, arguments, name="harness-choose")


def parse(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """The command's own options, and the overrides of every run.

    Raises:
        ConfigError: A key or a value is wrong, or decided here.
    """
    names = [field.name for field in fields(Options) if field.name != "dry_run"]
    own = [one for one in arguments if one.partition("=")[0] in names]
    rest = [one for one in arguments if one not in own and one != "--dry-run"]
    found = options(Options, key_values(own, names) | {"dry_run": str("--dry-run" in arguments)})
    if not 0 < found.hours < float("inf"):
        raise ConfigError(f"hours={found.hours:g}: a positive number is needed")
    for one in rest:
        if one.startswith("-"):
            raise ConfigError(f"{one}: no such option; harness-choose --help lists them")
        if key_of(one) in OURS:
            raise ConfigError(f"{one}: harness-choose decides it; use {OURS[key_of(one)]}")
    for name in wanted(found):
        if name not in choices("method"):
            raise ConfigError(f"methods={name}: there is no such method; {near_misses(name, choices('method'))}")
    memory_of(found.memory)
    return found, rest


def wanted(given: Options) -> list[str]:
    """The methods to choose among."""
    return sorted(choices("method") - {"peft"}) if given.methods == "all" else given.methods.split(",")


def choose(arguments: list[str]) -> int | None:
    """Plan, time, race, and answer; returns the exit status.

    Raises:
        ConfigError: An argument is wrong, no method fits, or the hours are too few for any comparison.
    """
    given, overrides = parse(arguments)
    methods, out = wanted(given), Path(given.out).expanduser()
    composed: Any = compose("config", overrides)
    if composed.tracking.uri is None:
        raise ConfigError(
            f"tracking={composed.tracking.kind}: the comparison is kept in a store, which it goes on from"
        )
    choice = load(out, overrides, methods, given.memory or "what is here")
    deadline = time.monotonic() + 3600 * given.hours
    if not choice.candidates:
        memory, cuda = memory_of(given.memory), has_gpu()
        print(f"Planning {len(methods)} methods ...", file=sys.stderr)
        choice.candidates = budget.plan(methods, overrides)
        budget.fit(choice.candidates, here(cuda) if memory is None else memory, CONTEXT_BYTES if cuda else 0)
    print(plan_table(choice.candidates))
    if given.dry_run:
        print(f"Next, {len(choice.left)} methods would be timed for {TIMED_STEPS} steps each, and then compared.")
        return None
    choice.save(out)
    check_weights(overrides)
    try:
        with kill_as_interrupt():
            return race(choice, out, given.hours, deadline, str(composed.tracking.uri))
    except KeyboardInterrupt:
        return interrupted("interrupted; the same command goes on from here")


def race(choice: Choice, out: Path, hours: float, deadline: float, uri: str) -> int | None:
    """Time the methods, tune and score them, and answer."""
    from harness.report import curves, terminal
    from harness.report.report import write

    if any(one.run_seconds is None for one in choice.left):
        if not time_steps(choice, out, deadline):
            return too_early()
        choice.save(out)
    if not choice.left:
        told = "\n".join(f"{one.name}: {one.refused}" for one in choice.candidates)
        raise ConfigError(f"no method trained for {TIMED_STEPS} steps:\n{told}")
    workers = os.cpu_count() or 1
    size = budget.choose_size(choice.left, hours, workers, choice.start_seconds)
    print(
        f"{len(choice.left)} methods, {size.trials} learning rate(s) each and up to {size.seeds} seeds: about "
        f"{size.hours(choice.left, workers, choice.start_seconds):.2g} of {hours:g} hours.",
        flush=True,
    )
    names = [one.name for one in choice.left]
    ended = sweep(choice, names, size, 1, deadline)
    alive = answer.surviving(answer.finals(uri, choice.sweep), budget.survivors(len(names)))
    if ended and alive:
        ended = sweep(choice, alive, size, size.seeds, deadline)
    if not alive:
        if not ended:
            return too_early()
        raise ConfigError("no method could be tuned and scored; the tables above say why")
    frame = answer.finals(uri, choice.sweep)
    advice = answer.advise(frame, curves.load(uri, choice.sweep))
    found = answer.report(choice, frame, advice, size)
    if not ended:
        found.notes.insert(0, "The hours ended before all runs; the same command goes on from here.")
    write(found, out)
    print(f"\n{found.title}\n{found.lead}\n")
    terminal.show(found.tables[:2])
    for note in found.notes[:3]:
        print(note)
    print(f"The page: {out / 'report.html'}")
    return None if ended else FAILED


def too_early() -> int:
    """Say that there is nothing to answer yet."""
    print("The hours ended before any method was tuned; the same command goes on from here.", file=sys.stderr)
    return FAILED


def time_steps(choice: Choice, out: Path, deadline: float) -> bool:
    """Run a few steps of each method, without a store.

    Returns:
        Whether that came to its end.
    """
    folder = out / "timing"
    names = ",".join(one.name for one in choice.left)
    alone = ["evaluate.validation=false", "train.keep_adapter=false", "tracking=none", "sweep.name=timing"]
    began = time.monotonic()
    ended = run_harness(
        [
            *choice.overrides,
            f"method={names}",
            f"train.max_steps={TIMED_STEPS}",
            *alone,
            f"hydra.sweep.dir={folder}",
        ],
        deadline,
    )
    if ended:
        computed = budget.take_times(choice.left, folder)
        choice.start_seconds = max(0.0, time.monotonic() - began - computed / (os.cpu_count() or 1))
    return ended


def sweep(choice: Choice, methods: list[str], size: Size, seeds: int, deadline: float) -> bool:
    """Tune methods and run the best of each with so many seeds; what is done already is skipped.

    Returns:
        Whether it came to its end.
    """
    listed = ",".join(str(FIRST_SEED + place) for place in range(seeds))
    arguments = [
        *choice.overrides,
        f"method={','.join(methods)}",
        "hydra/sweeper=equal_budget",
        f"hydra.sweeper.trials={size.trials}",
        f"hydra.sweeper.seeds=[{listed}]",
        f"sweep.name={choice.sweep}",
    ]
    return run_harness(arguments, deadline)


def run_harness(arguments: list[str], deadline: float) -> bool:
    """Carry out a sweep in a process of its own, until the hours are over.

    Returns:
        Whether it came to its end, failed points or not.

    Raises:
        ConfigError: It was refused.
        KeyboardInterrupt: It was interrupted.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    # A session of its own: Ctrl-C reaches it once, from here.
    process = subprocess.Popen([sys.executable, "-m", "harness", "-m", *arguments], start_new_session=True)
    try:
        status = process.wait(left)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        process.terminate()  # which a process that was started in the background obeys too
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if isinstance(reason, KeyboardInterrupt):
            raise
        return False
    if status == MISTAKEN:
        raise ConfigError("the sweep was refused, as told above")
    return True


def plan_table(candidates: list[Candidate]) -> str:
    """Each method's memory, and why it is out."""
    width = max(len(one.name) for one in candidates)
    largest = max((one.peak_bytes or 0 for one in candidates), default=0)
    lines = []
    for one in candidates:
        peak = "-" if one.peak_bytes is None else budget.as_memory(one.peak_bytes, largest)
        lines.append(f"{one.name:<{width}}  {peak:>10}  {one.refused}".rstrip())
    return "\n".join(lines)


def check_weights(overrides: list[str]) -> None:
    """Refuse a model that can only be planned.

    Raises:
        ConfigError: Its weights are not here.
    """
    from harness.run import prepare

    prepare(compose("config", overrides))


def memory_of(told: str | None) -> int | None:
    """Bytes, as people write them; null where nothing is said.

    Raises:
        ConfigError: It is no size.
    """
    if told is None:
        return None
    found = MEMORY.fullmatch(told)
    if not found or not float(found[1]):
        raise ConfigError(f"memory={told}: a size is needed, such as 24GB or 800MB")
    return round(float(found[1]) * (GIGABYTE if found[2].upper() == "GB" else GIGABYTE / 1000))


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def here(cuda: bool) -> int:
    """Memory of the GPU, or what is free of the machine's."""
    if cuda:
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    import psutil

    return int(psutil.virtual_memory().available)


if __name__ == "__main__":
    sys.exit(main())
