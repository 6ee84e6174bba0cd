"""Answers of a trained adapter to the rows of a file, written as they are made."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import models
from harness.adapters.trained import STORE, find, parse_options
from harness.config.command import carry_out, writing
from harness.config.errors import ConfigError, near_misses
from harness.config.schema import Device, Precision
from harness.tasks import files
from harness.training.batches import Row

if TYPE_CHECKING:
    from harness.tasks import Task
    from harness.training.evaluation import Subject

USAGE = """harness-predict: what a trained adapter answers to the rows of a file.

  harness-predict adapter=runs/2026-01-31/18-00-00 data=new.csv out=answers.parquet
  harness-predict adapter=4f1c data=new.jsonl out=answers.parquet keep=id,customer

The file needs the columns that the task reads, under the names it was trained with; that of the answer is not read. A
row of the output per row, in their order: row (from 0), what keep= names, and prediction: the name of the class, the
number, or the text. Of classes also probability, probabilities (name -> probability) and scores (the logits).

  adapter=RUN          a run directory, or the beginning of a run's id in the store
  data=FILE            CSV, TSV, JSONL, JSON, Parquet or text, also .gz; read and answered window by window
  out=FILE.parquet     written as it goes; a file that exists is not overwritten
  keep=NAME,...        columns of the file that are copied, as text
  model=FOLDER         the backbone, where it is no longer where the run had it
  batch_size=N         rows side by side (the run's evaluate.batch_size)
  window=N             rows that are read at once, of which batches of like length are made (10000)
  max_new_tokens=N     most tokens of a generated answer (the task's)
  device=auto          or cpu, cuda
  tracking.uri=URI     where an id is looked up (sqlite:///mlflow.db)

The rows that a run was scored on get the scores of its predictions.parquet, to the bit, where device and batches are
the same: the run's own batch size, a window that holds all rows, and on a CPU its number of threads.
"""

ROW = "row"
# Answers that are counted for the last line.
MOST_COUNTED = 20


@dataclass
class Options:
    """Options of the command line; the empty ones are needed."""

    adapter: str = ""
    data: str = ""
    out: str = ""
    keep: str | None = None
    model: str | None = None
    batch_size: int | None = None
    window: int = 10_000
    max_new_tokens: int | None = None
    device: Device = Device.auto
    uri: str = STORE


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command and return its exit status."""
    return carry_out(predict, USAGE, arguments, name="harness-predict")


def parse(arguments: Sequence[str]) -> Options:
    """The options, each of its type.

    Raises:
        ConfigError: One is missing, unknown, or of another type.
    """
    needed = {"adapter": "a run directory or id", "data": "a file of rows", "out": "a file to write"}
    found = parse_options(Options, arguments, needed, "harness-predict")
    for name in ("batch_size", "window", "max_new_tokens"):
        value = getattr(found, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: a positive number is needed")
    return found


def predict(arguments: list[str]) -> None:
    """Read, answer and write, window by window.

    Raises:
        ConfigError: An argument, the file or a row is wrong.
    """
    wanted = parse(arguments)
    out = check_out(wanted.out)
    run = find(wanted.adapter, wanted.uri)
    kept = wanted.keep.split(",") if wanted.keep else []
    data = check_data(wanted.data, run.task().question_columns(), kept)
    print(f"Loading {run.result.config['model']['name']} with {run.saved.folder} ...", file=sys.stderr)
    task, subject = run.on_backbone(wanted.model, wanted.device.value)
    if wanted.batch_size is not None:
        subject = replace(subject, batch_size=wanted.batch_size)
    began = time.perf_counter()
    precision = Precision.float32 if subject.autocast is None else Precision.bfloat16
    with writing("out", wanted.out), models.fast_products(subject.collate.device.type, precision):
        rows, counted = write(out, answered(task, subject, data, kept, wanted))
    seconds = time.perf_counter() - began
    told = ", ".join(f"{answer} {count:,}" for answer, count in counted.most_common(MOST_COUNTED))
    print(f"{out}: {rows:,} rows in {seconds:.1f} s ({rows / seconds:,.0f} rows/s){f': {told}' if told else ''}")


def check_out(told: str) -> Path:
    """The file to write.

    Raises:
        ConfigError: It is there already, can't be, or is to be of another format.
    """
    out = Path(told).expanduser()
    if out.suffix != ".parquet":
        raise ConfigError(f"out={told}: the answers are written as Parquet; name a file that ends in .parquet")
    if out.exists():
        raise ConfigError(f"out={told}: it exists and is not overwritten; choose another name")
    if not out.parent.is_dir():
        raise ConfigError(f"out={told}: there is no folder {out.parent}")
    return out


def check_data(told: str, columns: list[str], kept: list[str]) -> Path:
    """The file of rows.

    Raises:
        ConfigError: It is not there, of no known format, or lacks a column.
    """
    data = Path(told).expanduser()
    if not data.is_file():
        raise ConfigError(f"data={told}: there is no such file")
    if not data.name.endswith(files.SUFFIXES):
        raise ConfigError(f"data={told}: {', '.join(files.SUFFIXES)} are read")
    with _of_data():
        there = files.columns(data, [*columns, *kept])
    if not there:
        raise ConfigError(f"data={told}: it has no rows")
    for column in columns:
        if column not in there:
            raise ConfigError(
                f"data={told}: no column {column!r}, which the adapter reads; {near_misses(column, there)}"
            )
    for column in kept:
        if column not in there:
            raise ConfigError(f"keep={column}: data={told} has no such column; {near_misses(column, there)}")
    return data


def answered(
    task: "Task", subject: "Subject", data: Path, kept: list[str], wanted: Options
) -> Iterator[dict[str, list[Any]]]:
    """Yield the columns of the output, window by window."""
    from tqdm import tqdm

    columns = task.question_columns()
    numbered = enumerate(files.stream(data, list(dict.fromkeys([*columns, *kept]))))
    with tqdm(desc="predict", unit="row", disable=None, leave=False) as bar, _of_data():
        while window := list(islice(numbered, wanted.window)):
            copies = {name: [files.as_text(row[name]) for _, row in window] for name in kept}
            questions: list[Row] = [
                task.question({name: row[name] for name in columns}, f"data={data}, row {number + 1}")
                for number, row in window
            ]
            try:
                answers = task.infer(subject, questions, wanted.max_new_tokens)
            except ValueError as error:  # of ours too: a row that can't be encoded, a text that leaves no room
                raise ConfigError(str(error)) from error
            if clash := sorted({ROW, *answers}.intersection(kept)):
                raise ConfigError(f"keep={clash[0]}: a column of the answers has this name; rename it in {data}")
            yield {ROW: [number for number, _ in window], **copies, **answers}
            bar.update(len(window))


def write(out: Path, windows: Iterator[dict[str, list[Any]]]) -> tuple[int, Counter[str]]:
    """Write windows as they come; the file has its name once it is whole.

    Returns:
        The rows, and how often each class was answered; empty where answers are no classes.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    partial = out.with_name(out.name + ".partial")
    rows, counted = 0, Counter[str]()
    writer: ParquetWriter | None = None
    try:
        for window in windows:
            # A window may have no value where another has one: the first decides the types.
            table = pa.table(window) if writer is None else pa.table(window, schema=writer.schema)
            writer = writer or ParquetWriter(partial, table.schema)
            writer.write_table(table)
            rows += len(window[ROW])
            if "probability" in window:
                counted.update(window["prediction"])
        if writer is not None:
            writer.close()
            partial.rename(out)
    finally:
        if writer is not None and writer.is_open:
            writer.close()
        partial.unlink(missing_ok=True)
    return rows, counted


@contextmanager
def _of_data() -> Iterator[None]:
    """What is wrong in a file is told of the key that named it here."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("task.data_dir: ", "data=", 1)) from error


if __name__ == "__main__":
    sys.exit(main())
