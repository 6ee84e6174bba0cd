"""Sweeps: points, their search, locks and progress, and the launchers; may import `run` and what lies below it."""
