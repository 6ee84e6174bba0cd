"""Pictures of a report; private to `report`, but for the style, which the pictures of other commands share."""

from harness.report.plots.style import COLORS, SETTINGS, encoded

__all__ = ["COLORS", "SETTINGS", "encoded"]
