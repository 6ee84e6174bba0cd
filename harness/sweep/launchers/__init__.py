"""Launchers: where the points of a sweep are carried out; private to `sweep`, and registered by the command line."""

from harness.sweep.launchers.protocol import Task, Worker, Workers

__all__ = ["Task", "Worker", "Workers"]
