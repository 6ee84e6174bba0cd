"""Ledger of common claims about these methods, judged on runs and plans: `python -m harness.claims`.

`reports/claims.yaml` lists claims; beside each stand tests, a named rule with its parameters. A rule reads runs of the
stores, or plans an architecture without weights, and returns cases; verdicts follow from cases and are never typed in.

A command alone: no other room imports it, and it may import `plan`, `quantization`, `report` and what lies below them.
"""

__all__: list[str] = []
