"""Pages of the documentation that are computed when it is built, so that none goes stale, and links into the project.

mkdocs calls `on_files` and `on_page_markdown`; each function of `PAGES` writes one page as Markdown.
"""

import csv
import html
import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#]+)\)")
# Claims that decide which method to take, each with the question that it answers.
QUESTIONS = {
    "lora-matches-full": "Does LoRA score what full fine-tuning scores?",
    "adapters-match-full": "Do adapters?",
    "ia3-beats-lora": "Is IA3 better than LoRA at the same size?",
    "qlora-matches-lora": "Does a 4-bit backbone cost score?",
    "lora-memory-3x": "How much memory does LoRA save?",
    "merge-costs-nothing": "What does an adapter cost when it answers?",
    "rank-and-targets-matter": "Do rank and targets matter?",
    "peft-forgets-less": "Does freezing the backbone forget less?",
    "adapters-swap": "Can several tasks share one backbone?",
}


# --- Pages ----------------------------------------------------------------------------------------------------------


def choose() -> str:
    """The decision guide: each question with the verdict that the published claims give, and what was found."""
    with (ROOT / "reports/claims/claims.csv").open(newline="", encoding="utf-8") as file:
        claims = {row["id"]: row for row in csv.DictReader(file)}
    parts = [
        "# Choose a method",
        "Every line here is computed from the [claims](../reports/claims/claims.md), which are judged by rule on what "
        "was run and planned. Most comparisons end without a detectable difference, so begin with what is cheap, and "
        "try it on your own data in one line: `harness task=table task.file=FILE task.text=COLUMN task.label=COLUMN`.",
    ]
    for name, question in QUESTIONS.items():
        row = claims[name]
        parts.append(f"## {question}\n\n**{row['verdict'].capitalize()}**: {_text(row['claim'])}")
        parts.append(f"{_text(row['found'])}\n\nTo know more: {_text(row['needs'])}")
    return "\n\n".join(parts)


def keys() -> str:
    """Every key with its default and the comment that stands above it in the YAML."""
    from harness.catalog import KEY_FILES, read_keys

    parts = [
        "# Every key",
        "Made of the comments in `conf/`. `harness --cfg job` prints what a command would run with.",
    ]
    for heading, (name, prefix) in KEY_FILES.items():
        rows = [
            f"| `{key}` | {f'`{default}`' if default else ''} | {_text(said)} |"
            for key, default, said in read_keys(ROOT / "conf" / name, prefix)
        ]
        table = "\n".join(["| key | default | what it does |", "|---|---|---|", *rows])
        parts.append(f"## {heading}\n\nIn `conf/{name}`.\n\n{table}")
    return "\n\n".join(parts)


def choices() -> str:
    """What `harness list` prints."""
    from harness.catalog import KINDS

    parts = ["# Everything to choose", "What `harness list` prints."]
    for kind, find in KINDS.items():
        rows = "\n".join(f"| `{name}` | {_text(said)} |" for name, said in find().items())
        parts.append(f"## {kind.capitalize()}\n\n| name | what it is |\n|---|---|\n{rows}")
    return "\n\n".join(parts)


def record() -> str:
    """The fields of `result.json`, from the record's own description."""
    from harness.tracking.record import COST_FIELDS, RunRecord

    said = _attributes(inspect.getdoc(RunRecord) or "")
    rows = "\n".join(f"| `{field.name}` | {_text(said.get(field.name, ''))} |" for field in fields(RunRecord))
    costs = ", ".join(f"`{name}`" for name in COST_FIELDS)
    return (
        "# The record of a run\n\nEvery run leaves `result.json`. A figure that could not be measured is null, with "
        f"the reason in `unmeasured`.\n\n| field | what it holds |\n|---|---|\n{rows}\n\n## Costs\n\n"
        f"The fields of `cost`: {costs}."
    )


def api() -> str:
    """The public names of the package with their signatures and descriptions."""
    import harness

    parts = ["# Python", "`import harness` gives these names."]
    for name in sorted(harness.__all__):
        one: Any = getattr(harness, name)
        if not callable(one):
            continue
        parts.append(
            f"## {name}\n\n```python\n{name}{inspect.signature(one)}\n```\n\n```text\n{inspect.getdoc(one)}\n```"
        )
    return "\n\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "choose.md": choose,
    "keys.md": keys,
    "choices.md": choices,
    "record.md": record,
    "api.md": api,
}


def _attributes(text: str) -> dict[str, str]:
    """What a docstring says of each attribute."""
    found: dict[str, str] = {}
    name = ""
    for line in text.partition("Attributes:")[2].splitlines():
        if one := re.match(r" {4}(\w+): (.*)", line):
            name = one[1]
            found[name] = one[2]
        elif name and line.startswith(" " * 8):
            found[name] += f" {line.strip()}"
    return found


def _text(text: str) -> str:
    """A text as Markdown shows it, also within a table."""
    return re.sub(r"([|*_\[\]<>`])", r"\\\1", text)


# --- mkdocs ---------------------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add the computed pages."""
    from mkdocs.structure.files import File

    for name, write in PAGES.items():
        files.append(File.generated(config, name, content=write()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links out of the documentation into what the site has: a report's page, a picture, or the file's name."""
    return LINK.sub(lambda found: linked(found, page.file.src_uri), markdown)


def linked(found: "re.Match[str]", source: str) -> str:
    """One link; fails where the project has no such file."""
    picture, text, target = found.groups()
    if not (ROOT / target).exists():
        raise FileNotFoundError(f"{source}: ../{target}: the project has no such file")
    if picture:
        return f'<img src="../{target}" alt="{html.escape(text)}">'
    if not target.startswith("reports/") or not target.endswith(".md"):
        return text
    return f'<a href="../{target.removesuffix(".md")}.html">{text}</a>'
