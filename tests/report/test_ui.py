"""MLflow's own pages on a store of ours, in a browser."""

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from browsing import CHROMIUM, SHOW_SECONDS, chromium, free_port, serving
from run_directories import store_of, write_run

from harness import tracking
from harness.report import __main__ as report

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = [{"step": step, "development.accuracy": 0.5 + step / 100, "loss": 1.0} for step in (10, 20, 30)]
METHODS = {"full": 630_018, "lora": 16_642, "bitfit": 5_122, "head": 258}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Any]]:
    """Address of MLflow on a store whose report is attached, its URI, and a page of a browser."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; apt-get install chromium brings it")
    pytest.importorskip("playwright.sync_api", reason="pip install playwright drives the browser")
    folder = tmp_path_factory.mktemp("store")
    runs = []
    for place, (method, parameters) in enumerate(METHODS.items()):
        for seed in range(2):
            wrong = 4 * place + seed
            run_dir = write_run(
                folder / "runs", method, seed=seed, score=1 - wrong / 40, steps=STEPS,
                cost={"trainable_parameters": parameters},
            )  # fmt: skip
            answers = {"split": "validation", "idx": range(40), "label": 0}
            pd.DataFrame(answers | {"prediction": [int(row < wrong) for row in range(40)]}).to_parquet(
                run_dir / "predictions.parquet", index=False
            )
            runs.append(run_dir)
    uri = store_of(folder, *runs)
    report.main([f"tracking.uri={uri}", "sweep=grid", f"out={folder / 'report'}"])
    port = free_port()
    command = ["harness.report", "ui=true", f"port={port}", f"tracking.uri={uri}"]
    with serving(command, port, folder / "ui.log") as address, chromium() as browser:
        view = browser.new_page(viewport={"width": 1600, "height": 900})
        view.set_default_timeout(1000 * SHOW_SECONDS)
        yield address, uri, view


def column(view: Any, name: str) -> list[float]:
    """The figures that a column of the list of runs shows, from the top."""
    rows = view.locator(f'.ag-row [col-id="metrics.`{name}`"]').evaluate_all(
        "cells => cells.map((cell) => [Number(cell.closest('.ag-row').getAttribute('row-index')), cell.innerText])"
    )
    return [float(text) for _, text in sorted(rows) if text]


def test_the_pages_of_mlflow_show_a_sweep(pages: tuple[str, str, Any]) -> None:
    """The view that a report leaves has our metrics as columns, best first; another column sorts; two runs compare."""
    address, uri, view = pages
    path = tracking.views(uri)["sweep grid"]
    view.goto(address + path)
    view.get_by_text("lora lr=1e-3 s1 micro/sentiment").first.wait_for()
    scores = column(view, "validation.accuracy")
    assert len(scores) == len(METHODS) * 2
    assert scores == sorted(scores, reverse=True)

    heading = view.locator('.ag-header-cell[col-id="metrics.`cost.trainable_parameters`"]')
    heading.get_by_text("cost.trainable_parameters").click()
    view.wait_for_function("location.href.includes('cost.trainable_parameters')")
    for _ in range(SHOW_SECONDS):
        counts = column(view, "cost.trainable_parameters")
        if counts in (sorted(counts), sorted(counts, reverse=True)) and len(counts) == len(scores):
            break
        view.wait_for_timeout(1000)
    assert sorted(set(counts)) == sorted(METHODS.values())
    assert counts in (sorted(counts), sorted(counts, reverse=True))

    for row in view.locator(".ag-row:has(input[type=checkbox])").all()[:2]:
        row.locator("input[type=checkbox]").first.check()
    view.get_by_role("button", name=re.compile("^Compare")).first.click()
    view.get_by_text(re.compile("Comparing 2 Runs", re.I)).first.wait_for()


def test_the_report_lies_with_its_sweep(pages: tuple[str, str, Any]) -> None:
    """The parent run's artifacts open as the page that was written, and its description is the report's beginning."""
    address, uri, view = pages
    parent = {run["tags"]["mlflow.parentRunId"] for run in tracking.read_runs(uri)}.pop()
    view.goto(f"{address}/#/experiments/1/runs/{parent}/artifacts/report/report.html")
    shown = view.frame_locator("iframe").first
    shown.get_by_role("heading", name="Fine-tuning methods compared: grid").wait_for()
    shown.get_by_text(re.compile("full has the highest score observed")).wait_for()
    shown.locator("#table0 th button", has_text="trainable").click()
    assert shown.locator("#table0 tbody td:first-child").first.inner_text() == "head"
    view.goto(f"{address}/#/experiments/1/runs/{parent}")
    view.get_by_text(re.compile("full has the highest score observed")).first.wait_for()
