"""Takes the README's pictures of MLflow's pages and of a report's page.

    python tests/support/take_pictures.py sqlite:///mlflow.db SWEEP reports/pictures

The report must have been attached to the sweep before (`harness-report sweep=SWEEP`); it is taken from the store.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from browsing import SHOW_SECONDS, chromium, free_port, serving
from PIL import Image

from harness import tracking
from harness.tracking import pages

LARGEST = 200_000


def save(view: Any, path: Path) -> None:
    """Keep what is seen, with as many colors as fit into the largest file allowed."""
    taken = Image.open(io.BytesIO(view.screenshot())).convert("RGB")
    for colors in (256, 64, 16):
        stream = io.BytesIO()
        taken.quantize(colors, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        if len(stream.getvalue()) < LARGEST:
            break
    path.write_bytes(stream.getvalue())
    print(f"{path}: {len(stream.getvalue()):,} bytes, {colors} colors")


def take(uri: str, sweep: str, out: Path) -> None:
    port, path = free_port(), tracking.views(uri)[f"sweep {sweep}"]
    run = next(run for run in tracking.read_runs(uri, sweep) if "mlflow.parentRunId" in run["tags"])
    parent = run["tags"]["mlflow.parentRunId"]
    command = ["harness.report", "ui=true", f"port={port}", f"tracking.uri={uri}"]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(command, port, Path(folder, "ui.log")) as address,
        chromium() as browser,
    ):
        view = browser.new_page(viewport={"width": 1280, "height": 760})
        view.set_default_timeout(1000 * SHOW_SECONDS)
        view.goto(address + path)
        view.get_by_text(run["tags"]["method"]).first.wait_for()
        # A panel for questions to a language model, which covers a quarter.
        view.locator('[data-component-id="mlflow.assistant.chat_panel.close"]').first.click()
        view.wait_for_timeout(3000)
        save(view, out / "mlflow.png")
        view.goto(f"{address}{path}&compareRunsMode=CHART")
        view.get_by_text("train.loss").first.wait_for()
        view.wait_for_timeout(5000)
        save(view, out / "mlflow_charts.png")
        page = Path(run["artifact_uri"]).parent.parent / parent / "artifacts" / pages.REPORT_FOLDER / "report.html"
        # As far down as the first table.
        view.set_viewport_size({"width": 1280, "height": 1300})
        view.goto(page.as_uri())
        view.wait_for_function("Bokeh.documents.length && Bokeh.documents.every((each) => each.is_idle)")
        save(view, out / "page.png")


if __name__ == "__main__":
    take(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
