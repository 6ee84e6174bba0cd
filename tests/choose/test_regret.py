"""Choices replayed from a store that holds every run advise what the command advises, and lose what was put in."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from run_directories import store_of, write_run

from harness.choose import __main__ as command
from harness.choose import budget, regret
from harness.choose.budget import Size
from harness.choose.regret import Known
from harness.config.errors import ConfigError
from harness.report import curves as curves_of
from harness.report import runs
from harness.report.scores import LEARNING_RATE

SEEDS = range(8)
RATES = (1e-3, 4e-3, 1.6e-2)
# The learning rates of their YAML files.
HEAD_AND_LORA = ((1e-2, 5e-4), (4e-2, 2e-3), (1.6e-1, 8e-3))
SHARES = (0.25, 0.5, 0.75, 1.0)
# Method -> its parameters, and its accuracy at each rate.
TRUE = {"lora": (1000, (0.70, 0.90, 0.80)), "full": (9000, (0.60, 0.85, 0.65)), "head": (100, (0.55, 0.60, 0.62))}

Score = Callable[[str, float], float]


def known(folder: Path, true: dict = TRUE, task: str = "glue/rte", spread: float = 0.004, **changes: object) -> Known:
    """Every run of a task, whose scores scatter a little around what is true."""
    drawn = random.Random(f"{task}{spread}")
    for method, (parameters, accuracies) in true.items():
        for rate, accuracy in zip(RATES, accuracies, strict=True):
            for seed in SEEDS:
                score = accuracy + drawn.uniform(-spread, spread)
                steps = [{"step": int(100 * share), "development.accuracy": score * share} for share in SHARES]
                cost = {"trainable_parameters": parameters, "total_seconds": 100.0}
                write_run(
                    folder / task, method, task=task, seed=seed, learning_rate=rate, score=score, development=score,
                    cost=cost, steps=steps, **changes,
                )  # fmt: skip
    frame = runs.load_runs(folder / task)
    lines = [
        (run, "accuracy", int(100 * share), score * share)
        for run, score in zip(frame["run_id"], frame["development"], strict=True)
        for share in SHARES
    ]
    return Known(frame, pd.DataFrame(lines, columns=["run_id", "name", "step", "value"]))


def test_a_choice_finds_the_best_method_at_its_best_rate(tmp_path: Path) -> None:
    """Far better than the others it is advised, nothing is lost, and the price is that of the runs a choice makes."""
    found = known(tmp_path)
    assert found.best(found.seeds)[0] == "lora"
    for size, runs_made in ((Size(3, 5), 3 * 4 + 2 * 4), (Size(1, 3), 3 * 2 + 2 * 2)):
        for replay in regret.replays(found, size, 3):
            # Without predictions nothing is tested, and the highest is only named.
            assert (replay.advised, replay.rate, replay.refrained) == ("lora", 4e-3, True)
            assert len(replay.held) == len(SEEDS) - 1 - size.seeds
            assert regret.lost(found, replay.advised, replay.rate, replay.held) == 0
            assert replay.seconds == pytest.approx(100 * runs_made)


def test_what_is_lost_is_the_distance_to_the_best(tmp_path: Path) -> None:
    """In points; and a choice of the wrong rate counts as one of the wrong method does."""
    found = known(tmp_path, spread=0.0)
    assert regret.lost(found, "full", 4e-3, found.seeds) == pytest.approx(5)
    assert regret.lost(found, "lora", 1e-3, found.seeds) == pytest.approx(20)
    assert regret.lost(found, "lora", 4e-3, found.seeds) == 0


def test_what_is_lost_in_hindsight_is_more(tmp_path: Path) -> None:
    """The best is one for all choices; held against what happened to be best on its own seeds, each loses more."""
    close = {name: (parameters, (0.70, 0.80, 0.70)) for name, (parameters, _) in TRUE.items()}
    found = known(tmp_path, close, spread=0.05)
    made = list(regret.replays(found, Size(1, 3), 20))
    own = [regret.lost(found, one.advised, one.rate, one.held) for one in made]
    afterwards = [regret.lost_in_hindsight(found, one.advised, one.rate, one.held) for one in made]
    assert all(a >= b for a, b in zip(afterwards, own, strict=True))
    assert min(own) < 0 <= min(afterwards)
    assert (
        regret.lost(found, *found.found, found.seeds) == regret.lost_in_hindsight(found, *found.found, found.seeds) == 0
    )


def test_a_rate_is_tuned_on_its_own_seeds_alone(tmp_path: Path) -> None:
    """By the best development score of whole runs, whatever the validation scores say; of equals the smaller."""
    found = known(tmp_path, {"lora": (1000, (0.70, 0.90, 0.10))}, spread=0.0)
    assert found.tuned("lora", RATES, [0]) == 4e-3
    assert found.tuned("lora", (RATES[0], RATES[2]), [0, 1]) == 1e-3
    late = str(found.row["lora", RATES[2], 5]["run_id"])
    found.curve[late] = [(25, 0.0), (100, 0.95)]
    assert found.tuned("lora", RATES, [5]) == RATES[2]
    assert found.tuned("lora", RATES, [5, 6]) == 4e-3
    found.curve[late] = [(25, 0.9), (100, 0.0)]
    assert found.tuned("lora", RATES, [5]) == 4e-3


def test_a_loss_is_better_the_lower_it_is(tmp_path: Path) -> None:
    """The same numbers as perplexities make the worst method the best."""
    frame = runs.load_runs(tmp_path) if list(tmp_path.iterdir()) else known(tmp_path, spread=0.0).runs
    lines = [(run, "perplexity", 100, score) for run, score in zip(frame["run_id"], frame["development"], strict=True)]
    curves = pd.DataFrame(lines, columns=["run_id", "name", "step", "value"])
    found = Known(frame.assign(primary_metric="perplexity"), curves)
    assert found.best(found.seeds) == found.found == ("head", RATES[0])
    assert regret.lost(found, "lora", 4e-3, found.seeds) == pytest.approx(35)


def test_a_rule_of_thumb_is_learned_on_the_other_tasks_alone(tmp_path: Path) -> None:
    """Where the other tasks say full and this one says lora, the rule loses what lies between."""
    swapped = {"lora": TRUE["full"], "full": TRUE["lora"], "head": TRUE["head"]}
    here, there = known(tmp_path, spread=0.0), known(tmp_path, swapped, "glue/cola", spread=0.0)
    assert regret.thumb(here, [there], here.seeds) == pytest.approx(5)
    assert regret.thumb(here, [here], here.seeds) == 0
    assert regret.thumb(here, [], here.seeds) is None


def test_the_page_says_what_was_lost(tmp_path: Path) -> None:
    """A row per task and size, and the mean over tasks in a sentence."""
    swapped = {"lora": TRUE["full"], "full": TRUE["lora"], "head": TRUE["head"]}
    made = regret.report([known(tmp_path), known(tmp_path, swapped, "glue/cola")], 2)
    assert [row[:2] for row in made.tables[0].rows] == [
        (task, f"{trials} rate(s), {seeds} seeds")
        for task in ("glue/rte", "glue/cola")
        for trials, seeds in ((3, 5), (3, 3), (1, 3))
    ]
    assert made.lead.startswith("Mean regret over 2 task(s): with 3 rate(s) and 5 seeds 0.00 points at ")
    assert set(made.frames["regret"]["advised"]) == {"lora 2", "full 2"}


def test_a_size_that_one_task_has_too_few_seeds_for_is_not_in_the_mean(tmp_path: Path) -> None:
    """Its rows are of the other task alone."""
    fewer = known(tmp_path, task="glue/cola")
    rows = fewer.runs[fewer.runs["seed"] < 6]
    lines = [(run, "accuracy", step, value) for run in rows["run_id"] for step, value in fewer.curve[run]]
    fewer = Known(rows, pd.DataFrame(lines, columns=["run_id", "name", "step", "value"]))
    made = regret.report([known(tmp_path), fewer], 2)
    sizes = made.frames["regret"].groupby("task")[["trials", "seeds"]].apply(lambda one: one.to_numpy().tolist())
    assert sizes.to_dict() == {"glue/rte": [[3, 5], [3, 3], [1, 3]], "glue/cola": [[3, 3], [1, 3]]}
    assert made.lead.startswith("Mean regret over 2 task(s): with 3 rate(s) and 3 seeds ")


def test_a_run_that_is_missing_is_named(tmp_path: Path) -> None:
    """A store with holes holds no choice."""
    frame = known(tmp_path).runs
    holed = frame[~((frame["method"] == "lora") & (frame["seed"] == 3) & (frame["rate"] == 4e-3))]
    with pytest.raises(ConfigError, match=r"glue/rte: 1 of 72 runs .* method=lora train.learning_rate=0.004 seed=3"):
        Known(holed, pd.DataFrame(columns=["run_id", "name", "step", "value"]))
    with pytest.raises(ConfigError, match="4 seeds; no choice leaves 2 over"):
        Known(frame[frame["seed"] < 4], pd.DataFrame(columns=["run_id", "name", "step", "value"]))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "sweep=: the sweep of all methods, rates and seeds is needed"),
        (["sweep=grid", "replays=0"], "replays=0: a positive number is needed"),
        (["sweep=gird"], "sweep=gird: no runs found in tracking.uri="),
        (["sweep=gird"], "did you mean grid? There are: grid (1 run)"),
        (["swep=grid"], "did you mean sweep"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = store_of(tmp_path, write_run(tmp_path / "runs"))
    assert regret.main([*arguments, f"tracking.uri={uri}"]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_replay_advises_what_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own choice, and the one replayed with its seeds from a sweep of every run, are the same."""
    size = Size(3, 3)
    for module in (budget, regret):
        monkeypatch.setattr(module, "SIZES", (size,))
    monkeypatch.setattr(regret, "FEWEST_HELD", 0)
    monkeypatch.chdir(tmp_path)
    # No more rows are made than are used: of so short a run that would be a third.
    few = "task.generator_rows={train: 160, development: 24, validation: 40}"
    shared = ["task=micro/sentiment", "model=micro_encoder", "task.max_length=16", few, "train.epochs=2"]
    shared += ["train.evaluations_per_epoch=2", "measure.costs=false", "forgetting.text=null"]
    shared += ["hydra.launcher.workers=1", "tracking.uri=sqlite:///mlflow.db"]

    assert command.main([*shared, "methods=head,lora", "hours=1"]) == 0
    rates = [f'"${{by:${{method.name}},{{head: {head}, lora: {lora}}}}}"' for head, lora in HEAD_AND_LORA]
    every = ["method=head,lora", f"train.learning_rate={','.join(rates)}", "seed=0,1,2,3", "sweep.name=every"]
    told = [sys.executable, "-m", "harness", "-m", *shared, *every]
    done = subprocess.run(told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    frame = runs.read(uri, {}, "every").frame
    found = Known(frame[frame["newest"]], curves_of.load(uri, "every"))
    replay = regret.choose(found, size, found.seeds)
    assert replay.held == ()
    (sweep,) = {str(name) for name in runs.read(uri, {}, None).frame["sweep"]} - {"every", "timing"}
    final = runs.read(uri, {}, sweep).frame.query("stage == 'final' and method == @replay.advised")
    page = (tmp_path / "choice/report.md").read_text()
    # Whether so few steps teach it anything differs between processors.
    named = f"{replay.advised} is the highest observed" if replay.refrained else f"Take {replay.advised}"
    assert named in page or "Take none of these yet" in page
    assert ("Take none" in page or "None can be advised" in page) == replay.refrained
    assert set(final[LEARNING_RATE].astype(float)) == {replay.rate}
    assert len(final) == size.seeds
    expected = [float(found.row[replay.advised, replay.rate, seed]["validation"]) for seed in final["seed"]]
    assert list(final["validation"]) == expected
