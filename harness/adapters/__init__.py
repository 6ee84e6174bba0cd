"""Commands on what a run has saved: `harness-predict` answers a file, `harness-export` writes plain folders.

May import `run` and what lies below it.
"""
