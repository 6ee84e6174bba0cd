"""Identity of a run: a hash over everything that decides its result."""

import hashlib
import json
from typing import Any

from harness.config.schema import Experiment, Precision
from harness.config.version import RESULTS_VERSION

# Keys that do not decide the result: where things lie, and how a run is measured, scheduled or stored.
NOT_IDENTITY = {
    "model": ("name", "path", "revision"),
    "task": ("data_dir", "file"),
    "train": (
        *("resume", "checkpoint_dir", "checkpoint_minutes", "keep_adapter", "device", "distributed", "processes"),
        *("features_dir", "features_gigabytes"),
    ),
    "method": ("learning_rate", "learning_rates", "second_range", "config_file"),
    "forgetting": ("text",),
}
# Keys that came later, and what a run from before has, as reports read it: a run without them is the one that it was.
LATER = {("train", "all_rows"): "false", ("train", "cache_features"): "false", ("train", "pool_batches"): ""}


def identity(experiment: Experiment, revisions: dict[str, str]) -> str:
    """SHA-256 (hexadecimal) over everything that decides the result.

    The learning rate counts once, as `train.learning_rate`: the method's own is only where its default comes from.
    Paths do not count, the content behind them does, through the revisions. A run that is stopped on its way is
    another than the whole one.
    """
    content = decisive(experiment, revisions)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def decisive(experiment: Experiment, revisions: dict[str, str]) -> dict[str, Any]:
    """Everything that decides a run's result: its configuration, the hashes of its files, the version of results."""
    config = {
        section: {key: value for key, value in values.items() if key not in NOT_IDENTITY.get(section, ())}
        if isinstance(values, dict)
        else values
        for section, values in experiment.resolved.items()
        if section not in ("measure", "tracking", "sweep")
    }
    for section, key in LATER:
        if not config[section].get(key):
            config[section].pop(key, None)
    content: dict[str, Any] = {"config": config, **revisions, "version": RESULTS_VERSION}
    if experiment.train.precision is Precision.bfloat16 and experiment.task.kind.name == "classification":
        # Heads once computed in bfloat16 as well.
        content["head"] = Precision.float32.name
    if experiment.sweep.stop_share is not None:
        content["stop_share"] = experiment.sweep.stop_share
    return content
