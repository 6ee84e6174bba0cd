"""`harness-report`: a tracking store becomes tables, a plot, Markdown, LaTeX, CSV and one HTML page.

usage: harness-report [NAME] [--sync DIR] [key=value ...]

  harness-report                          everything in the default store, into report/
  harness-report NAME                     as reports/NAME.yaml says, shipped or in the working directory, into
                                          report/NAME/; keys beside it count instead of the file's
  harness-report sweep=NAME               one sweep (its file's name unless sweep.name was set)
  harness-report store=runs method=lora,full since=2026-01-31
                                          what lies in a folder of runs, without a store
  harness-report compare=RUN_A,RUN_B      two runs side by side, into comparison/
  harness-report --sync runs              send the runs below a folder that the store lacks, then stop
  harness-report watch=true [sweep=NAME]  what is running now: step, loss, score, refreshed until Ctrl-C
  harness-report stop=RUN                 ask a running run to stop after its step; it keeps a checkpoint

keys:
  sweep=NAME                only the runs of this sweep; several with commas
  task=, model=, method=    only the runs of these; several with commas
  status=                   only finished, diverged, failed, out_of_memory or interrupted ones
  since=DATE                only runs that ended then or later: 2026-01-31 or 2026-01-31T18:00, UTC
  title=TEXT                the report's heading
  columns=NAME,...          of the score tables: sd n interval groups best base forgetting trainable share seconds
                            tokens_per_second adapter, or any figure of the runs, such as validation.f1
  baseline=METHOD           what the others are held against, where a task has it (full, or else the best)
  pairs=all                 every pair of methods is tested, not each against the baseline alone
  analysis=KIND             confirmatory (Holm) or exploratory (Benjamini-Hochberg, of more than ten methods by default)
  plots=NAME,...            only these pictures, such as score_vs_parameters,seeds
  compare=RUN_A,RUN_B       two run directories, or ids of runs in the store
  attach=true|false         put the report on the sweep's parent run in the store too; by default where the report is of
                            one whole sweep of a store in a file
  watch=true                the runs that are running, each with its step and score, until Ctrl-C
  stop=RUN                  the run that is to stop: the beginning of its id
  ui=true                   MLflow's own pages on the store, on http://127.0.0.1:PORT, until Ctrl-C; port=5000
  out=FOLDER                where the files go (report; comparison for compare)
  store=FOLDER              read the result.json files below a folder instead of a store
  others=PATH,...           results of others beside ours: JSON files, or folders of them, of peft's method_comparison
  published=FILE            scores of others below ours, untested: CSV with task, metric, score, method, model, and any
                            of spread, parameters, split, setting, source
  tracking.uri=URI          the store: sqlite:///FILE or http://HOST:PORT (sqlite:///mlflow.db)
  tracking.experiment=NAME  the experiment that --sync sends to (peft-harness)
  sync=FOLDER               the same as --sync FOLDER
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import tracking
from harness.config.command import DONE, carry_out, key_value
from harness.config.errors import ConfigError, near_misses
from harness.config.sources import conf_root
from harness.report import definitions
from harness.report.definitions import Definition
from harness.report.report import Report, _ours, build, write
from harness.tracking import pages
from harness.tracking import uri as tracking_uri
from harness.tracking.sweep_view import COSTS
from harness.tracking.uri import parse as parse_uri
from harness.tracking.uri import redact
from harness.training.interrupts import kill_as_interrupt
from harness.training.metrics import higher_is_better

if TYPE_CHECKING:
    import pandas as pd

    from harness.report.runs import Runs

# Damaged files that are named one by one.
NAMED = 10


@dataclass
class Tracking:
    """Which store; the defaults are those of conf/tracking/local.yaml."""

    uri: str
    experiment: str


@dataclass(kw_only=True)
class Options(Definition):
    """Options of the command line; `name` is that of the definition that it began with."""

    tracking: Tracking
    name: str | None = None
    compare: str | None = None
    out: str | None = None
    store: str | None = None
    others: list[str] | None = None
    sync: str | None = None
    attach: bool | None = None
    watch: bool = False
    stop: str | None = None
    ui: bool = False
    port: int = 5000

    @property
    def wanted(self) -> dict[str, list[str]]:
        """Filters that may be of several values: name -> values, where they were given."""
        given = {name: getattr(self, name) for name in ("task", "model", "method", "status")}
        return {name: values for name, values in given.items() if values is not None}


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command and return its exit status."""
    return carry_out(_carry_out, str(__doc__), arguments, name="harness-report")


