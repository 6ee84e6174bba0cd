"""Reports that have a name: which runs, which columns, held against what.

`harness-report NAME` reads reports/NAME.yaml. A definition says what flags could say too, and a flag given beside its
name counts instead.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from harness.config.build import typed
from harness.config.errors import ConfigError
from harness.config.sources import conf_root

FOLDER = "reports"


# Beside the definitions, and none.
LEDGER = "claims"


class Pairs(Enum):
    """Which methods are tested against each other."""

    baseline = "baseline"
    all = "all"


class Analysis(Enum):
    """What tests are for: with Holm's correction they confirm, with Benjamini and Hochberg's they explore."""

    confirmatory = "confirmatory"
    exploratory = "exploratory"


@dataclass(kw_only=True)
class Definition:
    """Definition of a report; every key may be left out.

    Attributes:
        title: Its heading.
        sweep: Only the runs of these sweeps.
        task: Only those of these tasks.
        model: Of these models.
        method: Of these methods: the rows.
        status: That ended so.
        since: That ended then or later: 2026-01-31 or 2026-01-31T18:00, UTC.
        columns: Of the score tables, in this order: names of `harness.report.tables.COLUMNS`, or any figure of the
            runs by its name in the store, such as validation.f1 or cost.swap_ms. Method, score and remarks are always
            there.
        baseline: The row that the others are held against, or a method with one row; full fine-tuning unless set. A
            task that lacks it, or has it in several rows, has its highest one.
        plots: Pictures that are drawn, by their file's name without ending.
        pairs: Each method is tested against the baseline, or with `all` against each other one too; so it is where the
            scores themselves chose the baseline.
        analysis: Whether the tests confirm or explore; by default they explore where a task has more than ten methods
            and a baseline that was fixed in advance.
        published: A CSV file of scores that others published (`harness.report.published`), shown below ours.
    """

    title: str | None = None
    sweep: list[str] | None = None
    task: list[str] | None = None
    model: list[str] | None = None
    method: list[str] | None = None
    status: list[str] | None = None
    since: str | None = None
    columns: list[str] | None = None
    baseline: str | None = None
    plots: list[str] | None = None
    pairs: Pairs = Pairs.baseline
    analysis: Analysis | None = None
    published: str | None = None


def find(name: str) -> dict[str, Any] | None:
    """Read the definition of a report, checked; null where there is none of that name.

    One in the working directory goes before a shipped one.

    Raises:
        ConfigError: Its file is damaged, or a key or a value in it is wrong.
    """
    if name == LEDGER:
        raise ConfigError(f"{name}: the ledger of claims is no report; judge it with python -m harness.claims")
    for folder in folders():
        path = folder / f"{name}.yaml"
        if name in _names(folder):
            try:
                content = OmegaConf.to_container(OmegaConf.load(path))
            except (YAMLError, OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
            if not isinstance(content, dict):
                raise ConfigError(f"{path}: keys with values are needed, such as sweep: NAME")
            given = {str(key): texts(str(key), value) for key, value in content.items()}
            for key in LISTS:
                if isinstance(given.get(key), dict):
                    raise ConfigError(f"{path}: {name}.{key}: a name is needed, or a list of names")
            try:
                typed(Definition, given, name)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
            return given
    return None


def names() -> list[str]:
    """List the reports that have a name, shipped or in the working directory."""
    return sorted({name for folder in folders() for name in _names(folder)})


def texts(key: str, value: Any) -> Any:
    """Split what may be several values at its commas, so that a file reads as the flags do."""
    listed = key in LISTS and isinstance(value, str)
    return [part.strip() for part in value.split(",")] if listed else value


def folders() -> list[Path]:
    """Where reports that have a name lie: those of the working directory, which go first, and the shipped ones."""
    return [Path(FOLDER), conf_root() / FOLDER]


def _names(folder: Path) -> list[str]:
    return sorted({path.stem for path in folder.glob("*.yaml")} - {LEDGER}) if folder.is_dir() else []


LISTS = (*(name for name, kind in Definition.__annotations__.items() if kind == list[str] | None), "others")
