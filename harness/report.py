"""`harness-report`: a tracking store becomes tables, a plot, Markdown, CSV and one HTML page.

usage: harness-report [--sync DIR] [key=value ...]

  harness-report                          everything in the default store, into report/
  harness-report sweep=NAME               one sweep (its file's name unless sweep.name was set)
  harness-report --sync runs              send the runs below a folder that the store lacks, then stop

keys:
  sweep=NAME                only the runs of this sweep
  out=FOLDER                where the files go (report)
  tracking.uri=URI          the store: sqlite:///FILE or http://HOST:PORT (sqlite:///mlflow.db)
  tracking.experiment=NAME  the experiment that --sync sends to (peft-harness)
  sync=FOLDER               the same as --sync FOLDER
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from harness.reporting.render import Table

FILES = "report.md report.html scores.csv costs.csv runs.csv tuning.csv predictions.csv failures.csv".split()
# Pictures that a report may have; those over a size of a method are named after it, as in score_vs_rank.
PICTURES = "score_vs_* seeds learning_rates learning_curves memory predicted_vs_measured forgetting".split()
MISTAKEN = 2


@dataclass
class Tracking:
    """Which store; the defaults are those of conf/tracking/local.yaml."""

    uri: str
    experiment: str


@dataclass
class Options:
    """What the command line may say."""

    tracking: Tracking
    sweep: str | None = None
    out: str = "report"
    sync: str | None = None


@dataclass
class Report:
    """What is shown and written; everything comes from one frame."""

    title: str
    lead: str
    tables: "list[Table]"
    notes: list[str]
    frames: "dict[str, pd.DataFrame]"
    pictures: "dict[str, dict[str, bytes]]" = field(default_factory=dict)
    curves: "pd.DataFrame | None" = None
    server: str | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake ends it with one sentence and exit status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    from harness.config import ConfigError

    try:
        options = parse(arguments)
        if options.sync is not None:
            _sync(options)
        else:
            _report(options)
    except (ConfigError, ConnectionError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"harness-report: {error}", file=sys.stderr)
        sys.exit(MISTAKEN)


def parse(arguments: Sequence[str]) -> Options:
    """Check the command line.

    Raises:
        ConfigError: An argument is not key=value, or its key is unknown.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from harness.config import ConfigError, conf_root, near_misses
    from harness.store import redact

    local = OmegaConf.load(conf_root() / "conf" / "tracking" / "local.yaml")
    options = OmegaConf.structured(Options(Tracking(local.uri, local.experiment)))
    known = [f"tracking.{key}" for key in options.tracking] + [key for key in options if key != "tracking"]
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--sync":
            argument = f"sync={rest.pop(0) if rest and rest[0].partition('=')[0] not in known else ''}"
        key, equals, value = argument.removeprefix("--").partition("=")
        if key not in known:
            raise ConfigError(f"{_shown(argument)}: there is no key {redact(key)}; {near_misses(key, known)}")
        if not equals or not value:
            raise ConfigError(f"{argument}: a value is needed, write {key}=VALUE")
        try:
            # As it stands, not as YAML: a folder called 1e3 or a sweep called on is a name.
            OmegaConf.update(options, key, value.replace("${", r"\${"))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{_shown(argument)}: {str(error).splitlines()[0]}") from None
    checked: Any = OmegaConf.to_object(options)
    return checked  # type: ignore[no-any-return]


def _shown(argument: str) -> str:
    from harness.store import redact

    key, equals, value = argument.partition("=")
    return f"{key}={redact(value)}" if equals else redact(argument)


def _sync(options: Options) -> None:
    from harness import tracking

    outcome = tracking.sync(Path(str(options.sync)), options.tracking.uri, options.tracking.experiment)
    store = tracking.redact(options.tracking.uri)
    print(f"sent {len(outcome.sent)}, already there {len(outcome.present)}, damaged {len(outcome.damaged)}: {store}")
    for reason in outcome.damaged.values():
        print(f"not sent: {tracking.redact(reason)}", file=sys.stderr)