def _carry_out(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.sync is not None:
        _sync(options)
    elif options.stop is not None:
        tracking.ask_to_stop(options.tracking.uri, options.stop)
    elif options.watch:
        _watch(options)
    elif options.ui:
        return _browse(options)
    elif options.compare is not None:
        _compare(options)
    else:
        _report(options)
    return DONE


def parse(arguments: Sequence[str]) -> Options:
    """Check the command line.

    Raises:
        ConfigError: An argument is not key=value, or its key is unknown.
    """
    local = OmegaConf.load(conf_root() / "conf" / "tracking" / "local.yaml")
    options = OmegaConf.structured(Options(tracking=Tracking(local.uri, local.experiment)))
    known = [f"tracking.{key}" for key in options.tracking]
    known += [key for key in options if key not in ("tracking", "name")]
    rest = list(arguments)
    defined = definitions.find(rest[0]) if rest else None
    if defined is not None:
        options = OmegaConf.merge(options, OmegaConf.create(defined | {"name": rest.pop(0)}))
    while rest:
        argument = rest.pop(0)
        if argument == "--sync":
            argument = f"sync={rest.pop(0) if rest and rest[0].partition('=')[0] not in known else ''}"
        key, equals, _ = argument.removeprefix("--").partition("=")
        if key not in known and not equals and not argument.startswith("-") and argument == arguments[0]:
            near = near_misses(key, definitions.names())
            raise ConfigError(f"{redact(key)}: there is no key and no definition of a report of this name; {near}")
        key, value = key_value(argument.removeprefix("--"), known, _shown)
        try:
            # As it stands, not as YAML: a folder called 1e3 or a sweep called on is a name.
            OmegaConf.update(options, key, definitions.texts(key, value.replace("${", r"\${")), merge=False)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{_shown(argument)}: {str(error).splitlines()[0]}") from None
    checked: Any = OmegaConf.to_object(options)
    return checked


def _shown(argument: str) -> str:
    key, equals, value = argument.partition("=")
    return f"{key}={redact(value)}" if equals else redact(argument)


def _sync(options: Options) -> None:
    outcome = tracking.sync(Path(str(options.sync)), options.tracking.uri, options.tracking.experiment)
    store = tracking_uri.redact(options.tracking.uri)
    print(f"sent {len(outcome.sent)}, already there {len(outcome.present)}, damaged {len(outcome.damaged)}: {store}")
    for reason in outcome.damaged.values():
        print(f"not sent: {tracking_uri.redact(reason)}", file=sys.stderr)


def _report(options: Options) -> None:
    from harness.report import curves

    found = _load(options)
    # A folder of records holds no curves.
    learning = None if options.store else curves.load(options.tracking.uri, options.sweep)
    report = build(found.frame, options, learning, _server(options))
    filters = [f"{name}={','.join(values)}" for name, values in options.wanted.items()]
    filters += [f"since={options.since}"] * (options.since is not None)
    report.notes += [f"Only runs with {' '.join(filters)}."] * bool(filters)
    report.notes += found.damaged[:NAMED]
    report.notes += [f"{len(found.damaged) - NAMED} more files are damaged."] * (len(found.damaged) > NAMED)
    out = Path(options.out or Path("report", options.name or ""))
    _show(report, out)
    _attach(options, report, out)
    print(f"Every run: {options.store or _browsed(options.tracking.uri)}")


def _attach(options: Options, report: Report, out: Path) -> None:
    """Put the report on its sweep's parent run, if that was asked for, or by default.

    The default is yes for all runs of one sweep, in a file that has its artifacts beside it.

    Raises:
        ConfigError: It was asked for, and there is no one sweep.
    """
    one = options.sweep is not None and len(options.sweep) == 1 and options.store is None
    if options.attach and not one:
        raise ConfigError("attach=true: a report of one sweep in a store can be attached, write sweep=NAME")
    filtered = bool(options.wanted) or options.since is not None or bool(options.others)
    if options.attach is False or not one or (options.attach is None and (filtered or _server(options))):
        return
    assert options.sweep is not None
    try:
        lead = report.lead.replace("\n", "\n\n")
        text = f"# {report.title}\n\n{lead}\n\nThe report: artifacts, {pages.REPORT_FOLDER}/report.html"
        columns, lowest = _view_columns(report.frames["runs"])
        given = (options.tracking.uri, options.sweep[0], text, columns, lowest)
        where = tracking.attach(_ours(out), *given, anywhere=bool(options.attach))
    except (ConfigError, ConnectionError) as error:
        if options.attach:
            raise
        print(f"not attached: {redact(str(error))}", file=sys.stderr)
        return
    if where:
        print(f"Attached to the run sweep {options.sweep[0]} ({where})")


def _view_columns(runs: "pd.DataFrame") -> tuple[list[str], bool]:
    """Columns that MLflow's pages show of a sweep's runs, and whether the lowest comes first."""
    metrics = runs["primary_metric"][runs["primary_metric"] != ""].value_counts().index.tolist()
    split = "validation" if runs["validation"].notna().any() else "development"
    names = [f"{split}.{metric}" for metric in metrics[:3]] + [f"development.{metric}" for metric in metrics[:3]]
    names = [*dict.fromkeys(names), *COSTS]
    return [name for name in names if name in runs], bool(metrics) and not higher_is_better(metrics[0])


def _browse(options: Options) -> int:
    with kill_as_interrupt():
        return tracking.browse(options.tracking.uri, options.port, lambda line: print(line, flush=True))


def _watch(options: Options) -> None:
    from harness.report.watch import watch

    if options.sweep is not None and len(options.sweep) != 1:
        raise ConfigError(
            f"watch=true sweep={','.join(options.sweep)}: one sweep can be watched at a time, or all runs"
        )
    watch(options.tracking.uri, options.sweep[0] if options.sweep else None)


def _compare(options: Options) -> None:
    from harness.report import side_by_side

    names = str(options.compare).split(",")
    if len(names) != 2 or not all(names):
        raise ConfigError(f"compare={options.compare}: give two run directories or ids, compare=RUN_A,RUN_B")
    first, second = side_by_side.find_runs(names, _place(options))
    lead, tables, notes = side_by_side.tables(first, second, _server(options))
    _show(Report("Two runs side by side", lead, tables, notes, {}), Path(options.out or "comparison"))


def _show(report: Report, out: Path) -> None:
    """Write the files, and print what they say."""
    from harness.report import terminal

    write(report, out)
    print(report.title)
    print(report.lead)
    print()
    terminal.show(report.tables)
    for note in report.notes:
        print(note)
    print(f"\nWritten to {out}: {', '.join(sorted(path.name for path in _ours(out)))}")


def _place(options: Options) -> str:
    """Source of the runs: a folder, or a store.

    Raises:
        ConfigError: The one was given as the other.
    """
    if options.store is None:
        parse_uri(options.tracking.uri)
        return options.tracking.uri
    if "://" in options.store:
        raise ConfigError(f"store={redact(options.store)} is no folder; write tracking.uri={redact(options.store)}")
    return options.store


def _load(options: Options) -> "Runs":
    """Read the store.

    Raises:
        ConfigError: There is nothing to report on; says what there is.
    """
    from harness.report import runs

    place: str | None = _place(options)
    if (
        options.others
        and options.store is None
        and (file := parse_uri(options.tracking.uri).path)
        and not file.exists()
    ):
        place = None
    found = runs.read(place, options.wanted, options.sweep, options.since, options.others or ())
    if found.frame.empty:
        given = f"store={options.store}" if options.store else f"tracking.uri={redact(options.tracking.uri)}"
        raise runs.nothing_found(found, {"sweep": options.sweep, **options.wanted, "since": options.since}, given)
    return found


def _server(options: Options) -> str | None:
    """The tracking URI, where it is a server's and that is what is read."""
    return options.tracking.uri if options.store is None and parse_uri(options.tracking.uri).path is None else None


def _browsed(uri: str) -> str:
    place = parse_uri(uri)
    if place.path is None:
        return redact(place.uri)
    return f"harness-report ui=true tracking.uri={uri}"


if __name__ == "__main__":
    sys.exit(main())
