"""Replay of races on sweeps whose trials all ran to their ends: `python -m harness.replay store=STORE`.

    python -m harness.replay store=sqlite:///mlflow.db sweep=NAME,NAME

It shows what stopping trials on their way (`hydra.sweeper.rungs`, `hydra.sweeper.race`) would have saved, and how often
it would have chosen the same learning rate or one that is not told apart from it, for a range of error levels and for
fixed rungs. Nothing is trained: what each development row came to at each evaluation lies with the runs
(`development.parquet`). A page, a table and a picture are written.
"""

import sys
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

from harness.config.command import carry_out, key_values, options, writing
from harness.config.errors import ConfigError
from harness.config.schema import LARGEST_SEED
from harness.replay.races import Rule, load, replay
from harness.report.runs import DEFAULT_STORE
from harness.tracking.uri import redact

# Error levels, and the rungs of the races and of the fixed rule. Half-way alone, then earlier and earlier first rounds.
LEVELS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
RUNGS = ((0.5,), (0.25, 0.5), (0.125, 0.25, 0.5), (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875))


@dataclass
class Study:
    """Options of `python -m harness.replay`, as `key=value`.

    Attributes:
        store: `sqlite:///FILE`, `http://HOST:PORT`, or a folder with run directories.
        sweep: Only these sweeps, separated by commas; null: all.
        out: Folder to write.
        replays: How often the development rows are drawn anew.
        seed: Of what is drawn.
    """

    store: str = DEFAULT_STORE
    sweep: str | None = None
    out: str = "racing"
    replays: int = 100
    seed: int = 0


def parse(arguments: list[str]) -> Study:
    """Read `key=value` arguments.

    Raises:
        ConfigError: A key is unknown or given without a value, or a value can't be.
    """
    study = options(Study, key_values(arguments, [field.name for field in fields(Study)]))
    if study.replays < 2:
        raise ConfigError(f"replays={study.replays}: two or more are needed")
    if not 0 <= study.seed <= LARGEST_SEED:
        raise ConfigError(f"seed={study.seed}: a whole number from 0 to {LARGEST_SEED} is allowed")
    return study


def rules() -> list[Rule]:
    """The fixed rungs, then races from the lowest error level to the highest."""
    return [Rule(rungs, level) for rungs, level in product(RUNGS, (None, *LEVELS))]


def study_races(study: Study) -> Path:
    """Replay, write page, table and picture, and return the page.

    Raises:
        ConfigError: There is nothing to replay, or the folder can't be written.
        ConnectionError: The store cannot be read.
    """
    from harness.replay.page import page, picture

    curves = load(study.store, study.sweep.split(",") if study.sweep else None)
    if not curves:
        asked = f"store={redact(study.store)}" + (f" sweep={study.sweep}" if study.sweep else "")
        raise ConfigError(
            f"{asked}: no method there has three or more trials that ran to their ends, with one seed and what each"
            " development row came to (development.parquet)"
        )
    found = replay(curves, rules(), study.replays, study.seed)
    out = Path(study.out).expanduser()
    with writing("out", study.out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "replay.csv").write_text(found.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        for kind, content in picture(found).items():
            (out / f"racing.{kind}").write_bytes(content)
        (out / "report.md").write_text(page(found, curves, study.replays), encoding="utf-8")
    return out / "report.md"


def main() -> int:
    """Carry out the command and return its exit status."""
    return carry_out(lambda arguments: print(study_races(parse(arguments))), str(__doc__))


if __name__ == "__main__":
    sys.exit(main())
