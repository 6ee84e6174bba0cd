"""Evidence for claims: runs by sweep from any number of stores, and plans, each read or computed once."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness import tracking
from harness.claims.verdict import NoEvidence
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.sources import PACKAGE
from harness.methods.peft import find_modules
from harness.methods.peft_counts import matches, width
from harness.methods.skeleton import architecture_of, skeleton
from harness.plan.__main__ import parse
from harness.plan.costs import backbone_parameters, parameters, plan_point
from harness.quantization.schemes import matrices, tabulate
from harness.report import labels, pairwise, runs, scores, tuning
from harness.report.definitions import Analysis, Pairs
from harness.report.pairwise import Pairwise
from harness.report.scores import FINISHED, MAJORITY
from harness.training.metrics import higher_is_better

if TYPE_CHECKING:
    from harness.config.schema import Experiment

CHOSEN = ("model", "task")
NOT_SET = "null"


@dataclass(frozen=True)
class Selection:
    """Runs of a method, narrowed down by settings: `lora model=int8 sweep.budget=null`.

    Attributes:
        text: As it was written.
        method: Their method.
        settings: Column of a frame of runs -> the value it must have as text; null where none was set.
    """

    text: str
    method: str
    settings: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> "Selection":
        """Read a selection.

        Raises:
            ConfigError: A word after the method is not key=value.
        """
        method, *words = text.split() or [""]
        pairs = [word.partition("=") for word in words]
        if not method or "=" in method or not all(key and value for key, _, value in pairs):
            raise ConfigError(f"{text!r} selects no runs; write a method and settings, as in lora method.rank=8")
        return cls(text, method, {key if key in CHOSEN else f"param.{key}": value for key, _, value in pairs})

    def among(self, frame: pd.DataFrame) -> pd.Series:
        """Which rows of a frame of runs it selects."""
        found = frame["method"] == self.method
        for column, value in self.settings.items():
            there = frame[column] if column in frame else pd.Series(None, frame.index, dtype=object)
            found &= there.isna() if value == NOT_SET else _is(there, value)
        return found


def _is(column: pd.Series, value: str) -> pd.Series:
    """Where a column has a value, however the same number is written: a store has 82944.0 where 82944 was given."""
    same = column == value
    with suppress(ValueError):
        same |= pd.to_numeric(column, errors="coerce") == float(value)
    return same


class Sweep:
    """The runs of one sweep, and what its report would say of them."""

    def __init__(self, name: str, frame: pd.DataFrame) -> None:
        self.name = name
        self.frame = frame

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The finished runs that count, with their configuration."""
        kept = scores.compared(self.frame)
        kept = kept[kept["status"] == FINISHED]
        return kept.assign(configuration=labels.label(kept))

    @cached_property
    def compared(self) -> dict[str, Pairwise]:
        """Task -> its methods in pairs, however many: a claim is confirmed or it is not, nothing is explored."""
        found = pairwise.compare_tasks(self.frame, self._plain, pairs=Pairs.all, analysis=Analysis.confirmatory)
        return {one.task: one for one in found}

    @cached_property
    def _plain(self) -> pd.DataFrame:
        return scores.summary(self.frame)

    @cached_property
    def summary(self) -> pd.DataFrame:
        return pairwise.annotated(self._plain, list(self.compared.values()))

    @cached_property
    def on_edge(self) -> set[tuple[str, str]]:
        """Task and configuration of the methods whose best learning rate lies at an end of its grid."""
        tuned = tuning.tuning(self.frame)
        tuned = tuned[tuned["edge"] != ""]
        return set(zip(tuned["task"], tuned["configuration"], strict=True))

    def configurations(self, task: str, wanted: Selection) -> list[str]:
        """Those of a task that a selection finds, by name."""
        rows = self.runs[(self.runs["task"] == task) & wanted.among(self.runs)]
        return sorted(rows["configuration"].unique())

    def pairs(self, task: str, ours: Sequence[str], against: str) -> list[tuple[str, str]]:
        """Configurations to hold against each other, by their selections; on one model, unless a selection names it."""
        theirs = Selection.parse(against)
        models = self.runs[self.runs["task"] == task].groupby("configuration")["model"].first()
        return [
            (a, b)
            for wanted in map(Selection.parse, ours)
            for a in self.configurations(task, wanted)
            for b in self.configurations(task, theirs)
            if a != b and ("model" in {*wanted.settings, *theirs.settings} or models[a] == models[b])
        ]

    def has_learned(self, task: str, configurations: Collection[str]) -> bool:
        """Whether one of them is known to be better than the commonest answer; true where there is no such answer."""
        rows = self.summary[self.summary["task"] == task].set_index("configuration")
        if MAJORITY not in rows.index:
            return True
        floor, found = rows.loc[MAJORITY, "mean"], rows.loc[list(configurations)]
        if higher_is_better(str(found["metric"].iloc[0])):
            return bool((found["low"] > floor).any())
        return bool((found["high"] < floor).any())


