"""Scores that others published, read from a CSV file and shown below ours of the same task and metric, untested."""

from pathlib import Path

import pandas as pd

from harness.config.errors import ConfigError, near_misses
from harness.report.cells import Table, number
from harness.report.definitions import FOLDER, folders
from harness.report.scores import plain
from harness.report.words import metric_name

NEEDED = ("task", "metric", "score", "method", "model")
# What a reader needs to know before holding two scores against each other; an empty cell says nothing.
TOLD = ("spread", "parameters", "split", "setting", "source")


def read(place: str) -> pd.DataFrame:
    """Read a file of `NEEDED` columns and any of `TOLD`; scores are in the unit of ours, such as shares from 0 to 1.

    A name that is not found from the working directory is looked for where definitions of reports lie.

    Raises:
        ConfigError: There is no such file, or it is no such table.
    """
    given = f"published={place}"
    try:
        path = next((folder / place for folder in (Path(), *folders()) if (folder / place).is_file()), Path(place))
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        there = {file.name for folder in (Path(), *folders()) for file in folder.glob("*.csv")}
        raise ConfigError(f"{given}: there is no such file here or in {FOLDER}/; {near_misses(place, there)}") from None
    except (OSError, ValueError) as error:  # pandas' own errors of parsing are ValueErrors
        raise ConfigError(f"{given}: it cannot be read as CSV: {plain(error)}") from None
    if not isinstance(rows.index, pd.RangeIndex):
        raise ConfigError(f"{given}: a row has more cells than there are columns")
    missing = [name for name in NEEDED if name not in rows]
    if missing:
        raise ConfigError(f"{given}: columns {', '.join(missing)} are missing; it has {plain(', '.join(rows.columns))}")
    scores = pd.to_numeric(rows["score"], errors="coerce")
    if scores.isna().any():
        first = int(scores.isna().to_numpy().argmax())
        raise ConfigError(f"{given}: the score of row {first + 1} is {rows['score'].iloc[first]!r}, not a number")
    return rows.assign(score=scores)


def beside(ours: list[Table], published: pd.DataFrame | None, summary: pd.DataFrame) -> list[Table]:
    """Put below each task's table what others published of it by the same metric, in the order of the file."""
    if published is None:
        return ours
    told = summary.groupby("task")[["metric", "split"]].first()
    tables = []
    for table in ours:
        metric, split = told.loc[table.task]
        rows = published[(published["task"] == table.task) & (published["metric"] == metric)]
        tables += [table, *([_table(table.task, metric, split, rows)] if len(rows) else [])]
    return tables


def _table(task: str, metric: str, split: str, rows: pd.DataFrame) -> Table:
    heading, told = metric_name(metric), tuple(name for name in TOLD if name in rows)
    cells = [
        (
            plain(f"{row['model']}, {row['method']}"),
            number(float(row["score"])),
            *(_count(row[name]) if name == "parameters" else plain(row[name]) for name in told),
        )
        for row in rows.to_dict("records")
    ]
    caption = f"As others published them, beside ours on {task}. They are of other models, and ours are of the {split} "
    caption += "split: nothing is tested between the two tables, and an empty cell was not stated."
    return Table(
        f"{task}: published by others",
        ("model", heading, *told),
        cells,
        caption,
        ("model", "split", "setting", "source"),
        prose=("setting", "source"),
        secondary=("setting",),
    )


def _count(text: str) -> str:
    return f"{int(text):,}" if text.isascii() and text.isdigit() else plain(text)
