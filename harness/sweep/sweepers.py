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

from harness.config import compose
from harness.config.errors import ConfigError, near_misses
from harness.config.folders import remove_unused
from harness.config.mistakes import MISTAKES, explain, key_of
from harness.config.schema import Search
from harness.sweep.launchers.launcher import EMPTY, SweepLauncher
from harness.sweep.outcome import Outcome, gather
from harness.sweep.racing import Race, file_of
from harness.sweep.search import TuningBudget, ranges_of, searcher
from harness.sweep.tuning import Candidate, Trial, choices_table
from harness.tracking.record import RESULT_FILE, RunRecord, Status
from harness.tracking.uri import redact
from harness.training import checkpoint
from harness.training.metrics import higher_is_better

CONFIGURATION_FILE = "multirun.yaml"
# Rungs that a race is offered: before a quarter of the steps there is little to tell trials by.
ROUNDS = "[0.25,0.5]"
# What the equal-budget sweeper decides itself, and where to say it instead.
DECIDED = {
    "train.learning_rate": "method.learning_rates of each method's YAML",
    "seed": "hydra.sweeper.tuning_seed and hydra.sweeper.seeds",
    "evaluate.validation": "nothing: trials leave it untouched, final runs score it",
    "train.all_rows": "nothing: trials and final runs need rows to be scored on",
    "sweep.stage": "nothing: it is tune, then final",
    "sweep.stop_share": "hydra.sweeper.rungs",
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
        points = grid(self.params, arguments, self.context)
        size = self.max_batch_size or max(1, len(points))
        with saved(self.configuration), stopping(self.starter) as launch:
            return [launch(points[start : start + size], start) for start in range(0, max(1, len(points)), size)]


@dataclass
class GridSweeperConf:
    """Settings of a plain sweep: the keys of Hydra's basic sweeper."""

    _target_: str = f"{compose.PLUGIN_MODULE}.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


class EqualBudgetSweeper(Sweeper):
    """The same number of trials over each method's own ranges, then the best of them with fresh seeds.

    Args:
        params: Grid, as in Hydra's basic sweeper: key -> values separated by commas. The command line comes over it.
        search: grid, random or tpe.
        trials: Points tried of each method on each task, the same for all.
        second_range: Search the methods' second range too, where they declare one.
        tuning_seed: Seed of the trials, and of what is drawn.
        seeds: Seeds of the final runs; the tuning seed is not among them, its luck chose.
        startup_trials: Of tpe: how many are random before it learns from them.
        parallel_trials: Of tpe: how many of a method are asked for at once.
        rungs: Shares of the steps at which the worse half of each method's trials is stopped; empty: none is.
        race: Error level at which a rung stops, in place of the worse half, the trials that the development rows say
            are not the best; null: no race.
        extend: Of grid: how many further learning rates of a method are tried at most while its best lies at an edge.
    """

    def __init__(
        self,
        params: DictConfig | None,
        search: str,
        trials: int,
        second_range: bool,
        tuning_seed: int,
        seeds: list[int],
        startup_trials: int,
        parallel_trials: int,
        rungs: list[float],
        race: float | None,
        extend: int,
    ) -> None:
        self.params, self.second_range, self.seeds, self.rungs = params, second_range, list(seeds), list(rungs)
        self.race = race
        self.given: dict[str, Any] = {"search": search, "trials": trials, "tuning_seed": tuning_seed}
        self.given |= {"startup_trials": startup_trials, "parallel_trials": parallel_trials, "extend": extend}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.configuration = hydra_context, config
        self.starter: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Tune, choose, run the chosen.

        Raises:
            ConfigError: A budget that a method can't be given, or a key that is decided here.
        """
        self.tuning = self._check(arguments)
        candidates = [self._candidate(overrides) for overrides in grid(self.params, arguments, self.context)]
        if not candidates:
            raise ConfigError(EMPTY)
        if all(candidate.error for candidate in candidates):
            raise ConfigError("\n".join(dict.fromkeys(str(candidate.error) for candidate in candidates)))
        self.batches: list[Sequence[JobReturn]] = []
        with saved(self.configuration), stopping(self.starter) as self.launch:
            if self._tune(candidates) and self._choose(candidates):
                self._run([override for candidate in candidates for override in self._finals(candidate)])
        return self.batches

    def _run(self, points: list[list[str]]) -> list[Outcome] | None:
        """Launch points and return their outcomes; null when one failed and `sweep.fail_fast` ends the sweep."""
        returned = self.launch(points, sum(map(len, self.batches)))
        self.batches.append(returned)
        outcomes = [Outcome.of(one.return_value) for one in returned]
        failed = self.configuration.sweep.fail_fast and any(outcome.counts_as_failure for outcome in outcomes)
        return None if failed else outcomes

    def _tune(self, candidates: list[Candidate]) -> bool:
        """Run all trials; false when the sweep ends here."""
        while asked := [(candidate, trials) for candidate in candidates if (trials := candidate.ask())]:
            if not self._try(asked):
                return False
            for candidate, trials in asked:
                candidate.tell(trials)
        return True

    def _try(self, asked: list[tuple[Candidate, list[Trial]]]) -> bool:
        """Run trials to their end, or to the rung where some of each candidate's are stopped."""
        began = {id(candidate): len(trials) for candidate, trials in asked}
        for share in (*self.rungs, None):
            # One that is alone has nothing to be stopped for: it goes to its end at once.
            racing = [(c, trials) for c, trials in asked if share is None or len(trials) > 1]
            going_on = [(c, trial) for c, trials in racing for trial in trials if trial.score is None]
            if going_on:
                outcomes = self._run([[*c.overrides, *self._trial(trial, share)] for c, trial in going_on])
                if outcomes is None:
                    return False
                for (_, trial), outcome in zip(going_on, outcomes, strict=True):
                    trial.outcome, trial.share = outcome, share or 1.0
            if share is not None:
                kept = {id(one): self._going_on(one, trials, began[id(one)]) for one, trials in racing}
                for candidate, trials in racing:
                    better = kept[id(candidate)]
                    self._discard_checkpoints([trial for trial in trials if not any(trial is one for one in better)])
                asked = [(one, kept.get(id(one), trials)) for one, trials in asked]
        return True

    def _discard_checkpoints(self, trials: list[Trial]) -> None:
        """Remove what stopped trials would go on from, of those that will not."""
        folder = Path(self.configuration.train.checkpoint_dir)
        for trial in trials if folder.is_dir() else ():
            if place := trial.outcome and checkpoint_of(trial.outcome, self._store(), folder):
                checkpoint.discard(place)

    def _store(self) -> str | None:
        """URI of the store; null where none is wanted."""
        store = self.configuration.tracking
        return None if store.kind == "none" else str(store.uri)

    def _going_on(self, candidate: Candidate, trials: list[Trial], began: int) -> list[Trial]:
        """Those of a candidate's trials that go on from a rung."""
        if self.race is None:
            return candidate.better_half(trials)
        return candidate.unbeaten(trials, Race(self.race, len(self.rungs), began), self._store())

    def _trial(self, trial: Trial, share: float | None) -> list[str]:
        fixed = [f"seed={self.tuning.seed}", "evaluate.validation=false", "sweep.stage=tune", *self._searched(trial)]
        # From rung to rung by the checkpoint, which the next command finds too.
        rung = ["train.resume=true"] * bool(self.rungs) + [f"sweep.stop_share={share!r}"] * (share is not None)
        return [*overrides_of(trial), *fixed, *rung]

    def _searched(self, trial: Trial) -> list[str]:
        return [f"sweep.search={self.tuning.search.name}", f"sweep.searched=[{','.join(trial.hyperparameters)}]"]

    def _choose(self, candidates: list[Candidate]) -> bool:
        """Choose, and show it; false when nothing is left to run."""
        for candidate in candidates:
            candidate.choose()
        gather(Outcome("failed", c.error, point=c.name) for c in candidates if c.error)
        print(choices_table(candidates, self.tuning.search is not Search.grid), flush=True)
        return any(candidate.chosen for candidate in candidates)

    def _finals(self, candidate: Candidate) -> list[list[str]]:
        if candidate.chosen is None:
            return []
        why = [*self._searched(candidate.chosen), f'sweep.chosen_from="{candidate.reason()}"']
        chosen = overrides_of(candidate.chosen)
        return [[*candidate.overrides, *chosen, f"seed={seed}", "sweep.stage=final", *why] for seed in self.seeds]

    def _check(self, arguments: list[str]) -> TuningBudget:
        for key in (*map(key_of, arguments), *(self.params or {})):
            if key in DECIDED:
                raise ConfigError(f"{key}: the equal_budget sweeper decides it; use {DECIDED[key]}")
        search = str(self.given["search"])
        if search not in Search.__members__:
            raise ConfigError(
                f"hydra.sweeper.search={search}: there is no such search; {near_misses(search, Search.__members__)}"
            )
        for key in ("trials", "startup_trials", "parallel_trials"):
            if not _is_whole(self.given[key], 1):
                raise ConfigError(f"hydra.sweeper.{key}={self.given[key]}: a positive whole number is needed")
        seed = self.given["tuning_seed"]
        if not all(_is_whole(one, 0) for one in (seed, *self.seeds)):
            raise ConfigError(f"hydra.sweeper.seeds={self.seeds}, tuning_seed={seed}: whole numbers from 0 are needed")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or seed in self.seeds:
            raise ConfigError(
                f"hydra.sweeper.seeds={self.seeds}: at least one seed is needed, none twice,"
                f" and not tuning_seed {seed}, whose luck chose the hyper-parameters"
            )
        if not isinstance(self.second_range, bool):
            raise ConfigError(f"hydra.sweeper.second_range={self.second_range}: true or false is needed")
        self._check_rungs(search)
        self._check_race()
        self._check_extend(search)
        numbers = {key: self.given[key] for key in ("trials", "startup_trials", "parallel_trials", "extend")}
        return TuningBudget(Search[search], seed=seed, **numbers)

    def _check_rungs(self, search: str) -> None:
        numbers = [rung for rung in self.rungs if isinstance(rung, float) and 0 < rung < 1]
        if len(numbers) < len(self.rungs) or sorted(set(numbers)) != numbers:
            raise ConfigError(f"hydra.sweeper.rungs={self.rungs}: ascending shares between 0 and 1 are needed")
        if self.rungs and search == Search.tpe.name:
            raise ConfigError(
                f"hydra.sweeper.rungs={self.rungs}: tpe learns from whole trials; use search=grid or random"
            )

    def _check_race(self) -> None:
        if self.race is None:
            return
        if isinstance(self.race, bool) or not isinstance(self.race, int | float) or not 0 < self.race < 1:
            raise ConfigError(f"hydra.sweeper.race={self.race}: an error level between 0 and 1 is needed, or null")
        if not self.rungs:
            raise ConfigError(
                f"hydra.sweeper.race={self.race}: its rounds are at the rungs, and hydra.sweeper.rungs names none;"
                f" for instance hydra.sweeper.rungs={ROUNDS}"
            )

    def _check_extend(self, search: str) -> None:
        extend, trials = self.given["extend"], self.given["trials"]
        if not _is_whole(extend, 0):
            raise ConfigError(f"hydra.sweeper.extend={extend}: a whole number from 0 is needed")
        if extend and search != Search.grid.name:
            raise ConfigError(
                f"hydra.sweeper.extend={extend}: only a grid has an edge to go beyond; use search=grid, or widen"
                f" method.learning_rates for search={search}"
            )
        if extend and trials < 2:
            raise ConfigError(
                f"hydra.sweeper.extend={extend}: a grid of {trials} has no step to go on by; trials=2 is the least"
            )

    def _candidate(self, overrides: list[str]) -> Candidate:
        loader = self.context.config_loader
        try:
            config = loader.load_sweep_config(self.configuration, overrides)
            method: Any = OmegaConf.to_container(config.method, resolve=True)
            higher = higher_is_better(str(OmegaConf.select(config, "task.primary_metric")))
        except MISTAKES as error:
            return Candidate(overrides, explain(error, overrides))
        ranges = ranges_of(method, self.second_range)
        for one in ranges[1:]:
            if any(key_of(override) == one.key for override in overrides):
                raise ConfigError(f"{one.key}: the equal_budget sweeper searches it; hydra.sweeper.second_range=false")
        search = searcher(ranges, self.tuning, str(method.get("name")), higher)
        return Candidate(overrides, None, search, ranges, higher, self.tuning.extend)


def overrides_of(trial: Trial) -> list[str]:
    return [f"{key}={value!r}" for key, value in trial.hyperparameters.items()]


def checkpoint_of(outcome: Outcome, store: str | None, folder: Path) -> Path | None:
    """Where a trial that was stopped keeps its checkpoint; of one that an earlier start ran, only if in this folder."""
    if not outcome.skipped:
        return Path(outcome.checkpoint) if outcome.checkpoint else None
    recorded = file_of(outcome, store, RESULT_FILE) if outcome.status == Status.stopped else None
    try:
        told = RunRecord.read(recorded.parent).provenance.get("checkpoint") if recorded else None
    except ValueError:  # a damaged record tells of none
        return None
    place = Path(str(told)).resolve()
    return place if told and folder.resolve() in place.parents else None


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def grid(params: DictConfig | None, arguments: list[str], context: HydraContext) -> list[list[str]]:
    """The product of a sweep's values: a list of overrides a point. An argument replaces the parameter of its key."""
    given = [f"{key!s}={value}" for key, value in (params or {}).items()]
    parser = OverridesParser.create(config_loader=context.config_loader)
    (points,) = BasicSweeper.split_arguments(parser.parse_overrides([*given, *arguments]), None)
    return points


@contextmanager
def stopping(starter: Launcher) -> Iterator[Callable[[list[list[str]], int], Sequence[JobReturn]]]:
    """Yield a launcher's `launch`; ours keeps its workers between batches and stops them in the end."""
    try:
        yield starter.launch
    finally:
        if isinstance(starter, SweepLauncher):
            starter.stop()


@contextmanager
def saved(config: DictConfig) -> Iterator[None]:
    """Save a sweep's configuration in its folder; a sweep that is refused leaves neither."""
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIGURATION_FILE).write_text(redact(OmegaConf.to_yaml(config)), encoding="utf-8")
    try:
        yield
    except ConfigError:
        remove_unused(folder, {CONFIGURATION_FILE})
        raise


def register() -> None:
    """Make the sweepers known; `hydra/sweeper=basic`, Hydra's default, becomes the grid that survives a bad point."""
    compose.register(GridSweeper, EqualBudgetSweeper)
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=GridSweeperConf, provider="harness")
