"""Tracking: the record of a run, the stores it is sent to and read from; may import `config`.

Alone in importing mlflow.
"""

from harness.tracking.client import create
from harness.tracking.live import LiveRun, ask_to_stop, end_killed, running
from harness.tracking.pages import attach, browse, views
from harness.tracking.reading import artifact, download, durations, files, finished, read_curves, read_runs, sweeps
from harness.tracking.sending import SyncOutcome, send, sync
from harness.tracking.uri import check

__all__ = [
    "LiveRun",
    "SyncOutcome",
    "artifact",
    "ask_to_stop",
    "attach",
    "browse",
    "check",
    "create",
    "download",
    "durations",
    "end_killed",
    "files",
    "finished",
    "read_curves",
    "read_runs",
    "running",
    "send",
    "sweeps",
    "sync",
    "views",
]
