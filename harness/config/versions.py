"""Versions of the packages that results depend on, and which of them nobody has tested.

What reads them is imported in functions: the command line's help would wait for it.
"""

import re
from functools import lru_cache

from harness.config.sources import conf_root

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "evaluate",
    "hydra-core",
    "mlflow",
    "numpy",
    "pandas",
    "trl",
)
# Runs that differ in one of these differ in what was computed; reports say so above their tables.
DECIDING = ("torch", "transformers", "peft")
# These store, read and show results, and compute none.
NEUTRAL = ("hydra-core", "mlflow", "pandas")
LOCK = "requirements.lock"


@lru_cache(maxsize=1)
def installed_versions() -> dict[str, str | None]:
    """By package; null where one is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@lru_cache(maxsize=1)
def untested() -> dict[str, str]:
    """A sentence for each package that decides results and lies outside what was tested.

    Tested are the versions from the lower end of what the package asks for to the one in its lock.
    """
    return beyond({k: v for k, v in installed_versions().items() if v and k not in NEUTRAL}, locked(), lowest())


def beyond(installed: dict[str, str], newest: dict[str, list[str]], oldest: dict[str, str]) -> dict[str, str]:
    """A sentence for each installed version newer than the newest tested, or older than the oldest.

    Args:
        installed: Version by package.
        newest: The lock's versions by package, one for each range of Pythons.
        oldest: The lower end by package.
    """
    from packaging.version import Version

    said = {}
    for name, found in installed.items():
        # A build's suffix (+cpu, +cu130) is no other version.
        here = Version(Version(found).public)
        tested = max(map(Version, newest[name])) if name in newest else None
        if tested is not None and here > tested:
            said[name] = f"{name} {found}: newer than the {tested} that was tested"
        elif name in oldest and here < Version(oldest[name]):
            said[name] = f"{name} {found}: older than the {oldest[name]} that was tested"
    return said


@lru_cache(maxsize=1)
def locked() -> dict[str, list[str]]:
    """Versions by package of the lock that the package was tested with; empty where it is not at hand."""
    path = conf_root() / LOCK
    return pins(path.read_text()) if path.is_file() else {}


def pins(text: str) -> dict[str, list[str]]:
    """Versions by package of a list of requirements, one for each of its markers."""
    found: dict[str, list[str]] = {}
    for name, pinned in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\n]+)", text, re.MULTILINE):
        found.setdefault(name.lower().replace("_", "-"), []).append(pinned)
    return found


@lru_cache(maxsize=1)
def lowest() -> dict[str, str]:
    """The lower end by package of what this package asks for; empty where it runs without being installed."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(one) for one in requires("peft-harness") or ()]
    except PackageNotFoundError:
        return {}
    return {
        one.name: specifier.version
        for one in wanted
        if one.marker is None
        for specifier in one.specifier
        if specifier.operator == ">="
    }


@lru_cache(maxsize=1)
def warn_of_untested() -> None:
    """Log, once per process, each package that decides results and was not tested."""
    import logging

    for sentence in untested().values():
        logging.getLogger(__name__).warning(
            "%s; harness-doctor doctor.live=true tries every method, requirements.lock has what was tested", sentence
        )
