"""Runs: one configuration from its data to its record; may import `tasks`, `tracking` and what lies below them."""

from harness.run.inputs import Identities, Inputs, identify, prepare
from harness.run.pipeline import run

__all__ = ["Identities", "Inputs", "identify", "prepare", "run"]
