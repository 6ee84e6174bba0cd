"""Sweepers: a grid, and equal tuning budgets for every method (`hydra/sweeper=equal_budget`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from harness import launcher, points
from harness.config import ConfigError
from harness.metrics import higher_is_better
from harness.mistakes import MISTAKES, explain, key_of
from harness.progress import SCORE_DIGITS, primary_score, table
from harness.store import redact

# What the equal-budget sweeper decides itself, and where to say it instead.
DECIDED = {
    "train.learning_rate": "method.learning_rates of each method's YAML",
    "seed": "hydra.sweeper.tuning_seed and hydra.sweeper.seeds",
    "evaluate.validation": "nothing: trials leave it untouched, final runs score it",
    "sweep.stage": "nothing: it is tune, then final",
}


class GridSweeper(Sweeper):
    """The product of all values, as Hydra's basic sweeper, which composes all points first and refuses all for one.

    Args:
        max_batch_size: Points launched together; null for all.
        params: key -> values separated by commas. The command line comes over it.
    """

    def __init__(self, max_batch_size: int | None, params: DictConfig | None) -> None:
        self.max_batch_size, self.params = max_batch_size, params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.configuration = hydra_context, config
        self.starter: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every point, batch by batch; a batch with failures does not stop the next."""
        save_configuration(self.configuration)
        told = grid(self.params, arguments, self.context)
        size = self.max_batch_size or max(1, len(told))
        with stopping(self.starter) as launch:
            return [launch(told[start : start + size], start) for start in range(0, max(1, len(told)), size)]


@dataclass
class GridSweeperConf:
    """What `hydra.sweeper` holds in a plain sweep: the keys of Hydra's basic sweeper."""

    _target_: str = f"{launcher.PLUGIN_MODULE}.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


@dataclass
class Candidate:
    """A point of the grid while its learning rate is chosen; `scores` maps a rate to its development score."""

    overrides: list[str]
    rates: list[float]
    error: str | None = None
    scores: dict[float, float | None] | None = None
    chosen: float | None = None
    higher_is_better: bool = True

    @property
    def name(self) -> str:
        return " ".join(o for o in self.overrides if not o.startswith(("hydra.", "sweep."))) or "the default"


class EqualBudgetSweeper(Sweeper):
    """The same number of trials over each method's own learning rates, then the chosen one with fresh seeds.

    Args:
        params: Grid, as in Hydra's basic sweeper: key -> values separated by commas. The command line comes over it.
        trials: Learning rates tried a point, the same for every method (see `spread`).
        tuning_seed: Seed of the trials.
        seeds: Seeds of the final runs; the tuning seed is not among them, its luck chose the rate.
    """

    def __init__(self, params: DictConfig | None, trials: int, tuning_seed: int, seeds: list[int]) -> None:
        self.params, self.trials, self.tuning_seed, self.seeds = params, trials, tuning_seed, list(seeds)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.configuration = hydra_context, config
        self.starter: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Tune, choose, run the chosen.

        Raises:
            ConfigError: A number of trials that a method has no learning rates for, or a key that is decided here.
        """
        self._check(arguments)
        save_configuration(self.configuration)
        candidates = [self._candidate(overrides) for overrides in grid(self.params, arguments, self.context)]
        if candidates and all(candidate.error for candidate in candidates):
            raise ConfigError("\n".join(dict.fromkeys(str(candidate.error) for candidate in candidates)))
        trials = [
            (candidate, rate, [*candidate.overrides, *self._trial(rate)])
            for candidate in candidates
            for rate in candidate.rates
        ]
        with stopping(self.starter) as launch:
            tuned = launch([overrides for *_, overrides in trials], 0)
            self._choose(candidates, trials, tuned)
            finals = self._finals(candidates)
            return [tuned, launch(finals, len(trials)) if finals else []]

    def _choose(self, candidates: list[Candidate], trials: list[Any], tuned: Sequence[JobReturn]) -> None:
        for (candidate, rate, _), returned in zip(trials, tuned, strict=True):
            candidate.scores = {**(candidate.scores or {}), rate: trial_score(returned.return_value)}
        for candidate in candidates:
            choose(candidate)
        points.outcomes.extend({"status": "failed", "error": c.error, "point": c.name} for c in candidates if c.error)
        print(choices_table(candidates), flush=True)

    def _finals(self, candidates: list[Candidate]) -> list[list[str]]:
        return [
            [*c.overrides, f"train.learning_rate={c.chosen!r}", f"seed={seed}", "sweep.stage=final"]
            for c in candidates
            if c.chosen is not None
            for seed in self.seeds
        ]

    def _check(self, arguments: list[str]) -> None:
        for key in (*map(key_of, arguments), *(self.params or {})):
            if key in DECIDED:
                raise ConfigError(f"{key}: the equal_budget sweeper decides it; use {DECIDED[key]}")
        if not isinstance(self.trials, int) or self.trials < 1:
            raise ConfigError(f"hydra.sweeper.trials={self.trials}: a positive whole number is needed")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or self.tuning_seed in self.seeds:
            raise ConfigError(
                f"hydra.sweeper.seeds={self.seeds}: at least one seed is needed, none twice,"
                f" and not tuning_seed {self.tuning_seed}, whose luck chose the learning rate"
            )

    def _candidate(self, overrides: list[str]) -> Candidate:
        loader = self.context.config_loader
        try:
            config = loader.load_sweep_config(self.configuration, overrides)
            rates = OmegaConf.select(config, "method.learning_rates")
            name = str(OmegaConf.select(config, "method.name"))
            higher = higher_is_better(str(OmegaConf.select(config, "task.primary_metric")))
        except MISTAKES as error:
            return Candidate(overrides, [], explain(error, overrides))
        if rates is None or len(set(rates)) < self.trials:
            raise ConfigError(
                f"hydra.sweeper.trials={self.trials}: method {name} has {len(set(rates or ()))} learning rates in"
                " method.learning_rates, and every method gets the same number of trials"
            )
        return Candidate(
            overrides, spread(sorted({float(rate) for rate in rates}), self.trials), higher_is_better=higher
        )

    def _trial(self, rate: float) -> list[str]:
        fixed = ["evaluate.validation=false", "sweep.stage=tune"]
        return [f"train.learning_rate={rate!r}", f"seed={self.tuning_seed}", *fixed]


def grid(params: DictConfig | None, arguments: list[str], context: HydraContext) -> list[list[str]]:
    """The product of a sweep's values: a list of overrides a point. An argument replaces the parameter of its key."""
    given = [f"{key!s}={value}" for key, value in (params or {}).items()]
    parser = OverridesParser.create(config_loader=context.config_loader)
    (told,) = BasicSweeper.split_arguments(parser.parse_overrides([*given, *arguments]), None)
    return told


