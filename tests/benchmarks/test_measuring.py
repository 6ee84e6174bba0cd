"""Measuring costs little of a run's time.

pytest -m slow -s tests/benchmarks/test_measuring.py
"""

from pathlib import Path

import pytest

from harness import run as runner
from harness.config.compose import compose

pytestmark = pytest.mark.slow
LARGEST_SHARE = 0.03


def test_measuring_takes_less_than_three_percent_of_a_run(minilm: Path, real_data: Path, tmp_path: Path) -> None:
    """What the counted step takes beyond its share of the tokens, latency, and the ceiling, against the whole run."""
    overrides = ["model=minilm", f"model.path={minilm}", "task=glue/sst2", f"task.data_dir={real_data}/glue/sst2"]
    overrides += ["task.max_train_rows=3000", "train.epochs=2", "tracking=none", "method=lora"]
    result = runner.run(runner.prepare(compose("config", overrides)), tmp_path / "run")
    metered, cost = result.provenance["metered_step"], result.cost
    seconds_a_token = cost["train_flops_per_token"] / cost["flops_per_second"] * (1 - cost["padding_share"])
    surplus = metered["seconds"] - seconds_a_token * metered["rows"] * metered["length"]
    share = (surplus + result.cost["measure_seconds"]) / result.cost["total_seconds"]
    print(
        f"\nmeasuring: {share:.2%} of {result.cost['total_seconds']:.0f} s; the counted step {surplus:.2f} s longer, "
        f"latency and ceiling {result.cost['measure_seconds']:.2f} s"
    )
    assert share < LARGEST_SHARE
