"""Study of quantization: `python -m harness.quantization`; may import `report` and what lies below it."""

from harness.quantization.schemes import SCHEMES, Scheme, matrices, tabulate

__all__ = ["SCHEMES", "Scheme", "matrices", "tabulate"]
