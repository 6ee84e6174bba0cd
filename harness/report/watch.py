"""Watch over running runs: a table of where each stands, refreshed on a terminal, printed once elsewhere."""

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from harness import tracking
from harness.tracking.live import HEARTBEAT_TAG, Heartbeat
from harness.training.metrics import higher_is_better
from harness.training.watch import spell

if TYPE_CHECKING:
    from rich.console import Console, Group

REFRESH_SECONDS = 3.0
COLUMNS = ("run", "name", "step", "loss", "development", "tokens/s", "heard")
# A terminal of fewer characters does without these.
WIDE, DROPPED = 100, ("loss", "tokens/s")
# Without a beat for so long, a row says so.
LATE_SECONDS = 90.0


def watch(uri: str, sweep: str | None, console: "Console | None" = None) -> None:
    """Show the runs of a store that are running, until Ctrl-C; elsewhere than on a terminal once.

    Raises:
        ConfigError: The URI names no store.
        ConnectionError: The store cannot be read.
    """
    from rich.console import Console
    from rich.live import Live

    console = console or Console()
    if not console.is_terminal:
        console.print(shown(uri, sweep, console.width))
        return
    try:
        with Live(shown(uri, sweep, console.width), console=console, auto_refresh=False) as display:
            while True:
                time.sleep(REFRESH_SECONDS)
                display.update(shown(uri, sweep, console.width), refresh=True)
    except KeyboardInterrupt:
        return


def shown(uri: str, sweep: str | None, width: int) -> "Group":
    """The table, and what has ended; a narrow terminal has no room for every column."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    live = tracking.running(uri, sweep)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = [name for name in COLUMNS if width >= WIDE or name not in DROPPED]
    for name in names:
        table.add_column(name, justify="left" if name in ("run", "name") else "right", no_wrap=name != "name")
    for run in live:
        cells = row(run, time.time())
        table.add_row(*(Text(cells[name]) for name in names))
    lines = [Text(line) for line in ended(uri, sweep)]
    nothing = [Text("Nothing is running.")] if not live else []
    return Group(*([] if nothing else [table]), *nothing, *lines)


def row(run: dict[str, Any], now: float) -> dict[str, str]:
    """The cells of a running run by column."""
    beat = Heartbeat.read(run["tags"].get(HEARTBEAT_TAG))
    metric = run["tags"].get("primary_metric", "")
    score = run["metrics"].get(f"development.{metric}")
    loss, speed = (run["metrics"].get(f"train.{name}") for name in ("loss", "tokens_per_second"))
    step = "" if beat is None else f"{beat.step}/{beat.steps}" if beat.steps else str(beat.step)
    heard = "" if beat is None else f"{spell(max(0.0, now - beat.at))} ago"
    if beat is not None and now - beat.at > LATE_SECONDS:
        heard += " (late)"
    return {
        "run": run["mlflow_run_id"][:8],
        "name": str(run["name"]),
        "step": step,
        "loss": "" if loss is None else f"{loss:.4f}",
        "development": "" if score is None else f"{metric} {score:.4f}",
        "tokens/s": "" if speed is None else f"{speed:,.0f}",
        "heard": heard,
    }


def ended(uri: str, sweep: str | None) -> list[str]:
    """What has ended by now, and the best score of each task."""
    done = tracking.finished(uri, sweep=sweep)
    counts = Counter(str(run["status"]) for run in done.values())
    best: dict[tuple[str, str], float] = {}
    for run in done.values():
        metric = str(run["primary_metric"])
        for split in ("validation", "development"):
            value = run["scores"][split].get(metric)
            if value is not None:
                place = str(run["task"]), f"{metric}{'' if split == 'validation' else ' (dev)'}"
                before = best.get(place, value)
                best[place] = max(before, value) if higher_is_better(metric) else min(before, value)
                break
    said = [", ".join(f"{count} {status}" for status, count in sorted(counts.items()))] if counts else []
    return said + [f"best {task} {metric} {value:.4f}" for (task, metric), value in sorted(best.items())]
