"""Local files as rows: read line by line, cells of a named text column as they are written."""

import csv
import gzip
import io
import json
import math
import re
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from harness.config.errors import ConfigError

Row = dict[str, Any]
FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
COMPRESSED = ".gz"
SUFFIXES = (*FORMATS, *(f"{suffix}{COMPRESSED}" for suffix in FORMATS if suffix != ".parquet"))
BOM = "\ufeff"
# Wider cells than the csv module allows by itself: a document may be a cell.
WIDEST_CELL = 2**31 - 1
# Rows that are looked at to say what the columns of a file are, of which JSON objects may leave some out.
GLANCED_AT = 10_000
# How JSON writes either half of a character that takes two escapes, in small letters; a few whole ones begin so too.
HALF_ESCAPED = "\\ud"


def suffix_of(path: Path) -> str:
    """What a file's name says that it holds, the mark of compression left out: `.jsonl` of `train.jsonl.gz`."""
    return Path(path.name.removesuffix(COMPRESSED)).suffix


def read(path: Path, text: Collection[str] = (), wanted: Collection[str] | None = None) -> list[Row]:
    """All rows of a JSONL, JSON, CSV, TSV or Parquet file; the lines of a text file, ends of lines kept, as `text`.

    A UTF-8 byte order mark is skipped. Classes of a Parquet file that have names are given by those.

    Args:
        text: Columns whose cells stay as a CSV file writes them. Any other column of one becomes numbers where all of
            its cells are.
        wanted: Columns to keep, of those that are there; null: all.

    Raises:
        ConfigError: The file is empty, not UTF-8, or not what its name says; the line is named.
    """
    rows = _rows(path, wanted)
    kept = [{name: row[name] for name in row if name in wanted} if wanted is not None else row for row in rows]
    if FORMATS[suffix_of(path)] == "csv":
        for name in set(kept[0] if kept else ()) - set(text):
            _numbers(kept, name)
    names = list(dict.fromkeys(name for row in kept for name in row))
    # A JSON object may leave out what it has no value for.
    return [row if len(row) == len(names) else {name: row.get(name) for name in names} for row in kept]


def stream(path: Path, wanted: Collection[str]) -> Iterator[Row]:
    """Some columns of a file's rows, one row after the other; cells of a CSV file as it writes them.

    Raises:
        ConfigError: As for `read`.
    """
    for row in _rows(path, wanted):
        yield {name: row.get(name) for name in wanted}


def _rows(path: Path, wanted: Collection[str] | None) -> Iterator[Row]:
    """A file's rows, with the wanted columns at least."""
    if path.stat().st_size == 0:
        raise ConfigError(f"task.data_dir: {path} is empty")
    kind = FORMATS[suffix_of(path)]
    if kind == "parquet":
        return _parquet(path, wanted)
    return {"json": _json, "csv": _csv, "text": _text}[kind](path)


def columns(path: Path, named: Collection[str] = ()) -> list[str]:
    """The columns of a file; of JSON, whose objects may leave some out, those of the first `GLANCED_AT` objects.

    Args:
        named: Columns that are looked for among all of the objects before they are taken to be missing.
    """
    kind = FORMATS[suffix_of(path)]
    if kind == "parquet":
        return list(_parquet_file(path).schema_arrow.names)
    rows = _rows(path, None)
    if kind != "json":
        return list(next(rows, {}))
    found = dict.fromkeys(name for row in islice(rows, GLANCED_AT) for name in row)
    while not found.keys() >= set(named) and (row := next(rows, None)) is not None:
        found |= dict.fromkeys(row)
    return list(found)


def class_names(path: Path) -> dict[str, list[str]]:
    """Column -> names of its classes in their order, where a file holds them."""
    if FORMATS[suffix_of(path)] != "parquet":
        return {}
    return _classes_of(_parquet_file(path).schema_arrow.metadata or {})


def as_text(value: Any) -> str:
    """A value as text: numbers written out, true and false as JSON writes them, what is missing as nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "\n".join(map(as_text, value))
    return value if isinstance(value, str) else str(value)


def paragraphs(text: str) -> list[str]:
    """The parts of a text between blank lines; spaces alone leave a line blank."""
    return [part for part in re.split(r"\r?\n\s*\n", text) if part.strip()]


def _open(path: Path) -> IO[bytes]:
    if path.name.endswith(COMPRESSED):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends, without a byte order mark.

    Raises:
        ConfigError: A line is not UTF-8, or the file is not compressed as its name says.
    """
    number = 0
    with _open(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield line.decode("utf-8").removeprefix(BOM) if number == 1 else line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"task.data_dir: {path}, line {number}: not UTF-8") from error
        except (gzip.BadGzipFile, EOFError) as error:
            raise ConfigError(f"task.data_dir: {path} can't be uncompressed: {error}") from error


