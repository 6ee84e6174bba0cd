"""Runs of a second whose adapters are kept: a tiny backbone, and rows of its own vocabulary."""

import json
import random
from pathlib import Path

from harness import run as runner
from harness.config.compose import compose
from harness.tracking.record import RunRecord, Status

QUICK = "train.max_steps=3 train.learning_rate=0.01 forgetting.text=null measure.costs=false tracking=none".split()
CLASSES = ["bad", "good", "neither"]
# Kind of task -> what it is given beside its data; each reads the columns that `write_rows` makes.
TASKS = {
    "classes": ["task=classification", f"task.labels=[{','.join(CLASSES)}]", "task.text=[text]", "task.label=class"],
    "number": [
        "task=classification", "task.labels=[]", "task.text=[text,reply]", "task.label=number",
        "task.metrics=[pearson]", "task.primary_metric=pearson",
    ],
    "generation": [
        "task=instruction", "task.prompt='{text} ?'", "task.answer='{reply}'", "task.max_new_tokens=4",
        "task.metrics=[exact_match]", "task.primary_metric=exact_match",
    ],
    "options": [
        "task=instruction", "task.prompt='{text} ?'", "task.answer='{class}'", f"task.options=[{','.join(CLASSES)}]",
    ],
    "text2text": ["task=text2text", "task.prompt='{text}'", "task.answer='{reply}'", "task.max_new_tokens=4"],
    "verbalized": [
        "task=verbalized", "task.prompt='{text}'", "task.label=class", f"task.verbalizers=[{','.join(CLASSES)}]",
        "task.max_new_tokens=3", "task.metrics=[accuracy]", "task.primary_metric=accuracy",
    ],
}  # fmt: skip


def write_rows(folder: Path) -> None:
    """Rows with a class, a number and a reply, of which the words of the text tell."""
    folder.mkdir(parents=True, exist_ok=True)
    order = random.Random(0)
    for split, count in (("train", 60), ("validation", 23)):
        lines = []
        for number in range(count):
            place = number % 3
            text = " ".join(f"word{order.randrange(15) + 15 * place}" for _ in range(order.randint(2, 12)))
            row = {"text": text, "class": CLASSES[place], "number": place / 2, "reply": f"word{place} word5"}
            lines.append(json.dumps({**row, "idx": number}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))


def run_once(folder: Path, *options: str) -> RunRecord:
    """Carry out a run, which must not fail."""
    result = runner.run(runner.prepare(compose("config", list(options))), folder)
    assert result.status == Status.finished, result.error
    return result


def train(folder: Path, model: Path, task: str, *options: str) -> Path:
    """Carry out a run and return its directory; its rows lie in `data/` beside it."""
    write_rows(folder / "data")
    told = [f"model.path={model}", *TASKS[task], "task.name=mine", f"task.data_dir={folder}/data", "task.max_length=16"]
    run_once(folder / "run", *told, *QUICK, *options)
    return folder / "run"
