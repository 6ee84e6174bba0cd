"""What a choice has found so far, in a file, so that the same command goes on where it stopped."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.config.errors import ConfigError
from harness.tracking.record import write_atomically
from harness.tracking.uri import redact

STATE_FILE = "choice.json"
URI = "tracking.uri="


@dataclass
class Candidate:
    """A method on the way.

    Attributes:
        name: Of its YAML.
        peak_bytes: Memory of a training step as planned; null where it can't be foreseen.
        refused: Why it is out; empty while it is in.
        run_seconds: What a whole run of it takes on one worker, by the steps that were timed; null before.
    """

    name: str
    peak_bytes: int | None = None
    refused: str = ""
    run_seconds: float | None = None


@dataclass
class Choice:
    """A question and what is known of its answer.

    Attributes:
        asked: What decides it: the overrides, without secrets, the methods, the memory.
        overrides: Of every run.
        candidates: In the order asked for; empty before they are planned.
        start_seconds: What a sweep takes until its workers work.
    """

    asked: dict[str, list[str]]
    overrides: list[str]
    candidates: list[Candidate] = field(default_factory=list)
    start_seconds: float = 0.0

    @property
    def sweep(self) -> str:
        """The name of its sweep, the same for the same question."""
        return f"choose-{hashlib.sha256(json.dumps(self.asked, sort_keys=True).encode()).hexdigest()[:8]}"

    @property
    def left(self) -> list[Candidate]:
        """Those that are still in."""
        return [one for one in self.candidates if not one.refused]

    def save(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in asdict(self).items() if name != "overrides"}
        write_atomically(out / STATE_FILE, json.dumps(kept, indent=2) + "\n")


def load(out: Path, overrides: list[str], methods: list[str], memory: str) -> Choice:
    """The choice of a folder that asked the same; a new one where there is no folder.

    Args:
        overrides: Of every run.
        methods: Those to choose among.
        memory: As the user gave it.

    Raises:
        ConfigError: The folder holds something else.
    """
    shown = [f"{URI}{redact(one.removeprefix(URI))}" if one.startswith(URI) else one for one in overrides]
    asked = {"overrides": shown, "methods": methods, "memory": [memory]}
    if not out.exists():
        return Choice(asked, overrides)
    try:
        content = json.loads((out / STATE_FILE).read_text(encoding="utf-8"))
        candidates = [Candidate(**one) for one in content["candidates"]]
        found = Choice(content["asked"], overrides, candidates, content["start_seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"out={out}: the folder is there and holds no {STATE_FILE}; name a new one") from error
    if found.asked != asked:
        told = next(key for key in asked if found.asked.get(key) != asked[key])
        was = " ".join(found.asked.get(told, [])) or "nothing"
        raise ConfigError(f"out={out}: it holds the answer to another question, of {told} {was}; name a new folder")
    return found
