"""Configurations: composed, checked, made into objects and fingerprinted; imports no other room."""

from harness.config.errors import ConfigError, near_misses
from harness.config.schema import Experiment
from harness.config.sources import conf_root
from harness.config.version import __version__

__all__ = ["ConfigError", "Experiment", "__version__", "conf_root", "near_misses"]
