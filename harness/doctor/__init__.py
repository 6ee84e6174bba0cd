"""Diagnosis: `harness-doctor` says what works on this machine; may import `run` and what lies below it."""
