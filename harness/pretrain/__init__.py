"""Pretraining of the shipped backbones: `python -m harness.pretrain`; may import `tasks` and what lies below it."""
