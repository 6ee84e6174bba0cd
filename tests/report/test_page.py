"""The HTML page: one file, no network, every text a text, and in a browser it sorts, filters and shows its runs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browsing import CHROMIUM, chromium
from run_directories import store_of, write_run

from harness.report import curves, scores
from harness.report.cells import Table
from harness.report.page import page
from harness.report.plots import chosen

EVIL = "<script>alert(1)</script>"
STEPS = [{"step": step, "development.accuracy": 0.5 + step / 100, "loss": 1.0} for step in (10, 20, 30)]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs and learning curves of a store in which a method and an error are markup."""
    folder = tmp_path_factory.mktemp("store")
    runs = [
        write_run(
            folder / "runs",
            method=method,
            seed=seed,
            score=0.6 + place / 10 + seed / 100,
            steps=STEPS,
            cost={"trainable_parameters": 10 ** (3 + place)},
        )
        for place, method in enumerate((EVIL, "lora", "full"))
        for seed in range(2)
    ]
    runs.append(write_run(folder / "runs", status="failed", error=f"ValueError: {EVIL}"))
    uri = store_of(folder, *runs)
    return scores.load(uri), curves.load(uri)


def written(frames: tuple[pd.DataFrame, pd.DataFrame], server: str | None = None) -> str:
    """A page with a table of two columns and all plots."""
    rows = [(f"method {count}", f"{count * 700} B" if count < 2 else f"{count}.5 kB") for count in (9, 1, 0, 10, 5, 3)]
    table = Table("Sizes", ("method", "adapter"), [*rows, (EVIL, "–")], f"Caption {EVIL}", ("method",))
    drawn = {name: kinds["svg"].decode() for name, kinds in chosen.draw(*frames).items()}
    return page(f"Title {EVIL}", f"Lead {EVIL}", [table], [f"Note {EVIL}"], drawn, *frames, server)


@pytest.fixture(scope="module")
def text(frames: tuple[pd.DataFrame, pd.DataFrame]) -> str:
    return written(frames)


def test_the_same_runs_give_the_same_bytes(text: str, frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """Nothing in the page is random or counted over the life of the program."""
    assert written(frames) == text


def test_no_text_of_a_store_becomes_markup(text: str) -> None:
    """Wherever a name stands, in a table, a picture or the data of a plot, it cannot start or end an element."""
    assert "<script>alert" not in text
    assert len(re.findall("&lt;script&gt;alert", text)) > 8
    data = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
    assert [json.loads(part)["place"] for part in data] == ["runs", "curves"]
    assert EVIL in json.loads(data[0])["columns"]["configuration"]


def test_the_page_needs_no_other_file(text: str) -> None:
    """It loads nothing: neither script, style nor picture has an address."""
    without_code = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.findall(r'<(?:script|img|iframe)[^>]+src=|<link|@import|url\("?http', without_code)


def test_the_page_says_what_made_its_runs(text: str) -> None:
    """The commit too."""
    assert "<dt>Commit</dt><dd>0123abc</dd>" in text


def test_a_table_alone_needs_no_plots() -> None:
    """Without runs the page has the tables' script and nothing of Bokeh."""
    text = page("t", "l", [Table("x", ("method",), [("lora",)])], [], {})
    assert len(text) < 20_000
    assert "one mark per run" not in text


@pytest.mark.slow
def test_runs_on_a_server_are_linked(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """Each row of the list of runs leads to its run in MLflow; runs in a file lead nowhere."""
    run = frames[0]["mlflow_run_id"].iloc[0]
    assert f'href="http://127.0.0.1:5000/#/runs/{run}"' in written(frames, "http://127.0.0.1:5000")
    assert "href=" not in re.sub(r"<(script|svg).*?</\1>", "", written(frames), flags=re.S)


# --- In a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def browser() -> Iterator[Any]:
    """Debian's Chromium; its tests are skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; apt-get install chromium brings it")
    pytest.importorskip("playwright.sync_api", reason="pip install playwright drives the browser")
    with chromium() as opened:
        yield opened


def first_column(view: Any, table: str) -> list[str]:
    return view.locator(f"{table} tbody tr:not([hidden]) td:first-child").all_inner_texts()  # type: ignore[no-any-return]


@pytest.mark.browser
def test_the_page_works_in_a_browser(text: str, browser: Any, tmp_path: Path) -> None:
    """From a file: a table sorts and filters, a point shows its run, and markup in a name runs nothing.

    Nothing is complained of, and nothing but the file is asked for.
    """
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    view = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    asked: list[str] = []
    view.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    view.on("pageerror", lambda error: problems.append(str(error)))
    view.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(path.as_uri())
    view.wait_for_function("Bokeh.documents.length === 2 && Bokeh.documents.every((each) => each.is_idle)")

    adapter = view.locator("#table0 th button", has_text="adapter")
    adapter.click()
    order = ["method 0", "method 1", "method 3", "method 5", "method 9", "method 10", EVIL]
    assert first_column(view, "#table0") == order
    adapter.click()
    assert first_column(view, "#table0") == [*reversed(order[:-1]), EVIL]
    view.locator("input[data-table=table0]").fill("kb method 1")
    assert first_column(view, "#table0") == ["method 10"]

    # The lowest score is a run of the evil method: its point is hovered, its name shown as text.
    view.locator("#runs").scroll_into_view_if_needed()
    place = view.evaluate(
        """() => {
            const shown = [...Object.values(Bokeh.index)].find((each) => each.model.id.startsWith("runs"));
            const data = shown.model.renderers[0].data_source.data;
            const row = data.y.indexOf(Math.min(...data.y));
            const frame = shown.frame, at = shown.el.getBoundingClientRect();
            return [at.x + frame.x_scale.compute(data.x[row]),
                    at.y + frame.y_scale.compute(data.y[row])];
        }"""
    )
    view.mouse.move(place[0] - 2, place[1])
    view.mouse.move(*place)
    tip = view.locator(".bk-Tooltip")
    tip.get_by_text(EVIL, exact=True).wait_for()
    tip.get_by_text("1k", exact=True).wait_for()
    assert view.locator("#runs + .told").inner_text().startswith(f"{EVIL} lr=1e-3 s0 micro/sentiment: {EVIL}")
    assert problems == []
    assert asked == [path.as_uri()]
