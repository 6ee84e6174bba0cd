"""Watch over a training run: who takes its lines as they are made and may ask it to stop, and its pace in words."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

# Without a terminal, where a bar would show where training stands.
LINE_SECONDS = 10.0


class Watch(Protocol):
    """Watch over a training run."""

    def begin(self, history: Sequence[dict[str, Any]], steps: int) -> None:
        """Training begins.

        Args:
            history: The lines of what a resumed run did before.
            steps: How many there will be.
        """
        ...

    def line(self, line: dict[str, Any]) -> None:
        """Take a line of the history, just made."""
        ...

    def stop_asked(self) -> bool:
        """Whether the run is to stop after this step; asked at each, so it answers at once."""
        ...


class Unwatched:
    """No one watches."""

    def begin(self, history: Sequence[dict[str, Any]], steps: int) -> None: ...

    def line(self, line: dict[str, Any]) -> None: ...

    def stop_asked(self) -> bool:
        return False


class Pace:
    """Pace of a training run that no terminal shows: a line every `LINE_SECONDS`.

    Args:
        done: Steps that an earlier start took.
        total: Steps that there will be.
    """

    def __init__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self.began = self.told = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for a line; then the next one is due so much later."""
        now = time.monotonic()
        if now - self.told < LINE_SECONDS:
            return False
        self.told = now
        return True

    def line(self, step: int, loss: float | None, tokens_per_second: float | None = None) -> str:
        """Where training stands; the time left counts evaluations at the rate there was so far."""
        parts = [f"step {step} of {self.total}"]
        if loss is not None:
            parts.append(f"loss {loss:.4f}")
        if tokens_per_second is not None:
            parts.append(f"{tokens_per_second:,.0f} tokens/s")
        if step > self.done:
            left = (time.monotonic() - self.began) / (step - self.done) * (self.total - step)
            parts.append(f"{spell(left)} left")
        return ", ".join(parts)


def spell(seconds: float | None) -> str:
    """12.3 s, 4 min 10 s, 3 h 20 min; empty for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
