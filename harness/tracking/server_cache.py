"""Cache of a tracking server's runs on this machine, so that the next time only new ones are asked for.

It lies in `$XDG_CACHE_HOME/peft-harness` (`~/.cache/peft-harness`), one folder per server and user; deleting it loses
nothing. Nothing here needs mlflow.
"""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from harness.config.cache import cache_folder
from harness.tracking.record import write_atomically
from harness.tracking.uri import Store

# Of an older copy everything is read anew: asking for so many days one by one takes no less.
MOST_DAYS = 31


@dataclass
class Copy:
    """The copy of a server's runs.

    Attributes:
        folder: Where it is kept.
        day: UTC, of the last refresh; null where nothing was read yet.
        runs: MLflow's id -> the run, as `harness.tracking.read_runs` returns it, and its `experiment_id`.
        curves: MLflow's id -> metric by step: name, step, value.
    """

    folder: Path
    day: date | None = None
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, list[tuple[str, int, float]]] = field(default_factory=dict)

    def days(self, today: date) -> list[str] | None:
        """Say on which days what is new was sent, a day earlier than the last refresh and later than today included.

        Clocks differ, and sending takes a while; null where everything is to be read.
        """
        if self.day is None or not 0 <= (today - self.day).days <= MOST_DAYS:
            return None
        first = self.day - timedelta(1)
        return [(first + timedelta(number)).isoformat() for number in range((today - first).days + 2)]

    def save(self, today: date) -> None:
        """Keep it; where it cannot be kept, everything is read again the next time."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self.folder / "runs.json", json.dumps({"day": today.isoformat(), "runs": self.runs}))
            write_atomically(self.folder / "curves.json", json.dumps(self.curves))

    def file(self, run_id: str, name: str) -> Path:
        """Where a file of a run is kept.

        Raises:
            ValueError: The id is none of MLflow's.
        """
        if not re.fullmatch(r"[0-9a-f]{32}", run_id):
            raise ValueError(f"{run_id} is no id of an MLflow run")
        return self.folder / "artifacts" / run_id / name


def load(store: Store) -> Copy:
    """Read the copy of a server's runs; an empty one where there is none, or a damaged one."""
    whose = f"{store.uri} {store.username or ''} {store.token or ''}"
    copy = Copy(cache_folder() / hashlib.sha256(whose.encode()).hexdigest()[:16])
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads((copy.folder / "runs.json").read_text(encoding="utf-8"))
        day, runs = date.fromisoformat(content["day"]), dict(content["runs"])
        curves = json.loads((copy.folder / "curves.json").read_text(encoding="utf-8"))
        lines = {run: [(name, step, value) for name, step, value in points] for run, points in curves.items()}
        copy.day, copy.runs, copy.curves = day, runs, lines
    return copy
