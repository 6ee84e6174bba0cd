"""An experiment-tracking benchmark harness for parameter-efficient fine-tuning."""

from typing import TYPE_CHECKING, Any

from harness.config.version import __version__

if TYPE_CHECKING:
    from harness.methods.adapter_set import AdapterSet, load_adapter
    from harness.report.runs import load_runs

__all__ = ["AdapterSet", "__version__", "load_adapter", "load_runs"]


def __getattr__(name: str) -> Any:
    """Import what is public when it is first asked for, so that the commands start at once."""
    if name in ("AdapterSet", "load_adapter"):
        from harness.methods import adapter_set

        return getattr(adapter_set, name)
    if name == "load_runs":
        from harness.report import runs

        return runs.load_runs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
