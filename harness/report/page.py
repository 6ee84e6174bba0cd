"""A report as one HTML page that needs no other file and no network."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from harness.report.cells import MOST_ROWS, NONE, Table, number, presentable, shortened, sizes
from harness.report.finding import BREAK
from harness.report.page_tables import anchor, figure, section
from harness.report.plots import interactive
from harness.report.plots.chosen import points, telling

# Fewer sections need no list; of more, the folded ones are left out of it.
CONTENTS, MOST_CONTENTS = 4, 14
# Of what made the runs: how it is called, and where it stands, what a run resolved before what it was asked for.
MADE_BY = {
    "Sweep": ("sweep",),
    "harness": ("harness.version",),
    "Commit": ("git_commit",),
    "Model": ("model",),
    "Model revision": ("param.model.revision",),
    "Task": ("task",),
    "Task version": ("param.task.version",),
    "Seed": ("seed",),
    "Device": ("device", "param.train.device"),
    "Precision": ("dtype", "param.train.precision"),
}
# Columns of the list of runs: heading -> column of the frame, and how its figures are written, told all of them.
RUN_COSTS: dict[str, tuple[str, Callable[[pd.Series], Callable[[float], str]]]] = {
    "trainable": ("cost.trainable_parameters", lambda _: partial(number, places=0)),
    "seconds": ("cost.train_seconds", lambda _: partial(number, places=1)),
    "peak memory": ("cost.train_peak_bytes", sizes),
}
# What a page says that its pictures lie beside it, in its policy.
BESIDE = " 'self'"
DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:{beside}; script-src {policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="lead">{finding}</p>
{about}
{contents}
<main>
{body}
</main>
{data}
{code}
</body>
</html>
"""
RUN_COLUMNS = "name task method seed stage status newest development validation mlflow_run_id".split()


def page(
    title: str,
    lead: str,
    tables: Sequence[Table],
    notes: Sequence[str],
    pictures: Mapping[str, str],
    runs: pd.DataFrame | None = None,
    curves: pd.DataFrame | None = None,
    server: str | None = None,
    beside: bool = False,
) -> str:
    """Write a report as one HTML page; every text from a store is escaped, and only our own scripts can run.

    Args:
        title: Of the page.
        lead: What was found, and after `finding.BREAK` what it was found on.
        tables: In their order.
        notes: How to read it.
        pictures: Name -> SVG document, made by us.
        runs: Of `scores.load`, for plots that show a run, the list of runs and the provenance.
        curves: Of `curves.load`, for learning curves.
        server: Address of the MLflow server that the runs are linked to; none for a file.
        beside: Whether pictures may be files that lie beside the page, as those of a site are.
    """
    plots = _plots(runs, curves)
    scripts = [_source("page.js")]
    if plots:
        from harness.report.plots.interactive import script

        scripts.insert(0, script())
    shown = [presentable(shortened(table)) for table in tables]
    written = [(table, section(table, place)) for place, table in enumerate(shown)]
    first, *others = _pictures(pictures) or [""]
    parts = [text for table, text in written if not table.detail]
    parts += [first, *(_plot_section(plot) for plot in plots)]
    parts += [text for table, text in written if table.detail]
    parts += others
    if runs is not None and len(runs):
        parts.append(section(_run_list(runs, server), len(shown)))
    parts += [_notes(notes), _provenance(runs)]
    policy = " ".join(f"'sha256-{_digest(text)}'" for text in scripts)
    body = "\n".join(filter(None, parts))
    data = "\n".join(f'<script type="application/json">{_json(plot)}</script>' for plot in plots)
    code = "\n".join(f"<script>{text}</script>" for text in scripts)
    finding, _, about = lead.partition(BREAK)
    return DOCUMENT.format(
        policy=policy,
        beside=BESIDE if beside else "",
        title=html.escape(title),
        style=_source("page.css"),
        finding=html.escape(finding),
        about=f'<p class="quiet">{html.escape(about)}</p>' if about else "",
        contents=_contents(body),
        body=body,
        data=data,
        code=code,
    )


def _contents(body: str) -> str:
    """A list of the sections, where there are more than are seen at a glance."""
    found = re.findall(r'<(?:section|details class="section") id="([^"]+)">(?:<summary>)?<h2>(.*?)</h2>', body)
    if len(found) > MOST_CONTENTS:
        found = [(name, title) for name, title in found if f'<section id="{name}">' in body]
    if len(found) < CONTENTS:
        return ""
    links = " ".join(f'<a href="#{name}">{title}</a>' for name, title in found)
    return f'<nav aria-label="Contents">{links}</nav>'


