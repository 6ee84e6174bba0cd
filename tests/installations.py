"""Installs the package without the lock, at the newest or the lowest versions allowed, and tries it there.

    python tests/installations.py newest        # what `pip install peft-harness` gives today
    python tests/installations.py lowest        # the lower ends of pyproject.toml's ranges

An environment of its own (.venv-newest, .venv-lowest) is made by uv from the plain registry; a small sweep is run and
reported there, and then the tests of every method's contract. The closing lines say which packages differ from the lock
and what fails. Exit status: 0 when everything passes, 1 when something fails, 2 when nothing could be installed.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.version import Version

from harness.config.versions import LOCK, pins

ROOT = Path(__file__).parents[1]
CONTRACTS = [
    "tests/methods/test_contract.py",
    "tests/methods/test_prefix_cache.py",
    "tests/methods/test_soft_prompts.py",
    "tests/training/test_generation.py",
    "tests/tasks/test_preference.py",
    "tests/run/test_run.py",
]
METHODS = "full,head,bitfit,houlsby,ia3,lora,prefix_tuning,prompt_tuning,qlora"
MISTAKEN = 2


def main(which: str) -> int:
    """Install, try, and say what was found; the exit status."""
    python = install(which)
    with tempfile.TemporaryDirectory() as folder:
        failed = [name for name, command in attempts(python).items() if not succeeds(command, Path(folder))]
    failed += contracts(python)
    print("\n" + "\n".join(differences(python, which)))
    print(f"{which}: " + (f"{len(failed)} failed: {', '.join(failed)}" if failed else "everything passes"))
    return int(bool(failed))


def install(which: str) -> Path:
    """The environment's interpreter."""
    folder = ROOT / f".venv-{which}"
    uv = [str(Path(sys.executable).with_name("uv"))]
    target = ["pip", "install", "--quiet", "--python", str(folder / "bin" / "python")]
    # Lowest of what is asked for by name: what those ask for in turn is their own affair.
    versions = ["--upgrade"] if which == "newest" else ["--resolution", "lowest-direct"]
    environment = {key: value for key, value in os.environ.items() if key not in ("UV_FIND_LINKS", "UV_CONSTRAINT")}
    made = subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], env=environment)
    wanted = [*versions, "--editable", f"{ROOT}[dev]"]
    # Where PyTorch's own index can be reached, its CPU build is a tenth of the size.
    for backend in (["--torch-backend=cpu"], []):
        if (
            made.returncode == 0
            and not subprocess.run(
                [*uv, *target, *backend, *wanted], env=environment, stderr=subprocess.DEVNULL if backend else None
            ).returncode
        ):
            return folder / "bin" / "python"
    print(f"{which}: nothing could be installed; uv says why above", file=sys.stderr)
    sys.exit(MISTAKEN)


def attempts(python: Path) -> dict[str, list[str]]:
    """A small sweep, its report, a plan and the doctor, by name."""
    small = ["task.max_train_rows=256", "train.max_steps=8"]
    return {
        "a sweep of nine methods": [
            str(python), "-m", "harness", "-m", f"method={METHODS}", "sweep.name=tried", "sweep.fail_fast=true", *small
        ],
        "its report": [str(python), "-m", "harness.report", "sweep=tried"],
        "a plan": [str(python), "-m", "harness.plan", "model=llama_3_8b", "method=qlora", "task=glue/rte"],
        "the doctor": [str(python), "-m", "harness.doctor", "doctor.methods=lora"],
    }  # fmt: skip


def succeeds(command: list[str], folder: Path) -> bool:
    """Run in a folder, and print what a failing command said."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        print(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return not done.returncode


def contracts(python: Path) -> list[str]:
    """The tests that fail."""
    command = [str(python), "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "--tb=line", *CONTRACTS]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout[-6000:])
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return failed or ["pytest"] * bool(done.returncode)


def differences(python: Path, which: str) -> list[str]:
    """A line on each package that another version was installed of than the lock has."""
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "pip", "freeze", "--python", str(python)]
    installed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    locked = pins((ROOT / LOCK).read_text())
    beyond = []
    for name, version in pins(installed).items():
        known = sorted(Version(one).public for one in locked.get(name, ()))
        for found in version:
            if known and Version(found).public not in known:
                newer = Version(found) > max(map(Version, known))
                beyond.append(
                    f"{name} {found}: {'newer' if newer else 'older'} than the {' or '.join(known)} of the lock"
                )
    title = f"{which}: {len(beyond)} packages differ from requirements.lock"
    return [title, *(f"  {line}" for line in sorted(beyond, key=lambda line: ("older" in line) == (which == "newest")))]


if __name__ == "__main__":
    if sys.argv[1:] not in (["newest"], ["lowest"]):
        print("one of newest, lowest is needed", file=sys.stderr)
        sys.exit(MISTAKEN)
    sys.exit(main(sys.argv[1]))
