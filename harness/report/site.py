"""One static site of published reports: `python -m harness.report.site [reports=FOLDER] [out=FOLDER]`.

Every report.md and the other pages below the folder become HTML with the same tables as a report's own page, their
files stand beside them, and index.html says who is highest where, at what cost. No network is needed.

keys:
  reports=FOLDER   published reports, one folder each (reports)
  out=FOLDER       where the site goes (site)
  beside=true      no site: each page is written beside its Markdown, as reports/ publishes it
"""

import csv
import html
import math
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import quote

from harness.config.command import carry_out, key_values, options, writing
from harness.config.errors import ConfigError
from harness.report.cells import NONE, Forest, Table, number
from harness.report.finding import BREAK
from harness.report.names import configuration_label, label_of
from harness.report.page import BESIDE, page
from harness.report.scores import MAJORITY
from harness.report.tables import SECONDARY
from harness.report.words import heading
from harness.training.metrics import RANGE_OF, higher_is_better

SPREAD = "± sd"
# What a forge shows by itself.
READ_ME = "README.md"
# Letters in which a page has its policy.
MOST_OF_HEAD = 1000
# Titles of tables that come after the answer.
EARLIER = (
    "These runs were tested in an earlier way, which finds too many differences between one to three runs of a method: "
    "letters and marks are hints. "
)
DETAIL = re.compile(r": against |: cost$|: the front of |^(How the|Runs that|Predicted against|Where the noise)")
# Kind of a metric -> where its values can be.
RANGES = {"share": (0.0, 1.0), "correlation": (-1.0, 1.0)}
INTERVAL = re.compile(r"\[([-+\d.,]+)(?:%)?, ([-+\d.,]+)(?:%)?\]")
ESCAPED = re.compile(r"\\([\\|*_`\[\]])")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)$")
TWINS = re.compile(r'<picture><source [^>]*srcset="([^"]+)"><img alt="([^"]*)" src="([^"]+)"></picture>$')
LINK = re.compile(r"(?<!\\)\[([^\]]+)(?<!\\)\]\([^)]+\)")
RULE = re.compile(r"\|(?: ?:?-+:? ?\|)+$")


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    reports: str = "reports"
    out: str = "site"
    beside: bool = False


@dataclass
class Document:
    """A page that was read: title, what it opens with, tables, pictures by name, and notes."""

    title: str
    lead: list[str]
    tables: list[Table]
    pictures: dict[str, str]
    notes: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command and return its exit status."""
    return carry_out(_build, str(__doc__), arguments, name="site")


def _build(arguments: list[str]) -> None:
    chosen = options(Options, key_values(arguments, [field.name for field in fields(Options)]))
    source, out = Path(chosen.reports), Path(chosen.out)
    if not source.is_dir():
        raise ConfigError(f"reports={source}: there is no such folder")
    if chosen.beside:
        with writing("reports", source):
            written = [one for path in sorted(source.rglob("*.md")) if path.name != READ_ME and (one := _beside(path))]
        print(f"Written in {source}: {len(written)} pages")
        return
    with writing("out", out):
        listed = list(_publish(source, out / "reports"))
        out.mkdir(parents=True, exist_ok=True)
        (out / "index.html").write_text(_index(source, listed), encoding="utf-8")
    print(f"Written to {out}: index.html and {len(listed)} pages")


def _publish(source: Path, out: Path) -> Iterator[tuple[str, Path]]:
    """Write each page and copy what lies beside it; yields titles and addresses within the site."""
    for path in source.rglob("*"):
        if path.is_file() and path.suffix not in (".md", ".yaml"):
            place = out / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            # A page that was made for the site already is the newer one.
            if not (place.suffix == ".html" and (place.exists() or _made_here(path))):
                shutil.copyfile(path, place)
    for path in sorted(source.rglob("*.md")):
        own = out / path.parent.relative_to(source) / f"{path.stem}.html"
        own.parent.mkdir(parents=True, exist_ok=True)
        found = read(path)
        # What the report's own command wrote is better than what its Markdown holds.
        if not own.exists() or _made_here(own):
            own.write_text(_written(found), encoding="utf-8")
        yield found.title, own.relative_to(out.parent)


def _beside(path: Path) -> Path | None:
    """Write the page of a Markdown file beside it; nothing where another command wrote one."""
    own = path.with_suffix(".html")
    if own.exists() and not _made_here(own):
        return None
    own.write_text(_written(read(path)), encoding="utf-8")
    return own


def _written(found: Document) -> str:
    text = (found.title, BREAK.join(found.lead), found.tables, found.notes, found.pictures)
    return page(*text, beside=True)


def _made_here(path: Path) -> bool:
    """Whether a page was made of its Markdown, rather than by a report's own command."""
    with path.open(encoding="utf-8") as file:
        return BESIDE in file.read(MOST_OF_HEAD)


