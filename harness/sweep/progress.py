"""Progress of a sweep: a display while it runs, one table at its end."""

import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

from harness.sweep.outcome import Outcome
from harness.tracking.record import LIVE_FILE
from harness.training.metrics import higher_is_better
from harness.training.watch import spell

SCORE_DIGITS = 4
# Lines below the bar: running points, and tasks with their best.
RUNNING_SHOWN, TASKS_SHOWN = 8, 6
# Without a terminal, how often running points are told of.
TELL_SECONDS = 60.0

# Names of method, task and model: what decides most of how long a point takes.
Combination = tuple[str, ...]


class Point(Protocol):
    """State of a point in the display."""

    @property
    def result(self) -> Outcome: ...

    @property
    def combination(self) -> Combination: ...

    @property
    def name(self) -> str: ...

    @property
    def seconds(self) -> float: ...

    @property
    def folder(self) -> Path: ...

    @property
    def began(self) -> float: ...


class Durations:
    """Durations of points, by combination of method, task and model."""

    def __init__(self) -> None:
        self.earlier: Mapping[Combination, Sequence[float]] = {}
        self.measured: dict[Combination, list[float]] = defaultdict(list)

    def of(self, combination: Combination) -> float | None:
        """The median seconds of this sweep's points, else of the store's earlier ones; null when there are none."""
        seconds = self.measured.get(combination) or self.earlier.get(combination)
        return median(seconds) if seconds else None

    def of_all(self, combinations: Sequence[Combination]) -> float | None:
        """The seconds of points together, an unknown one like the mean of this sweep; null when nothing is known."""
        known = {one: self.of(one) for one in set(combinations)}
        every = [one for seconds in self.measured.values() for one in seconds]
        rest = fmean(every) if every else None
        estimates = [rest if known[one] is None else known[one] for one in combinations]
        return None if None in estimates else sum(filter(None, estimates))


