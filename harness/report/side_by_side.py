"""Two runs side by side: what differs in their configurations, scores on the same examples, and costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import tracking
from harness.config.errors import ConfigError
from harness.report import scores
from harness.report.cells import NONE, Table, figure, interval, probability
from harness.report.comparison import Comparison, aligned, compare, per_row_scores, read_predictions, resample_methods
from harness.report.pairwise import predictions_of
from harness.report.runs import read_folder, read_record
from harness.report.stats import mcnemar
from harness.tracking.record import RESULT_FILE
from harness.tracking.uri import redact
from harness.training.metrics import higher_is_better

A, B = "A", "B"
SCORES = ("validation.", "development.", "majority.", "base.", "forgetting.")
COSTS = "cost."


def find_runs(names: Sequence[str], store: str) -> list[dict[str, Any]]:
    """Find runs by their directory, or by the id that MLflow or their record has for them.

    Args:
        names: Directories or ids.
        store: Where ids are looked up: a tracking URI, or a folder of run directories.

    Raises:
        ConfigError: A name is neither, or its `result.json` is damaged.
        ConnectionError: The store cannot be read.
    """
    ids = [name for name in names if not (Path(name) / RESULT_FILE).exists()]
    known: dict[str, dict[str, Any]] = {}
    if ids:
        stored = tracking.read_runs(store) if "://" in store else read_folder(Path(store))[0]
        known = {run[key]: run for run in stored for key in ("run_id", "mlflow_run_id")}
    runs = []
    for name in names:
        if name not in ids:
            try:
                runs.append(read_record(Path(name) / RESULT_FILE))
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise ConfigError(f"compare={name}: its {RESULT_FILE} is damaged, {scores.plain(error)}") from error
        elif name in known:
            runs.append(known[name])
        else:
            raise ConfigError(
                f"compare={name}: neither a folder with a {RESULT_FILE} nor the id of one of the {len(stored)} runs in "
                f"{redact(store)}"
            )
    return runs


def tables(a: dict[str, Any], b: dict[str, Any], server: str | None = None) -> tuple[str, list[Table], list[str]]:
    """Hold two runs, as `find_runs` returns them, side by side: first sentences, tables, notes.

    Predictions that are not on this machine are fetched from `server`, a tracking URI.
    """
    frame = scores.tidy([a, b])
    notes: list[str] = []
    found = [_configuration(a, b), _figures("Scores", a, b, SCORES)]
    try:
        found.append(_paired(frame, server))
    except ConfigError as error:
        notes.append(f"No paired test: {scores.plain(error)}.")
    found.append(_figures("Costs", a, b, (COSTS,)))
    notes += [f"{name} is odd: {mark}." for name, mark in zip((A, B), frame["mark"], strict=True) if mark]
    lead = " ".join(
        f"{name} is {row['name']} ({row['status']}, {row['run_id']})."
        for name, (_, row) in zip((A, B), frame.iterrows(), strict=True)
    )
    if found[0] is None:
        lead += " Their configurations are the same."
    return lead, [table for table in found if table is not None], notes


def _configuration(a: dict[str, Any], b: dict[str, Any]) -> Table | None:
    """Table of the settings that differ; None where none does."""
    ours, theirs = a["params"], b["params"]
    keys = [key for key in sorted(set(ours) | set(theirs)) if ours.get(key) != theirs.get(key)]
    rows = [(key, *(scores.plain(side.get(key, NONE)) for side in (ours, theirs))) for key in keys]
    shared = len(set(ours) & set(theirs)) - sum(key in ours and key in theirs for key in keys)
    caption = f"What differs; {shared} settings are the same. A dash: not set."
    return Table("Configuration", ("setting", A, B), rows, caption, ("setting", A, B)) if rows else None


def _figures(title: str, a: dict[str, Any], b: dict[str, Any], sections: tuple[str, ...]) -> Table | None:
    """Table of the figures of both, with B over A for costs and B - A for scores."""
    of_costs = sections == (COSTS,)
    rows = []
    for key in sorted(set(a["metrics"]) | set(b["metrics"])):
        if key.startswith(sections):
            ours, theirs = (float(side["metrics"].get(key, np.nan)) for side in (a, b))
            if of_costs:
                last = NONE if not ours or np.isnan(theirs / ours) else f"{theirs / ours:.3g}"
            else:
                last = NONE if np.isnan(theirs - ours) else f"{theirs - ours:+.4f}"
            rows.append((key.removeprefix(COSTS), figure(key, ours), figure(key, theirs), last))
    columns = ("figure", A, B, "B / A" if of_costs else "B - A")
    return Table(title, columns, rows, "A dash: not measured.", ("figure",)) if rows else None


def _paired(frame: pd.DataFrame, server: str | None) -> Table:
    """Test the two runs on the examples of a split.

    Raises:
        ConfigError: There is nothing to pair; says why.
    """
    first, second = (row for _, row in frame.iterrows())
    for name in ("task", "primary_metric"):
        if first[name] != second[name]:
            raise ConfigError(f"the runs differ in {name.replace('_', ' ')}, {first[name]} and {second[name]}")
    metric = first["primary_metric"]
    split = "validation" if frame["validation"].notna().all() else "development"
    if frame[split].isna().any():
        raise ConfigError(f"not both runs have a {metric} on the same split")
    predictions = {
        name: [read_predictions(predictions_of(row["artifact_uri"], row["mlflow_run_id"], server), split)]
        for name, row in ((A, first), (B, second))
    }
    pair = compare(resample_methods(predictions, metric), higher_is_better(metric), metric)[0]
    rows = [_cells(f"{metric}, bootstrap of the examples", pair)]
    ordered = aligned(predictions)
    scored = [per_row_scores(ordered[name][0], metric) for name in (A, B)]
    right = [(side == 1).tolist() for side in scored if side is not None and np.isin(side, (0.0, 1.0)).all()]
    if len(right) == len(scored):
        test = mcnemar(*right)
        rows.append(("right on some examples, McNemar", f"{test.only_a} - {test.only_b}", "", probability(test.p), ""))
    count = len(ordered[A][0])
    caption = (
        f"A less B on the same {count:,} examples of the {split} split. About these two runs on other examples, not "
        "about their methods, which other seeds would tell. McNemar: examples that only A, and that only B, has right."
    )
    columns = ("test", "A - B", "95% interval", "p", "verdict")
    return Table("On the same examples", columns, rows, caption, ("test", "verdict"))


def _cells(name: str, pair: Comparison) -> tuple[str, ...]:
    return name, f"{pair.difference:+.4f}", interval(pair.low, pair.high), probability(pair.p), pair.verdict
