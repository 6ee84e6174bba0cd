"""A table of one's own: which column is the text and which the answer; the rest is read from the rows."""

import hashlib
import logging
import time
from array import array
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from enum import Enum
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.config.errors import ConfigError, near_misses
from harness.tasks import TaskData, files, sources, splitting
from harness.tasks.classification import Classification
from harness.tasks.files import as_text
from harness.tasks.leakage import overlap
from harness.tasks.rows import IDX
from harness.tasks.values import Values, count
from harness.training.batches import Row
from harness.training.text_metrics import words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# Numbers with more values than this are taken for quantities: ratings have ten at most, classes in numbers seldom more.
MOST_CLASSES_IN_NUMBERS = 20
# Texts that are mostly different are no classes, where there are rows enough to tell.
FEW_ROWS = 20
LARGEST_SHARE_OF_VALUES = 0.5
# How often a file that takes long says how far it is read.
TELL_SECONDS = 30.0
METRICS = {"number": ["pearson", "spearman"], "two": ["accuracy", "f1"], "class": ["accuracy", "f1_macro"]}


class Predict(Enum):
    """What the answer is taken for; auto decides by its values."""

    auto = "auto"
    classes = "classes"
    number = "number"


@dataclass
class Survey:
    """What decides where a row goes, of each row in its order; a row itself may be far longer.

    Attributes:
        answers: Its class or number.
        keys: What it shares with the rows that it belongs to: of its text, and of its group where there are groups.
    """

    answers: "NDArray[np.float64]"
    keys: "list[NDArray[np.int64]]"

    def of(self, places: "NDArray[np.intp]") -> "Survey":
        """The same of some rows."""
        return Survey(self.answers[places], [keys[places] for keys in self.keys])


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

    @classmethod
    def without_rows(cls, values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """As they are where the file is there and its columns are named, else those of a task with as many classes."""
        given = [values[name] for name in ("file", "data_dir") if values.get(name)]
        told = tuple(one for paths in given for one in ([paths] if isinstance(paths, str) else paths))
        if values.get("text") and values.get("label") and told:
            with suppress(ConfigError):
                sources.find(told, tuple(values["splits"].items()))
                return values, []
        number = values["predict"] == Predict.number.name
        if number:
            _check_no_classes(values["labels"], "task")
        labels = [] if number else values["labels"] or ["first", "second"]
        metrics = values["metrics"] or METRICS["number" if number else "two" if len(labels) == 2 else "class"]
        path = (values.get("hub") or {}).get("path")
        stands_for: dict[str, Any] = {
            "name": values["name"] or path or "table",
            "text": values["text"] or ["text"],
            "label": values["label"] or "label",
            "labels": labels,
            "metrics": metrics,
            "primary_metric": values["primary_metric"] or metrics[0],
            "data_dir": ".",
            "hub": None,
        }
        kept = {field.name: values[field.name] for field in fields(Classification)}
        target = f"{Classification.__module__}.{Classification.__name__}"
        assumed = (
            "" if number or values["labels"] else "two classes are assumed; task.labels names those that there are"
        )
        return {**kept, **stands_for, "_target_": target}, [f"no rows were read: {assumed}"] if assumed else []

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
            return sources.hub_revision(self.hub, self.splits["train"])
        return sources.files_revision(self._files())

    def load(self) -> TaskData:
        """Read all rows one by one to see which are used, and again to keep those."""
        import numpy as np

        surveys = {split: self._survey(split) for split in self._found()}
        places = {split: np.arange(len(survey.answers)) for split, survey in surveys.items()}
        for split, share in (("validation", self.validation_share), ("development", self.development_share)):
            if split not in places:
                train = places["train"]
                aside = self._aside(surveys["train"].of(train), split, share)
                places["train"], places[split] = train[~aside], train[aside]
        used = {split: self._used(split, of_split) for split, of_split in places.items()}
        raw: dict[str, list[Row]] = {}
        for source in surveys:
            raw |= self._keep(source, {split: of for split, of in used.items() if _source(split, surveys) == source})
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

    def _survey(self, split: str) -> Survey:
        """Check all rows of a split, and keep of each what decides where it goes."""
        import numpy as np

        answers, texts, groups = array("d"), array("q"), array("q")
        told = time.monotonic()
        for where, row in self._rows(split):
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                log.info("%s: %s rows read", self._place(split), f"{len(answers):,}")
            self._checked_row(row, where)
            # Rows of one text belong together: one of them in training would give the other away.
            shown = self.shown(row)
            texts.append(splitting.key(" ".join(words(shown)) or shown.strip()))
            if self.group is not None:
                groups.append(splitting.key(as_text(row[self.group])))
            answers.append(row[self.label])
        if not answers:
            raise ConfigError(f"{self._place(split)}: the split has no rows")
        keys = [texts, groups] if self.group is not None else [texts]
        return Survey(np.frombuffer(answers), [np.frombuffer(one, dtype=np.int64) for one in keys])

    def _checked_row(self, row: Row, where: str) -> Row:
        (tidied,) = self.tidy(row)
        self.check_row(tidied, where)
        return tidied

    def _aside(self, survey: Survey, split: str, share: float) -> "NDArray[np.bool_]":
        """Which of some rows are set aside for a split."""
        if self.group is not None and (survey.keys[1] == survey.keys[1][0]).all():
            raise ConfigError(f"task.group={self.group}: all rows have one value there, so they can't be split by it")
        most = self.max_development_rows if split == "development" else len(survey.answers)
        strata = self.strata_of(survey.answers)
        return splitting.carve(strata, survey.keys, share, most, self.split_seed, split)

    def _used(self, split: str, places: "NDArray[np.intp]") -> "NDArray[np.intp]":
        most = {"train": self.max_train_rows, "development": None}.get(split, self.max_validation_rows)
        if most is None or most >= len(places):
            return places
        return places[sources.sample(len(places), most, self.split_seed)]

    def _keep(self, source: str, used: "dict[str, NDArray[np.intp]]") -> dict[str, list[Row]]:
        """The rows that are used, each in its split and there in its turn."""
        import numpy as np

        places = np.concatenate(list(used.values()))
        turns = iter(np.argsort(places).tolist())
        kept: list[Row] = [{}] * len(places)
        turn = next(turns)
        for place, (where, row) in enumerate(self._rows(source)):
            if place == places[turn]:
                kept[turn] = self._checked_row(row, where)
                kept[turn][IDX] = splitting.row_hash(row, self.columns())
                if (following := next(turns, None)) is None:
                    break
                turn = following
        rows = iter(kept)
        return {split: list(islice(rows, len(of_split))) for split, of_split in used.items()}

    def columns(self) -> list[str]:
        return [*super().columns(), *([self.group] if self.group else [])]

    def _set(self, **values: Any) -> None:
        """Fill in what was left open; the object is new, and nobody has it yet."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _files(self) -> dict[str, list[Path]]:
        return sources.find(tuple(self.file), tuple(self.splits.items()))

    def _found(self) -> list[str]:
        """The splits that there are."""
        if self.hub is None:
            return list(self._files())
        found = []
        for split, name in self.splits.items():
            try:
                sources.hub_columns(self.hub, name)
            except ConfigError:
                if split == "train":
                    raise
            else:
                found.append(split)
        return found

    def _rows(self, split: str) -> Iterator[tuple[str, Row]]:
        """The rows of a split as they are read, each with its place for a message."""
        wanted = self.columns()
        if self.hub is not None:
            where = self._place(split)
            self._look(where, sources.hub_columns(self.hub, self.splits[split]))
            for number, row in enumerate(sources.hub_rows(self.hub, self.splits[split]), start=1):
                yield f"{where}, row {number}", {name: row[name] for name in wanted}
            return
        for path in self._files()[split]:
            self._look(f"task.file={path}", files.columns(path, wanted))
            for number, row in enumerate(files.stream(path, wanted), start=1):
                yield f"task.file={path}, row {number}", row

    def _look(self, where: str, there: list[str]) -> None:
        for column in self.columns():
            if there and column not in there:
                raise ConfigError(f"{where}: no column {column!r}; {near_misses(column, there)}")

    def _place(self, split: str) -> str:
        if self.hub is not None:
            return f"task.hub.path={self.hub.path}, {split} split"
        return f"task.file={self._files()[split][0]}"

    def _columns(self) -> list[str]:
        if self.hub is not None:
            return sources.hub_columns(self.hub, self.splits["train"])
        return files.columns(self._files()["train"][0], [name for name in self.columns() if name])

    def _ask(self, key: str) -> None:
        """Name everything that is missing, or is no column, with what there is.

        Raises:
            ConfigError: Something is.
        """
        there = self._columns()
        if not there:
            raise ConfigError(f"{self._place('train')}: the split has no rows")
        told = f"columns: {', '.join(there)}"
        missing = [name for name, value in (("text", self.text), ("label", self.label)) if not value]
        if missing:
            values = [f"{column} has {found}" for column, found in self._glance(there).items()]
            wanted = ", ".join(f"{key}.{name}=" for name in missing)
            raise ConfigError(f"{wanted}: say which column it is ({told}; {'; '.join(values)})")
        told_as: dict[str | None, str] = dict.fromkeys(self.text, "text")
        told_as |= {self.label: "label", self.group: "group"}
        for column in self.columns():
            if column not in there:
                raise ConfigError(
                    f"{key}.{told_as[column]}={column}: no column {column!r}; {near_misses(column, there)}"
                )

    def _glance(self, columns: list[str]) -> dict[str, Values]:
        """The values of columns in the first rows of train."""
        if self.hub is not None:
            rows = sources.hub_rows(self.hub, self.splits["train"])
        else:
            rows = files.stream(self._files()["train"][0], columns)
        return count(islice(rows, files.GLANCED_AT), columns)

    def _values(self) -> Values:
        """The values of the answer's column, in all splits."""
        if self.hub is not None:
            hub = self.hub
            rows = (row for split in self._found() for row in sources.hub_rows(hub, self.splits[split]))
            return count(rows, [self.label])[self.label]
        paths = [path for paths in self._files().values() for path in paths]
        return _counted(tuple(_state(path) for path in paths), self.label)

    def _class_names(self) -> list[str]:
        """The order that the file itself gives its classes; empty where it gives none."""
        if self.hub is not None:
            return sources.hub_classes(self.hub, self.splits["train"]).get(self.label, [])
        return files.class_names(self._files()["train"][0]).get(self.label, [])

    def _understand(self, key: str) -> None:
        """Decide for classes or a number, and fill in classes and metrics."""
        kind, why = self._taken(key)
        if kind is Predict.classes and not self.labels:
            self._set(labels=self._class_names() or self._values().ordered())
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
        values = self._values()
        if reason := values.refusal():
            raise ConfigError(f"{key}.label={self.label}: {reason}")
        if self.predict is Predict.number:
            _check_no_classes(self.labels, key)
        different, numbers = len(values.counts), values.no_number is None
        if self.labels:
            return Predict.classes, f"classes, as task.labels names {len(self.labels)}"
        if different < 2:
            raise ConfigError(f"{key}.label={self.label}: all rows have {values}, so there is nothing to learn")
        if self.predict is Predict.number:
            if not numbers:
                raise ConfigError(f"{key}.predict=number: {values.no_number!r} in the column {self.label} is none")
            return self.predict, f"a number, as task.predict says; {values.different} values"
        if numbers and different > MOST_CLASSES_IN_NUMBERS and self.predict is Predict.auto:
            why = f"a number, since its {values.different} values are numbers, more than {MOST_CLASSES_IN_NUMBERS}"
            return Predict.number, f"{why}; task.predict=classes takes them for classes"
        if values.uncounted:
            raise ConfigError(f"{key}.label={self.label}: it has {values.different} values, too many for classes")
        if self.predict is Predict.classes:
            return self.predict, f"classes, as task.predict says; {different} values"
        if not numbers and values.rows > FEW_ROWS and different > LARGEST_SHARE_OF_VALUES * values.rows:
            raise ConfigError(
                f"{key}.label={self.label}: {different} different values in {values.rows} rows are no classes; name "
                f"another column, or {key}.predict=classes"
            )
        return Predict.classes, f"classes, since its {different} values are {'few numbers' if numbers else 'words'}"


def _check_no_classes(labels: list[str], key: str) -> None:
    if labels:
        raise ConfigError(f"{key}.labels={labels}: {key}.predict=number predicts a number, which has no classes")


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _counted(states: tuple[tuple[str, int, int], ...], column: str) -> Values:
    """Read once for a sweep's many points; a changed file is another."""
    return count((row for name, _, _ in states for row in files.stream(Path(name), [column])), [column])[column]


def _source(split: str, read: Container[str]) -> str:
    """The split that a split's rows are read with: its own, or train, which it is carved from."""
    return split if split in read else "train"


def _digest(rows: list[Row]) -> str:
    return hashlib.sha256("\n".join(sorted(row[IDX] for row in rows)).encode()).hexdigest()
