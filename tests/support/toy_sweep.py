"""A sweep over a toy task: real worker processes and a real Hydra, no model, no data, and a dict for a store."""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from harness import tracking
from harness.config import compose
from harness.config.sources import conf_root
from harness.sweep import points, sweepers
from harness.sweep.launchers import composing, local, ray, slurm
from harness.sweep.outcome import Outcome, gathering
from harness.tracking.record import DEVELOPMENT_FILE, TRACKED_FILE, RunRecord

CONFIG = """
defaults: [method: wide, override hydra/launcher: local, _self_]
act: finish
seed: 0
train: {learning_rate: "${method.learning_rate}", resume: false, device: cpu, checkpoint_dir: FOLDER/checkpoints}
evaluate: {validation: true}
sweep: {name: null, stage: run, rerun: none, timeout_minutes: null, fail_fast: false, slots_per_gpu: 1, search: null,
  searched: null, chosen_from: null, stop_share: null}
tracking: {kind: local, uri: "sqlite:///FOLDER/toy.db", experiment: toy}
hydra:
  searchpath: ["file://CONF"]
  output_subdir: null
  sweep: {dir: SWEEP, subdir: "${hydra.job.num}"}
"""
METHODS = {"wide": [0.1, 0.2, 0.3, 0.4, 0.5], "narrow": [1.0, 2.0, 3.0], "single": [1.0], "falling": [2.0, 1.0]}
METHODS |= {"none": [], "zero": [0.0, 1.0], "scaled": [0.1, 0.3]}
SECOND_RANGES = {"scaled": {"alpha": [1, 4, 16]}, "single": {"rank": [1, 2]}}


def task(cfg: DictConfig) -> Any:
    """Do what `act` says; the development score is best at a learning rate of 0.3; narrow diverges below 2."""
    match cfg.act:
        case "finish":
            print("a word from the worker")
            score = 1 - abs(cfg.train.learning_rate - 0.3)
            scores = {"primary_metric": "accuracy", "development": {"accuracy": score}, "validation": None}
            if cfg.evaluate.validation:
                scores["validation"] = {"accuracy": score / 2}
            if cfg.method.name == "scaled":
                scores["development"]["accuracy"] -= abs(cfg.method.alpha - 4)
            status = "finished" if cfg.sweep.stop_share is None else "stopped"
            if cfg.method.name == "narrow" and cfg.train.learning_rate < 2:
                status = "diverged"
            return {"status": status, "error": None, "scores": scores, "seconds": 0.5}
        case "race":
            return race(cfg)
        case "tie":
            return {"status": "finished", "scores": {"primary_metric": "x", "development": {"x": 0.5}}}
        case "report":
            names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "HARNESS_TOY")
            return {"status": "finished", "pid": os.getpid(), "environment": {n: os.environ.get(n) for n in names}}
        case "imported":
            return {"status": "finished", "scores": {}, "imported": "slow_to_import" in sys.modules}
        case "diverge":
            return {"status": "diverged", "error": "the loss is NaN at step 3", "scores": {}}
        case "raise":
            raise RuntimeError("no such luck")
        case "raise_after":  # another point began
            while not (Path(cfg.folder) / "began").exists():
                time.sleep(0.1)
            raise RuntimeError("no such luck")
        case "exit":
            sys.exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            os._exit(0)
        case "hang":
            time.sleep(600)
        case "garbage":
            return lambda: None
        case "count":
            note(Path(cfg.folder) / "began", cfg.seed)
            time.sleep(cfg.wait)
            note(Path(cfg.folder) / "ended", cfg.seed)
            return {"status": "finished", "scores": {}}
        case "kill_parent":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        case "record_then_die":
            record(cfg, "finished").write(Path(cfg.folder))
            os.kill(os.getpid(), signal.SIGKILL)


def race(cfg: DictConfig) -> dict[str, Any]:
    """Leave what 200 development rows came to: the rates differ the more, the further training went."""
    share, folder = cfg.sweep.stop_share or 1.0, Path(HydraConfig.get().runtime.output_dir)
    score = 0.6 + share * (0.4 - abs(cfg.train.learning_rate - 0.3))
    right = [float(row < 200 * score - 1e-9) for row in range(200)]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"step": int(100 * share), "idx": range(200), "score": right}).to_parquet(folder / DEVELOPMENT_FILE)
    scores = {"primary_metric": "accuracy", "development": {"accuracy": sum(right) / 200}, "validation": None}
    status = "finished" if cfg.sweep.stop_share is None else "stopped"
    return {"status": status, "error": None, "scores": scores, "run_dir": str(folder)}


def die_while_starting(threads: int, gpu: str | None) -> None:
    """The beginning of a worker that is killed before it takes a point, as often as there are files to take."""
    for file in Path(os.environ["HARNESS_TOY"]).glob("death*"):
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def note(file: Path, seed: int) -> None:
    """Add a line, whole also where several processes add theirs."""
    with file.open("a") as lines:
        lines.write(f"{seed} {os.getpid()} {os.environ.get('HARNESS_TOY')}\n")


def record(cfg: DictConfig, status: str) -> RunRecord:
    return RunRecord("0" * 32, status, None, "i", {}, {}, scores={"primary_metric": "x", "validation": {"x": 0.75}})


