"""Configurations composed apart from Hydra's own main, for plans, tables and model cards."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, open_dict

from harness.config.errors import ConfigError
from harness.config.mistakes import MISTAKES, explain
from harness.config.model_paths import with_paths
from harness.config.sources import conf_root, register_resolvers

VERSION_BASE = "1.3"
PLUGIN_MODULE = "hydra_plugins.harness"


class SweepsOnSearchPath(SearchPathPlugin):
    """Finds the shipped sweeps/, and conf/ and sweeps/ of the working directory so that users can keep their own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Appended, never prepended: a conf/config.yaml of another project in the working directory must not take over.
        for folder in dict.fromkeys([conf_root() / "sweeps", Path.cwd() / "conf", Path.cwd() / "sweeps"]):
            if folder.is_dir() and folder != conf_root() / "conf":
                search_path.append(provider="harness", path=f"file://{folder}")


def register(*plugins: type[Plugin]) -> None:
    """Make plugins known to Hydra as `hydra_plugins.harness.NAME`.

    Hydra instantiates none that lie elsewhere, and imports them by that name. A package in that namespace would be a
    second top-level one to ship, and Hydra would import it whenever any Hydra application starts; a module made here
    exists only in our own process.
    """
    known: Plugins = Plugins.instance()
    try:
        namespace = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:
        namespace = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    module = sys.modules.setdefault(PLUGIN_MODULE, ModuleType(PLUGIN_MODULE))
    namespace.harness = module  # type: ignore[attr-defined]
    for plugin in plugins:
        plugin.__module__ = PLUGIN_MODULE
        setattr(module, plugin.__name__, plugin)
        known.register(plugin)


def register_sources() -> None:
    """Make known where configurations lie and what resolves their values."""
    register(SweepsOnSearchPath)
    register_resolvers()
    # Hydra copies all that is registered for each of the hundred lists of --help, which took half of its time; what the
    # store hands out is a copy already.
    ConfigStore.__deepcopy__ = lambda store, _: store  # type: ignore[attr-defined]


def compose(name: str, overrides: list[str], keep_hydra: bool = False) -> DictConfig:
    """Compose a configuration as `harness` would.

    Raises:
        ConfigError: A name or key is wrong.
    """
    register_sources()
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


def without_hydra(config: DictConfig) -> DictConfig:
    task_config = config.copy()
    with open_dict(task_config):
        del task_config["hydra"]
    return task_config


@contextmanager
def hydra_config(config: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` in a point's configuration mean that point's."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
