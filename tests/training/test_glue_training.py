"""Pairs of sentences are learned as a script with transformers' Trainer learns them: scores within the seeds'.

    export HARNESS_REAL_DATA=FOLDER HARNESS_GLUE_ROWS=0 HARNESS_SEEDS=5
    python -m pytest -m slow -s tests/training/test_glue_training.py

Full fine-tuning of MiniLM on the same rows of STS-B (a regression) and MRPC, for three epochs: all rows with
HARNESS_GLUE_ROWS=0, which takes three hours, or at most so many of each split. Without the variable there are few, for
one epoch, which teach little. `-s` prints scores and seconds.
"""

import os
from pathlib import Path
from statistics import fmean, stdev

import pytest
import trainer_script
from scipy.stats import ttest_ind
from split_rows import write_splits

from harness import run as runner
from harness.config.compose import compose

# What transformers warns of in its trainer is its own.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600), pytest.mark.filterwarnings("ignore")]

ASKED = os.environ.get("HARNESS_GLUE_ROWS")
ROWS = int(ASKED or 64)
SEEDS = range(int(os.environ.get("HARNESS_SEEDS", "2")))
EPOCHS = 3 if ASKED else 1
FEW = [f"task.max_{split}_rows={ROWS}" for split in ("train", "development", "validation") if ROWS]
SHARED = ["method=full", "model=minilm", f"train.epochs={EPOCHS}", "train.keep_adapter=false", "tracking=none"]
SHARED += ["measure.costs=false", "forgetting.text=null", "evaluate.base=false"]
# Of few rows one is enough: classes are what the sweep's benchmark holds against the same script.
TASKS = [("stsb", "pearson"), ("mrpc", "accuracy")][: 2 if ASKED else 1]


@pytest.mark.parametrize(("task", "metric"), TASKS)
def test_pairs_are_learned_as_trainer_learns_them(
    task: str, metric: str, minilm: Path, real_data: Path, tmp_path: Path
) -> None:
    """By the primary metric of validation, with the weights of the best epoch on development."""
    told = [*SHARED, f"task=glue/{task}", f"task.data_dir={real_data}/glue/{task}", *FEW, f"model.path={minilm}"]
    write_splits(told, tmp_path / "rows")
    ours, theirs, seconds = [], [], ([], [])
    for seed in SEEDS:
        result = runner.run(runner.prepare(compose("config", [*told, f"seed={seed}"])), tmp_path / f"{task}{seed}")
        assert result.status == "finished", result.error
        ours.append(float(result.scores["validation"][metric]))
        # The trainer's seconds are those of its training and all its evaluations.
        seconds[0].append(result.cost["train_seconds"] + result.cost["evaluation_seconds"])
        output = str(tmp_path / f"trainer{seed}")
        found = trainer_script.train(str(minilm), str(tmp_path / "rows"), "full", seed, EPOCHS, output)
        theirs.append(found["score"])
        seconds[1].append(found["train_seconds"])
    for name, scores, took in zip(("harness", "Trainer"), (ours, theirs), seconds, strict=True):
        figures = " ".join(f"{score:.4f}" for score in scores)
        print(f"\n{task} {metric}, {name}: {figures}, mean {fmean(scores):.4f} (sd {stdev(scores):.4f})", end="")
        print(f", {fmean(took):.0f} s a run", end="")
    p_value = float(ttest_ind(ours, theirs, equal_var=False).pvalue)
    print(f"\ndifference {fmean(ours) - fmean(theirs):+.4f}, p = {p_value:.2f}")
    # So few rows may teach either nothing but the commoner class, and then there is no p.
    assert not p_value <= 0.01
