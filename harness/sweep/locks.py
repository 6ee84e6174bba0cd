"""Locks on points: of all processes that share a store, one at a time works on a point.

Each is a lock of the operating system on one byte of a file beside the store, so it ends with the process that holds
it, however that ends, and there is nothing to clean up. Of a server's store the file lies in this machine's temporary
folder: sweeps of other machines are not seen, and may do a point a second time, which harms no result.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import tracking
from harness.sweep.outcome import Outcome
from harness.tracking.uri import parse


@dataclass(frozen=True)
class PointLock:
    """Lock on a point, and the place where its result would be found.

    Attributes:
        done: The statuses of a stored result that leave nothing to do.
    """

    uri: str
    sweep: str
    identity: str
    done: tuple[str, ...]

    @property
    def file(self) -> Path:
        store = parse(self.uri)
        if store.path is not None:
            return store.path.with_name(f"{store.path.name}.claims")
        name = hashlib.sha256(store.uri.encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"harness-{os.getuid()}-{name}.claims"

    @contextmanager
    def hold(self) -> Iterator[bool]:
        """Hold the lock until the context ends; false where another process does.

        Whatever the sweep's name: two runs of one identity would write the same checkpoint. Not for two locks in
        one process at once: closing the file for one would end the other.
        """
        # 60 bits of it: the largest place that a lock can have is 2^63.
        place = int(self.identity[:15], 16)
        with ExitStack() as opened:
            held = True
            # Where there can be no lock, a folder that is gone or a file system without any, work goes on without.
            with suppress(OSError):
                descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                opened.callback(os.close, descriptor)
                held = _locked(descriptor, place)
            yield held

    def result(self) -> Outcome | None:
        """The outcome of the point where the store has one by now; a store that fails meanwhile has none."""
        if not self.done:
            return None
        try:
            found = tracking.finished(self.uri, identities=[self.identity], sweep=self.sweep).get(self.identity)
        except ConnectionError:
            return None
        return outcome_of_stored(found) if found and found["status"] in self.done else None


def _locked(descriptor: int, place: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except (BlockingIOError, PermissionError):  # which of the two depends on the system
        return False
    return True


def outcome_of_stored(stored: dict[str, Any]) -> Outcome:
    """The outcome of a point that is skipped for its result in the store."""
    scores = {"primary_metric": stored.get("primary_metric"), **(stored.get("scores") or {})}
    return Outcome.of({**stored, "scores": scores, "skipped": True})