def _notes(notes: Sequence[str]) -> str:
    listed = "\n".join(f"<li>{html.escape(note)}</li>" for note in notes)
    body = f'<ul class="quiet">\n{listed}\n</ul>'
    return f'<details class="section" id="notes"><summary><h2>How to read this</h2></summary>\n{body}\n</details>'


def _plots(runs: pd.DataFrame | None, curves: pd.DataFrame | None) -> list[dict[str, Any]]:
    if runs is None or runs.empty:
        return []
    scored = points(runs)
    if scored.empty:
        return []
    if len(scored) > MOST_ROWS:
        scored, _ = telling(scored)
    found = [interactive.runs_plot(scored)]
    found += [interactive.curves_plot(scored, curves)] if curves is not None else []
    return [plot for plot in found if plot is not None]


def _plot_section(plot: dict[str, Any]) -> str:
    place = plot["place"]
    heading = {"runs": "Every run: score over cost", "curves": "Every run: score by step"}[place]
    hint = "Point at a mark or tap it to see its run; drag or zoom with the tools beside the plot."
    body = f'<div class="plot" id="{place}"></div>\n<p class="quiet">{hint}</p>'
    return f'<section id="{place}-section"><h2>{heading}</h2>\n{body}\n</section>'


def _pictures(pictures: Mapping[str, str]) -> list[str]:
    """Write each picture; all but the first are folded."""
    parts = []
    for place, (name, svg) in enumerate(pictures.items()):
        title = html.escape(name.replace("_", " ").capitalize())
        at = f"picture-{anchor(name)}"
        if place == 0:
            parts.append(f'<section id="{at}"><h2>{title}</h2>\n{figure(svg)}</section>')
        else:
            folded = f"<summary><h2>{title}</h2></summary>\n{figure(svg)}\n"
            parts.append(f'<details class="section" id="{at}">{folded}</details>')
    return parts


def _run_list(runs: pd.DataFrame, server: str | None) -> Table:
    """List every run, older ones of a point too, with what the page's tables are made of."""
    columns = ["run", "task", "method", "seed", "stage", "status", "development", "validation"]
    costs = {heading: (name, style(runs[name])) for heading, (name, style) in RUN_COSTS.items() if name in runs}
    cells, links = [], []
    # The newest of more runs than a browser sorts at once.
    shown = runs.iloc[-MOST_ROWS:]
    caption = f"The newest {MOST_ROWS:,} of {len(runs):,} runs; all are in runs.csv." * (len(runs) > MOST_ROWS)
    for run in shown[[*RUN_COLUMNS, *(column for column, _ in costs.values())]].to_dict("records"):
        text = [str(run[name]) for name in ("name", "task", "method")]
        text += [NONE if pd.isna(run["seed"]) else str(run["seed"]), str(run["stage"])]
        text += [str(run["status"]) if run["newest"] else f"{run['status']}, run again later"]
        text += [number(run["development"]), number(run["validation"])]
        cells.append((*text, *(write(run[column]) for column, write in costs.values())))
        links.append(f"{server.rstrip('/')}/#/runs/{run['mlflow_run_id']}" if server else None)
    left = ("run", "task", "method", "stage", "status")
    later = ("task", "method", "seed", "peak memory")
    heads, found = (*columns, *costs), tuple(links)
    return Table("All runs", heads, cells, caption, left, secondary=later, detail=True, links=found)


def _provenance(runs: pd.DataFrame | None) -> str:
    """List what made the runs: sweeps, versions, models, tasks, seeds and days."""
    if runs is None or runs.empty:
        return ""
    rows = []
    for label, columns in MADE_BY.items():
        for column in columns:
            values = sorted({str(value) for value in runs[column].dropna()} - {"", "auto"}) if column in runs else []
            if values:
                rows.append((label, ", ".join(values)))
                break
    began, ended = runs["started_at"].min(), runs["ended_at"].max()
    if pd.notna(began) and pd.notna(ended):
        rows.append(("Run", f"from {began:%Y-%m-%d %H:%M} to {ended:%Y-%m-%d %H:%M} UTC"))
    listed = "\n".join(f"<dt>{html.escape(label)}</dt><dd>{html.escape(text)}</dd>" for label, text in rows)
    return f'<section id="provenance"><h2>Where this comes from</h2>\n<dl class="pairs">\n{listed}\n</dl></section>'


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(content: Any) -> str:
    """Write JSON that cannot end the script element that it stands in."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
