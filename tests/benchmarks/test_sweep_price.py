"""One question asked twice: every point of a grid trained alone to its end, and with what is cheap to skip left out.

    HARNESS_REAL_DATA=FOLDER HARNESS_PRICE_ROWS=400 python -m pytest -m slow -s tests/benchmarks/test_sweep_price.py

Four methods at four learning rates with three seeds on MRPC, or the task of GLUE that HARNESS_PRICE_TASK names, with
MiniLM: 48 runs. MRPC needs thousands of rows before methods differ; sst2 needs 400. Against it the same methods and
rates in a race (`hydra.sweeper.race`), whose winners alone get the three seeds, with the head's features cached. Both
tell their seconds, and which methods are level with the best. HARNESS_PRICE_ROWS=0 tries it out: two methods, two rates
and a seed on the micro world, where starting workers is most of the price. Without the variable it is skipped.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from harness.report import pairwise, runs, scores
from harness.report.definitions import Pairs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]
ASKED = os.environ.get("HARNESS_PRICE_ROWS")
ROWS = int(ASKED or 0)
TASK = os.environ.get("HARNESS_PRICE_TASK", "mrpc")
RATES = {
    "full": (3.16e-5, 1e-4, 3.16e-4, 1e-3),
    "head": (3.16e-3, 1e-2, 3.16e-2, 1e-1),
    "bitfit": (1e-3, 3.16e-3, 1e-2, 3.16e-2),
    "lora": (3.16e-4, 1e-3, 3.16e-3, 1e-2),
}
SEEDS = "1,2,3" if ROWS else "1"
SHARED = "train.evaluations_per_epoch=4 train.keep_adapter=false forgetting.text=null measure.costs=false".split()
SMALL = "task=micro/sentiment model=micro_encoder task.max_length=16 task.max_train_rows=96 train.epochs=1".split()


def asked(request: pytest.FixtureRequest) -> tuple[dict[str, tuple[float, ...]], list[str]]:
    """The methods with their rates, and what all runs share."""
    methods, shared = RATES, [*SHARED, *SMALL]
    if ROWS:
        data, model = request.getfixturevalue("real_data"), request.getfixturevalue("minilm")
        task = [f"task=glue/{TASK}", f"task.data_dir={data}/glue/{TASK}", "task.max_length=128", "train.epochs=2"]
        few = [f"task.max_train_rows={ROWS}", "task.max_development_rows=200", "task.max_validation_rows=400"]
        shared = [*SHARED, *task, *few, "model=minilm", f"model.path={model}"]
    else:
        methods = {method: RATES[method][1:3] for method in ("head", "lora")}
    return methods, [*shared, f"method={','.join(methods)}"]


def by_method(values: dict[str, object]) -> str:
    """A value for each method, as a configuration writes it."""
    listed = ",".join(f"{method}: {value}" for method, value in values.items())
    return f'"${{by:${{method.name}},{{{listed}}}}}"'


def seconds(folder: Path, told: list[str]) -> float:
    """How long a sweep takes."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "harness", "-m", *told, "sweep.name=question"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return time.perf_counter() - start


def grid(methods: dict[str, tuple[float, ...]], trials: int) -> list[str]:
    """Every point to its end."""
    rates = [by_method({method: own[place] for method, own in methods.items()}) for place in range(trials)]
    return [f"train.learning_rate={','.join(rates)}", f"seed={SEEDS}"]


def race(methods: dict[str, tuple[float, ...]], trials: int) -> list[str]:
    """Trials of all methods in a race, seeds for its winners; what can't start from cached features computes them."""
    rules = ["hydra/sweeper=equal_budget", f"hydra.sweeper.trials={trials}", f"hydra.sweeper.seeds=[{SEEDS}]"]
    rules += [f"method.learning_rates={by_method({method: list(own) for method, own in methods.items()})}"]
    return [*rules, "hydra.sweeper.rungs=[0.25,0.5]", "hydra.sweeper.race=0.05", "train.cache_features=true"]


def level(frame: pd.DataFrame) -> tuple[str, list[str]]:
    """The method that stands highest, and those that can't be told from it."""
    (found,) = pairwise.compare_tasks(frame, scores.summary(frame), None, None, Pairs.all, None)
    return found.best, sorted(name.split()[0] for name in {found.best, *found.level} if name)


def best_rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Of a whole grid, each method's runs at the rate of its best development scores, as a choice would keep them."""
    rate = frame["param.train.learning_rate"]
    means = frame.groupby(["method", rate])["development"].mean()
    kept = {(method, means[method].idxmax()) for method in frame["method"].unique()}
    return frame[[pair in kept for pair in zip(frame["method"], rate, strict=True)]]


@pytest.mark.skipif(ASKED is None, reason="set HARNESS_PRICE_ROWS to the training rows of 48 runs, such as 400")
def test_a_sweep_with_what_is_cheap_to_skip_left_out(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both ask about the same points, and answer from runs of the same seeds."""
    methods, shared = asked(request)
    (trials,) = {len(rates) for rates in methods.values()}
    took, found = {}, {}
    for name, asking in (("grid", grid(methods, trials)), ("race", race(methods, trials))):
        folder = tmp_path / name
        folder.mkdir()
        took[name] = seconds(folder, [*shared, *asking])
        frame = runs.load_runs(f"sqlite:///{folder}/mlflow.db")
        found[name] = frame[frame["newest"]]
    whole, raced = best_rates(found["grid"]), found["race"].query("stage == 'final'")
    seeds = {int(seed) for seed in SEEDS.split(",")}
    assert len(found["grid"]) == len(methods) * trials * len(seeds)
    tried = found["race"].query("stage == 'tune'").groupby("method")["param.train.learning_rate"].agg(set)
    assert tried.to_dict() == found["grid"].groupby("method")["param.train.learning_rate"].agg(set).to_dict()
    for frame in (whole, raced):
        assert frame.groupby("method")["seed"].agg(set).to_dict() == dict.fromkeys(methods, seeds)
    with capsys.disabled():
        share = took["race"] / took["grid"]
        print(f"\n{len(found['grid'])} runs {took['grid']:.0f} s, race {took['race']:.0f} s: {share:.2f} of the price")
        for name, frame in (("grid", whole), ("race", raced)):
            best, together = level(frame)
            means = frame.groupby("method")["validation"].mean().round(4).to_dict()
            print(f"{name}: highest {best or 'none tested'}, level with it {together}, {means}")
