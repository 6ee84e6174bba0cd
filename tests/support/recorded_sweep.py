"""A sweep in a process of its own, to be killed: the real launcher, workers, records, SQLite store, and a short task.

    python -c "from recorded_sweep import main; main()" FOLDER OVERRIDES...

What it does not have is a model: a start with one takes ten seconds, and there are many.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from toy_sweep import ToyIdentities, identity

from harness.__main__ import exit_status
from harness.config import compose
from harness.config.schema import TrackingKind
from harness.config.sources import conf_root
from harness.run.job import _track
from harness.run.watching import RunWatch, watching
from harness.sweep import sweepers
from harness.sweep.launchers import composing, local
from harness.sweep.outcome import gathering
from harness.tracking import live
from harness.tracking.record import RunRecord

CONFIG = """
defaults: [override hydra/launcher: local, _self_]
method: {name: toy}
task: {name: toy}
model: {name: toy}
seed: 0
seconds: 1.0
act: finish
sweep: {name: null, stage: run, rerun: none, timeout_minutes: null, fail_fast: false, slots_per_gpu: 1}
tracking: {kind: local, uri: "sqlite:///mlflow.db", experiment: toy, live: true}
hydra:
  searchpath: ["file://CONF"]
  output_subdir: null
  job: {chdir: false}
  launcher: {workers: 2, imports: []}
  sweep: {dir: "runs/toy/${now:%H-%M-%S-%f}", subdir: "${hydra.job.num}"}
"""
SCRIPT = "from recorded_sweep import main; main()"
STEPS = 10
STARTED: "list[subprocess.Popen[str]]" = []
# So that the page of a task of a second is there before its end.
live.FIRST_BEAT_SECONDS, live.BEAT_SECONDS, live.SHARE = 0.05, 0.2, 1.0


def task(cfg: DictConfig) -> dict[str, Any]:
    """Take some time, write a record and send it, in the order of a run."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    record = RunRecord(
        run_id=os.urandom(16).hex(),
        status="finished",
        error=None,
        identity=identity(plain),
        sweep={"name": cfg.sweep.name, "stage": "run"},
        config=plain,
        scores={"primary_metric": "accuracy", "validation": {"accuracy": cfg.seed / 100}, "development": {}},
        started_at=datetime.now(UTC).isoformat(),
    )
    experiment: Any = SimpleNamespace(tracking=SimpleNamespace(**plain["tracking"] | {"kind": TrackingKind.local}))
    with watching(watch := RunWatch(folder, record, experiment)):
        watch.begin([], STEPS)
        for step in range(STEPS):
            watch.line({"step": step + 1, "loss": 1 / (step + 1)})
            time.sleep(cfg.seconds / STEPS)
        record.ended_at = datetime.now(UTC).isoformat()
        record.write(folder)
    if cfg.act == "break_store" and cfg.seed == 1 and not Path("away.db").exists():
        Path("mlflow.db").rename("away.db")
        Path("mlflow.db").write_text("a text where a database is expected")
    tracked = _track(record, folder, experiment)
    outcome = {"status": "finished", "error": None, "seconds": cfg.seconds, "tracked": tracked}
    return {**outcome, "identity": record.identity, "run_id": record.run_id, "scores": record.scores}


def main() -> None:
    """Run the sweep that the arguments describe in the folder that they name, and exit as `harness` would."""
    folder, *arguments = sys.argv[1:]
    os.chdir(folder)
    Path("conf").mkdir(exist_ok=True)
    Path("conf/config.yaml").write_text(CONFIG.replace("CONF", str(conf_root() / "conf")))
    compose.register(local.LocalLauncher)
    sweepers.register()
    composing.identities = ToyIdentities
    with initialize_config_dir(str(Path("conf").resolve()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", arguments, RunMode.MULTIRUN)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        plugin = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=task, config=config)
        with gathering() as outcomes:
            plugin.sweep(arguments)
    sys.exit(exit_status(outcomes))


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start it in a process group of its own; its output is the file `output.txt` of the folder."""
    return started(folder, ["-c", SCRIPT, str(folder), *arguments], str(Path(__file__).parent))


def started(folder: Path, arguments: list[str], *path: str) -> "subprocess.Popen[str]":
    """Start Python as `start` does, with these folders on its path before the project's."""
    folder.mkdir(exist_ok=True)
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*path, str(Path(__file__).parents[2])])},
            stdout=output,
            stderr=output,
            text=True,
            process_group=0,
        )
    STARTED.append(process)
    return process


def end_started() -> None:
    """End what a test that failed left behind: it would compute beside the next ones, and warn in one of them."""
    while STARTED:
        process = STARTED.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
