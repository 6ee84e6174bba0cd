"""Watch over a run from outside: its steps as they happen in files of its directory, and its page in the store."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from harness import tracking
from harness.config.schema import Experiment, TrackingKind
from harness.run.recording import write_steps
from harness.tracking import record
from harness.tracking.record import RunRecord
from harness.training.watch import Watch

log = logging.getLogger(__name__)

# Between two of `live.json`: enough for who looks, and nothing beside a step.
LIVE_FILE_SECONDS = 1.0


class RunWatch:
    """Watch over one run.

    Args:
        run_dir: Takes `steps.jsonl`, and until the run ends `live.json`: where it stands.
        result: The run's record, as far as it is filled when training begins.
        experiment: Says which store the run has a page in, if any.
    """

    def __init__(self, run_dir: Path, result: RunRecord, experiment: Experiment) -> None:
        self.run_dir, self.result, self.experiment = run_dir, result, experiment
        self.state: dict[str, Any] = {}
        self.page: tracking.LiveRun | None = None
        self._steps: TextIO | None = None
        self._written_at = 0.0

    def begin(self, history: Sequence[dict[str, Any]], steps: int) -> None:
        """Show what a resumed run did before, and begin the page."""
        metric = self.result.scores["primary_metric"]
        self.state = {"run_id": self.result.run_id, "steps": steps, "primary_metric": metric}
        with self._writing():
            write_steps(self.run_dir, list(history))
            self._steps = (self.run_dir / record.STEPS_FILE).open("a", encoding="utf-8", buffering=1)
        store = self.experiment.tracking
        if store.kind is not TrackingKind.none and store.live:
            self.page = tracking.LiveRun(self.result, str(store.uri), store.experiment, steps)
            for line in history:
                self.page.line(line)
        self._write_state(at_once=True)

    def line(self, line: dict[str, Any]) -> None:
        """Append a line to `steps.jsonl`, and hand it to the page."""
        if self._steps is not None:
            with self._writing():
                self._steps.write(json.dumps(record.finite(line)) + "\n")
        if self.page is not None:
            self.page.line(line)
        score = line.get(f"development.{self.state['primary_metric']}")
        if score is None:
            self.state |= {key: line[key] for key in ("step", "loss", "tokens_per_second") if key in line}
        else:
            self.state |= {"step": line["step"], "development": score}
        self._write_state(at_once=score is not None)

    def stop_asked(self) -> bool:
        """Whether someone set the tag `harness.stop` on the page."""
        return self.page is not None and self.page.stop_asked

    def close(self) -> None:
        """End the watch; the record says the rest."""
        if self.page is not None:
            self.page.close()
        if self._steps is not None:
            with suppress(OSError):
                self._steps.close()
        with suppress(OSError):
            (self.run_dir / record.LIVE_FILE).unlink(missing_ok=True)

    def _write_state(self, at_once: bool) -> None:
        now = time.monotonic()
        if not at_once and now - self._written_at < LIVE_FILE_SECONDS:
            return
        self._written_at = now
        with self._writing():
            record.write_atomically(self.run_dir / record.LIVE_FILE, json.dumps(record.finite(self.state)) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Go on where a file can't be written: a watch is worth no run."""
        try:
            yield
        except OSError as error:
            log.warning("%s: %s; the run goes on", self.run_dir, error.strerror)


@contextmanager
def watching(watch: RunWatch | None) -> Iterator[Watch | None]:
    """Close a watch however the run ends."""
    try:
        yield watch
    finally:
        if watch is not None:
            watch.close()
