"""Inputs of a run: its checked configuration, its files and its identity."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from harness.config import build, sources
from harness.config import identity as config_identity
from harness.config.schema import Experiment, Precision
from harness.methods import earlier
from harness.models import checkpoints, device_type, load_config, settled
from harness.run import pack_size, packing
from harness.tasks import forgetting

if TYPE_CHECKING:
    from collections.abc import Callable

# Variable in which whoever settled `train.precision=auto` for a run tells it the reason.
WHY = "HARNESS_WHY_PRECISION"


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run, found before anything is loaded.

    Attributes:
        identity: Of the run as it is asked for.
        whole: The identity of the same run to its end: what a run that was stopped goes on as.
        again: The command line of this run alone, where it was composed from one.
        why_precision: Why `train.precision=auto` took what the experiment has; null where it was asked for by name.
    """

    experiment: Experiment
    folder: Path
    revisions: dict[str, str]
    identity: str
    whole: str
    again: tuple[str, ...] = ()
    why_precision: str | None = None

    @property
    def to_the_end(self) -> Experiment:
        """The same run, not stopped on its way."""
        return replace(self.experiment, sweep=replace(self.experiment.sweep, stop_share=None))


def prepare(cfg: DictConfig) -> Inputs:
    """Check a configuration and find its files; loads neither weights nor rows.

    Raises:
        ConfigError: Something in the configuration, or a file that it names, is wrong.
    """
    experiment = build.build(cfg)
    folder, model = _backbone(experiment)
    revisions = {"model": model, **_texts(experiment)}
    experiment = _as_stored(experiment, folder)
    # A sweep has settled it for all of its points, and says why.
    why = os.environ.get(WHY)
    if experiment.train.precision is Precision.auto:
        experiment, why = settled(experiment, device_type(experiment.train.device.value))
    identity = config_identity.identity(experiment, revisions)
    inputs = Inputs(experiment, folder, revisions, identity, "", why_precision=why)
    return replace(inputs, whole=config_identity.identity(inputs.to_the_end, revisions))


def on_its_backbone(inputs: Inputs) -> Inputs:
    """The same inputs with the task as the backbone is given it, which no identity depends on.

    Raises:
        ConfigError: The backbone can't learn the task.
    """
    experiment = inputs.experiment
    task = experiment.task.on(load_config(inputs.folder, labels=None, regression=False))
    return replace(inputs, experiment=replace(experiment, task=task))


def _backbone(experiment: Experiment) -> tuple[Path, str]:
    """A backbone's folder and the hash of its files."""
    folder = earlier.resolve(experiment.model)
    return folder, earlier.revision(experiment.model, folder)


def _as_stored(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with its backbone quantized as the checkpoint is already, for every rule and the record."""
    found = checkpoints.as_stored(experiment.model, folder)
    if not found:
        return experiment
    resolved = {**experiment.resolved["model"], **found, "quantization": found["quantization"].value}
    return replace(
        experiment, model=replace(experiment.model, **found), resolved={**experiment.resolved, "model": resolved}
    )


def _texts(experiment: Experiment) -> dict[str, str]:
    """The hashes of the rows and of the general text that a run reads."""
    return {"data": experiment.task.revision(), "forgetting": forgetting.revision(experiment.forgetting.text)}


def identify(cfg: DictConfig) -> str:
    """The identity of the run that a configuration describes, without loading a model."""
    return prepare(cfg).identity


class Identities:
    """The identities of the runs that many configurations describe, as `identify` gives them.

    In the life of this object each different section is checked once, and each backbone and data set asked once for
    the hashes of its files: what changes on disk afterwards is seen by the next.

    Args:
        device: cpu or cuda: what a `train.device` comes to where the runs compute; null: here.
    """

    def __init__(self, device: "Callable[[str], str]" = device_type) -> None:
        self.made: dict[str, Any] = {}
        self.device = device
        sources.register_resolvers()

    def __call__(self, plain: dict[str, Any]) -> str:
        """The identity of a resolved configuration.

        Args:
            plain: Its sections as plain values, without Hydra's own.

        Raises:
            ConfigError: Something in it, or a file that it names, is wrong.
        """
        return config_identity.identity(*self._experiment(plain))

    def pack_key(self, plain: dict[str, Any]) -> str | None:
        """What the runs of resolved configurations share that may train in one pack; null for one that trains alone.

        Raises:
            ConfigError: As for the identity.
        """
        return packing.key(*self._experiment(plain))

    def footprint(self, plain: dict[str, Any]) -> pack_size.Footprint:
        """What a run that may train in a pack holds on a GPU, by its plan; runs that hold the same are planned once.

        Raises:
            ConfigError: As for the identity.
            Unpredictable: Nothing true can be said beforehand.
        """
        experiment, _ = self._experiment(plain)
        resolved = experiment.resolved
        train = {name: value for name, value in resolved["train"].items() if name not in packing.OWN_TRAINING}
        decisive = [resolved["model"], resolved["task"], resolved["method"], train]
        found: pack_size.Footprint = self._once("footprint", decisive, lambda: pack_size.footprint(experiment))
        return found

    def _experiment(self, plain: dict[str, Any]) -> tuple[Experiment, dict[str, str]]:
        plain, _ = self.settle(plain)
        if (plain.get("sweep") or {}).get("budget") is not None:
            plain = self._within_budget(plain)
        experiment = build.assemble(plain, self._section)
        resolved = experiment.resolved
        folder, model = self._once("backbone", resolved["model"], lambda: _backbone(experiment))
        experiment = _as_stored(experiment, folder)
        texts = self._once("texts", (resolved["task"], resolved["forgetting"]), lambda: _texts(experiment))
        return experiment, {"model": model, **texts}

    def settle(self, plain: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """A resolved configuration with the precision that its run computes in, and why auto took it; null for a name.

        Raises:
            ConfigError: Something in the configuration is wrong.
        """
        train = plain.get("train")
        if not isinstance(train, dict) or train.get("precision") != Precision.auto.name:
            return plain, None
        place = [plain.get("model"), plain.get("method"), train.get("device")]
        precision, why = self._once("precision", place, lambda: self._precision(plain))
        return {**plain, "train": {**train, "precision": precision}}, why

    def _precision(self, plain: dict[str, Any]) -> tuple[str, str | None]:
        unsized = {**plain, "sweep": {**(plain.get("sweep") or {}), "budget": None}}
        experiment = build.assemble(unsized, self._section)
        folder, _ = self._once("backbone", experiment.resolved["model"], lambda: _backbone(experiment))
        taken, why = settled(_as_stored(experiment, folder), self.device(experiment.train.device.value))
        return taken.train.precision.name, why

    def _section(self, key: str, values: Any) -> tuple[Any, Any]:
        return self._once(key, values, lambda: build.make_section(key, values))

    def _within_budget(self, plain: dict[str, Any]) -> dict[str, Any]:
        """The configuration with the size that a budget comes to, which depends on neither seed nor training."""
        sweep = plain["sweep"]
        decisive = [plain.get(key) for key in ("model", "task", "method")], sweep["budget"]
        sized = self._once("sized", decisive, lambda: build.assemble(plain, self._section).resolved["method"])
        return {**plain, "method": sized, "sweep": {**sweep, "budget": None}}

    def _once(self, kind: str, given: Any, make: "Callable[[], Any]") -> Any:
        # Not by equality: 1, 1.0 and true are equal, and a seed may not be true.
        place = f"{kind} {given!r}"
        if place not in self.made:
            self.made[place] = make()
        return self.made[place]
