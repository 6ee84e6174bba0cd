"""A method, a task, a metric and a table of a report are each one file (and one YAML), with nothing else edited."""

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import harness.methods
import harness.report
import harness.tasks
import harness.training
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.plan import __main__ as planner
from harness.report import __main__ as report
from harness.report import sections
from harness.report.plots import style
from harness.run.inputs import prepare
from harness.run.pipeline import run
from harness.tracking.record import RunRecord, Status
from harness.training import metrics

METHOD = '''
"""The norms of the top layers."""

from dataclasses import dataclass

from harness.config.errors import ConfigError
from harness.methods.defaults import MethodDefaults
from harness.methods.selective import SelectedWeights
from harness.methods.size import Knob


@dataclass(frozen=True)
class TopNorms(MethodDefaults):
    layers: int

    def size(self):
        return Knob("layers")

    def selects(self, backbone):
        layers = backbone.layers()
        if self.layers > len(layers):
            raise ConfigError(f"method.layers={self.layers}: the backbone has {len(layers)} layers")
        top = tuple(f"{name}." for name in layers[-self.layers :])
        return lambda name: name.startswith(top) and "LayerNorm" in name

    def expected_parameters(self, backbone):
        # A weight and a bias in each of the two norms of a layer.
        self.selects(backbone)
        return self.layers * 2 * 2 * backbone.model.config.hidden_size

    def attach(self, backbone):
        return SelectedWeights(backbone, self, self.selects(backbone))

    def restore(self, backbone, folder):
        return self.attach(backbone).load(folder)
'''
METHOD_YAML = """
# Norms of the top layers only.
# Drawn as: sky star
_target_: harness.methods.top_norms.TopNorms
name: top_norms
learning_rate: 1e-2
learning_rates: [1e-3, 1e-2]
layers: 1
"""
TASK = '''
"""Which of two words comes first."""

from dataclasses import dataclass
from random import Random

from harness.tasks.classification import Classification


@dataclass(frozen=True)
class Order(Classification):
    words: list[str]

    def generate(self, split, rows):
        random, made = Random(f"{self.name} {split}"), []
        for place in range(rows):
            label, filler = place % 2, random.sample(range(1000), 3)
            pair = self.words if label else self.words[::-1]
            made.append({"sentence": f"{pair[0]} {filler} {pair[1]}", "label": label, "idx": place})
        return made

    def generator_revision(self):
        return "one"
'''
TASK_YAML = """
defaults: [/task/classification@_here_, _self_]
_target_: harness.tasks.order.Order
name: order
version: 1
generator: order
generator_rows: {train: 60, development: 20, validation: 40}
words: [good, bad]
labels: [falling, rising]
metrics: [error_rate, accuracy]
primary_metric: error_rate
max_length: 16
"""
METRIC = '''
"""Share of rows whose prediction is not the label."""

from harness.training import metrics

metrics.add("error_rate", lambda predicted, true: float((predicted != true).mean()), "classes", lower_is_better=True)
'''
TABLE = '''
"""Longest texts."""

from harness.report import sections
from harness.report.cells import Table, number


def seeds_table(found):
    rows = [(row["method"], str(row["seed"]), number(row["validation"], 3)) for _, row in found.frame.iterrows()]
    return [Table("Every seed by itself", ("method", "seed", "score"), rows, "One row per run.", ("method",))]


sections.TABLES.append(seeds_table)
'''
FILES = {
    "methods/top_norms.py": METHOD,
    "conf/method/top_norms.yaml": METHOD_YAML,
    "tasks/order.py": TASK,
    "conf/task/order.yaml": TASK_YAML,
    "training/error_rate.py": METRIC,
    "report/seeds_table.py": TABLE,
}
ROOMS: Any = (harness.methods, harness.tasks, harness.training, harness.report)
REGISTRIES: tuple[Any, ...] = (
    metrics.METRICS,
    metrics.RANGE_OF,
    metrics.COMPARED["classes"],
    metrics.LOWER_IS_BETTER,
    sections.TABLES,
)
# As two layers of the micro encoder train 2 x 2 x 2 x 128.
BUDGET, LAYERS, TRAINED = 1100, 2, 1024
SHORT = ["task=order", "train.max_steps=3", "train.batch_size=8", "measure.costs=false", "forgetting.text=null"]
SHORT += ["tracking=none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the four files and two YAMLs; its rooms lie beside the package's as long as this module lasts."""
    folder = tmp_path_factory.mktemp("toys")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.lstrip())
    before, imported = [registry.copy() for registry in REGISTRIES], set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for room in ROOMS:
            patch.setattr(room, "__path__", [*room.__path__, str(folder / room.__name__.rpartition(".")[2])])
        for name in ("harness.training.error_rate", "harness.report.seeds_table"):
            importlib.import_module(name)
        yield folder
    for registry, old in zip(REGISTRIES, before, strict=True):
        registry.clear()
        (registry.update if isinstance(registry, dict) else registry.extend)(old)
    for name in set(sys.modules) - imported:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def beside_the_toys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is the folder: its conf/ is searched, as a user's is."""
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def made(folder: Path) -> SimpleNamespace:
    """Three short runs, one of the toy method within a budget, and their report."""
    records = {}
    with contextlib.chdir(folder):
        for name, told in {
            "toy": ["method=top_norms", f"sweep.budget={BUDGET}"],
            "again": ["method=top_norms", f"sweep.budget={BUDGET}", "seed=1"],
            "lora": ["method=lora"],
        }.items():
            run(prepare(compose("config", [*SHORT, *told])), folder / "runs" / name)
            records[name] = RunRecord.read(folder / "runs" / name)
        report.main([f"store={folder / 'runs'}", f"out={folder / 'out'}", "plots=score_vs_parameters"])
    return SimpleNamespace(records=records, out=folder / "out", runs=folder / "runs")