class Evidence:
    """Stores, and what is computed without any.

    Args:
        stores: URIs of stores, or folders of runs.
        commands: Sweep -> the command that runs it.
        backbones: Folders of backbones whose weights may be read, beside those that come with the package.
    """

    def __init__(self, stores: Sequence[str], commands: Mapping[str, str], backbones: Sequence[Path] = ()) -> None:
        self.backbones = backbones
        self._commands = commands
        self._stores = stores
        self._sweeps: dict[str, Sweep] = {}
        self._folders: dict[str, list[dict[str, Any]]] = {}
        # One sentence per record that cannot be read.
        self.damaged: list[str] = []

    @cached_property
    def _found(self) -> dict[str, list[str]]:
        """Sweep -> the stores that have runs of it."""
        found: dict[str, list[str]] = {}
        for store in self._stores:
            for name in tracking.sweeps(store) if "://" in store else {_sweep_of(run) for run in self._folder(store)}:
                found.setdefault(name, []).append(store)
        return found

    def _folder(self, store: str) -> list[dict[str, Any]]:
        if store not in self._folders:
            self._folders[store], damaged = runs.read_folder(Path(store))
            self.damaged += damaged
        return self._folders[store]

    def _read(self, store: str, name: str) -> list[dict[str, Any]]:
        if "://" in store:
            return tracking.read_runs(store, name)
        return [run for run in self._folder(store) if _sweep_of(run) == name]

    def sweep(self, name: str) -> Sweep:
        """Read a sweep from all stores; a run that two of them hold counts once.

        Raises:
            NoEvidence: No store has a finished run of it.
        """
        if name not in self._sweeps:
            found = {run["run_id"]: run for store in self._found.get(name, []) for run in self._read(store, name)}
            ordered = sorted(found.values(), key=lambda run: (run["ended_at"] or 0, run["run_id"]))
            self._sweeps[name] = Sweep(name, scores.tidy(ordered))
        sweep = self._sweeps[name]
        if sweep.frame.empty or sweep.runs.empty:
            raise NoEvidence(f"no evidence yet: run {self._commands[name]}")
        return sweep

    def model_folder(self, name: str) -> Path:
        """Where the weights of a shipped backbone are, or of one of the folders that were given.

        Raises:
            NoEvidence: It is neither.
        """
        folders = {folder.name: folder for folder in self.backbones}
        folders |= {name: PACKAGE / "pretrained" / name} if (PACKAGE / "pretrained" / name).is_dir() else {}
        if name not in folders:
            raise NoEvidence(f"its weights are not here: add backbones=FOLDER, the folder being called {name}")
        return folders[name]


def _sweep_of(run: Mapping[str, Any]) -> str:
    return str(run["tags"].get("sweep", ""))


# --- Without runs ---------------------------------------------------------------------------------------------------


@cache
def counted(overrides: tuple[str, ...]) -> dict[str, float]:
    """Counts of an architecture for a point of `harness-plan`, without its training step.

    The parameters of `RunRecord.cost`, and: `backbone_parameters`; `reduction`, these over the adapter's;
    `adapter_share`, the adapter's over these; `layers`; `adapter_parameters_a_layer`; and for methods with
    `target_modules` `adapted_weights_a_layer`, the weights of the matrices that are adapted.

    Raises:
        ConfigError: It can't be planned.
    """
    experiment = _experiment(overrides)
    figures: dict[str, float] = {**parameters(experiment), "backbone_parameters": backbone_parameters(experiment)}
    adapter, layers = figures["adapter_parameters"], architecture_of(experiment).num_hidden_layers
    figures |= {"adapter_share": adapter / figures["backbone_parameters"], "layers": layers}
    figures |= {"reduction": figures["backbone_parameters"] / adapter} if adapter else {}
    figures["adapter_parameters_a_layer"] = adapter / layers
    targets = getattr(experiment.method, "target_modules", None)
    if targets:
        backbone = skeleton(experiment)
        names = find_modules(targets, backbone, "method.target_modules")
        adapted = [math.prod(width(module)) for name, module in backbone.model.named_modules() if matches(name, names)]
        figures["adapted_weights_a_layer"] = sum(adapted) / layers
    return figures


@cache
def planned(overrides: tuple[str, ...]) -> dict[str, float]:
    """Plan of a point: the figures of `RunRecord.cost` and of `storage`, and `storage_share`.

    Raises:
        ConfigError: It can't be planned.
    """
    name, rest, _, settings = parse(list(overrides))
    point = plan_point(name, rest, settings)
    storage = point["storage"]
    figures = {key: value for key, value in point["cost"].items() if isinstance(value, int | float)}
    if storage["adapters_bytes"] is not None:
        figures["storage_share"] = storage["adapters_bytes"] / storage["copies_bytes"]
    return figures


def _experiment(overrides: Sequence[str]) -> "Experiment":
    name, rest, _, _ = parse(list(overrides))
    return build(compose(name, rest))


@cache
def parameters_by_kind(model: str) -> dict[str, float]:
    """Share of a backbone's parameters by the kind of module, of `attention`, `mlp`, `embeddings` and `rest`."""
    from torch import nn

    backbone = skeleton(_experiment([f"model={model}"]))
    kinds = {kind: re.compile(backbone.architecture.targets(kind)) for kind in ("attention", "mlp")}
    counts = dict.fromkeys((*kinds, "embeddings", "rest"), 0)
    seen: set[int] = set()
    for module_name, module in backbone.model.named_modules():
        kind = next((kind for kind, pattern in kinds.items() if pattern.fullmatch(module_name)), None)
        kind = kind or ("embeddings" if isinstance(module, nn.Embedding) else "rest")
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen and not backbone.is_head(f"{module_name}.{parameter_name}"):
                seen.add(id(parameter))
                counts[kind] += parameter.numel()
    total = sum(counts.values())
    return {kind: count / total for kind, count in counts.items()}


@cache
def quantized(folder: Path) -> Any:
    """The table of `python -m harness.quantization` for the backbone in a folder."""
    return tabulate(matrices(folder), seed=0)
