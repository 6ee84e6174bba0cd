"""A sweep with `sweep.pack` trains in one pack what fits together, and says whose time it was not."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.tracking.record import RunRecord


@pytest.mark.slow
def test_a_sweep_packs_trials_that_fit_together(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Two of LoRA in one pack; the one of DoRA beside them alone, with its own costs."""
    options = ["train.max_steps=6", "sweep.stage=tune", "evaluate.validation=false", "forgetting.text=null"]
    points = ["method.use_dora=false,true", "train.learning_rate=0.001,0.01", f"hydra.sweep.dir={tmp_path}/points"]
    packed = ["sweep.pack=4", "hydra.launcher.workers=1"]
    command = [sys.executable, "-m", "harness", "-m", *tiny_experiment, *options, *points, *packed]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("packed, K=2") == 2
    records = [RunRecord.read(tmp_path / "points" / str(number)) for number in range(4)]
    for record in records:
        alone = record.config["method"]["use_dora"]
        assert record.provenance.get("packed") == (None if alone else 2)
        assert (record.cost["train_seconds"] is None) == (not alone)
    assert sum(record.config["method"]["use_dora"] for record in records) == 2


def test_a_pack_that_is_no_positive_number_is_refused() -> None:
    """In a sentence with the key and the value."""
    with pytest.raises(ConfigError, match=r"sweep\.pack=0: a positive number is needed"):
        build(compose("config", ["sweep.pack=0"]))
