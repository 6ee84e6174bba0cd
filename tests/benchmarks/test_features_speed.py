"""Training on cached features against training without, with MiniLM on the same rows of RTE, in one run.

    export HARNESS_REAL_DATA=FOLDER HARNESS_FEATURE_ROWS=2000
    python -m pytest -m slow -s tests/benchmarks/test_features_speed.py

The two take turns, a run each, with fresh seeds; the first run with features computes them, the others find them. The
last variable makes it ten minutes; without it the figures are of few rows, and of `head` alone.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from harness import run as runner
from harness.config.compose import compose
from harness.tracking.record import RunRecord

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROWS = int(os.environ.get("HARNESS_FEATURE_ROWS", "96"))
SEEDS = 3 if ROWS >= 1000 else 2
EPOCHS = 3 if ROWS >= 1000 else 1
# The least that a step must be faster by. With the topmost of MiniLM's six layers trained, a step has six forward
# passes of a layer and a backward one, of twice the time; features leave one and that, which is 8 against 3.
METHODS = {"head": 10.0, "last_layers": 2.0}


def carry_out(minilm: Path, real_data: Path, folder: Path, method: str, seed: int, cached: bool) -> RunRecord:
    told = [
        "model=minilm", f"model.path={minilm}", "task=glue/rte", f"task.data_dir={real_data}/glue/rte",
        f"task.max_train_rows={ROWS}", f"task.max_development_rows={ROWS // 4}", f"train.epochs={EPOCHS}",
        f"method={method}", f"seed={seed}", f"train.cache_features={str(cached).lower()}",
        "evaluate.validation=false", "measure.costs=false", "train.keep_adapter=false", "forgetting.text=null",
        "tracking=none",
    ]  # fmt: skip
    result = runner.run(runner.prepare(compose("config", told)), folder)
    assert result.status == "finished", result.error
    return result


def took(result: RunRecord) -> Iterator[tuple[str, float]]:
    yield "step", result.cost["step_seconds"]
    yield "training", result.cost["train_seconds"]
    yield "evaluation", result.cost["evaluation_seconds"]
    yield "both", result.cost["train_seconds"] + result.cost["evaluation_seconds"]


@pytest.mark.parametrize("method", METHODS if ROWS >= 1000 else ("head",))
def test_cached_features_make_runs_faster(method: str, minilm: Path, real_data: Path, tmp_path: Path) -> None:
    """Medians over the seeds, of which the first finds no features and computes them."""
    runs: dict[bool, list[RunRecord]] = {False: [], True: []}
    for seed in range(SEEDS):
        for cached in (False, True):
            folder = tmp_path / f"{seed}{cached}"
            runs[cached].append(carry_out(minilm, real_data, folder, method, seed, cached))
    plain, cached_by = (
        {name: [dict(took(one))[name] for one in runs[way]] for name in dict(took(runs[way][0]))}
        for way in (False, True)
    )
    ratios = {name: median(plain[name]) / median(cached_by[name]) for name in plain}
    made, *found = [one.cost["features_seconds"] for one in runs[True]]
    scores = {way: [one.scores["development"]["accuracy"] for one in runs[way]] for way in runs}
    told = ", ".join(f"{name} {ratio:.1f}" for name, ratio in ratios.items())
    print(f"\n{method}, {ROWS} rows, {SEEDS} seeds: times faster: {told}; a step {median(plain['step']):.3f} s")
    print(f"features: {made:.1f} s to compute {runs[True][0].cost['features_bytes'] / 1e6:.1f} MB, {found} s to find")
    print(f"development accuracy without {scores[False]}, with {scores[True]}")
    assert ratios["step"] >= METHODS[method]
