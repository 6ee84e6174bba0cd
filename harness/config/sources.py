"""Places of the shipped files, and the resolvers that YAML files may use."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.config.errors import ConfigError, near_misses

PACKAGE = Path(__file__).parents[1]


def conf_root() -> Path:
    """The folder that holds conf/, sweeps/ and reports/: the package in a wheel, its parent in a clone."""
    return PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent


def register_resolvers() -> None:
    """Make known what YAML files may write.

    `${shipped:NAME}` is the folder of a backbone that comes with the package. `${real_data:NAME}` is a folder of
    `$HARNESS_REAL_DATA`, or null where that is not set. `${by:KEY,{A:1,B:2}}` is the value that KEY has in the table.
    """
    OmegaConf.register_new_resolver("shipped", lambda name: str(PACKAGE / "pretrained" / name), replace=True)
    OmegaConf.register_new_resolver("real_data", _real_data, replace=True)
    OmegaConf.register_new_resolver("by", _by, replace=True)


def _real_data(name: str) -> str | None:
    root = os.environ.get("HARNESS_REAL_DATA")
    return str(Path(root).expanduser().resolve() / name) if root else None


def _by(key: str, table: DictConfig) -> Any:
    if key not in table:
        raise ConfigError(f"no value is given for {key}; {near_misses(key, map(str, table))}")
    return table[key]
