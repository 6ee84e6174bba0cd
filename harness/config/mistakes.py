"""A user's mistake in one sentence: the dotted key, what was given, what is allowed, what may have been meant."""

import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from harness.config.errors import ConfigError, near_misses
from harness.config.sources import conf_root

# What Hydra, OmegaConf and YAML raise for something that the user wrote.
MISTAKES = (ConfigError, HydraException, OmegaConfBaseException, YAMLError)

# Options that exclude each other: Hydra checks them itself and raises a bare ValueError.
HYDRA_OPTIONS_FILE = "hydra/_internal/utils.py"

# Where Hydra makes the folder of a run.
HYDRA_JOB_FILE = "hydra/core/utils.py"

Compose = Callable[[list[str]], DictConfig]


def is_mistake(error: Exception) -> bool:
    """Whether an exception is a user's mistake; anything else is a bug and keeps its trace."""
    if isinstance(error, MISTAKES):
        return True
    where = traceback.extract_tb(error.__traceback__)[-1].filename if error.__traceback__ else ""
    if isinstance(error, ValueError) and Path(where).as_posix().endswith(HYDRA_OPTIONS_FILE):
        return True
    return _unwritable(error) is not None


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an exception came of Ctrl-C, in whose stead OmegaConf raises one of its own where it copies."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _unwritable(error: BaseException) -> OSError | None:
    """What the system says of a run's folder, or the log in it, that Hydra could not make; null for any other error."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError):
        return None
    frames = [Path(frame.filename).as_posix() for frame in traceback.extract_tb(error.__traceback__)]
    job = next((place for place, name in enumerate(frames) if name.endswith(HYDRA_JOB_FILE)), len(frames))
    own = [name for name in frames[job:] if "/harness/" in name]
    return cause if job < len(frames) and not own else None


def not_made(key: str, folder: object, error: OSError) -> str:
    """The sentence for a folder that can't be made."""
    return f"{key}={folder}: the folder can't be made ({error.strerror}); name another"


def explain(error: BaseException, overrides: Sequence[str] = (), compose: Compose | None = None) -> str:
    """Say what was wrong.

    Args:
        error: One of `MISTAKES`.
        overrides: The overrides in force, to name the one at fault.
        compose: Composes the configuration from overrides; lets a misspelt key be compared with the keys there are.
    """
    if isinstance(error, ConfigError):
        return str(error)
    if unwritable := _unwritable(error):
        return not_made("hydra.run.dir", unwritable.filename, unwritable)
    if isinstance(error, OverrideParseException):
        lines = [line.strip() for line in error.message.split("\n")]
        reason = next((line for line in lines if line and not line.startswith(("Error parsing", "See "))), "")
        return f"{error.override}: not an override, write key=value, key=[a,b] for a list, key='a text' ({reason})"
    if isinstance(error, MissingConfigException):
        return _missing_file(error, overrides)
    if isinstance(error, HydraException):
        return _composition(error, list(overrides), compose)
    if isinstance(error, OmegaConfBaseException):
        return _value(error)
    return " ".join(str(error).split())


def choices(group: str) -> set[str]:
    """Names that a group of conf/ offers, also the nested ones (`glue/sst2`), shipped or in the working directory."""
    return {name for root in (conf_root() / "conf", Path("conf")) for name in _names(root / group)}


def primary_configs() -> set[str]:
    """Names that `-cn` takes: config and every sweep."""
    return {"config"} | {name for root in (conf_root() / "sweeps", Path("sweeps")) for name in _names(root)}


def _names(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _missing_file(error: MissingConfigException, overrides: Sequence[str]) -> str:
    text, name = str(error), error.missing_cfg_file or ""
    if "primary config" in text:
        return f"-cn {name}: there is no such sweep; {near_misses(name, primary_configs())}"
    group_line = re.search(r"Available options in '(.+)':", text)
    group = group_line[1] if group_line else name.rpartition("/")[0]
    choice = name.removeprefix(f"{group}/")
    parent = re.match(r"In '(.+?)':", text)
    on_command_line = any(key_of(override) == group for override in overrides)
    place = f"{parent[1]}.yaml: " if parent and not on_command_line else ""
    valid = choices(group) | set(error.options or ())
    if not valid:
        return f"{place}{group}={choice}: there is no such group of choices"
    return f"{place}{group}={choice}: there is no such {group.rpartition('/')[2]}; {near_misses(choice, valid)}"


def _composition(error: HydraException, overrides: list[str], compose: Compose | None) -> str:
    text = str(error)
    if unknown := re.match(r"Could not override '([^']+)'", text):
        return _unknown_key(unknown[1], overrides, compose)
    if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", text):
        return f"{several[1]}: several values are a sweep, which needs -m (for a list write key=[a,b])"
    if existing := re.match(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"{existing[1]}: the key is there already, leave out the +"
    cause = error.__cause__
    if merging := re.match(r"Error merging override (.+)", text):
        return f"{merging[1]}: {_value(cause, bare=True)}" if isinstance(cause, OmegaConfBaseException) else text
    if isinstance(cause, OmegaConfBaseException) and not text.strip():
        return _value(cause)
    return " ".join(text.split())


def _unknown_key(key: str, overrides: list[str], compose: Compose | None) -> str:
    given = next((override for override in overrides if key_of(override) == key), key)
    if "/" in key:
        groups = {folder.name for folder in (conf_root() / "conf").iterdir() if folder.is_dir()}
        return f"{given}: there is no group of choices {key}; {near_misses(key, groups)}"
    sentence = f"{given}: there is no key {key}"
    if compose is None:
        return sentence
    try:
        config = compose([override for override in overrides if key_of(override) != key])
    except MISTAKES:
        return sentence
    # Compared with its siblings: the whole list of some sixty keys would bury the one that was meant.
    section, _, name = key.rpartition(".")
    siblings = OmegaConf.select(config, section) if section else config
    while section and not OmegaConf.is_dict(siblings):
        section, _, name = section.rpartition(".")
        siblings = OmegaConf.select(config, section) if section else config
    valid = {str(sibling) for sibling in siblings if sibling != "hydra"}
    return f"{sentence}; {near_misses(name, valid)}"


def _value(error: OmegaConfBaseException, bare: bool = False) -> str:
    text = str(error).split("\n")[0].strip()
    key = getattr(error, "full_key", None)
    return text if bare or not key or str(key) in text else f"{key}: {text}"
