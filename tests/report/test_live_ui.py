"""A run that trains, on MLflow's own pages, in a browser."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from browsing import CHROMIUM, SHOW_SECONDS, chromium, free_port, serving
from run_directories import new_store
from waiting import until

from harness import tracking
from harness.report import __main__ as report

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]
RUN = (
    "method=lora train.max_steps=100000 measure.costs=false forgetting.text=null train.device=cpu "
    "train.checkpoint_minutes=60 sweep.name=watched"
).split()


def start(folder: Path, *overrides: str) -> "subprocess.Popen[bytes]":
    with (folder / "output").open("a") as output:
        command = [sys.executable, "-m", "harness", *RUN, *overrides]
        return subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)


def test_a_run_is_watched_stopped_and_killed(tmp_path: Path) -> None:
    """RUNNING with a curve that grows; its tag ends it; one that was killed is KILLED after the next start."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; apt-get install chromium brings it")
    pytest.importorskip("playwright.sync_api", reason="pip install playwright drives the browser")
    uri, port = new_store(tmp_path), free_port()
    runs = [start(tmp_path, "hydra.run.dir=first")]
    try:
        (live,) = until(lambda: [run for run in tracking.running(uri) if "train.loss" in run["metrics"]])
        command = ["harness.report", "ui=true", f"port={port}", f"tracking.uri={uri}"]
        with serving(command, port, tmp_path / "ui.log") as address, chromium() as browser:
            view = browser.new_page(viewport={"width": 1600, "height": 900})
            view.set_default_timeout(1000 * SHOW_SECONDS)
            page = f"{address}/#/experiments/1/runs/{live['mlflow_run_id']}"
            view.goto(page)
            view.get_by_text("Running", exact=True).first.wait_for()
            view.get_by_text("To stop it after its step").first.wait_for()
            before = points(view, address, live)
            until(lambda: points(view, address, live) > before)
            view.goto(address + tracking.views(uri)["sweep watched"] + "&compareRunsMode=CHART")
            view.get_by_text("train.loss").first.wait_for()
            view.goto(page)
            view.get_by_text("Running", exact=True).first.wait_for()
            # As the form for tags on that page asks the server to.
            answer = view.request.post(
                f"{address}/ajax-api/2.0/mlflow/runs/set-tag",
                data={"run_id": live["mlflow_run_id"], "key": "harness.stop", "value": "true"},
            )
            assert answer.ok
            assert runs[0].wait(SHOW_SECONDS) == 130
            view.reload()
            view.get_by_text("Killed", exact=True).first.wait_for()
            view.get_by_text("stopped where it was watched").first.wait_for()

            runs.append(start(tmp_path, "hydra.run.dir=second"))
            (second,) = until(lambda: [run for run in tracking.running(uri) if "train.loss" in run["metrics"]])
            os.kill(runs[1].pid, signal.SIGKILL)
            runs[1].wait()
            view.goto(f"{address}/#/experiments/1/runs/{second['mlflow_run_id']}")
            view.get_by_text("Running", exact=True).first.wait_for()
            runs.append(start(tmp_path, "hydra.run.dir=third"))
            until(lambda: [run["run_id"] for run in tracking.running(uri)] not in ([], [second["run_id"]]))
            view.reload()
            view.get_by_text("Killed", exact=True).first.wait_for()
    finally:
        for run in runs:
            run.kill()
            run.wait()
    (tmp_path / "runs").mkdir(exist_ok=True)
    assert report.main(["--sync", "runs", f"tracking.uri={uri}"]) == 0
    assert tracking.running(uri) == []


def points(view: Any, address: str, run: dict[str, Any]) -> int:
    """How long the curve of the loss is that the page draws."""
    answer = view.request.get(
        f"{address}/ajax-api/2.0/mlflow/metrics/get-history?run_id={run['mlflow_run_id']}&metric_key=train.loss"
    )
    return len(answer.json().get("metrics", []))
