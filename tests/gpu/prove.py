"""Carries out the steps that prove.sh announces: each in a process of its own, with a limit of its own.

No step stops the next. What they measure is in `results.jsonl` line by line as it comes, and `gpu.md` is made anew
after each.
"""

import argparse
import contextlib
import importlib
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from page import RESULTS, STEPS, write_page

# Seconds of each step on a GPU, in proportion where the whole has other than `SECONDS`; what one leaves over the later
# ones have, and the last takes all that is left.
LIMITS = {"tests": 90, "costs": 170, "time": 60, "sweep": 60, "packed": 60, "latency": 40, "glue": 600}
MODULES = {
    "costs": "step_costs",
    "time": "step_time",
    "sweep": "step_sweep",
    "packed": "step_packed",
    "latency": "step_latency",
}
MODULES |= {"glue": "step_glue"}
SECONDS, DRY_SECONDS = 570, 900
# Kept for the last page, and for steps to end.
RESERVE = 5
LOG = "prove.log"


def main() -> int:
    """Parse the command line, carry out the steps, and return 0 if all ended well."""
    told = _arguments()
    if told.step:
        return _one_step(told)
    signal.signal(signal.SIGTERM, _interrupt)
    out: Path = told.out
    out.mkdir(parents=True, exist_ok=True)
    if told.resume is not None and told.resume.resolve() != out.resolve():
        for name in (RESULTS, "records.jsonl"):
            if (told.resume / name).exists():
                shutil.copyfile(told.resume / name, out / name)
    end = told.began + (told.seconds or (DRY_SECONDS if told.dry_run else SECONDS))
    _write(out, step="start", began=told.began, until=end, dry=told.dry_run, steps=told.steps)
    well = True
    with ThreadPoolExecutor(1) as pool:
        unpacked = pool.submit(_unpack, None if told.dry_run else told.bundle, told.work / "bundle")
        try:
            for name in ("environment", *told.steps):
                well &= _carry_out(told, name, end, unpacked)
        except KeyboardInterrupt:
            well = False
        finally:
            write_page(out)
    print(f"{out / 'gpu.md'} after {time.time() - told.began:.0f} s", flush=True)
    return 0 if well else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/gpu/prove.sh", description="What one GPU has to show.")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--resume", type=Path, help="folder with the results of an earlier start")
    parser.add_argument("--seconds", type=float, help="time for all steps together")
    parser.add_argument("--steps", type=_steps, default=list(STEPS), help=",".join(STEPS))
    parser.add_argument("--bundle", type=Path, help="what make gpu-bundle made")
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--encoder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    told.out = told.out.absolute()
    return told


def _steps(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: no such step; valid: {', '.join(STEPS)}")
    return names


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _write(out: Path, **line: Any) -> None:
    with (out / RESULTS).open("a") as file:
        file.write(json.dumps(line) + "\n")


def _unpack(bundle: Path | None, folder: Path) -> dict[str, Path]:
    """The real encoder and the real rows of a bundle, as far as it has them."""
    found = {}
    for name in ("encoder", "data"):
        packed = None if bundle is None else bundle / f"{name}.tar.xz"
        if packed is not None and packed.exists():
            with lzma.open(packed) as stream, tarfile.open(fileobj=stream) as archive:
                archive.extractall(folder / name, filter="data")
            found[name] = folder / name
    return found


def _carry_out(told: argparse.Namespace, name: str, end: float, unpacked: Any) -> bool:
    """Start a step's process, wait for it no longer than its limit, and note how it ended."""
    left = end - RESERVE - time.time()
    share = (told.seconds or SECONDS) / SECONDS
    limit = left if told.dry_run or name not in LIMITS else min(left, share * LIMITS[name])
    if limit <= 0:
        _write(told.out, step="end", name=name, status="not run", seconds=0.0, error="the time was over")
        return False
    here = str(Path(__file__).resolve())
    command = [sys.executable, here, "--step", name, "--out", str(told.out), "--work", str(told.work)]
    command += ["--dry-run"] * told.dry_run
    if name in ("time", "glue") and not told.dry_run:
        for option, folder in unpacked.result().items():
            command += [f"--{option}", str(folder)]
    start = time.time()
    print(f"{name}: at most {limit:.0f} s", flush=True)
    with (told.out / LOG).open("a") as log:
        log.write(f"\n=== {name} ===\n")
        log.flush()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=told.work, start_new_session=True)
        error, status = None, "failed"
        try:
            code = process.wait(timeout=limit)
            status = "ended well" if code == 0 else "failed"
            error = None if code == 0 else f"exit status {code}; {LOG} says why"
        except subprocess.TimeoutExpired:
            status, error = "stopped", f"its {limit:.0f} s were over"
        except KeyboardInterrupt:
            status, error = "stopped", "interrupted"
            raise
        finally:
            # Also what it started: lanes, the workers of a sweep.
            _kill_group(process)
            _write(told.out, step="end", name=name, status=status, seconds=time.time() - start, error=error)
            write_page(told.out)
    print(f"{name}: {status} after {time.time() - start:.1f} s", flush=True)
    # Real rows fill the time that is left: that it was over is no failure.
    return status == "ended well" or (name == "glue" and status == "stopped" and error != "interrupted")


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _one_step(told: argparse.Namespace) -> int:
    """What a step's own process does."""
    from parts import Setting, environment

    setting = Setting(told.dry_run, told.out, told.work, told.encoder, told.data)
    if told.step == "environment":
        setting.write("environment", **environment(setting))
        return 0
    if told.step == "tests":
        from step_tests import main
    else:
        main = importlib.import_module(MODULES[told.step]).main
    return 0 if main(setting) else 1


if __name__ == "__main__":
    sys.exit(main())
