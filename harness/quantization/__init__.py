"""Study of quantization: `python -m harness.quantization`; may import `report` and what lies below it."""