def _report(options: Options) -> None:
    from harness.reporting import curves, render
    from harness.store import parse as parse_uri
    from harness.store import redact

    out = Path(options.out)
    frame = _load(options)
    report = build(frame, options.sweep, curves.load(options.tracking.uri, options.sweep))
    if parse_uri(options.tracking.uri).path is None:
        report.server = redact(options.tracking.uri)
    write(report, out)
    print(report.title)
    print(report.lead)
    print()
    render.terminal(report.tables)
    for note in report.notes:
        print(note)
    print(f"\nWritten to {out}: {', '.join(sorted(path.name for path in _ours(out)))}")
    print(f"Every run: {_browse(options.tracking.uri)}")


def _load(options: Options) -> "pd.DataFrame":
    """Read the store.

    Raises:
        ConfigError: There is nothing to report on; says what there is.
    """
    from harness import store, tracking
    from harness.config import ConfigError, near_misses
    from harness.reporting import scores

    uri = options.tracking.uri
    given, place = f"tracking.uri={tracking.redact(uri)}", store.parse(uri)
    if place.path and not place.path.exists():
        raise ConfigError(f"{given}: there is no such store; run harness first, or harness-report --sync runs")
    tracking.check(uri)
    frame = scores.load(uri, options.sweep)
    if frame.empty:
        there = {name or "(no sweep)": count for name, count in tracking.sweeps(uri).items()}
        if not there:
            raise ConfigError(f"{given}: no runs found in it; run harness first, or harness-report --sync runs")
        counted = [f"{name} ({count} run{'' if count == 1 else 's'})" for name, count in there.items()]
        close = near_misses(str(options.sweep), there).partition("Valid:")[0]
        raise ConfigError(f"sweep={options.sweep}: no runs found in {given}; {close}There are: {', '.join(counted)}")
    return frame


def build(frame: "pd.DataFrame", sweep: str | None, curves: "pd.DataFrame | None" = None) -> Report:
    """Make a report from the frame of `scores.load`, which must not be empty; the same frame gives the same report."""
    from harness.reporting import pictures, render, scores

    summary, tuning, failures = scores.summary(frame), scores.tuning(frame), scores.failures(frame)
    costs, predictions = scores.costs(frame), scores.predictions(frame)
    extra = [render.prediction_table(predictions), render.tuning_table(tuning), render.failure_table(failures)]
    tables = render.score_tables(summary) + render.cost_tables(costs)
    tables += [table for table in extra if table is not None]
    title = render.TITLE + (f": {scores.plain(sweep)}" if sweep else "")
    frames = {"scores": summary, "costs": costs, "runs": frame.drop(columns=["artifact_uri"]), "tuning": tuning}
    frames |= {"predictions": predictions, "failures": failures}
    notes = render.protocol(summary, not tuning.empty)
    return Report(title, render.opening(frame), tables, notes, frames, pictures.draw(frame, curves), curves)


def write(report: Report, out: Path) -> None:
    """Write the files of a report, and remove those of an earlier one that this one lacks.

    Raises:
        ConfigError: The folder cannot be written.
    """
    from harness.config import ConfigError
    from harness.reporting import render
    from harness.reporting.page import page

    contents = {f"{name}.{kind}": drawn for name, kinds in report.pictures.items() for kind, drawn in kinds.items()}
    svg = {name: kinds["svg"].decode() for name, kinds in report.pictures.items()}
    text = (report.title, report.lead, report.tables, report.notes)
    written = page(*text, svg, report.frames["runs"], report.curves, report.server)
    contents |= {
        "report.md": render.markdown(*text, [f"{name}.png" for name in svg]).encode(),
        "report.html": written.encode(),
    }
    for name, frame in report.frames.items():
        if len(frame):
            contents[f"{name}.csv"] = frame.to_csv(index=False, lineterminator="\n").encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (out / name).write_bytes(content)
        for path in _ours(out):
            if path.name not in contents:
                path.unlink()
    except OSError as error:
        raise ConfigError(f"out={out}: the folder cannot be written ({error.strerror}); name another") from None


def _ours(out: Path) -> list[Path]:
    """Find the files of a report in a folder."""
    names = FILES + [f"{name}.{kind}" for name in PICTURES for kind in ("svg", "png")]
    return [path for name in names for path in out.glob(name)]


def _browse(uri: str) -> str:
    from harness.store import parse, redact

    place = parse(uri)
    if place.path is None:
        return redact(place.uri)
    return f"mlflow ui --backend-store-uri {place.uri} --host 127.0.0.1 --port 5000"


if __name__ == "__main__":
    main()