# --- Reading --------------------------------------------------------------------------------------------------------


def read(path: Path) -> Document:
    """Read a page of Markdown as reports are written: a title, paragraphs, tables under headings, pictures, a list."""
    found = Document(path.parent.name, [], [], {}, [])
    title, caption_of = "", False
    for block in re.split(r"\n{2,}", path.read_text(encoding="utf-8")):
        lines = [line for line in block.strip().splitlines() if not line.startswith("<!--")]
        if not lines:
            continue
        text = " ".join(lines)
        if text.startswith("# "):
            found.title = plain(text[2:])
        elif text.startswith("#"):
            title = plain(text.lstrip("# "))
        elif len(lines) > 1 and RULE.match(lines[1]):
            found.tables.append(_table(title or found.title, lines))
            caption_of = True
            continue
        elif image := IMAGE.match(text):
            found.pictures[image[1] or image[2]] = _picture(path.parent / image[2], image[1])
        elif twins := TWINS.match(text):
            named = html.unescape(twins[2])
            found.pictures[named or twins[3]] = _picture(path.parent / twins[3], named, path.parent / twins[1])
        elif lines[0].startswith(("- ", "* ")) or re.match(r"\d+\. ", lines[0]):
            found.notes += [plain(re.sub(r"^(?:[-*]|\d+\.) ", "", line)) for line in lines]
        elif caption_of:
            found.tables[-1] = replace(found.tables[-1], caption=plain(text))
        else:
            (found.notes if found.tables else found.lead).append(_believable(plain(text)))
        caption_of = False
    return found


def plain(text: str) -> str:
    """What a reader of Markdown sees of a line, links as their text."""
    return html.unescape(ESCAPED.sub(r"\1", LINK.sub(r"\1", text)))


def _believable(text: str) -> str:
    """An opening without what earlier tests called best: they found too many differences between so few runs."""
    counted = re.search(r"\b[\d,]+ runs? of ", text)
    if counted is None or " is best with " not in text[: counted.start()]:
        return text
    return EARLIER + text[counted.start() :]


