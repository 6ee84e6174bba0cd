"""Pretraining of the shipped backbones: `python -m harness.pretrain`; may import `tasks` and what lies below it.

A command alone: no other room imports it.
"""

__all__: list[str] = []
