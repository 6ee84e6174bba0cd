"""The command line: `harness` is one run, `harness -m` or `harness -cn SWEEP` a sweep.

Exit status: 0 all finished, 1 a run or a point of a sweep did not (or could not be tracked), 2 a user's mistake, 130
interrupted.
Imports Hydra and nothing heavy, so that `--help`, `--cfg job` and tab completion answer at once.
"""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from harness import catalog, completion
from harness.config import compose
from harness.config.command import (
    DONE,
    FAILED,
    FULL_ERROR,
    INTERRUPTED,
    MISTAKEN,
    interrupted,
    refuse,
    traces_wanted,
)
from harness.config.compose import VERSION_BASE
from harness.config.errors import ConfigError, write_anywhere
from harness.config.folders import remove_unused
from harness.config.mistakes import explain, is_mistake
from harness.config.model_paths import with_paths
from harness.config.sources import PRIMARY_CONFIG, conf_root
from harness.sweep import sweepers
from harness.sweep.launchers import local, ray, slurm
from harness.sweep.outcome import REFUSED, Outcome, gather, gathering
from harness.tracking.record import CONFIG_FILE

# Hydra's, which it opens before a run begins.
LOG_FILE = "run.log"


def register_plugins() -> None:
    """Make the launchers, the sweepers and the search path known to Hydra."""
    compose.register(local.LocalLauncher, ray.RayLauncher, slurm.SlurmLauncher)
    sweepers.register()
    compose.register_sources()


def run_point(cfg: DictConfig) -> dict[str, Any]:
    """Run one configuration, in this process or in a sweep's worker; a user's mistake comes back as `refused`."""
    from harness.run.job import job

    if HydraConfig.get().job.chdir:
        # Paths mean the folder where the command was given, the store's among them.
        os.chdir(HydraConfig.get().runtime.cwd)
    folder = Path(HydraConfig.get().runtime.output_dir)
    # What the run writes before it can be refused; what lies there already is not its own.
    written = {LOG_FILE} if (folder / CONFIG_FILE).exists() else {LOG_FILE, CONFIG_FILE}
    try:
        outcome = job(cfg)
    except ConfigError as error:
        if traces_wanted:
            raise
        outcome = {"status": REFUSED, "error": str(error), "scores": {}}
        if OmegaConf.is_missing(HydraConfig.get().job, "num"):
            remove_unused(folder, written)
    gather([Outcome.of(outcome)])
    return outcome


def main() -> int:
    """Parse the command line, run, and return the exit status."""
    write_anywhere()
    if sys.argv[1:2] in (["list"], ["completion"]):
        return {"list": catalog.main, "completion": completion.main}[sys.argv[1]](sys.argv[2:])
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(catalog.usage())
        return DONE
    register_plugins()
    try:
        sys.argv[1:] = with_paths(sys.argv[1:])
    except ConfigError as error:
        return refuse(str(error))
    # Hydra prints a trace of its own unless told to raise; what it raises becomes one sentence below.
    os.environ[FULL_ERROR] = "1"
    # Names Hydra's job, and so the log file and the help's title, instead of "__main__".
    os.environ.setdefault("HYDRA_MAIN_MODULE", "harness")
    signal.signal(signal.SIGTERM, _interrupt)
    app = hydra.main(version_base=VERSION_BASE, config_path=str(conf_root() / "conf"), config_name=PRIMARY_CONFIG)
    try:
        with gathering() as outcomes:
            app(run_point)()
    except KeyboardInterrupt:
        return interrupted()
    except Exception as error:
        if traces_wanted or not is_mistake(error):
            raise
        arguments = get_args_parser().parse_args()
        return refuse(explain(error, arguments.overrides, lambda o: _compose(arguments, o)))
    return exit_status(outcomes)


def exit_status(outcomes: list[Outcome]) -> int:
    """The exit status for what ended; a single run's failure is told here, a sweep's has its table."""
    if len(outcomes) == 1 and outcomes[0].point is None:
        outcome = outcomes[0]
        if outcome.status not in ("finished", "stopped"):
            refused = outcome.status == REFUSED
            print(outcome.error if refused else f"{outcome.status}: {outcome.error}", file=sys.stderr)
            return MISTAKEN if refused else INTERRUPTED if outcome.status == "interrupted" else FAILED
        if outcome.run_dir:
            place = "" if outcome.tracked else f" store={shlex.quote(outcome.run_dir)}"
            print(f"Next: harness-report{place}")
    untracked = any(outcome.tracked is False for outcome in outcomes)
    return FAILED if untracked or any(outcome.counts_as_failure for outcome in outcomes) else DONE


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _compose(arguments: Any, overrides: list[str]) -> DictConfig:
    """Compose once more, without the override at fault, to see which keys there are."""
    with hydra.initialize_config_dir(config_dir=str(conf_root() / "conf"), version_base=VERSION_BASE):
        single = [override for override in overrides if "," not in override]
        return hydra.compose(arguments.config_name or PRIMARY_CONFIG, overrides=single, return_hydra_config=True)


if __name__ == "__main__":
    # Imported under its own name: workers unpickle `run_point` by reference, and "__main__" is another module there.
    from harness.__main__ import main as entry

    sys.exit(entry())