def _table(title: str, lines: list[str]) -> Table:
    head, rule, *body = ([plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines)
    columns = [heading(name) if name.startswith("cost.") else name for name in head]
    # Several columns of one name would be one to whoever picks them.
    columns = [
        name if columns.index(name) == at else f"{name} ({columns[:at].count(name) + 1})"
        for at, name in enumerate(columns)
    ]
    left = tuple(name for name, kind in zip(columns, rule, strict=True) if not kind.endswith(":"))
    rows = [_possible(columns, tuple((*row, *[""] * len(columns))[: len(columns)])) for row in body]
    return Table(
        title,
        tuple(columns),
        rows,
        text_columns=left,
        prose=tuple({"remarks", "reason", "sentence", "case"} & {*columns}),
        secondary=tuple(name for name in columns if name in SECONDARY),
        detail=bool(DETAIL.search(title)),
        forest=_forest(columns, rows),
    )


def _possible(columns: list[str], row: tuple[str, ...]) -> tuple[str, ...]:
    """A row without an interval that lies where its score can't be, as earlier ones of two runs did."""
    low, high = RANGES.get(RANGE_OF.get(columns[_mean_at(columns)], "open"), (-math.inf, math.inf))
    return tuple(
        NONE if name == "95% interval" and (ends := INTERVAL.match(cell)) and not _within(ends, low, high) else cell
        for name, cell in zip(columns, row, strict=True)
    )


def _mean_at(columns: list[str]) -> int:
    """The column of the means: before their deviation, behind what was varied; else behind the names."""
    return columns.index(SPREAD) - 1 if SPREAD in columns[2:] else min(1, len(columns) - 1)


def _within(ends: "re.Match[str]", low: float, high: float) -> bool:
    return low <= _number(ends[1]) and _number(ends[2]) <= high


def _forest(columns: list[str], rows: list[tuple[str, ...]]) -> Forest | None:
    """The marks of a table that has a mean and its interval, in the column before it that they are of."""
    if "95% interval" not in columns or columns[0] != "method":
        return None
    interval, mean = columns.index("95% interval"), _mean_at(columns)
    marks, reference = [], math.nan
    for row in rows:
        ends = INTERVAL.match(row[interval])
        value = _number(row[mean])
        if row[0] == MAJORITY:
            value, reference = math.nan, value
        low, high = (_number(ends[1]), _number(ends[2])) if ends else (math.nan, math.nan)
        marks.append((value, low, high))
    return Forest(columns[mean], marks, reference)


def _number(text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return math.nan


def _picture(path: Path, text: str, dark: Path | None = None) -> str:
    """A picture that lies beside the page, with its dark twin where there is one."""
    shown = f'<img alt="{html.escape(text)}" src="{_address(path)}" loading="lazy">'
    if dark is None:
        return shown
    return f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_address(dark)}">{shown}</picture>'


def _address(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"{path}: a page shows it, and it is not there")
    return quote(path.name)


# --- Index ----------------------------------------------------------------------------------------------------------


def _index(source: Path, listed: Sequence[tuple[str, Path]]) -> str:
    tables = [_winners(source), _pages(listed)]
    lead = (
        "Who is highest where, at what cost. The highest of many is rarely known to be the best: each report says who "
        "can't be distinguished from it."
    )
    return page("peft-harness: what was measured", lead, tables, [], {})


def _winners(source: Path) -> Table:
    """One row per report and task: the highest mean, and the method that trains least."""
    rows: list[tuple[str, ...]] = []
    links = []
    for path in sorted(source.glob("*/scores.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            scores = list(csv.DictReader(file))
        for task in dict.fromkeys(row["task"] for row in scores):
            own = [row for row in scores if row["task"] == task and row["configuration"] != MAJORITY and _mean(row)]
            if len(own) < 2:
                continue
            higher = higher_is_better(own[0]["metric"])
            best = (max if higher else min)(own, key=lambda row: float(row["mean"]))
            cheap = min(
                own, key=lambda row: _number(row["trainable_parameters"]) if row["trainable_parameters"] else math.inf
            )
            majority = [
                row for row in scores if row["task"] == task and row["configuration"] == MAJORITY and _mean(row)
            ]
            least = float(majority[0]["mean"]) if majority else -math.inf if higher else math.inf
            mean = float(best["mean"])
            beats = mean > least if higher else mean < least
            told = _told(best) if beats else ("none beats the majority class", number(mean), NONE)
            about = (str(len(own)), path.parent.name, own[0]["metric"].replace("_", " "))
            rows.append((label_of("task", task), *told, *_told(cheap), *about))
            links.append(f"reports/{path.parent.name}/report.html")
    columns = ["task", "highest observed", "score", "trains", "trains least", "its score", "its parameters"]
    columns += ["methods", "report", "metric"]
    return Table(
        "Who is highest where",
        tuple(columns),
        rows,
        "Means over runs; trains: trained parameters.",
        ("task", "report", "metric", "highest observed", "trains least"),
        secondary=("its parameters", "report", "metric"),
        links=tuple(links),
    )


def _mean(row: dict[str, str]) -> bool:
    return math.isfinite(_number(row["mean"]))


def _told(row: dict[str, str]) -> tuple[str, str, str]:
    count = _number(row["trainable_parameters"])
    name = configuration_label(row["configuration"], row["method"])
    return name, number(float(row["mean"])), NONE if math.isnan(count) else number(count, 0)


def _pages(listed: Sequence[tuple[str, Path]]) -> Table:
    rows = [(title, address.parent.name) for title, address in listed]
    links = tuple(address.as_posix() for _, address in listed)
    return Table("Every report", ("title", "folder"), rows, "", ("title", "folder"), links=links)


if __name__ == "__main__":
    sys.exit(main())
