"""Where rows come from: the Hub, local files, or the generator; and the development split carved from train."""

import hashlib
import json
import logging
import random
import socket
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from harness.config.errors import ConfigError, near_misses
from harness.models import digest

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3
FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


@dataclass  # OmegaConf can't fill a frozen dataclass inside another
class Hub:
    """A data set of the Hub: `path` is its name (or a folder in the Hub's own layout), `name` its configuration."""

    path: str
    name: str | None
    revision: str | None


def local_files(data_dir: str, splits: dict[str, str]) -> dict[str, Path]:
    """Find each split's file, called after our split or the Hub's: `validation.jsonl`, `validation_matched.csv`.

    Raises:
        ConfigError: There is no such folder, no file for train or validation, or two for one split.
    """
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"task.data_dir={data_dir}: there is no such folder")
    found: dict[str, Path] = {}
    for split, hub_name in splits.items():
        stems = dict.fromkeys((split, hub_name))
        paths = [p for stem in stems for suffix in FORMATS if (p := folder / f"{stem}{suffix}").is_file()]
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise ConfigError(f"task.data_dir={data_dir}: {names} are two files for the {split} split; keep one")
        if paths:
            found[split] = paths[0]
        elif split in ("train", "validation"):
            wanted = ", ".join(f"{split}{suffix}" for suffix in FORMATS)
            there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
            raise ConfigError(f"task.data_dir={data_dir}: no file for the {split} split ({wanted}); there is {there}")
    return found


def files_revision(files: dict[str, Path]) -> str:
    """SHA-256 over the files that are read."""
    return digest(sorted(files.values()))


def read_file(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSONL, JSON, CSV or Parquet file; the lines of a text file, ends of lines kept, as column `text`.

    Raises:
        ConfigError: The file is empty, not UTF-8, or not what its name says.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if path.stat().st_size == 0:
        raise ConfigError(f"task.data_dir: {path} is empty")
    _check_text(path)
    if path.suffix == ".txt":
        return [{"text": line} for line in path.read_text(encoding="utf-8").splitlines(keepends=True)]
    try:
        rows = load_dataset(FORMATS[path.suffix], data_files=str(path), split="train")
    except (DatasetGenerationError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        first = str(cause).strip().split("\n")[0]
        raise ConfigError(f"task.data_dir: {path} can't be read as {FORMATS[path.suffix]}: {first}") from error
    return rows.to_list()


def _check_text(path: Path) -> None:
    """Name the line of a text file that is not UTF-8 or not JSON; the reader below does not say which."""
    if path.suffix == ".parquet":
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8")
                if path.suffix == ".jsonl" and text.strip() and not isinstance(json.loads(text), dict):
                    raise ConfigError(f"task.data_dir: {path}, line {number}: a JSON object is needed on each line")
            except UnicodeDecodeError as error:
                raise ConfigError(f"task.data_dir: {path}, line {number}: not UTF-8") from error
            except json.JSONDecodeError as error:
                raise ConfigError(f"task.data_dir: {path}, line {number}: not JSON: {error.msg}") from error


@lru_cache(maxsize=1)
def _use_cache_without_network() -> None:
    """Without the Hub, go to its cache at once: the libraries would try again for half a minute a call."""
    import datasets
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    try:
        socket.create_connection((str(hub.hostname), hub.port or 443), timeout=CONNECT_SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def read_hub(hub: Hub, split: str) -> tuple[list[dict[str, Any]], str]:
    """Rows of one split and the revision they came from.

    Raises:
        ConfigError: There is no such data set or split, or no network.
    """
    from datasets import load_dataset

    if not Path(hub.path).is_dir():
        _use_cache_without_network()
    label = f"task.hub.path={hub.path}" + (f" ({hub.name})" if hub.name else "")
    try:
        rows = load_dataset(hub.path, hub.name, split=split, revision=hub.revision)
    except (ConnectionError, TimeoutError) as error:
        raise ConfigError(
            f"{label}: the Hugging Face Hub can't be reached; give task.data_dir=FOLDER with train.* and validation.* "
            "files (JSONL, CSV or Parquet), or try again with a network"
        ) from error
    except (FileNotFoundError, ValueError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(f"{label}: the {split} split can't be loaded: {first}") from error
    checksums = sorted(rows.info.download_checksums or {})
    content = json.dumps([checksums, rows.info.dataset_name, str(rows.info.version), rows.num_rows, rows.column_names])
    return rows.to_list(), hashlib.sha256(content.encode()).hexdigest()


def check_columns(rows: list[dict[str, Any]], columns: list[str], where: str) -> None:
    """Every named column is there.

    Raises:
        ConfigError: The split has no rows, or lacks a column.
    """
    if not rows:
        raise ConfigError(f"{where}: the split has no rows")
    for column in columns:
        if column not in rows[0]:
            raise ConfigError(f"{where}: no column {column!r}; {near_misses(column, rows[0])}")


def carve(
    rows: list[dict[str, Any]], strata: list[Any], share: float, most: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split rows into train and development, the shares of each stratum kept; the same for the same seed.

    Each stratum gives its share of the development rows, rounded so that the whole is exact.
    """
    wanted = min(most, round(share * len(rows)))
    if not 0 < wanted < len(rows):
        raise ConfigError(
            f"task.development_share={share}: {len(rows)} training rows can't be split into train and development"
        )
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        groups[stratum].append(index)
    order = random.Random(seed)
    positioned: list[tuple[float, int]] = []
    for stratum in sorted(groups, key=str):
        members = groups[stratum]
        order.shuffle(members)
        # Taking members by their relative place in the stratum gives every stratum its share of any prefix.
        positioned += [((place + 0.5) / len(members), index) for place, index in enumerate(members)]
    chosen = {index for _, index in sorted(positioned)[:wanted]}
    return (
        [row for index, row in enumerate(rows) if index not in chosen],
        [row for index, row in enumerate(rows) if index in chosen],
    )


def subsample(rows: list[dict[str, Any]], most: int | None, seed: int) -> list[dict[str, Any]]:
    """At most `most` rows, the same ones for the same seed; a smaller sample is a part of a larger one."""
    if most is None or most >= len(rows):
        return rows
    return random.Random(seed).sample(rows, len(rows))[:most]
