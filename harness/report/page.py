"""A report as one HTML page that needs no other file and no network."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.report.cells import MOST_ROWS, NONE, Table, number, shortened, size
from harness.report.plots import interactive
from harness.report.plots.chosen import points, telling

# Fewer rows are seen at a glance.
FILTER_ROWS = 6
# Columns of the list of runs: heading -> column of the frame, and how its figures are written.
RUN_COSTS = {
    "trainable": ("cost.trainable_parameters", lambda value: number(value, 0)),
    "seconds": ("cost.train_seconds", lambda value: number(value, 1)),
    "peak": ("cost.train_peak_bytes", size),
}
DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="lead">{lead}</p>
{body}
<h2>How to read this</h2>
<ul class="quiet">
{notes}
</ul>
{provenance}
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
) -> str:
    """Write a report as one HTML page; every text from a store is escaped, and only our own scripts can run.

    Args:
        title: Of the page.
        lead: First sentences.
        tables: In their order.
        notes: How to read it.
        pictures: Name -> SVG document, made by us.
        runs: Of `scores.load`, for plots that show a run, the list of runs and the provenance.
        curves: Of `curves.load`, for learning curves.
        server: Address of the MLflow server that the runs are linked to; none for a file.
    """
    plots = _plots(runs, curves)
    scripts = [_source("page.js")]
    if plots:
        from harness.report.plots.interactive import script

        scripts.insert(0, script())
    contents = list(map(shortened, tables))
    sections = [_plot_section(plot) for plot in plots]
    sections += [_section(table, place) for place, table in enumerate(contents)]
    if pictures:
        sections.append(_picture_section(pictures))
    if runs is not None and len(runs):
        sections.append(_section(*_run_list(runs, server, len(contents))))
    listed = "\n".join(f"<li>{html.escape(note)}</li>" for note in notes)
    policy = " ".join(f"'sha256-{_digest(text)}'" for text in scripts)
    body = "\n".join(sections)
    data = "\n".join(f'<script type="application/json">{_json(plot)}</script>' for plot in plots)
    code = "\n".join(f"<script>{text}</script>" for text in scripts)
    return DOCUMENT.format(
        policy=policy,
        title=html.escape(title),
        style=_source("page.css"),
        lead=html.escape(lead),
        body=body,
        notes=listed,
        provenance=_provenance(runs),
        data=data,
        code=code,
    )


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
    heading = {"runs": "Scores and costs, one mark per run", "curves": "Learning curves"}[plot["place"]]
    hint = "Point at a mark or tap it to see its run; drag or zoom with the tools beside the plot."
    return f'<h2>{heading}</h2>\n<div class="plot" id="{plot["place"]}"></div>\n<p class="quiet">{hint}</p>'


def _section(table: Table, place: int, links: Sequence[str | None] = ()) -> str:
    """Write a table with its heading; `links` are addresses of the rows' first cells."""
    kinds = ["text" if column in table.text_columns else "" for column in table.columns]
    kinds[-1] += " last"
    head = "".join(
        f'<th class="{kind}" scope="col"><button type="button">{html.escape(text)}</button></th>'
        for kind, text in zip(kinds, table.columns, strict=True)
    )
    rows = []
    for row, link in zip(table.rows, links or [None] * len(table.rows), strict=True):
        cells = [html.escape(cell) for cell in row]
        if link:
            cells[0] = f'<a href="{html.escape(link)}">{cells[0]}</a>'
        rows.append(
            "<tr>"
            + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, cells, strict=True))
            + "</tr>"
        )
    label = f"Filter {html.escape(table.title)}"
    search = f'<p><input type="search" data-table="table{place}" placeholder="Filter" aria-label="{label}"></p>'
    body = "\n".join(rows)
    return "\n".join(
        [
            f"<h2>{html.escape(table.title)}</h2>",
            search if len(rows) > FILTER_ROWS else "",
            f'<div class="wide"><table id="table{place}"><thead><tr>{head}</tr></thead>',
            f"<tbody>\n{body}\n</tbody></table></div>",
            f'<p class="quiet">{html.escape(table.caption)}</p>' if table.caption else "",
        ]
    )


def _picture_section(pictures: Mapping[str, str]) -> str:
    """Fold all pictures but the first."""
    parts = ["<h2>Pictures</h2>"]
    for place, (name, svg) in enumerate(pictures.items()):
        heading = name.replace("_", " ").capitalize()
        start = "<details open>" if place == 0 else "<details>"
        drawn = svg[svg.index("<svg") :]
        parts.append(f"{start}<summary>{html.escape(heading)}</summary>\n<figure>{drawn}</figure>\n</details>")
    return "\n".join(parts)


def _run_list(runs: pd.DataFrame, server: str | None, place: int) -> tuple[Table, int, list[str | None]]:
    """List every run, older ones of a point too, with what the page's tables are made of."""
    columns = ["run", "task", "method", "seed", "stage", "status", "development", "validation"]
    costs = {heading: item for heading, item in RUN_COSTS.items() if item[0] in runs}
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
    return Table("All runs", (*columns, *costs), cells, caption, left), place, links


def _provenance(runs: pd.DataFrame | None) -> str:
    """List what made the runs: sweeps, versions, models, tasks, seeds and days."""
    if runs is None or runs.empty:
        return ""
    names = {
        "Sweep": "sweep",
        "harness": "harness.version",
        "Commit": "git_commit",
        "Model": "model",
        "Model revision": "param.model.revision",
        "Task": "task",
        "Task version": "param.task.version",
        "Seed": "seed",
        "Device": "param.train.device",
        "Precision": "param.train.precision",
    }
    rows = []
    for label, column in names.items():
        values = sorted({str(value) for value in runs[column].dropna()} - {""}) if column in runs else []
        rows += [(label, ", ".join(values))] if values else []
    began, ended = runs["started_at"].min(), runs["ended_at"].max()
    if pd.notna(began) and pd.notna(ended):
        rows.append(("Run", f"from {began:%Y-%m-%d %H:%M} to {ended:%Y-%m-%d %H:%M} UTC"))
    listed = "\n".join(f"<dt>{html.escape(label)}</dt><dd>{html.escape(text)}</dd>" for label, text in rows)
    return f"<h2>Where this comes from</h2>\n<dl>\n{listed}\n</dl>"


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(content: Any) -> str:
    """Write JSON that cannot end the script element that it stands in."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
