"""Places of the shipped files, and the resolvers that YAML files may use."""

import json
import os
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.config.errors import ConfigError, near_misses

PACKAGE = Path(__file__).parents[1]
# The file of a run and of a sweep without one of its own, and what such a sweep is called.
PRIMARY_CONFIG, SWEEP_WITHOUT_FILE = "config", "multirun"
# Beside a configuration of peft's method comparison: how it is trained, where not by the comparison's defaults.
TRAINING_FILE = "training_params.json"


def conf_root() -> Path:
    """The folder that holds conf/, sweeps/ and reports/: the package in a wheel, its parent in a clone."""
    return PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent


def register_resolvers() -> None:
    """Make known what YAML files may write.

    `${shipped:NAME}` is the folder of a backbone that comes with the package. `${real_data:NAME}` is a folder of
    `$HARNESS_REAL_DATA`, or null where that is not set. `${by:KEY,{A:1,B:2}}` is the value that KEY has in the table.
    `${folder_name:NAME,FILE}` is a sweep's name as one folder, or where there is none that of its file.
    `${base_name:PATH}` is the last part of a path or Hub name. `${training_params:FILE,KEY,DEFAULT}` is what the
    training_params.json beside a file says of a dotted key, or the default.
    """
    OmegaConf.register_new_resolver("shipped", lambda name: str(PACKAGE / "pretrained" / name), replace=True)
    OmegaConf.register_new_resolver("real_data", _real_data, replace=True)
    OmegaConf.register_new_resolver("by", _by, replace=True)
    OmegaConf.register_new_resolver("folder_name", _folder_name, replace=True)
    OmegaConf.register_new_resolver("base_name", _base_name, replace=True)
    OmegaConf.register_new_resolver("training_params", _training_params, replace=True)


def _real_data(name: str) -> str | None:
    root = os.environ.get("HARNESS_REAL_DATA")
    return str(Path(root).expanduser().resolve() / name) if root else None


def sweep_of(file: str) -> str:
    """The name of a sweep that was given none: that of its file."""
    return SWEEP_WITHOUT_FILE if file == PRIMARY_CONFIG else file


def _folder_name(name: str | None, file: str) -> str:
    return re.sub(r"[^\w.-]+", "_", str(name or "")).strip(".") or sweep_of(file)


def _base_name(path: str) -> str:
    """The folder's own name; of the `adapter/` that a run saved, with that of the run in front."""
    folder = Path(os.path.normpath(Path(path).expanduser().absolute()))
    return f"{folder.parent.name}/adapter" if folder.name == "adapter" else folder.name


def _training_params(file: str | None, key: str, default: Any) -> Any:
    """What is no JSON is refused where the method is made, with the file's name."""
    path = Path(file).expanduser().parent / TRAINING_FILE if file else None
    if path is None or not path.is_file():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return default
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return default if value is None else value


def _by(key: str, table: DictConfig) -> Any:
    if key not in table:
        raise ConfigError(f"no value is given for {key}; {near_misses(key, map(str, table))}")
    return table[key]
