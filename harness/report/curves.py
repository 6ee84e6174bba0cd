"""Learning curves, as a frame."""

from collections.abc import Collection

import pandas as pd

from harness import tracking


def load(uri: str, sweep: str | Collection[str] | None = None) -> pd.DataFrame:
    """Read each evaluation on the development split while training: run_id, name (of a metric), step, value.

    Args:
        uri: `sqlite:///mlflow.db`, `http://host:port`, ...
        sweep: Only the runs of this sweep, or of one of these.

    Raises:
        ConfigError: The URI names no store.
        ConnectionError: The store cannot be read.
    """
    return pd.DataFrame(tracking.read_curves(uri, sweep), columns=["run_id", "name", "step", "value"])