@contextmanager
def stopping(starter: Launcher) -> Iterator[Callable[[list[list[str]], int], Sequence[JobReturn]]]:
    """Yield a launcher's `launch`; ours keeps its workers between batches and stops them in the end."""
    try:
        yield starter.launch
    finally:
        if isinstance(starter, launcher.LocalLauncher):
            starter.stop()


def save_configuration(config: DictConfig) -> None:
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "multirun.yaml").write_text(redact(OmegaConf.to_yaml(config)), encoding="utf-8")


def spread(rates: list[float], number: int) -> list[float]:
    """Take `number` of the sorted rates, evenly over their whole range, both ends included; the middle one for one."""
    if number == 1:
        return [rates[(len(rates) - 1) // 2]]
    return [rates[round(i * (len(rates) - 1) / (number - 1))] for i in range(number)]


def trial_score(outcome: dict[str, Any]) -> float | None:
    """The development score of a trial; null, which never wins, for one that did not finish."""
    return primary_score(outcome, "development") if outcome["status"] == "finished" else None


def choose(candidate: Candidate) -> None:
    """Choose the rate with the best development score; of equals the smaller."""
    if candidate.error:
        return
    scored = {rate: score for rate, score in (candidate.scores or {}).items() if score is not None}
    if scored:
        best = max if candidate.higher_is_better else min
        candidate.chosen = best(sorted(scored), key=lambda rate: scored[rate])
    else:
        candidate.error = f"{candidate.name}: none of its {len(candidate.rates)} trials has a development score"


def choices_table(candidates: list[Candidate]) -> str:
    """Each point's trials and choice; a choice on the edge of its range says that the range may be too narrow."""
    rows = []
    for candidate in candidates:
        scores = candidate.scores or {}
        trials = ", ".join(
            f"{rate:g}: {'-' if (score := scores.get(rate)) is None else f'{score:.{SCORE_DIGITS}f}'}"
            for rate in candidate.rates
        )
        chosen = "" if candidate.chosen is None else f"{candidate.chosen:g}"
        edge = candidate.chosen in (candidate.rates[0], candidate.rates[-1]) if len(candidate.rates) > 1 else False
        rows.append([candidate.name, trials, chosen, candidate.error or ("edge of its range" if edge else "")])
    return table(["tuned", "learning rate: development score", "chosen", "note"], rows)


def register() -> None:
    """Make the sweepers known; `hydra/sweeper=basic`, Hydra's default, becomes the grid that survives a bad point."""
    launcher.register(GridSweeper, EqualBudgetSweeper)
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=GridSweeperConf, provider="harness")
