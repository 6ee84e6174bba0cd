"""A table of one's own: which column is the text and which the answer; the rest is read from the rows."""

import logging
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from harness.config.errors import ConfigError, near_misses
from harness.tasks import TaskData, files, sources, splitting
from harness.tasks.classification import Classification, as_number
from harness.tasks.files import as_text
from harness.tasks.leakage import overlap
from harness.tasks.rows import IDX
from harness.training.batches import Row
from harness.training.text_metrics import words

log = logging.getLogger(__name__)

# Numbers with more values than this are taken for quantities: ratings have ten at most, classes in numbers seldom more.
MOST_CLASSES_IN_NUMBERS = 20
# Texts that are mostly different are no classes, where there are rows enough to tell.
FEW_ROWS = 20
LARGEST_SHARE_OF_VALUES = 0.5
SHOWN = 8
METRICS = {"number": ["pearson", "spearman"], "two": ["accuracy", "f1"], "class": ["accuracy", "f1_macro"]}


class Predict(Enum):
    """What the answer is taken for; auto decides by its values."""

    auto = "auto"
    classes = "classes"
    number = "number"


@dataclass(frozen=True)
class Table(Classification):
    """Rows of any files, split here unless the files are.

    Attributes:
        file: Files, patterns of them, or folders; a folder's train.*, validation.* and dev.* are splits.
        predict: What the answer is taken for.
        group: A column whose equal values stay in one split, such as a customer; null: none.
        validation_share: Share of the rows that is set aside for validation where there is no file of it.
    """

    file: list[str]
    predict: Predict
    group: str | None
    validation_share: float
    # Why the answer is taken for what it is; found with the values, so no setting.
    why: ClassVar[str] = ""

    def check(self, key: str) -> None:
        if self.hub is not None and not self.hub.path:
            self._set(hub=None)
        if not self.file and self.hub is None and self.data_dir is None:
            raise ConfigError(f"{key}.file: name a file, several, or a folder; or {key}.hub.path of the Hub")
        if self.data_dir is not None:
            self._set(file=[*self.file, self.data_dir], data_dir=None)
        self._ask(key)
        if not self.name:
            self._set(name=Path(self.file[0]).stem if self.file else str(self.hub and self.hub.path))
        self._understand(key)
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"{key}.validation_share={self.validation_share}: a share between 0 and 1 is needed")
        super().check(key)

    def has_source(self) -> bool:
        return bool(self.file or self.hub)

    def revision(self) -> str:
        if self.hub is not None:
            return sources.read_hub(self.hub, self.splits["train"])[1]
        return sources.files_revision(self._files())

    def load(self) -> TaskData:
        raw = {split: self._checked(rows, split) for split, rows in self._read().items()}
        for split, share in (("validation", self.validation_share), ("development", self.development_share)):
            if split not in raw:
                raw["train"], raw[split] = self._carve(raw["train"], split, share)
        for split, rows in raw.items():
            for row in rows:
                row[IDX] = splitting.row_hash(row, self.columns())
            raw[split] = self.subsample(rows, self.max_train_rows if split == "train" else self._most(split))
        notes = {
            "rows": {split: len(rows) for split, rows in raw.items()},
            "row_hashes": {split: _digest(rows) for split, rows in raw.items()},
            "answer": self.why,
            "overlap": {
                split: overlap(map(self.shown, raw["train"]), [self.shown(row) for row in rows])
                for split, rows in raw.items()
                if split != "train"
            },
        }
        log.info("%s is taken for %s", self.label, self.why)
        return TaskData(raw, self.revision(), notes)

    def _most(self, split: str) -> int | None:
        return None if split == "development" else self.max_validation_rows

    def _carve(self, rows: list[Row], split: str, share: float) -> tuple[list[Row], list[Row]]:
        keys: list[list[Hashable]] = []
        for row in rows:
            # Rows of one text belong together: one of them in training would give the other away.
            of_row: list[Hashable] = [("text", tuple(words(self.shown(row))))]
            if self.group is not None:
                of_row.append(("group", as_text(row[self.group])))
            keys.append(of_row)
        if self.group is not None and len({of_row[-1] for of_row in keys}) < 2:
            raise ConfigError(f"task.group={self.group}: all rows have one value there, so they can't be split by it")
        most = self.max_development_rows if split == "development" else len(rows)
        return splitting.carve(rows, self.strata(rows), keys, share, most, self.split_seed, split)

    def columns(self) -> list[str]:
        return [*super().columns(), *([self.group] if self.group else [])]

    def _set(self, **values: Any) -> None:
        """Fill in what was left open; the object is new, and nobody has it yet."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _files(self) -> dict[str, list[Path]]:
        return find(tuple(self.file), tuple(self.splits.items()))

    def _read(self) -> dict[str, list[Row]]:
        if self.hub is not None:
            found = {}
            for split, name in self.splits.items():
                try:
                    found[split] = sources.read_hub(self.hub, name)[0]
                except ConfigError:
                    if split == "train":
                        raise
            return found
        return {
            split: [row for path in paths for row in sources.read_file(path, self.columns(), self.columns())]
            for split, paths in self._files().items()
        }

    def _where(self, split: str) -> str:
        if self.hub is not None:
            return f"task.hub.path={self.hub.path}, {split} split"
        return f"task.file={self._files()[split][0]}"

    def _there(self, split: str) -> list[str]:
        return list(self._columns())

    def _columns(self) -> list[str]:
        if self.hub is not None:
            return list(sources.read_hub(self.hub, self.splits["train"])[0][0])
        return files.columns(self._files()["train"][0])

    def _ask(self, key: str) -> None:
        """Name everything that is missing, or is no column, with what there is.

        Raises:
            ConfigError: Something is.
        """
        there = self._columns()
        told = f"columns: {', '.join(there)}"
        missing = [name for name, value in (("text", self.text), ("label", self.label)) if not value]
        if missing:
            values = [f"{column} has {_shown(self._values(column))}" for column in there]
            wanted = ", ".join(f"{key}.{name}=" for name in missing)
            raise ConfigError(f"{wanted}: say which column it is ({told}; {'; '.join(values)})")
        for column in self.columns():
            if column not in there:
                raise ConfigError(f"{key}: no column {column!r}; {near_misses(column, there)}")

    def _values(self, column: str) -> Counter[str]:
        """The values of a column and how often each occurs, in all splits."""
        if self.hub is not None:
            return Counter(as_text(row[column]) for rows in self._read().values() for row in rows)
        paths = [path for paths in self._files().values() for path in paths]
        return _counted(tuple(_state(path) for path in paths), column)

    def _class_names(self) -> list[str]:
        """The order that the file itself gives its classes; empty where it gives none."""
        if self.hub is not None:
            return sources.hub_classes(self.hub, self.splits["train"]).get(self.label, [])
        return files.class_names(self._files()["train"][0]).get(self.label, [])

    def _understand(self, key: str) -> None:
        """Decide for classes or a number, and fill in classes and metrics."""
        kind, why = self._taken(key)
        if kind is Predict.classes and not self.labels:
            self._set(labels=self._class_names() or _ordered(self._values(self.label)))
        sort = "number" if kind is Predict.number else "two" if len(self.labels) == 2 else "class"
        if not self.metrics:
            self._set(metrics=METRICS[sort])
        if not self.primary_metric:
            self._set(primary_metric=self.metrics[0])
        self._set(predict=kind, why=why)

    def _taken(self, key: str) -> tuple[Predict, str]:
        """What the answer is taken for, and why.

        Raises:
            ConfigError: It can't be an answer.
        """
        values = self._values(self.label)
        if blank := sum(count for value, count in values.items() if not value.strip()):
            raise ConfigError(
                f"{key}.label={self.label}: {blank} row(s) have no value there; fill them or leave them out"
            )
        count, numbers = len(values), all(as_number(value) is not None for value in values)
        if self.labels:
            return Predict.classes, f"classes, as task.labels names {len(self.labels)}"
        if self.predict is not Predict.auto:
            if self.predict is Predict.number and not numbers:
                other = next(value for value in values if as_number(value) is None)
                raise ConfigError(f"{key}.predict=number: {other!r} in the column {self.label} is none")
            return self.predict, f"{self.predict.value}, as task.predict says; {count} values"
        if count < 2:
            raise ConfigError(f"{key}.label={self.label}: all rows have {_shown(values)}, so there is nothing to learn")
        if numbers and count > MOST_CLASSES_IN_NUMBERS:
            why = f"a number, since its {count} values are numbers, more than {MOST_CLASSES_IN_NUMBERS}"
            return Predict.number, f"{why}; task.predict=classes takes them for classes"
        rows = values.total()
        if not numbers and rows > FEW_ROWS and count > LARGEST_SHARE_OF_VALUES * rows:
            raise ConfigError(
                f"{key}.label={self.label}: {count} different values in {rows} rows are no classes; name "
                f"another column, or {key}.predict=classes"
            )
        what = "numbers" if numbers else "words"
        return Predict.classes, f"classes, since its {count} values are {what if not numbers else 'few numbers'}"


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
                return sources.local_files(told, dict(splits), ("train",))
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
        near = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"task.file={told}: there is no such file; {near_misses(path.name, sorted(near)[:SHOWN])}")
    return found


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _counted(states: tuple[tuple[str, int, int], ...], column: str) -> Counter[str]:
    """Read once for a sweep's many points; a changed file is another."""
    return Counter(
        as_text(row[column])
        for name, _, _ in states
        for row in sources.read_file(Path(name), [column], [column])
        if column in row
    )


def _ordered(values: Counter[str]) -> list[str]:
    """Names of classes: numbers by their size, false before true, words by the alphabet."""
    names = [value.strip() for value in values]
    return sorted(set(names), key=lambda name: (as_number(name) if as_number(name) is not None else 0, name))


def _shown(values: Counter[str]) -> str:
    shown = [value for value, _ in values.most_common(SHOWN)]
    if len(values) > SHOWN:
        return f"{len(values)} values, as {_cut(shown[0])!r}"
    return f"{len(values)} value{'s' * (len(values) != 1)}: {', '.join(map(_cut, shown))}"


def _cut(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:29]}\u2026"


def _digest(rows: Iterator[Row] | list[Row]) -> str:
    import hashlib

    return hashlib.sha256("\n".join(sorted(row[IDX] for row in rows)).encode()).hexdigest()