class ToyIdentities:
    """Identities of points that name no precision."""

    def __init__(self, device: Callable[[str], str] | None = None) -> None: ...

    def settle(self, plain: dict[str, Any]) -> tuple[dict[str, Any], None]:
        return plain, None

    def __call__(self, plain: dict[str, Any]) -> str:
        return identity(plain)


class ToySweep:
    """Launches points and holds what the store was sent."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.sent: list[RunRecord] = []
        self.gathered: list[Outcome] = []
        self.stored: dict[str, dict[str, Any]] = {}
        self.questions = 0
        self.asked: list[tuple[list[str], str]] = []
        monkeypatch.setattr(composing, "identities", ToyIdentities)
        resolve = composing.Composer.points
        monkeypatch.setattr(composing.Composer, "points", lambda *given: self._note(resolve(*given)))
        monkeypatch.setattr(tracking, "check", lambda uri: None)
        monkeypatch.setattr(tracking, "finished", self._finished)
        monkeypatch.setattr(tracking, "durations", lambda uri: {})
        monkeypatch.setattr(tracking, "create", lambda uri, experiment, sweep: None)
        monkeypatch.setattr(tracking, "send", self._send)
        compose.register(local.LocalLauncher, ray.RayLauncher, slurm.SlurmLauncher)
        sweepers.register()
        self.configurations = folder / "conf"
        (self.configurations / "method").mkdir(parents=True)
        text = CONFIG.replace("CONF", str(conf_root() / "conf")).replace("SWEEP", str(folder / "sweep"))
        text = text.replace("FOLDER", str(folder))
        (self.configurations / "config.yaml").write_text(text)
        for name, rates in METHODS.items():
            self.method(name, rates)

    def method(self, name: str, rates: list[float]) -> None:
        """Add a method with these learning rates."""
        method = {"name": name, "learning_rate": 1.0, "learning_rates": rates, "alpha": 8}
        method["second_range"] = SECOND_RANGES.get(name, {})
        OmegaConf.save(OmegaConf.create(method), self.configurations / "method" / f"{name}.yaml")

    def _note(self, asked: list[points.Point]) -> list[points.Point]:
        self.asked += [(point.overrides, point.stage) for point in asked]
        return asked

    def _send(self, folder: Path, uri: str, experiment: str) -> None:
        self.sent.append(RunRecord.read(folder))
        (folder / TRACKED_FILE).touch()

    def _finished(self, uri: str, sweep: str, identities: list[str]) -> dict[str, Any]:
        self.questions += 1
        return {key: value for key, value in self.stored.items() if key in identities}

    def remember(self, outcomes: list[dict[str, Any]]) -> None:
        """Hold outcomes as the store would."""
        for outcome in outcomes:
            scores = {split: outcome["scores"].get(split) or {} for split in ("development", "validation")}
            metric = outcome["scores"].get("primary_metric")
            known = {"status": outcome["status"], "error": None, "primary_metric": metric, "scores": scores}
            self.stored[outcome["identity"]] = known | {"artifact_uri": outcome["run_dir"]}

    def launch(self, told: list[list[str]], *settings: str, function: Any = task) -> list[dict[str, Any]]:
        """Run points through the launcher alone and return their outcomes."""
        with self.hydra(settings, function) as (context, config):
            plugin = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=function, config=config
            )
            try:
                return values(plugin.launch(told, initial_job_idx=0))
            finally:
                plugin.stop()

    def sweep(self, arguments: list[str], *settings: str) -> list[list[dict[str, Any]]]:
        """Run a whole sweep and return the outcomes of each batch."""
        with gathering() as self.gathered, self.hydra([*settings, *arguments], task) as (context, config):
            plugin = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=task, config=config)
            return [values(batch) for batch in plugin.sweep(arguments)]

    def hydra(self, settings: Any, function: Any) -> Any:
        from contextlib import contextmanager

        from hydra._internal.callbacks import Callbacks

        @contextmanager
        def opened() -> Any:
            with initialize_config_dir(str(self.configurations), version_base="1.3"):
                loader = GlobalHydra.instance().config_loader()
                local = not any(setting.startswith("hydra/launcher=") for setting in settings)
                needed = ["hydra.launcher.imports=[]"] if local else []  # no torch for toys
                config = loader.load_configuration("config", [*needed, *settings], RunMode.MULTIRUN)
                yield HydraContext(config_loader=loader, callbacks=Callbacks()), config

        return opened()


def values(returned: Any) -> list[dict[str, Any]]:
    assert all(isinstance(one, JobReturn) for one in returned)
    return [one.return_value for one in returned]


def identity(plain: dict[str, Any]) -> str:
    """As the real one: everything but the sweep and the store decides, and where the run is stopped."""
    train = plain.get("train", {})
    plain = {**plain, "train": {key: value for key, value in train.items() if key != "resume"}}
    decisive = {key: value for key, value in plain.items() if key not in ("sweep", "tracking")}
    decisive["stop_share"] = plain["sweep"].get("stop_share")
    return hashlib.sha256(str(decisive).encode()).hexdigest()
