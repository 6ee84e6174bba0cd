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
  ui=true                   MLflow's own pages on the store, on http://127.0.0.1:PORT, until Ctrl-C; port=5000
  out=FOLDER                where the files go (report; comparison for compare)
  store=FOLDER              read the result.json files below a folder instead of a store
  others=PATH,...           results of others beside ours: JSON files, or folders of them, of peft's method_comparison
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

from harness.reporting.definitions import Definition

if TYPE_CHECKING:
    import pandas as pd

    from harness.reporting.render import Table
    from harness.reporting.runs import Runs

FILES = (
    "report.md report.html report.tex scores.csv comparisons.csv across.csv costs.csv runs.csv tuning.csv "
    "predictions.csv failures.csv noise.csv"
).split()
# Pictures that a report may have; those over a size of a method are named after it, as in score_vs_rank.
PICTURES = "score_vs_* seeds learning_rates learning_curves memory predicted_vs_measured forgetting".split()
MISTAKEN = 2
# Damaged files that are named one by one.
NAMED = 10


@dataclass
class Tracking:
    """Which store; the defaults are those of conf/tracking/local.yaml."""

    uri: str
    experiment: str


@dataclass(kw_only=True)
class Options(Definition):
    """What the command line may say; `name` is that of the definition that it began with."""

    tracking: Tracking
    name: str | None = None
    compare: str | None = None
    out: str | None = None
    store: str | None = None
    others: list[str] | None = None
    sync: str | None = None
    attach: bool | None = None
    ui: bool = False
    port: int = 5000

    @property
    def wanted(self) -> dict[str, list[str]]:
        """Filters that may be of several values: name -> values, where they were given."""
        given = {name: getattr(self, name) for name in ("task", "model", "method", "status")}
        return {name: values for name, values in given.items() if values is not None}


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
        elif options.ui:
            sys.exit(_browse(options))
        elif options.compare is not None:
            _compare(options)
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
    from harness.reporting import definitions
    from harness.store import redact

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
        key, equals, value = argument.removeprefix("--").partition("=")
        if key not in known and not equals and not argument.startswith("-") and argument == arguments[0]:
            near = near_misses(key, definitions.names())
            raise ConfigError(f"{redact(key)}: there is no key and no definition of a report of this name; {near}")
        if key not in known:
            raise ConfigError(f"{_shown(argument)}: there is no key {redact(key)}; {near_misses(key, known)}")
        if not equals or not value:
            raise ConfigError(f"{argument}: a value is needed, write {key}=VALUE")
        try:
            # As it stands, not as YAML: a folder called 1e3 or a sweep called on is a name.
            OmegaConf.update(options, key, definitions.texts(key, value.replace("${", r"\${")), merge=False)
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
    from harness.reporting import curves

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
    """Put the report on its sweep's parent run, if that was asked for, or goes without saying.

    It goes without saying of all runs of one sweep, in a file that has its artifacts beside it.

    Raises:
        ConfigError: It was asked for, and there is no one sweep.
    """
    from harness import tracking
    from harness.config import ConfigError
    from harness.store import redact

    one = options.sweep is not None and len(options.sweep) == 1 and options.store is None
    if options.attach and not one:
        raise ConfigError("attach=true: a report of one sweep in a store can be attached, write sweep=NAME")
    filtered = bool(options.wanted) or options.since is not None or bool(options.others)
    if options.attach is False or not one or (options.attach is None and (filtered or _server(options))):
        return
    assert options.sweep is not None
    try:
        text = f"# {report.title}\n\n{report.lead}\n\nThe report: artifacts, {tracking.REPORT_FOLDER}/report.html"
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
    """What MLflow's pages show of a sweep's runs, and whether the lowest comes first."""
    from harness.metrics import higher_is_better

    metrics = runs["primary_metric"][runs["primary_metric"] != ""].value_counts().index.tolist()
    split = "validation" if runs["validation"].notna().any() else "development"
    names = [f"{split}.{metric}" for metric in metrics[:3]] + ["cost.trainable_parameters", "cost.train_seconds"]
    return [name for name in names if name in runs], bool(metrics) and not higher_is_better(metrics[0])


def _browse(options: Options) -> int:
    from harness import tracking

    address = f"http://127.0.0.1:{options.port}"
    print(f"MLflow on {address}, Ctrl-C ends it", flush=True)
    for name, path in tracking.views(options.tracking.uri).items():
        print(f"{name}: {address}{path}", flush=True)
    return tracking.browse(options.tracking.uri, options.port)


def _compare(options: Options) -> None:
    from harness.config import ConfigError
    from harness.reporting import side_by_side

    names = str(options.compare).split(",")
    if len(names) != 2 or not all(names):
        raise ConfigError(f"compare={options.compare}: give two run directories or ids, compare=RUN_A,RUN_B")
    first, second = side_by_side.find_runs(names, _place(options))
    lead, tables, notes = side_by_side.tables(first, second, _server(options))
    _show(Report("Two runs side by side", lead, tables, notes, {}), Path(options.out or "comparison"))


