"""Diagnosis: `harness-doctor` says what works on this machine; may import `run` and what lies below it.

A command alone: no other room imports it.
"""

__all__: list[str] = []
