"""Report: the tables, notes, frames and pictures of a set of runs, built and written."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.report.definitions import Definition
from harness.tracking.uri import parse

if TYPE_CHECKING:
    import pandas as pd

    from harness.report.cells import Table
    from harness.report.sections import Found


FILES = (
    "report.md report.html report.tex table.tex scores.csv comparisons.csv across.csv costs.csv runs.csv tuning.csv "
    "predictions.csv failures.csv noise.csv"
).split()
# Pictures that a report may have; those over a size of a method are named after it, as in score_vs_rank.
PICTURES = "score_vs_* seeds learning_rates learning_curves memory predicted_vs_measured forgetting".split()


# Text that a spreadsheet runs as a formula when it opens a CSV file; numbers that are written out are none.
FORMULA = re.compile(r"(?![+-]?[\d.]+(e[+-]?\d+)?$)[=+\-@\t\r].", re.IGNORECASE | re.DOTALL)


@dataclass
class Report:
    """Contents of a report; everything comes from one frame."""

    title: str
    lead: str
    tables: "list[Table]"
    notes: list[str]
    frames: "dict[str, pd.DataFrame]"
    pictures: "dict[str, dict[str, bytes]]" = field(default_factory=dict)
    curves: "pd.DataFrame | None" = None
    server: str | None = None


def build(
    frame: "pd.DataFrame",
    definition: Definition,
    curves: "pd.DataFrame | None" = None,
    server: str | None = None,
) -> Report:
    """Make a report from the frame of `scores.load`, which must not be empty; the same frame gives the same report.

    Args:
        frame: One row per run, filtered already.
        definition: What to show of it.
        curves: Of `curves.load`.
        server: Tracking URI of the server that the runs come from.

    Raises:
        ConfigError: A column, the baseline or a picture that was asked for is not there.
    """
    from harness.report import across, markdown, noise, pairwise, published, same_files, scores, sections, undertrained
    from harness.report import tables as render
    from harness.report import tuning as report_tuning
    from harness.report.plots import chosen as pictures
    from harness.report.predicted import predictions

    summary, tuning, failures = scores.summary(frame), report_tuning.tuning(frame), scores.failures(frame)
    summary = undertrained.undertrained(frame, summary, curves)
    if definition.columns is not None:
        summary = render.with_figures(summary, frame, definition.columns)
    found = pairwise.compare_tasks(frame, summary, definition.baseline, server, definition.pairs, definition.analysis)
    together = across.over_tasks(frame, summary)
    summary = pairwise.annotated(summary, found)
    content = sections.Found(
        frame=frame,
        summary=summary,
        pairwise=found,
        across=together,
        options=scores.options(frame),
        costs=scores.costs(frame),
        noise=noise.noise(frame),
        predictions=predictions(frame),
        tuning=tuning,
        failures=failures,
        columns=definition.columns,
        published=None if definition.published is None else published.read(definition.published),
    )
    sweeps = f": {scores.plain(', '.join(definition.sweep))}" if definition.sweep else ""
    title = scores.plain(definition.title or markdown.TITLE + sweeps)
    frames = {"scores": summary, "costs": content.costs, "runs": frame.drop(columns=["artifact_uri"]), "tuning": tuning}
    frames |= {"comparisons": pairwise.pairs(found), **({"across": together.table} if together else {})}
    frames |= {"predictions": content.predictions, "failures": failures, "noise": content.noise}
    notes = (
        markdown.protocol(summary, not tuning.empty)
        + undertrained.notes(summary)
        + same_files.notes(frame)
        + markdown.odd(frame)
        + pictures.telling(pictures.points(frame))[1]
    )
    drawn = pictures.draw(frame, curves, definition.plots)
    address = None if server is None else parse(server).uri
    return Report(title, _lead(content), sections.tabulate(content), notes, frames, drawn, curves, address)


def _lead(content: "Found") -> str:
    """What a report opens with: what was found, then the runs that it is of."""
    from harness.report import finding, markdown, pairwise, single_scores

    frame = content.frame
    opened = finding.verdicts(content.summary, content.pairwise, single_scores.single_scores(frame))
    said = [pairwise.lost_files(frame), opened, finding.untuned(frame, content.tuning)]
    return finding.BREAK.join(filter(None, [" ".join(filter(None, said)), markdown.opening(frame)]))


def write(report: Report, out: Path) -> None:
    """Write the files of a report, and remove those of an earlier one that this one lacks.

    Raises:
        ConfigError: The folder cannot be written.
    """
    from harness.report import latex, latex_input, markdown
    from harness.report.page import page

    contents = {f"{name}.{kind}": drawn for name, kinds in report.pictures.items() for kind, drawn in kinds.items()}
    svg = {name: kinds["svg"].decode() for name, kinds in report.pictures.items()}
    text = (report.title, report.lead, report.tables, report.notes)
    written = page(*text, svg, report.frames.get("runs"), report.curves, report.server)
    contents |= {
        "report.md": markdown.markdown(*text, list(svg)).encode(),
        "report.html": written.encode(),
        "report.tex": latex.document(*text).encode(),
    }
    if "scores" in report.frames:
        contents["table.tex"] = latex_input.table(report.frames["scores"]).encode()
    for name, frame in report.frames.items():
        if len(frame):
            contents[f"{name}.csv"] = plain_cells(frame).to_csv(index=False, lineterminator="\n").encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (out / name).write_bytes(content)
        for path in _ours(out):
            if path.name not in contents:
                path.unlink()
    except OSError as error:
        raise ConfigError(f"out={out}: the folder cannot be written ({error.strerror}); name another") from None


def plain_cells(frame: "pd.DataFrame") -> "pd.DataFrame":
    """A frame whose texts no spreadsheet takes for a formula: where one would, a quote stands before it."""
    texts = [name for name, column in frame.items() if column.dtype.kind not in "biufcmM"]
    return frame.assign(**{str(name): frame[name].map(_plain) for name in texts})


def _plain(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell


def _ours(out: Path) -> list[Path]:
    """Find the files of a report in a folder."""
    from harness.report.plots.style import KINDS

    names = FILES + [f"{name}.{kind}" for name in PICTURES for kind in KINDS]
    return list(dict.fromkeys(path for name in names for path in out.glob(name)))
