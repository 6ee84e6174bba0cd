"""What a sweep shows: one display while it runs, one table at its end."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

SCORE_DIGITS = 4


class Progress:
    """One line for the whole sweep on a terminal; elsewhere a plain line a point."""

    def __init__(self, total: int, workers: int) -> None:
        self.total, self.workers = total, workers
        self.counts: Counter[str] = Counter()
        self.durations: list[float] = []
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            disable=not self.terminal,
            dynamic_ncols=True,
            bar_format="{bar} {n_fmt}/{total_fmt} points{postfix} [{elapsed}]",
        )

    def running(self, number: int) -> None:
        """Refresh, `number` points being worked on now."""
        done = sum(self.counts.values())
        parts = [f"{number} running", *(f"{count} {status}" for status, count in sorted(self.counts.items()))]
        if self.durations and done < self.total:
            mean = sum(self.durations) / len(self.durations)
            parts.append(f"{spell(mean * (self.total - done) / self.workers)} left")
        self.bar.set_postfix_str(", ".join(parts))

    def ended(self, name: str, outcome: dict[str, Any]) -> None:
        """Count a point that ended or was skipped."""
        status = "skipped" if outcome.get("skipped") else str(outcome["status"])
        self.counts[status] += 1
        if not outcome.get("skipped") and outcome.get("seconds"):
            self.durations.append(outcome["seconds"])
        self.bar.update(1)
        if not self.terminal and not outcome.get("skipped"):
            done = sum(self.counts.values())
            details = [
                part for part in (score_text(outcome), spell(outcome.get("seconds")), outcome.get("error")) if part
            ]
            print(f"[{done}/{self.total}] {name}: {status} {' '.join(details)}".rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.close()


def spell(seconds: float | None) -> str:
    """12.3 s, 4 min 10 s, 3 h 20 min; empty for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def primary_score(outcome: dict[str, Any], split: str) -> float | None:
    """The primary metric on a split, null when there is none."""
    scores = outcome.get("scores") or {}
    value = (scores.get(split) or {}).get(scores.get("primary_metric"))
    return value if isinstance(value, int | float) and value == value else None


def score_text(outcome: dict[str, Any]) -> str:
    """The validation score, or the development score of a trial that leaves validation untouched."""
    for split in ("validation", "development"):
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