class Progress:
    """Display of a sweep on a terminal: a bar, a line per running point and one per task with its best.

    Elsewhere one plain line per point that ended, and one a minute for those that run.
    """

    def __init__(self, total: int, workers: int, durations: Durations) -> None:
        self.total, self.workers, self.durations = total, workers, durations
        self.counts: Counter[str] = Counter()
        # The best score of each task and metric, and whose it is, in the order of the last improvement.
        self.best: dict[tuple[str, str], tuple[float, str]] = {}
        self.terminal = sys.stderr.isatty()
        self._told = time.monotonic()
        # Imported here: it brings asyncio, for which the command line's help would wait.
        from tqdm import tqdm

        self.bar = tqdm(
            total=total,
            disable=not self.terminal,
            dynamic_ncols=True,
            bar_format="{bar} {n_fmt}/{total_fmt} points{postfix} [{elapsed}]",
        )
        self.lines: list[Any] = []

    def refresh(self, running: Sequence[Point], waiting: Sequence[Point]) -> None:
        """Show everything anew; where nobody looks, a line a minute."""
        if self.terminal:
            self.bar.set_postfix_str(self.line(running, waiting))
            self._show([*self.running_lines(running), *self.best_lines()])
        elif running and time.monotonic() - self._told >= TELL_SECONDS:
            self._told = time.monotonic()
            print(f"running: {'; '.join(self.running_lines(running))}", file=sys.stderr, flush=True)

    def _show(self, texts: Sequence[str]) -> None:
        """Lines below the bar, as many as are needed now."""
        from tqdm import tqdm

        while len(self.lines) < len(texts):
            self.lines.append(tqdm(bar_format="{desc}", position=len(self.lines) + 1, leave=False, dynamic_ncols=True))
        for line, text in zip(self.lines, [*texts, *[""] * (len(self.lines) - len(texts))], strict=True):
            line.set_description_str(text)

    def line(self, running: Sequence[Point], waiting: Sequence[Point]) -> str:
        """Points that are running and that have ended, and the time left."""
        parts = [f"{len(running)} running", *(f"{count} {status}" for status, count in sorted(self.counts.items()))]
        seconds = self.durations.of_all([point.combination for point in (*running, *waiting)])
        if seconds is not None and (running or waiting):
            spent = sum(min(point.seconds, self.durations.of(point.combination) or 0) for point in running)
            parts.append(f"{spell((seconds - spent) / self.workers)} left")
        return ", ".join(parts)

    def running_lines(self, running: Sequence[Point]) -> list[str]:
        """Each running point: its step and its last score."""
        shown = [f"{point.name}: {standing(point)}" for point in running[:RUNNING_SHOWN]]
        rest = len(running) - len(shown)
        return [*shown, f"and {rest} more"] if rest else shown

    def best_lines(self) -> list[str]:
        """The best score of each task so far, that of the last improvement first."""
        newest = list(reversed(self.best.items()))
        return [
            f"best {task} {metric} {score:.{SCORE_DIGITS}f} {name}"
            for (task, metric), (score, name) in newest[:TASKS_SHOWN]
        ]

    def ended(self, point: Point) -> None:
        """Count a point that ended or was skipped."""
        outcome = point.result
        status = "skipped" if outcome.skipped else str(outcome.status)
        self.counts[status] += 1
        if not outcome.skipped and outcome.status == "finished" and outcome.seconds:
            self.durations.measured[point.combination].append(outcome.seconds)
        best = self._is_best(point)
        self.bar.update(1)
        if not self.terminal and not outcome.skipped:
            done = sum(self.counts.values())
            score = f"{score_text(outcome)} (best so far)" if best else score_text(outcome)
            details = [part for part in (score, spell(outcome.seconds), outcome.error) if part]
            line = f"[{done}/{self.total}] {point.name}: {status} {' '.join(details)}".rstrip()
            print(line, file=sys.stderr, flush=True)

    def _is_best(self, point: Point) -> bool:
        """Whether a point has the best score of its task so far, on the split that `score_text` shows."""
        outcome = point.result
        metric = str(outcome.scores.get("primary_metric"))
        split, score = next(((s, v) for s in SHOWN if (v := primary_score(outcome, s)) is not None), ("", math.nan))
        if outcome.status != "finished" or not split:
            return False
        task = point.combination[1]
        shown = (task, metric if split == SHOWN[0] else f"{metric} (dev)")
        before = self.best.get(shown)
        if before and (score <= before[0] if higher_is_better(metric) else score >= before[0]):
            return False
        self.best.pop(shown, None)
        self.best[shown] = score, point.name
        return True

    def close(self) -> None:
        for line in self.lines:
            line.close()
        self.bar.close()


def standing(point: Point) -> str:
    """Where a running point stands, as its folder tells: step, loss, development score."""
    path = point.folder / LIVE_FILE
    try:
        if path.stat().st_mtime < point.began:
            return "starting"
        state = json.loads(path.read_text(encoding="utf-8"))
        parts = [f"step {state.get('step', 0)} of {state['steps']}"]
        if isinstance(state.get("loss"), float):
            parts.append(f"loss {state['loss']:.{SCORE_DIGITS}f}")
        if isinstance(state.get("development"), float):
            parts.append(f"{state['primary_metric']} {state['development']:.{SCORE_DIGITS}f} (dev)")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "starting"
    return ", ".join(parts)


# The split whose score is shown: the second for a trial that leaves validation untouched.
SHOWN = ("validation", "development")


def primary_score(outcome: Outcome, split: str) -> float | None:
    """The primary metric on a split, null when there is none."""
    scores = outcome.scores
    value = (scores.get(split) or {}).get(scores.get("primary_metric"))
    return value if isinstance(value, int | float) and value == value else None


def score_text(outcome: Outcome) -> str:
    """The validation score, or the development score marked as such."""
    for split in SHOWN:
        if (score := primary_score(outcome, split)) is not None:
            return f"{score:.{SCORE_DIGITS}f}" + (" (dev)" if split == "development" else "")
    return ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces; nothing is cut or wrapped, so that paths can be copied."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = (header, ["-" * width for width in widths], *rows)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
