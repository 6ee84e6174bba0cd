"""Everything that can be chosen, one line each: `harness list methods|tasks|models|sweeps|metrics|reports|keys`.

harness list                 how many there are of each kind
harness list methods         name and what it is, as its YAML says
harness list methods lora    only those with this word in their line
"""

import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.config.command import DONE, carry_out
from harness.config.errors import ConfigError, near_misses
from harness.config.mistakes import choices
from harness.config.sources import conf_root

# Where output goes into a file or a pipe a line is as long as it is.
UNBOUND = 10_000
# Files whose comments say what their keys do: heading -> file, and the section that its keys belong to.
KEY_FILES = {
    "A run": ("config.yaml", ""),
    "Training": ("train/default.yaml", "train."),
    "A task": ("task/classification.yaml", "task."),
    "A table of one's own": ("task/table.yaml", "task."),
    "Instructions": ("task/instruction.yaml", "task."),
    "Running text": ("task/language_modelling.yaml", "task."),
    "The store": ("tracking/local.yaml", "tracking."),
    "Sweeps on this machine": ("hydra/launcher/local.yaml", "hydra.launcher."),
    "Equal budgets": ("hydra/sweeper/equal_budget.yaml", "hydra.sweeper."),
}
# A key of a YAML with its indentation and its value.
KEY = re.compile(r"( *)([\w.]+):(?: +(.*))?$")
# The command that a comment goes on with.
COMMAND = re.compile(r":? *(?:harness|python) (?:-|method=|task=|model=).*$")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command and return its exit status."""
    return carry_out(_show, str(__doc__), arguments, name="harness list")


def _show(arguments: list[str]) -> int:
    if not arguments:
        for kind, find in KINDS.items():
            print(f"{kind:<8} {len(find()):>3}   harness list {kind}")
        return DONE
    kind, *words = arguments
    if kind not in KINDS:
        raise ConfigError(f"{kind}: there is no such list; {near_misses(kind, KINDS)}")
    found = KINDS[kind]()
    width = max(map(len, found))
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNBOUND
    for name, said in found.items():
        line = f"{name:<{width}}  {said}".rstrip()
        if all(word.lower() in line.lower() for word in words):
            print(line if len(line) <= room else f"{line[: room - 1]}\u2026")
    return DONE


def chosen(group: str) -> dict[str, str]:
    """Choices of a group of conf/, shipped or in the working directory: name -> first sentence of its YAML."""
    names = sorted(choices(group))
    places = [conf_root() / "conf" / group, Path("conf") / group]
    return {name: sentence(_first(places, f"{name}.yaml")) for name in names}


def sweeps() -> dict[str, str]:
    """Sweeps: name -> the question that its file begins with."""
    return _files("sweeps")


def reports() -> dict[str, str]:
    """Definitions of reports: name -> what each is about."""
    return {name: said for name, said in _files("reports").items() if name != "claims"}


def metrics() -> dict[str, str]:
    """Metrics: name -> what it compares, and which direction is better."""
    from harness.training.metrics import COMPARED, METRICS, higher_is_better

    of = {name: kind for kind, names in COMPARED.items() for name in names}
    return {
        name: f"compares {of[name]}, {'higher' if higher_is_better(name) else 'lower'} is better"
        for name in sorted(METRICS)
    }


def _files(folder: str) -> dict[str, str]:
    paths = {path.stem: path for root in (conf_root(), Path()) for path in (root / folder).glob("*.yaml")}
    return {name: sentence(path.read_text(encoding="utf-8")) for name, path in sorted(paths.items())}


def _first(places: Sequence[Path], name: str) -> str:
    return next((path.read_text(encoding="utf-8") for place in places if (path := place / name).is_file()), "")


def sentence(text: str) -> str:
    """The first sentence of the comment that a YAML begins with, without the command that follows it."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        lines.append(line.lstrip("# "))
    said = COMMAND.sub("", lines[0]) if lines else ""
    if said != (lines[0] if lines else ""):
        return said.rstrip(" :,;")
    said = " ".join(lines)
    ended = re.match(r"(.+?[.?!])(?= [A-Z(]|$)", re.sub(r"\bet al\.", "et al\0", said))
    return COMMAND.sub("", (ended[1] if ended else said).replace("\0", ".")).rstrip(" :,;.")


def keys() -> dict[str, str]:
    """Keys of a run: name -> its default, and what the comment above it in the YAML says."""
    found: dict[str, str] = {}
    for name, prefix in KEY_FILES.values():
        for key, default, said in read_keys(conf_root() / "conf" / name, prefix):
            found.setdefault(key, f"({default}) {said}".rstrip())
    return found


def read_keys(path: Path, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Yield dotted key, default, and comment of each value of a YAML, in its order."""
    above: list[tuple[int, str]] = []
    said: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            said.append(stripped.lstrip("# "))
        elif found := KEY.match(line):
            indent, value = len(found[1]), (found[3] or "").partition(" #")[0].strip()
            above = [*(part for part in above if part[0] < indent), (indent, found[2])]
            dotted = prefix + ".".join(part for _, part in above)
            if value and not dotted.startswith("hydra.job") and found[2] not in ("defaults", "_target_"):
                yield dotted, value, " ".join(said)
            said = [] if value else said
        else:
            said = []


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": lambda: chosen("method"),
    "tasks": lambda: chosen("task"),
    "models": lambda: chosen("model"),
    "sweeps": sweeps,
    "metrics": metrics,
    "reports": reports,
    "keys": keys,
}

HELP = """harness: which fine-tuning method, at what cost, on your model and data.

  harness                                            one LoRA run on micro/sentiment
  harness method=bitfit task=micro/entailment seed=1 another method, task and seed
  harness task=table task.file=tickets.csv task.text=text task.label=category model=FOLDER
                                                     your own table, in one line
  harness -m method=full,head,bitfit,lora seed=0,1,2 a sweep over a grid
  harness -cn lora_rank                              a sweep from sweeps/
  harness --cfg job                                  what would run, without running it

Other commands, each with --help:
  harness list             everything that can be chosen, one line each
  harness-plan             what a run would take, before anything is downloaded
  harness-report           stored runs as tables, tests, pictures and a page
  harness-doctor           versions, devices, and which method works on which backbone
  harness-choose           which method to use on your data, model and machine, within some hours
  harness-predict          what a trained adapter answers to the rows of a file
  harness-export           a trained adapter as a plain folder for peft or transformers
  harness completion       tab completion: eval "$(harness completion)"
  python -m harness.claims what is said about these methods, judged on stored runs
  harness --hydra-help     flags of Hydra: -m, -cn, --cfg and the rest

Choices: {choices}

Keys, written key=value (harness list keys has those of tasks and sweeps too):
"""
HELP_FILES = ("A run", "Training")


def usage() -> str:
    """What `harness --help` prints: examples, the other commands, and the keys with what their comments say."""
    groups = ("method", "task", "model", "tracking", "train", "hydra/launcher", "hydra/sweeper")
    counted = ", ".join(f"{group}= ({len(choices(group))})" for group in groups)
    lines = [HELP.format(choices=counted)]
    for name, prefix in (KEY_FILES[heading] for heading in HELP_FILES):
        for key, default, said in read_keys(conf_root() / "conf" / name, prefix):
            if not key.startswith("hydra."):
                lines.append(f"  {key}={default}")
                lines += [f"      {line}" for line in textwrap.wrap(said, 92)]
    return "\n".join(lines)