@pytest.mark.slow
def test_a_toy_method_runs_within_a_budget(made: SimpleNamespace) -> None:
    """Its size is solved for, what it trains is counted, and its adapter is saved under its own name."""
    record = made.records["toy"]
    assert record.status == Status.finished
    assert record.config["method"]["layers"] == LAYERS
    assert record.cost["trainable_parameters"] - TRAINED == 128 * 2 + 2
    saved = json.loads((made.runs / "toy/adapter/adapter_config.json").read_text())
    assert saved["_target_"] == "harness.methods.top_norms.TopNorms"


def test_a_toy_method_is_refused_what_it_cannot_do(folder: Path) -> None:
    """A budget below its least size is one sentence, with its own least count."""
    with pytest.raises(ConfigError, match=r"sweep\.budget=100: method=top_norms trains 512 parameters at the least"):
        build(compose("config", [*SHORT, "method=top_norms", "sweep.budget=100"]))


def test_a_toy_method_is_planned(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """harness-plan counts it without weights."""
    grid = ["-m", "method=top_norms", "method.layers=1,9", "task=order", "tracking=none", "plan.format=json"]
    monkeypatch.setattr(sys, "argv", ["harness-plan", *grid])
    assert planner.main() == 0
    small, large = json.loads(capsys.readouterr().out)["points"]
    assert small["cost"]["adapter_parameters"] == 512
    assert large["error"] == "method.layers=9: the backbone has 4 layers"


def test_a_look_is_no_part_of_what_was_run(folder: Path, made: SimpleNamespace) -> None:
    """Color and marker stand in a comment: a run's identity and its resolved values know nothing of them."""
    assert set(made.records["toy"].config["method"]) == {
        *("_target_", "name", "learning_rate", "learning_rates", "second_range", "layers")
    }


def test_a_toy_method_is_reported_and_plotted(made: SimpleNamespace) -> None:
    """It has its row, its name beside a point, and the look that its YAML asks for."""
    scores = pd.read_csv(made.out / "scores.csv").set_index("method")
    assert scores.loc["top_norms", "n"] == 2
    picture = (made.out / "score_vs_parameters.svg").read_text()
    assert "top_norms" in picture
    assert style.PALETTE["sky"].lower() in picture.lower()
    assert "top_norms" in (made.out / "report.html").read_text()


def test_a_toy_task_is_learned_and_reported(made: SimpleNamespace) -> None:
    """Its own rows were trained on, and the report has a table for it."""
    record = made.records["toy"]
    assert record.provenance["data"]["rows"] == {"train": 60, "development": 20, "validation": 40}
    assert record.config["task"]["words"] == ["good", "bad"]
    assert set(pd.read_csv(made.out / "scores.csv")["task"]) == {"order"}
    predictions = pd.read_parquet(made.runs / "toy/predictions.parquet")
    assert (predictions["split"] == "validation").sum() == 40


def test_a_toy_metric_is_scored_with_its_direction(made: SimpleNamespace) -> None:
    """It is one less the accuracy, the lowest is best, and its interval stays between 0 and 1."""
    for record in made.records.values():
        found = record.scores["validation"]
        assert found["error_rate"] == pytest.approx(1 - found["accuracy"])
    assert not metrics.higher_is_better("error_rate")
    scores = pd.read_csv(made.out / "scores.csv")
    rows = scores[scores["method"].isin(["top_norms", "lora"])]
    assert set(rows["metric"]) == {"error_rate"}
    assert rows["mean"].is_monotonic_increasing
    with pytest.raises(ValueError, match="metric error_rate: there is one of that name"):
        metrics.add("error_rate", metrics.accuracy, "classes")


@pytest.mark.parametrize(("compares", "values"), [("pictures", "share"), ("classes", "any")])
def test_a_metric_of_no_kind_is_refused(compares: str, values: str) -> None:
    """Neither what it compares nor where its values lie is guessed."""
    with pytest.raises(ValueError, match="metric mine: classes, numbers, texts are compared"):
        metrics.add("mine", metrics.accuracy, compares, values)
    assert "mine" not in metrics.METRICS


def test_a_toy_table_stands_in_every_form_of_the_report(made: SimpleNamespace) -> None:
    """Markdown, LaTeX and the page have it, one row per run."""
    for name in ("report.md", "report.tex", "report.html"):
        assert "Every seed by itself" in (made.out / name).read_text(), name
    table = (made.out / "report.md").read_text().partition("Every seed by itself")[2].partition("\n## ")[0]
    assert sum(line.startswith(("| top_norms", "| lora", "| top\\_norms")) for line in table.splitlines()) == 3
