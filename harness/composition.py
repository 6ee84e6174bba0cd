"""Configurations composed apart from Hydra's own main, for plans, tables and model cards."""

from typing import TYPE_CHECKING

from harness.config import ConfigError, conf_root

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose(name: str, overrides: list[str], keep_hydra: bool = False) -> "DictConfig":
    """Compose a configuration as `harness` would.

    Raises:
        ConfigError: A name or key is wrong.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from harness.__main__ import VERSION_BASE, register_plugins
    from harness.mistakes import MISTAKES, explain
    from harness.model_paths import with_paths

    register_plugins()
    overrides = with_paths(overrides)
    # Inside of a Hydra job there is a Hydra already, and only one at a time is allowed.
    there = GlobalHydra.instance()
    outer, there.hydra = there.hydra, None
    try:
        with initialize_config_dir(config_dir=str(conf_root() / "conf"), version_base=VERSION_BASE):
            try:
                return hydra_compose(name, overrides=overrides, return_hydra_config=keep_hydra)
            except MISTAKES as error:
                sentence = explain(error, overrides, lambda rest: hydra_compose(name, overrides=rest))
                raise ConfigError(sentence) from error
    finally:
        GlobalHydra.instance().hydra = outer
