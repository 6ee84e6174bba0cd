"""Sources of rows: the Hub, local files, or the generator; and the development split carved from train."""

import hashlib
import json
import logging
import random
import re
import socket
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from harness.config.errors import ConfigError, near_misses
from harness.models import digest
from harness.tasks import files
from harness.tasks.values import SHOWN

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3
# Rows that are taken out of a data set of the Hub at once.
BATCH = 1000
# Other names that people give a split's file.
ALIASES = {"validation": ("valid", "val", "dev")}
SHARD = re.compile(r"-\d+-of-(\d+)\.")


@dataclass  # OmegaConf can't fill a frozen dataclass inside another
class Hub:
    """A data set of the Hub: `path` is its name (or a folder in the Hub's own layout), `name` its configuration."""

    path: str
    name: str | None
    revision: str | None


def local_files(
    data_dir: str, splits: dict[str, str], needed: Collection[str] = ("train", "validation")
) -> dict[str, list[Path]]:
    """Find each split's files, called after our split or the Hub's: `validation.jsonl`, `validation_matched.csv.gz`.

    `dev` and `valid` are other names of validation. Shards, `train-00000-of-00002.parquet`, are one split's.

    Args:
        needed: The splits that must be there.

    Raises:
        ConfigError: There is no such folder, no file for train or validation, or two for one split.
    """
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"task.data_dir={data_dir}: there is no such folder")
    found: dict[str, list[Path]] = {}
    for split, hub_name in splits.items():
        stems = dict.fromkeys((split, hub_name, *ALIASES.get(split, ())))
        choices = [
            paths for stem in stems for suffix in files.SUFFIXES if (paths := _split_files(folder, stem, suffix))
        ]
        if len(choices) > 1:
            names = " and ".join(paths[0].name for paths in choices)
            raise ConfigError(f"task.data_dir={data_dir}: {names} are two files for the {split} split; keep one")
        if choices:
            found[split] = choices[0]
        elif split in needed:
            wanted = ", ".join(f"{split}{suffix}" for suffix in files.FORMATS)
            there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
            raise ConfigError(f"task.data_dir={data_dir}: no file for the {split} split ({wanted}); there is {there}")
    return found


def _split_files(folder: Path, stem: str, suffix: str) -> list[Path]:
    """The file of a split in a format, or its shards, all of which must be there."""
    if (whole := folder / f"{stem}{suffix}").is_file():
        return [whole]
    shards = sorted(path for path in folder.glob(f"{stem}-*{suffix}") if (SHARD.search(path.name)))
    if shards:
        count = int(SHARD.search(shards[0].name)[1])  # type: ignore[index]
        if len(shards) != count:
            raise ConfigError(f"task.data_dir={folder}: {len(shards)} of {count} shards of {stem}{suffix} are there")
    return shards


def files_revision(found: dict[str, list[Path]]) -> str:
    """SHA-256 over the files that are read."""
    paths = sorted(path for paths in found.values() for path in paths)
    content = digest(paths)
    if any(files.FORMATS[files.suffix_of(path)] == "csv" for path in paths):
        # Cells were once guessed to be numbers or dates: results on the same file may differ from those.
        content = hashlib.sha256(f"{content} cells as text".encode()).hexdigest()
    return content


def read_file(path: Path, text: Collection[str] = (), wanted: Collection[str] | None = None) -> list[dict[str, Any]]:
    """All rows of a file, as `harness.tasks.files.read` gives them.

    Raises:
        ConfigError: The file is empty, not UTF-8, or not what its name says.
    """
    return files.read(path, text, wanted)


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


