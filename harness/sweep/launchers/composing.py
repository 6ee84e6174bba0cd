"""Composition of the points of a sweep: quickly to learn what each is, with Hydra where one is about to run."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from harness.config.build import resolved
from harness.config.compose import hydra_config, without_hydra
from harness.config.errors import ConfigError
from harness.config.mistakes import MISTAKES, explain, is_interrupt, key_of, not_made
from harness.config.sources import sweep_of
from harness.sweep.outcome import failed
from harness.sweep.points import Point, check_folders, check_rerun, defining_overrides
from harness.sweep.resolve import Inseparable, Resolution

if TYPE_CHECKING:
    from harness.run import Identities
    from harness.run.pack_size import Footprint

# hydra.sweep.subdir of conf/config.yaml, which every point can be told without composing it.
OWN_FOLDER = "${hydra.job.num}"


class Composer:
    """Composes points of one sweep.

    Args:
        context: Hydra's.
        config: The sweep's own configuration.
        device: cpu or cuda: what a `train.device` comes to where the points run; null: here.
    """

    def __init__(self, context: HydraContext, config: DictConfig, device: Callable[[str], str] | None = None) -> None:
        self.loader, self.config = context.config_loader, config
        self.identify = identities(device)

    def points(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Point]:
        """The points with their identities; one that is wrong has its sentence as outcome."""
        shared = frozenset.intersection(*(frozenset(defining_overrides(overrides)) for overrides in job_overrides))
        shared = shared if len(job_overrides) > 1 else frozenset()
        named = [] if self.config.sweep.name else [f"sweep.name='{sweep_of(self.config.hydra.job.config_name)}'"]
        folder = Path(self.config.hydra.sweep.dir)
        resolution = Resolution(self.loader, self.config)
        points = []
        for number, overrides in enumerate(job_overrides, start=first):
            point = Point(number, [*named, *overrides], folder / str(number), shared=shared)
            try:
                settings, _ = self.identify.settle(resolution.plain(point.overrides))
                check_rerun(settings)
                point.settings, point.identity = settings, self.identify(settings)
            except (Inseparable, *MISTAKES):
                self.compose(point)  # which also finds the words for a mistake
            points.append(point)
        return points

    def compose(self, point: Point) -> None:
        """Compose a point with Hydra, as it is going to run; one that is wrong has its sentence as outcome."""
        overrides = point.overrides
        try:
            config = self.loader.load_sweep_config(self.config, overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = point.number
            with hydra_config(config):
                point.folder = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
                settings, why = self.identify.settle(resolved(without_hydra(config)))
            if settings != point.settings:
                check_rerun(settings)
                point.identity = self.identify(settings)
                point.settings = settings
            if _goes_on(config, overrides):
                config.train.resume = True
            if why is not None:
                _hand_precision(config, settings["train"]["precision"], why)
            point.config = config
        except MISTAKES as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            point.settle(failed(explain(error, overrides, self._compose_alone)))

    def pack_key(self, point: Point) -> str | None:
        """What points share that may train in one pack; null for one that trains alone."""
        return self.identify.pack_key(point.settings) if point.settings else None

    def footprint(self, point: Point) -> "Footprint":
        """What a point that may train in a pack holds on a GPU, by its plan.

        Raises:
            ConfigError: It can't be run.
            Unpredictable: Nothing true can be said beforehand.
        """
        assert point.settings is not None
        return self.identify.footprint(point.settings)

    def make_folder(self, points: list[Point]) -> None:
        """Make the sweep's folder, in which no point may write where another, or an earlier run, does.

        Raises:
            ConfigError: One would, or the folder can't be made.
        """
        told: Any = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)
        waiting = [point for point in points if not point.outcome and not point.twin]
        if told["subdir"] != OWN_FOLDER or re.search(r"\$\{(?!now:|hydra)", told["dir"]):
            for point in waiting:
                self.compose(point)  # only the whole configuration tells where it writes
        check_folders(waiting, str(told["subdir"]))
        try:
            Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(not_made("hydra.sweep.dir", self.config.hydra.sweep.dir, error)) from None

    def _compose_alone(self, overrides: list[str]) -> DictConfig:
        return self.loader.load_configuration(self.config.hydra.job.config_name, overrides, RunMode.RUN)


def identities(device: Callable[[str], str] | None = None) -> "Identities":
    """The function that gives the identities of resolved configurations."""
    from harness.run import Identities

    return Identities(device) if device else Identities()


def _hand_precision(config: DictConfig, precision: str, why: str) -> None:
    """Have a point compute in what the sweep took for all of them, wherever it runs, and say why in its record."""
    from harness.run.inputs import WHY

    config.train.precision = precision
    with read_write(config.hydra.job), open_dict(config.hydra.job):
        config.hydra.job.env_set[WHY] = why


def _goes_on(config: DictConfig, overrides: list[str]) -> bool:
    """Whether a point goes on from the checkpoint of a start that was cut off, if there is one.

    Not where the user said otherwise, or wants everything anew.
    """
    said = any(key_of(override) == "train.resume" for override in overrides)
    return not said and str(config.sweep.rerun) != "all" and OmegaConf.select(config, "train.resume") is False
