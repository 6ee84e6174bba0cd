"""Interrupts: Ctrl-C and SIGTERM (which schedulers send) mean the same, and are obeyed when nothing is lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StopAsked(KeyboardInterrupt):
    """This run alone was asked to stop, where it is watched; what it is part of goes on."""


@contextmanager
def kill_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, like Ctrl-C, until the context ends."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt, (signal.SIGTERM,)):
        yield


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Only note Ctrl-C and SIGTERM until the context ends; a second one interrupts at once.

    Yields:
        Whether one came.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    with _handled(note, (signal.SIGINT, signal.SIGTERM)):
        yield lambda: bool(received)


@contextmanager
def _handled(action: Callable[[int, Any], None], signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Handle signals in the main thread; Python allows no other to, and none other is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, action) for number in signals}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