def hub_rows(hub: Hub, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split, one after the other.

    Raises:
        ConfigError: There is no such data set or split, or no network.
    """
    found = _of_hub(hub, split)
    classes = _class_labels(found)
    for batch in found.with_format("arrow").iter(BATCH):
        for row in batch.to_pylist():
            yield files.named_classes(row, classes)


def hub_revision(hub: Hub, split: str) -> str:
    """Hash of the Hub's copy that a split comes from."""
    found = _of_hub(hub, split)
    checksums = sorted(found.info.download_checksums or {})
    content = json.dumps(
        [checksums, found.info.dataset_name, str(found.info.version), found.num_rows, found.column_names]
    )
    return hashlib.sha256(content.encode()).hexdigest()


def hub_columns(hub: Hub, split: str) -> list[str]:
    """The columns of a split."""
    return list(_of_hub(hub, split).column_names)


def hub_classes(hub: Hub, split: str) -> dict[str, list[str]]:
    """Column -> names of its classes in their order, as the Hub's copy gives them."""
    return _class_labels(_of_hub(hub, split))


def _class_labels(found: Any) -> dict[str, list[str]]:
    from datasets import ClassLabel

    return {name: one.names for name, one in found.features.items() if isinstance(one, ClassLabel)}


def _of_hub(hub: Hub, split: str) -> Any:
    from datasets import load_dataset

    if not Path(hub.path).is_dir():
        _use_cache_without_network()
    label = f"task.hub.path={hub.path}" + (f" ({hub.name})" if hub.name else "")
    try:
        return load_dataset(hub.path, hub.name, split=split, revision=hub.revision)
    except (ConnectionError, TimeoutError) as error:
        raise ConfigError(
            f"{label}: the Hugging Face Hub can't be reached; give task.data_dir=FOLDER with train.* and validation.* "
            "files (JSONL, CSV or Parquet), or try again with a network"
        ) from error
    except (FileNotFoundError, ValueError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(f"{label}: the {split} split can't be loaded: {first}") from error


def check_columns(
    rows: list[dict[str, Any]], columns: list[str], where: str, there: Callable[[], Iterable[str]] | None = None
) -> None:
    """Every named column is there.

    Args:
        there: All the columns that there are, asked for when one is missing; null: the first row's.

    Raises:
        ConfigError: The split has no rows, or lacks a column.
    """
    if not rows:
        raise ConfigError(f"{where}: the split has no rows")
    for column in columns:
        if column not in rows[0]:
            raise ConfigError(f"{where}: no column {column!r}; {near_misses(column, there() if there else rows[0])}")


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
    return rows if most is None or most >= len(rows) else [rows[place] for place in sample(len(rows), most, seed)]


def sample(count: int, most: int, seed: int) -> list[int]:
    """Places of `most` of `count` rows: the beginning of a seeded order of all, of which no more is drawn."""
    draw = random.Random(seed).randrange
    moved: dict[int, int] = {}
    found = []
    for last in range(count - 1, count - 1 - most, -1):
        place = draw(last + 1)
        found.append(moved.get(place, place))
        moved[place] = moved.get(last, last)
    return found


def find(given: tuple[str, ...], splits: tuple[tuple[str, str], ...]) -> dict[str, list[Path]]:
    """The files of each split; of files that are not named after splits all are train's.

    Raises:
        ConfigError: There is no such file, or it is of no known format.
    """
    paths: list[Path] = []
    for told in given:
        path = Path(told).expanduser()
        if path.is_dir():
            inside = [one for one in sorted(path.iterdir()) if one.is_file() and one.name.endswith(files.SUFFIXES)]
            if not inside:
                raise ConfigError(f"task.file={told}: the folder has no file of {', '.join(files.SUFFIXES)}")
            if any(one.name.startswith(("train.", "train-")) for one in inside):
                return local_files(told, dict(splits), ("train",))
            paths += inside
        else:
            paths += _matching(told, path)
    wrong = next((path for path in paths if not path.name.endswith(files.SUFFIXES)), None)
    if wrong is not None:
        raise ConfigError(f"task.file={wrong}: {', '.join(files.SUFFIXES)} are read")
    return {"train": paths}


def _matching(told: str, path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(path.parent.glob(path.name)) if set(path.name) & set("*?[") else []
    if not found:
        there = path.parent.iterdir() if path.parent.is_dir() else ()
        near = [one.name for one in there if one.name.endswith(files.SUFFIXES)]
        raise ConfigError(f"task.file={told}: there is no such file; {near_misses(path.name, sorted(near)[:SHOWN])}")
    return found
