"""Reports: runs become tables, tests, pictures and pages; may import `sweep`, `tracking` and what lies below them.

`harness.load_runs` is `runs.load_runs`; it is not imported here, since the command's help would wait for pandas.
"""

from harness.report.definitions import Definition

__all__ = ["Definition"]
