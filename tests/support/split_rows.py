"""The rows that a run of ours uses, as files for a script that splits nothing itself."""

import json
from pathlib import Path

from harness.config.build import build
from harness.config.compose import compose


def write_splits(told: list[str], folder: Path) -> Path:
    """Write a file SPLIT.jsonl for each split of the task that the overrides name, and return the folder."""
    folder.mkdir(parents=True)
    for split, rows in build(compose("config", told)).task.load().splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