def _text(path: Path) -> Iterator[Row]:
    for line in _lines(path):
        # Lines end in "\n", "\r\n" or "\r", by the system that wrote them, and are the same text: "\n" stands for all.
        # `str.splitlines` would break them at form feeds and separators of Unicode too.
        yield from ({"text": part} for part in io.StringIO(line, newline=None))


def _json(path: Path) -> Iterator[Row]:
    if suffix_of(path) == ".json" and not _object_per_line(path) and (whole := _whole_json(path)) is not None:
        yield from whole
        return
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if HALF_ESCAPED in line.lower():
                _encode(row)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"task.data_dir: {path}, line {number}: {_refusal(error)}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"task.data_dir: {path}, line {number}: a JSON object is needed on each line")
        yield row


def _encode(value: Any) -> None:
    """Try to write a JSON value as UTF-8, as hashes and tokenizers will.

    Raises:
        UnicodeEncodeError: A text in it has half of a character, as where an emoji was cut; JSON can write it alone.
    """
    json.dumps(value, ensure_ascii=False).encode()


def _refusal(error: Exception) -> str:
    """Why a JSON value isn't read."""
    match error:
        case json.JSONDecodeError():
            return f"not JSON: {error.msg}"
        case RecursionError():
            return "lists and objects are nested too deep to be read"
        case UnicodeEncodeError():
            return f"{ascii(error.object[error.start])[1:-1]} is half of a character, which no UTF-8 text can hold"
        case _:  # the only other ValueError that the parser raises
            return "a number has too many digits to be read"


def _object_per_line(path: Path) -> bool:
    """Whether a line is an object by itself and others follow, so that the file need not be read as a whole."""
    lines = (line for line in _lines(path) if line.strip())
    first, second = next(lines, ""), next(lines, "")
    try:
        return bool(second) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _whole_json(path: Path) -> list[Row] | None:
    """The rows of a file that is one JSON value: a list of objects, or an object with a list a column.

    Null where it is an object a line.
    """
    written = "".join(_lines(path))
    try:
        content = json.loads(written)
    except json.JSONDecodeError:
        return None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"task.data_dir: {path}: {_refusal(error)}") from error
    if isinstance(content, dict):
        lists = {name: value for name, value in content.items() if isinstance(value, list)}
        if len(lists) == 1 and all(isinstance(row, dict) for row in next(iter(lists.values()))):
            content = next(iter(lists.values()))
        elif lists and len(lists) == len(content) and len({len(column) for column in lists.values()}) == 1:
            content = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
        else:
            return None
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ConfigError(f"task.data_dir: {path}: a list of JSON objects is needed, or an object on each line")
    for number, row in enumerate(content if HALF_ESCAPED in written.lower() else (), start=1):
        try:
            _encode(row)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"task.data_dir: {path}, row {number}: {_refusal(error)}") from error
    return content


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(WIDEST_CELL)
    lines = _lines(path)
    first = next(lines, "")
    reader = csv.reader(_again(first, lines), delimiter=_delimiter(path, first), strict=True)
    try:
        header = next(reader, [])
        if doubled := sorted({name for name in header if header.count(name) > 1}):
            raise ConfigError(f"task.data_dir: {path}: two columns are called {doubled[0]!r}; rename one")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ConfigError(
                    f"task.data_dir: {path}, line {reader.line_num}: {len(cells)} cells under {len(header)} names of "
                    "columns; a cell with a separator in it needs quotes"
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ConfigError(f"task.data_dir: {path}, line {reader.line_num}: not CSV: {error}") from error


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(path: Path, header: str) -> str:
    """A tab in a .tsv file; else a comma, the semicolon that some countries' spreadsheets write, or a tab after all.

    The first of these that stands in the header outside of quotes.
    """
    if suffix_of(path) == ".tsv":
        return "\t"
    bare = re.sub(r'"[^"]*"', "", header)
    return next((mark for mark in ",;\t" if mark in bare), ",")


def _numbers(rows: list[Row], name: str) -> None:
    """Make a column numbers where all of its cells are."""
    for kind in (int, float):
        try:
            numbers = [kind(row[name]) for row in rows]
        except ValueError:
            continue
        for row, number in zip(rows, numbers, strict=True):
            row[name] = number
        return


def _parquet_file(path: Path) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(f"task.data_dir: {path} can't be read as parquet: {first}") from error


def _parquet(path: Path, wanted: Collection[str] | None) -> Iterator[Row]:
    file = _parquet_file(path)
    classes = _classes_of(file.schema_arrow.metadata or {})
    there = None if wanted is None else [name for name in file.schema_arrow.names if name in wanted]
    for batch in file.iter_batches(columns=there):
        for row in batch.to_pylist():
            yield named_classes(row, classes)


def _classes_of(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> names of its classes, as the library datasets leaves them in a Parquet file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def named_classes(row: Row, classes: dict[str, list[str]]) -> Row:
    """A row with names in the place of its classes' numbers; a hidden class, -1, stays."""
    for column, names in classes.items():
        number = row.get(column)
        if isinstance(number, int) and 0 <= number < len(names):
            row[column] = names[number]
    return row
