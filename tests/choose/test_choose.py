"""`harness-choose`: what fits is timed, tuned and raced within its hours, and the answer says what to type next."""

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import warm
from run_directories import write_run
from waiting import until

from harness.adapters import export, predict
from harness.choose import __main__ as command
from harness.choose import answer, budget, state
from harness.choose.budget import SIZES, Size
from harness.choose.state import Candidate
from harness.config.errors import ConfigError
from harness.report.__main__ import parse as parse_report
from harness.report.runs import load_runs
from harness.tracking.record import RunRecord, empty_cost

SMALL = ["model=micro_encoder", "task=micro/sentiment", "task.max_length=16"]
TABLE = "task=table task.file=tickets.csv task.text=text task.label=category model=micro_encoder".split()


def times(**seconds: float) -> list[Candidate]:
    return [Candidate(name, run_seconds=one) for name, one in seconds.items()]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["hours=0"], "hours=0: a positive number is needed"),
        (["hours=two"], "hours=two: a number is allowed"),
        (["memory=lots"], "memory=lots: a size is needed, such as 24GB"),
        (["memory=0GB"], "memory=0GB: a size is needed"),
        (["methods=lroa"], "methods=lroa: there is no such method; did you mean road or lora"),
        (["method=lora"], "method=lora: harness-choose decides it; use methods=NAME,..."),
        (["seed=1"], "seed=1: harness-choose decides it"),
        (["train.learning_rate=1"], "harness-choose decides it"),
        (["hydra/sweeper=basic"], "harness-choose decides it"),
        (["-m"], "-m: no such option"),
        (["tracking=none"], "tracking=none: the comparison is kept in a store"),
        (["model=micro_encodr"], "did you mean"),
        (["out=there"], "out=there: the folder is there and holds no choice.json"),
    ],
)
def test_a_mistake_is_told_before_anything_is_planned(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, one sentence, and no folder is left."""
    (tmp_path / "there").mkdir()
    assert command.main(arguments) == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert "Planning" not in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_does_not_fit_is_named_with_what_it_lacks() -> None:
    """Between the needs of two methods one of them stays; below the smallest, that one's need is told."""
    planned = budget.plan(["head", "full"], SMALL)
    needs = {one.name: one.peak_bytes or 0 for one in planned}
    assert 0 < needs["head"] < needs["full"]
    between = (needs["head"] + needs["full"]) // 2
    budget.fit(planned, between, 0)
    head, full = planned
    assert not head.refused
    lacking = budget.as_memory(needs["full"] - between, needs["full"])
    assert full.refused == f"it needs {budget.as_memory(needs['full'])}, {lacking} more than there is"
    # A device takes some itself.
    with pytest.raises(ConfigError, match=f"the smallest, head, needs {budget.as_memory(needs['head'] + between)}"):
        budget.fit([Candidate(name, peak) for name, peak in needs.items()], between, between)


def test_what_can_not_go_with_the_backbone_is_out_with_its_reason() -> None:
    """An adaption prompt is for decoders; a race without weights can't begin."""
    with pytest.raises(ConfigError, match="method=adaption_prompt"):
        budget.plan(["adaption_prompt"], SMALL)
    with pytest.raises(ConfigError, match="this architecture has no weights here"):
        command.check_weights(["model=llama_65b"])


@pytest.mark.slow
def test_a_model_without_weights_is_planned_and_not_trained(capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run needs none; a race says so before it begins."""
    asked = ["model=llama_65b", "task=micro/sentiment", "methods=head", "memory=900GB"]
    assert command.main([*asked, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "head" in told
    assert "GB" in told
    assert not Path("choice").exists()
    assert command.main(asked) == 2
    assert "this architecture has no weights here" in capsys.readouterr().err


def test_more_hours_give_a_larger_comparison_and_too_few_none() -> None:
    """What is chosen ends within them, whatever the methods take; the sentence names the need."""
    methods = times(full=400.0, lora=200.0, head=50.0)
    for start in (0.0, 60.0):
        for size in SIZES:
            enough = size.hours(methods, 2, start) * 1.001
            assert budget.choose_size(methods, enough, 2, start) == size
    assert budget.choose_size(methods, 100.0, 2) == SIZES[0]
    needed = SIZES[-1].hours(methods, 2)
    with pytest.raises(ConfigError, match=rf"hours=0.01: .* takes about {needed:.2g} hours \(a run of full"):
        budget.choose_size(methods, 0.01, 2)


def test_a_comparison_counts_its_runs() -> None:
    """One worker, equal methods: whole trials, then a seed for all and the rest for half."""
    assert Size(3, 5).hours(times(a=3600, b=3600, c=3600, d=3600), 1) == pytest.approx(4 * 4 + 2 * 4)
    assert Size(1, 3).hours(times(a=3600, b=3600), 1) == pytest.approx(2 * 2 + 2 * 2)
    assert [budget.survivors(count) for count in (1, 2, 3, 4, 9)] == [1, 2, 2, 2, 5]


def record(method: str, status: str = "finished", **cost: float) -> RunRecord:
    train = {"batch_size": 10, "gradient_accumulation_steps": 1, "epochs": 2.0, "evaluations_per_epoch": 3}
    return RunRecord(
        run_id="0" * 32,
        status=status,
        error=None if status == "finished" else "it broke on the first step",
        identity="i",
        sweep={},
        config={"method": {"name": method}, "train": train},
        cost={**empty_cost(), **cost},
        provenance={"data": {"rows": {"train": 1000}}},
    )


def test_a_few_steps_tell_how_long_a_run_takes_and_what_fails_is_out(tmp_path: Path) -> None:
    """200 steps of 0.1 s, six evaluations of 2 s, and 3 s around them, with some slack; a broken method says why."""
    steps = budget.TIMED_STEPS * 0.1
    timed = record("lora", step_seconds=0.1, train_seconds=steps + 2, total_seconds=steps + 5)
    for place, one in enumerate((timed, record("full", "failed"))):
        (tmp_path / str(place)).mkdir()
        one.write(tmp_path / str(place))
    lora, full, gone = candidates = [Candidate("lora"), Candidate("full"), Candidate("gone")]
    assert budget.take_times(candidates, tmp_path) == pytest.approx(steps + 5)
    assert lora.run_seconds == pytest.approx(budget.SLACK * (3 + 200 * 0.1 + 6 * 2))
    assert "failed: it broke on the first step" in full.refused
    assert gone.refused


def test_a_plan_has_one_unit() -> None:
    """That of the largest figure, so that a column can be compared at a glance."""
    small, large = Candidate("head", 150_000_000), Candidate("full", 780_000_000, "it is refused")
    assert command.plan_table([small, large]) == "head     0.15 GB\nfull     0.78 GB  it is refused"
    assert command.plan_table([small, Candidate("x", None, "why")]) == "head      150 MB\nx              -  why"
    assert budget.as_memory(50_000_000, 780_000_000) == "0.05 GB"


def test_the_better_half_survives_on_the_development_split() -> None:
    """Of the first seed: equal scores survive together, a metric that falls is ranked the other way."""
    frame = pd.DataFrame({
        "method": ["a", "b", "c", "d", "d", "a"],
        "stage": ["final"] * 4 + ["tune", "final"],
        "status": ["finished"] * 6,
        "seed": [1, 1, 1, 1, 0, 2],
        "development": [0.5, 0.7, 0.7, 0.6, 0.9, 0.9],
        "primary_metric": ["accuracy"] * 6,
    })  # fmt: skip
    assert answer.surviving(frame, 2) == ["b", "c"]
    assert answer.surviving(frame, 1) == ["b", "c"]
    assert answer.surviving(frame.assign(primary_metric="perplexity"), 1) == ["a"]
    assert answer.surviving(frame[frame["stage"] == "tune"], 2) == []
    assert answer.surviving(pd.DataFrame(), 2) == []


def test_a_folder_goes_on_with_its_own_question_alone(tmp_path: Path) -> None:
    """The same question has the same sweep; another one needs another folder. A password is in no file."""
    asked = (["task=glue/rte", "tracking.uri=http://me:secret@host"], ["lora"], "24GB")
    choice = state.load(tmp_path / "choice", *asked)
    choice.candidates = [Candidate("lora", 5, "", 2.5)]
    choice.save(tmp_path / "choice")
    assert "secret" not in (tmp_path / "choice/choice.json").read_text()
    again = state.load(tmp_path / "choice", *asked)
    assert again == choice
    assert again.sweep == choice.sweep
    assert again.overrides == asked[0]
    with pytest.raises(ConfigError, match="another question, of methods lora"):
        state.load(tmp_path / "choice", asked[0], ["lora", "full"], "24GB")


def test_the_commands_that_are_told_are_the_users_own_words(tmp_path: Path) -> None:
    """A folder given as the model stays one, and a store; what only a comparison needs is left out."""
    told = ["task=table", "task.file=my tickets.csv", f"model={tmp_path}", "tracking.uri=sqlite:///own.db"]
    only_compared = ["task.max_train_rows=500", "train.early_stopping_patience=2", "train.epochs=4"]
    _, overrides = command.parse([*told, *only_compared, "hours=1"])
    assert overrides == [*told, *only_compared]
    length = ("train.epochs=1.5",)
    advice = answer.Advice("lora", ("lora",), "0.002", "0123456789abcdef", length, pd.Series(), 1.0, {}, "")
    steps = dict(answer.commands(advice, overrides, "choose-1"))
    train = shlex.split(steps["train on all rows"])
    chosen = ["train.epochs=1.5", "method=lora", "train.learning_rate=0.002", "train.all_rows=true"]
    assert train == ["harness", *told, *chosen]
    assert predict.parse(shlex.split(steps["predict"])[1:]).uri == "sqlite:///own.db"
    assert export.parse(shlex.split(steps["export"])[1:]).adapter == "0123456789ab"
    assert parse_report(shlex.split(steps["look closer"])[1:]).sweep == ["choose-1"]


@pytest.mark.parametrize(
    ("scores", "metric", "asked", "length"),
    [
        ([0.6, 0.8, 0.7, 0.7], "accuracy", {}, ("train.epochs=1",)),
        ([0.6, 0.7, 0.7, 0.8], "accuracy", {}, ()),
        ([9.0, 7.0, 6.0, 8.0], "perplexity", {}, ("train.epochs=1.5",)),
        ([0.6, 0.8, 0.7, 0.7], "accuracy", {"param.train.max_steps": "40"}, ("train.max_steps=20",)),
        ([0.6], "accuracy", {}, ()),
    ],
)
def test_the_final_model_trains_until_the_weights_were_best(
    scores: list[float], metric: str, asked: dict[str, str], length: tuple[str, ...]
) -> None:
    """Of two epochs with two evaluations each the best is found; with nothing to gain from less, all are trained."""
    run = {"run_id": "a", "primary_metric": metric, "param.train.max_steps": "None", "param.train.epochs": "2.0"}
    run |= {"param.train.evaluations_per_epoch": "2", **asked}
    lines = [("a", metric, 10 * (place + 1), score) for place, score in enumerate(scores)]
    lines += [("a", "loss", 10, 5.0), ("b", metric, 30, 99.0)]
    curves = pd.DataFrame(lines, columns=["run_id", "name", "step", "value"])
    assert answer.length_of(pd.Series(run), curves) == length


@pytest.mark.parametrize(
    ("full", "head", "alone"),
    [
        ([0.8, 0.81, 0.82], [0.5, 0.7, 0.5], True),
        ([0.8, 0.5, 0.82], [0.5, 0.7, 0.5], False),
        ([0.8] * 3, [0.7] * 3, False),
    ],
)
def test_the_only_method_that_learned_is_advised(
    full: list[float], head: list[float], alone: bool, tmp_path: Path
) -> None:
    """Where every other has a run at the majority nothing can be tested; one that is known to beat it is taken."""
    for method, values in (("full", full), ("head", head)):
        for seed, score in enumerate(values, budget.FIRST_SEED):
            write_run(tmp_path / method, method, stage="final", seed=seed, score=score, majority=0.6)
    advice = answer.advise(load_runs(tmp_path), pd.DataFrame(columns=["run_id", "name", "step", "value"]))
    assert (advice.method, advice.alone, advice.refrained) == ("full", alone, not alone)
    choice = state.Choice({"overrides": [], "methods": ["full", "head"], "memory": [""]}, [])
    lead = answer.report(choice, load_runs(tmp_path), advice, SIZES[0]).lead
    assert lead.startswith("Take full: the only one known to beat the majority class") == alone


@pytest.mark.parametrize(
    ("means", "metric", "taken"),
    [
        ((0.80, 0.795, 0.70), "accuracy", "lora"),
        ((0.80, 0.785, 0.70), "accuracy", "full"),
        ((0.80, 0.795, 0.80), "accuracy", "head"),
        ((9.00, 9.05, 12.0), "perplexity", "lora"),
        ((9.00, 9.20, 8.95), "perplexity", "head"),
    ],
)
def test_a_cheaper_method_is_taken_only_where_it_scores_as_high(
    means: tuple[float, ...], metric: str, taken: str
) -> None:
    """Of those that can't be told apart: a method far behind may still be among them, where seeds are few."""
    parameters = (9000, 1000, 100)
    level = pd.DataFrame({"configuration": ("full", "lora", "head"), "mean": means, "trainable_parameters": parameters})
    assert answer.cheapest(level, metric)["configuration"] == taken


def test_help_needs_nothing_heavy() -> None:
    """Neither torch nor pandas is imported for it."""
    code = (
        "import sys; from harness.choose.__main__ import main; assert main(['--help']) == 0; "
        "print({'torch', 'transformers', 'mlflow', 'pandas', 'peft'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "set()"


def tickets(path: Path) -> None:
    order = random.Random(3)
    words = {"money": "paid bought owner shop".split(), "sea": "boat ferry barge port".split()}
    rows = []
    for number in range(160):
        kind = list(words)[number % 2]
        text = [order.choice(words[kind] if order.random() < 0.5 else "the was not it".split()) for _ in range(9)]
        rows.append(f"{' '.join(text)},{kind}")
    path.write_text("\n".join(["text,category", *rows]) + "\n")


@pytest.mark.slow
def test_a_sweep_ends_with_the_hours(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Hours that are over start none; one that runs is interrupted, and says how it goes on."""
    assert not command.run_harness(["method=lora"], time.monotonic() - 1)
    assert not list(tmp_path.iterdir())
    began = time.monotonic()
    long = [*SMALL, "method=head,lora", "train.epochs=500", "sweep.name=long", "tracking=none"]
    assert not command.run_harness(long, began + 30)
    assert 30 <= time.monotonic() - began < 30 + 2 * command.GRACE_SECONDS
    assert "finished" not in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_choice_is_interrupted_goes_on_and_ends_with_what_to_do(tmp_path: Path) -> None:
    """From a table to a page whose commands are commands; done once more, nothing is run again."""
    tickets(tmp_path / "tickets.csv")
    arguments = [*TABLE, "methods=head,lora,adaption_prompt", "hours=1", "train.epochs=1", "forgetting.text=null"]
    arguments += ["hydra.launcher.workers=1"]  # its start is most of what these runs take
    told = [sys.executable, "-m", "harness.choose", *arguments]
    begun = subprocess.Popen(told, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: list(tmp_path.glob("runs/choose-*/*/*/result.json")), 600)
    begun.send_signal(signal.SIGINT)
    printed, _ = begun.communicate(timeout=300)
    assert begun.returncode == 130, printed
    assert "the same command goes on from here" in printed
    ended = warm.run("harness.choose", arguments, tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Take " in ended.stdout
    page = (tmp_path / "choice/report.md").read_text()
    assert "Not compared to the end" in page
    commands = [
        line.split("|")[2].strip().strip("`") for line in page.splitlines() if "harness" in line.partition("|")[2]
    ]
    found = {shlex.split(one)[0]: shlex.split(one)[1:] for one in commands if one.startswith("harness")}
    predict.parse(found["harness-predict"])
    export.parse(found["harness-export"])
    parse_report(found["harness-report"])
    assert any(one.startswith("train.learning_rate=") for one in found["harness"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/result.json")}
    assert len(before) >= 2 * 3 + 2 * 5
    began = time.monotonic()
    assert warm.run("harness.choose", arguments, tmp_path).returncode == 0
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/result.json")}
    assert after == before, f"{time.monotonic() - began:.0f} s"
    answers = [one.replace("NEW.csv", "tickets.csv") for one in found["harness-predict"]]
    assert warm.run("harness.adapters.predict", answers, tmp_path).returncode == 0
    assert len(pd.read_parquet(tmp_path / "answers.parquet")) == 160
    assert json.loads((tmp_path / "choice/choice.json").read_text())["candidates"][2]["refused"]
