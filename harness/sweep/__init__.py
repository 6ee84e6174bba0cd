"""Sweeps: points, their search, locks and progress, and the launchers; may import `run` and what lies below it."""

from harness.sweep.outcome import Outcome, gather, gathering

__all__ = ["Outcome", "gather", "gathering"]
