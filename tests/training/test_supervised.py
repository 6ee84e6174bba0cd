"""Supervised fine-tuning ends as TRL's SFTTrainer does: the same tokens, masks and steps, and losses within the seeds'.

    export HARNESS_SEEDS=5
    python -m pytest -m slow -s tests/training/test_supervised.py

Both sides train the shipped decoder in full, with the same optimizer, schedule and shuffled batches; each evaluation is
of the same rows by one function. `-s` prints the figures, and what batches of like length cost or save.
"""

import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from scipy.stats import ttest_ind
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import run as runner
from harness.adapters.trained import find
from harness.config.build import build
from harness.config.compose import compose
from harness.training.batches import IGNORED

# What TRL's trainer warns of is its own.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]

SEEDS = range(int(os.environ.get("HARNESS_SEEDS", "3")))
SHARED = [
    "model=micro_decoder", "method=full", "train.learning_rate=1e-3", "train.epochs=2", "train.batch_size=16",
    "task.generator_rows={train: 480, development: 40, validation: 200}", "task.max_length=64",
    "evaluate.base=false", "forgetting.text=null", "measure.costs=false", "tracking=none",
]  # fmt: skip
INSTRUCTIONS = [
    "task=instruct/micro", "task.max_new_tokens=null", "task.metrics=[]", "task.primary_metric=loss",
]  # fmt: skip
TEXT = ["task=lm/micro", "task.documents=whole", "task.stride=32"]
SHUFFLED = "train.pool_batches=1"


class Rows:
    """A task's rows as each side is given them."""

    def __init__(self, options: list[str]) -> None:
        self.options = [*SHARED, *options]
        experiment = build(compose("config", self.options))
        self.folder = Path(str(experiment.model.path))
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.splits = experiment.task.load().splits
        self.encoded = {name: experiment.task.encode(rows, self.tokenizer) for name, rows in self.splits.items()}

    def ours(self, folder: Path, seed: int, *options: str) -> tuple[float, float]:
        """Validation loss and seconds of training of a run."""
        told, place = [*self.options, f"seed={seed}", *options], folder / f"{seed}-{'-'.join(options)}"
        result = runner.run(runner.prepare(compose("config", told)), place)
        assert result.status == "finished", result.error
        _, subject = find(str(place), "").on_backbone(None, "cpu")
        return self.loss(subject.model), float(result.cost["train_seconds"])

    def theirs(self, folder: Path, seed: int, rows: Dataset, **settings: Any) -> tuple[float, float]:
        """The same of TRL's trainer."""
        from trl import SFTConfig, SFTTrainer

        arguments = SFTConfig(
            output_dir=str(folder), seed=seed, learning_rate=1e-3, num_train_epochs=2, per_device_train_batch_size=16,
            lr_scheduler_type="linear", warmup_steps=0.06, weight_decay=0.01, max_grad_norm=1.0, max_length=64,
            use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, **settings,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=self.tokenizer)
        self.seen = trainer.train_dataset
        began = time.perf_counter()
        trainer.train()
        return self.loss(trainer.model), time.perf_counter() - began

    def loss(self, model: Any) -> float:
        """Mean over the target tokens of the validation rows, a row at a time."""
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for row in self.encoded["validation"]:
                labels = torch.tensor(row["labels"][1:])
                logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
                total += float(functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
                count += int((labels != IGNORED).sum())
        return total / count


def alike(ours: list[float], theirs: list[float]) -> None:
    """Whether the means differ by no more than the seeds make them (Welch's test)."""
    test = ttest_ind(ours, theirs, equal_var=False)
    print(f"difference {statistics.fmean(ours) - statistics.fmean(theirs):+.4f}, p = {test.pvalue:.2f}")
    assert test.pvalue > 0.01


def told(name: str, losses: list[float], seconds: list[float]) -> None:
    figures = " ".join(f"{one:.4f}" for one in losses)
    spread = f"{statistics.fmean(losses):.4f} (sd {statistics.stdev(losses):.4f})"
    print(f"\n{name}: {figures}, mean {spread}, {statistics.median(seconds):.1f} s of training")


def test_instructions_are_learned_as_sfttrainer_learns_them(tmp_path: Path) -> None:
    """Prompts and completions as text on one side, a task on the other: the same ids, labels, and losses."""
    rows = Rows(INSTRUCTIONS)
    columns = [
        {"prompt": f"{row['input']} {row['instruction']}", "completion": f" {row['output']}"}
        for row in rows.splits["train"]
    ]
    theirs = [rows.theirs(tmp_path, seed, Dataset.from_list(columns), completion_only_loss=True) for seed in SEEDS]
    assert [(row["input_ids"], row["labels"]) for row in rows.seen] == [
        (row["input_ids"], row["labels"]) for row in rows.encoded["train"]
    ]
    ours = [rows.ours(tmp_path / "ours", seed, SHUFFLED) for seed in SEEDS]
    sorted_ = {
        pool: [rows.ours(tmp_path / "ours", seed, f"train.pool_batches={pool}") for seed in SEEDS[:2]]
        for pool in (4, 64)
    }
    told("SFTTrainer", *map(list, zip(*theirs, strict=True)))
    told("harness, shuffled", *map(list, zip(*ours, strict=True)))
    for pool, found in sorted_.items():
        told(f"harness, of like length in pools of {pool} batches", *map(list, zip(*found, strict=True)))
    alike([one for one, _ in ours], [one for one, _ in theirs])
    # Sorted over the whole epoch, each batch is of one kind of answer: what mixing them again saves.
    means = {pool: statistics.fmean(one for one, _ in found) for pool, found in sorted_.items()}
    assert means[64] > means[4] > statistics.fmean(one for one, _ in ours) - 0.01


def test_packed_text_is_learned_as_sfttrainer_learns_it(tmp_path: Path) -> None:
    """One running text, wrapped into rows of the same ids on both sides."""
    rows = Rows(TEXT)
    text = "\n".join(row["text"] for row in rows.splits["train"])
    whole = Dataset.from_list([{"text": text}])
    theirs = [rows.theirs(tmp_path, seed, whole, packing=True, packing_strategy="wrapped") for seed in SEEDS]
    assert [row["input_ids"] for row in rows.seen] == [row["input_ids"] for row in rows.encoded["train"]]
    ours = [rows.ours(tmp_path / "ours", seed, SHUFFLED) for seed in SEEDS]
    told("SFTTrainer", *map(list, zip(*theirs, strict=True)))
    told("harness", *map(list, zip(*ours, strict=True)))
    alike([one for one, _ in ours], [one for one, _ in theirs])
