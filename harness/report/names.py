"""Names for people: what a method's or a task's YAML calls it in a comment, no part of what was run."""

import re
from functools import cache
from pathlib import Path

from harness.config.sources import conf_root

LABEL = re.compile(r"^# Label: (.+)$", re.MULTILINE)


def label_of(group: str, name: str) -> str:
    """The label of a choice, such as LoRA of `method` and `lora`; its name where its YAML has none, or there is none.

    Args:
        group: Folder of conf/.
        name: As `harness` takes it.
    """
    # A name is what a store says: it must not lead anywhere else.
    if not re.fullmatch(r"\w+(/\w+)*", name):
        return name
    for conf in dict.fromkeys([conf_root() / "conf", Path.cwd() / "conf"]):
        if label := _declared(conf / group / f"{name}.yaml"):
            return label
    return name


def configuration_label(configuration: str, method: str) -> str:
    """A row's name with its method's label, what sets it apart from the method's other rows unchanged."""
    if not method or not configuration.startswith(method):
        return configuration
    return label_of("method", method) + configuration.removeprefix(method)


@cache
def _declared(path: Path) -> str:
    """The label that a YAML declares, or nothing."""
    found = LABEL.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return found[1].strip() if found else ""
