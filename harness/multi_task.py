"""Many tasks on one backbone: `python -m harness.multi_task RUN [RUN ...] [out=FOLDER]`.

Loads the backbone of finished runs once, puts each run's adapter on it in turn, and scores each on its own task: the
scores must be those that the runs ended with. Writes what storing the tasks takes, as adapters beside one backbone and
as whole models, and how long a switch takes.

    harness -cn multi_task
    python -m harness.multi_task runs/multi_task/*/*/ out=multi_task
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.console import Console
from tqdm import tqdm

from harness.config.build import build
from harness.config.command import DONE, FAILED, carry_out, writing
from harness.config.errors import ConfigError
from harness.config.schema import Experiment
from harness.measure import weight_bytes
from harness.methods.adapter_set import AdapterSet
from harness.models import quiet_libraries
from harness.tasks.scoring import evaluate
from harness.tracking.record import ADAPTER_FOLDER, RESULT_FILE, RunRecord, write_atomically
from harness.training.evaluation import Subject

if TYPE_CHECKING:
    from harness.methods.adapter_set import AdapterSet

# Scores are compared to so many places: on another machine, or in another precision, the last bits differ.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Scored:
    """A run's adapter, put on the shared backbone.

    Attributes:
        run: The run directory.
        score: Of the primary metric on validation, now.
        recorded: What the run itself had.
        adapter_bytes: Size of its saved weights.
        swap_ms: Milliseconds to take the adapter before off and to put this one on.
    """

    run: str
    task: str
    method: str
    metric: str
    score: float
    recorded: float
    adapter_bytes: int
    swap_ms: float

    @property
    def is_equal(self) -> bool:
        return abs(self.score - self.recorded) <= TOLERANCE


@dataclass(frozen=True)
class Storage:
    """Bytes that the tasks take, in float32."""

    backbone_bytes: int
    adapters_bytes: int
    copies_bytes: int

    @property
    def together_bytes(self) -> int:
        """One backbone and all adapters."""
        return self.backbone_bytes + self.adapters_bytes


def main() -> int:
    """Carry out the command and return its exit status."""
    return carry_out(compare, str(__doc__))


def compare(arguments: list[str]) -> int:
    """Score the runs' adapters anew, write what was found, and return the exit status: other scores are a failure.

    Raises:
        ConfigError: A run is missing, damaged or of another backbone, or the folder can't be written.
    """
    runs, out = parse(arguments)
    try:
        rows, storage = score(runs)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with writing("out", out):
        write(rows, storage, out)
    different = [row.run for row in rows if not row.is_equal]
    if different:
        print(f"other scores than recorded: {', '.join(different)}", file=sys.stderr)
    return FAILED if different else DONE


def parse(arguments: list[str]) -> tuple[list[Path], Path]:
    """Run directories, and the folder to write.

    Raises:
        ConfigError: One is missing, or holds no finished run with an adapter.
    """
    out, runs = Path("multi_task"), []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "out" and equals:
            out = Path(value)
        else:
            runs.append(Path(argument))
    if not runs:
        raise ConfigError("RUN: the directories of one or more finished runs are needed, as in runs/multi_task/*/*/")
    for run in runs:
        if not (run / RESULT_FILE).is_file():
            raise ConfigError(f"{run}: there is no {RESULT_FILE}; a run directory is needed")
        if not (run / ADAPTER_FOLDER).is_dir():
            raise ConfigError(f"{run}: it kept no adapter; run it with train.keep_adapter=true")
    return runs, out


def score(runs: list[Path]) -> tuple[list[Scored], Storage]:
    """Score each run's adapter on its own task's validation split, all on one backbone.

    Raises:
        ValueError: An adapter is damaged or of another backbone than the first.
        ConfigError: A run's data are no longer there.
    """
    quiet_libraries()
    adapters = AdapterSet()
    for run in runs:
        adapters.add(str(run), run / ADAPTER_FOLDER)
    # The first time on loads the method's library too, which is no part of a switch.
    adapters.use(str(runs[0]))
    adapters.off()
    rows = [_score(adapters, run) for run in tqdm(runs, desc="tasks", unit="task", disable=None)]
    adapters.off()
    backbone = weight_bytes(adapters.model)
    saved = sum(row.adapter_bytes for row in rows)
    return rows, Storage(backbone, saved, backbone * len(rows))


def _score(adapters: "AdapterSet", run: Path) -> Scored:
    record = RunRecord.read(run)
    experiment: Experiment = build(OmegaConf.create(record.config))
    rows = experiment.task.load().splits["validation"]
    start = time.perf_counter()
    adapter = adapters.use(str(run))
    seconds = time.perf_counter() - start
    tokenizer, task = adapters.tokenizer, experiment.task.on(adapters.backbone.model.config)
    collate = task.collator(adapters.backbone, tokenizer, adapters.backbone.model.device)
    subject = Subject(adapter, tokenizer, collate, experiment.evaluate.batch_size, None)
    found = evaluate(task, subject, task.encode(rows, tokenizer), rows)
    metric = record.scores["primary_metric"]
    return Scored(
        run=str(run),
        task=task.name,
        method=experiment.method.name,
        metric=metric,
        score=found.scores[metric],
        recorded=record.scores["validation"][metric],
        adapter_bytes=record.cost["adapter_file_bytes"],
        swap_ms=1000 * seconds,
    )


def write(rows: list[Scored], storage: Storage, out: Path) -> None:
    """Print the table, and write it as Markdown and JSON."""
    from harness.report import terminal
    from harness.report.cells import Table, number, size, sizes
    from harness.report.markdown import markdown

    columns = ("task", "method", "metric", "score", "recorded", "adapter", "swap ms", "remarks")
    adapter = sizes(row.adapter_bytes for row in rows)
    cells = [
        (
            row.task,
            row.method,
            row.metric,
            number(row.score),
            number(row.recorded),
            adapter(row.adapter_bytes),
            number(row.swap_ms, 1),
            "" if row.is_equal else "another score than recorded",
        )
        for row in rows
    ]
    lead = (
        f"{len(rows)} tasks take {size(storage.together_bytes)} as adapters beside one backbone, "
        f"{storage.copies_bytes / storage.together_bytes:.1f} times less than {size(storage.copies_bytes)} as whole "
        "models. Each adapter was put on the same backbone in turn and scored on its own task."
    )
    table = Table("Many tasks on one backbone", columns, cells, text_columns=("task", "method", "metric", "remarks"))
    Console().print(lead)
    terminal.show([table])
    content: dict[str, Any] = {"tasks": [asdict(row) for row in rows], "storage": asdict(storage)}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "multi_task.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_atomically(out / "multi_task.md", markdown("Many tasks on one backbone", lead, [table], [], []))
    print(f"Written to {out}: multi_task.json, multi_task.md")


if __name__ == "__main__":
    sys.exit(main())
