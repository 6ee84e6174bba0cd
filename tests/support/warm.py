"""Commands of this package in processes of their own that need not import torch and the rest again.

A server imports everything once; each command is a fork of it, with folder, arguments and output of its own, and ends
as `python -m MODULE ARGUMENTS` would. Most of a short command's seconds are imports.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

LIBRARIES = ["torch", "transformers", "peft", "bitsandbytes", "datasets", "mlflow", "matplotlib.pyplot", "scipy.stats"]
LIBRARIES += ["mlflow.store.tracking.sqlalchemy_store", "transformers.modeling_utils", "transformers.trainer_utils"]


def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LIBRARIES, "warm", "harness.run", "harness.report.__main__"])
    return context


def _command(module: str, arguments: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    """What the fork does: all that a fresh interpreter is given comes first."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0] = folder
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        with open(f"{output}.{name}", "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = [module, *arguments]
    # As fresh as the others are: what is run as the main module is not there yet.
    sys.modules.pop(f"{module}.__main__", None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run(module: str, arguments: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run `python -m MODULE ARGUMENTS` in a folder; what it printed lies beside the folder until it is read."""
    output = folder.parent / f"{folder.name}.output"
    told = (module, arguments, str(folder), dict(os.environ), str(output))
    process = _server().Process(target=_command, args=told)
    process.start()
    process.join()
    printed = [Path(f"{output}.{name}").read_text(errors="replace") for name in ("stdout", "stderr")]
    assert process.exitcode is not None
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, *printed)