def _show(report: Report, out: Path) -> None:
    """Write the files, and print what they say."""
    from harness.reporting import render

    write(report, out)
    print(report.title)
    print(report.lead)
    print()
    render.terminal(report.tables)
    for note in report.notes:
        print(note)
    print(f"\nWritten to {out}: {', '.join(sorted(path.name for path in _ours(out)))}")


def _place(options: Options) -> str:
    """What is read: a folder of runs, or a store.

    Raises:
        ConfigError: The one was given as the other.
    """
    from harness.config import ConfigError
    from harness.store import parse, redact

    if options.store is None:
        parse(options.tracking.uri)
        return options.tracking.uri
    if "://" in options.store:
        raise ConfigError(f"store={redact(options.store)} is no folder; write tracking.uri={redact(options.store)}")
    return options.store


def _load(options: Options) -> "Runs":
    """Read the store.

    Raises:
        ConfigError: There is nothing to report on; says what there is.
    """
    from harness.reporting import runs
    from harness.store import parse, redact

    place: str | None = _place(options)
    if options.others and options.store is None and (file := parse(options.tracking.uri).path) and not file.exists():
        place = None
    found = runs.read(place, options.wanted, options.sweep, options.since, options.others or ())
    if found.frame.empty:
        given = f"store={options.store}" if options.store else f"tracking.uri={redact(options.tracking.uri)}"
        raise runs.nothing_found(found, {"sweep": options.sweep, **options.wanted, "since": options.since}, given)
    return found


def _server(options: Options) -> str | None:
    """The tracking URI, where it is a server's and that is what is read."""
    from harness.store import parse

    return options.tracking.uri if options.store is None and parse(options.tracking.uri).path is None else None


def build(
    frame: "pd.DataFrame",
    definition: Definition,
    curves: "pd.DataFrame | None" = None,
    server: str | None = None,
) -> Report:
    """Make a report from the frame of `scores.load`, which must not be empty; the same frame gives the same report.

    Args:
        frame: A row a run, filtered already.
        definition: What to show of it.
        curves: Of `curves.load`.
        server: Tracking URI of the server that the runs come from.

    Raises:
        ConfigError: A column, the baseline or a picture that was asked for is not there.
    """
    from harness.reporting import across, noise, pairwise, pictures, render, scores
    from harness.store import parse

    summary, tuning, failures = scores.summary(frame), scores.tuning(frame), scores.failures(frame)
    if definition.columns is not None:
        summary = render.with_figures(summary, frame, definition.columns)
    chosen = (definition.pairs, definition.analysis)
    found = pairwise.compare_tasks(frame, summary, definition.baseline, server, *chosen)
    together = across.over_tasks(frame, summary)
    summary = pairwise.annotated(summary, found)
    costs, predictions = scores.costs(frame), scores.predictions(frame)
    scatter = noise.noise(frame)
    extra = [
        noise.noise_table(scatter),
        render.prediction_table(predictions),
        render.tuning_table(tuning),
        render.failure_table(failures),
    ]
    tables = [render.across_table(together)] if together else []
    tables += render.score_tables(summary, found, definition.columns)
    tables += render.option_tables(summary, scores.options(frame))
    tables += render.pair_tables(found) + render.cost_tables(costs)
    tables += [table for table in extra if table is not None]
    sweeps = f": {scores.plain(', '.join(definition.sweep))}" if definition.sweep else ""
    title = scores.plain(definition.title or render.TITLE + sweeps)
    frames = {"scores": summary, "costs": costs, "runs": frame.drop(columns=["artifact_uri"]), "tuning": tuning}
    frames |= {"comparisons": pairwise.pairs(found), **({"across": together.table} if together else {})}
    frames |= {"predictions": predictions, "failures": failures, "noise": scatter}
    notes = render.protocol(summary, not tuning.empty) + render.odd(frame) + pictures.telling(pictures.points(frame))[1]
    drawn = pictures.draw(frame, curves, definition.plots)
    address = None if server is None else parse(server).uri
    lead = " ".join([render.verdicts(summary, found), render.opening(frame)]).strip()
    return Report(title, lead, tables, notes, frames, drawn, curves, address)


def write(report: Report, out: Path) -> None:
    """Write the files of a report, and remove those of an earlier one that this one lacks.

    Raises:
        ConfigError: The folder cannot be written.
    """
    from harness.config import ConfigError
    from harness.reporting import latex, render
    from harness.reporting.page import page

    contents = {f"{name}.{kind}": drawn for name, kinds in report.pictures.items() for kind, drawn in kinds.items()}
    svg = {name: kinds["svg"].decode() for name, kinds in report.pictures.items()}
    text = (report.title, report.lead, report.tables, report.notes)
    written = page(*text, svg, report.frames.get("runs"), report.curves, report.server)
    contents |= {
        "report.md": render.markdown(*text, [f"{name}.png" for name in svg]).encode(),
        "report.html": written.encode(),
        "report.tex": latex.document(*text).encode(),
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


def _browsed(uri: str) -> str:
    from harness.store import parse, redact

    place = parse(uri)
    if place.path is None:
        return redact(place.uri)
    return f"mlflow ui --backend-store-uri {place.uri} --host 127.0.0.1 --port 5000"


if __name__ == "__main__":
    main()
