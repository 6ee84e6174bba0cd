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

from harness.report import __main__ as report
from harness.report import curves, scores
from harness.report.cells import Table
from harness.report.page import page
from harness.report.plots import chosen, style

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


@pytest.mark.slow
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
    """The commit too, and what a run resolved, not what it was asked for."""
    assert "<dt>Commit</dt><dd>0123abc</dd>" in text
    assert "<dt>Device</dt><dd>cpu</dd>" in text
    assert "<dt>Precision</dt><dd>float32</dd>" in text


def test_a_table_alone_needs_no_plots() -> None:
    """Without runs the page has the tables' script and nothing of Bokeh."""
    text = page("t", "l", [Table("x", ("method",), [("lora",)])], [], {})
    assert len(text) < 24_000
    assert "Every run:" not in text


@pytest.mark.slow
def test_runs_on_a_server_are_linked(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """Each row of the list of runs leads to its run in MLflow; runs in a file lead nowhere."""
    run = frames[0]["mlflow_run_id"].iloc[0]
    assert f'href="http://127.0.0.1:5000/#/runs/{run}"' in written(frames, "http://127.0.0.1:5000")
    # Within the page there are the addresses of its sections alone.
    assert not re.findall(r'href="(?!#)', re.sub(r"<(script|svg).*?</\1>", "", written(frames), flags=re.S))


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


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("width", "mode"), [(1280, "light"), (390, "dark")])
def test_the_page_works_in_a_browser(width: int, mode: str, text: str, browser: Any, tmp_path: Path) -> None:
    """From a file: a table sorts and filters, a point shows its run, and markup in a name runs nothing.

    Nothing is complained of, and nothing but the file is asked for.
    """
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=mode)
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
    # On a phone the line below the plot says it alone.
    if width > 640:
        tip = view.locator(".bk-Tooltip")
        tip.get_by_text(EVIL, exact=True).wait_for()
        tip.get_by_text("1k", exact=True).wait_for()
    view.wait_for_function("document.querySelector('#runs + .told').textContent")
    assert view.locator("#runs + .told").inner_text().startswith(f"{EVIL} lr=1e-3 s0 micro/sentiment: {EVIL}")
    assert problems == []
    assert asked == [path.as_uri()]


def report_of(folder: Path) -> Path:
    """The page of a whole report: two tasks, four methods, long names, three seeds, predictions to test on."""
    for task in ("micro/sentiment", "micro/entailment"):
        for place, method in enumerate(("full", "lora", "bitfit", "prefix_tuning_projected")):
            for seed in range(3):
                wrong = [(row * 7 + seed * (1 + place)) % 40 < (3, 3, 7, 20)[place] for row in range(120)]
                cost = {"trainable_parameters": 4 ** (12 - place), "train_peak_bytes": 10**8 // (1 + place)}
                run_dir = write_run(
                    folder / "runs", method, task=task, seed=seed, score=1 - sum(wrong) / 120, steps=STEPS, cost=cost
                )
                table = {
                    "split": "validation",
                    "idx": range(120),
                    "label": 0,
                    "prediction": [int(bad) for bad in wrong],
                }
                pd.DataFrame(table).to_parquet(run_dir / "predictions.parquet", index=False)
    uri = store_of(folder, *sorted((folder / "runs").iterdir()))
    assert (
        report.main(
            [
                f"tracking.uri={uri}",
                f"out={folder / 'report'}",
                "attach=false",
                "pairs=all",
                "plots=score_vs_parameters",
            ]
        )
        == 0
    )
    return folder / "report/report.html"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_of(tmp_path_factory.mktemp("whole"))


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_answer_comes_first_and_fits(width: int, whole: Path, browser: Any) -> None:
    """The finding, the table with names and scores in sight, then the picture; nothing is wider than the window.

    Text has a contrast of 4.5 with its ground, and what is drawn in a cell one of 3, on a light page as on a dark one.
    """
    view = browser.new_page(viewport={"width": width, "height": 844})
    view.goto(whole.as_uri())
    view.wait_for_function("Bokeh.documents.length === 2 && Bokeh.documents.every((each) => each.is_idle)")
    assert "can't be distinguished" in view.locator(".lead").inner_text()
    tops = [
        view.locator(name).first.bounding_box()["y"] for name in (".lead", "table", "main figure", "details.section")
    ]
    assert tops == sorted(tops)
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    table = view.locator("table[data-task]").first
    for row in table.locator("tbody tr").all()[:3]:
        first, second = (row.locator("td").nth(place).bounding_box() for place in (0, 1))
        assert first["x"] >= 0
        assert second["x"] + second["width"] <= width
    # No box scrolls up and down within the page.
    inner = view.evaluate(
        "[...document.querySelectorAll('.wide')].filter((box) => box.scrollHeight > box.clientHeight + 1).length"
    )
    assert inner == 0
    for mode in ("light", "dark"):
        view.emulate_media(color_scheme=mode)
        for name, least in ((".lead", 4.5), (".quiet", 4.5), ("td", 4.5), (".forest circle", 3), ("nav a", 4.5)):
            assert contrast(view, name) >= least, f"{mode} {name}"


def contrast(view: Any, name: str) -> float:
    """Contrast (WCAG 2.2) of the first element's color with the page."""
    colors = view.evaluate(
        """(name) => {
            const style = getComputedStyle(document.querySelector(name));
            const svg = document.querySelector(name) instanceof SVGElement;
            return [svg ? style.fill : style.color, getComputedStyle(document.body).backgroundColor];
        }""",
        name,
    )
    light = sorted(
        style.luminance("#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", color)[:3])) for color in colors
    )
    return (light[1] + 0.05) / (light[0] + 0.05)


@pytest.mark.browser
def test_a_table_opens_picks_its_columns_and_is_downloaded(whole: Path, browser: Any, tmp_path: Path) -> None:
    """A row shows its runs; a column appears; CSV has every column, LaTeX those that are seen; links open sections."""
    view = browser.new_page(viewport={"width": 1280, "height": 900})
    view.goto(whole.as_uri())
    table = view.locator("table[data-task='micro/sentiment']")
    heads = table.locator("thead th:visible")
    assert "± sd" not in heads.all_inner_texts()
    assert {"method", "accuracy", "n", "trainable"} <= set(heads.all_inner_texts())
    table.locator(".more", has_text="lora").click()
    opened = table.locator("tr.opened").inner_text()
    assert re.findall(r"seed \d: 0\.\d{4}, learning rate 0\.001", opened) == opened.splitlines()
    assert len(opened.splitlines()) == 3
    table.locator("th button", has_text="accuracy").click()
    assert table.locator("tr.opened").count() == 0
    tools = table.locator("xpath=ancestor::section//div[@class='tools']")
    tools.get_by_text("Columns").click()
    tools.get_by_label("± sd").check()
    assert "± sd" in heads.all_inner_texts()
    told = {}
    for form, ending in (("CSV", "csv"), ("LaTeX", "tex"), ("JSON", "json")):
        with view.expect_download() as caught:
            tools.get_by_role("button", name=form).click()
        assert caught.value.suggested_filename == f"micro_sentiment.{ending}"
        caught.value.save_as(tmp_path / ending)
        told[form] = (tmp_path / ending).read_text()
    assert told["CSV"].splitlines()[0].startswith('"method","accuracy","± sd"')
    assert "95% interval" in told["CSV"]
    assert "95\\% interval" not in told["LaTeX"]
    assert r"prefix\_tuning\_projected & " in told["LaTeX"]
    assert {"method", "95% interval"} <= set(json.loads(told["JSON"])[0])
    view.evaluate("location.hash = 'table-micro-sentiment-against-full'")
    view.wait_for_function("document.querySelector('#table-micro-sentiment-against-full[open] table').offsetHeight > 0")


@pytest.mark.browser
def test_one_method_is_asked_for_in_a_plot(whole: Path, browser: Any) -> None:
    """The legend names the methods of the task; of the one that is chosen the color stays, the others turn gray."""
    view = browser.new_page(viewport={"width": 1280, "height": 900})
    view.goto(whole.as_uri())
    view.wait_for_function("Bokeh.documents.length === 2 && Bokeh.documents.every((each) => each.is_idle)")
    legend = view.locator("#runs-section .legend button")
    assert sorted(legend.all_inner_texts()) == ["bitfit", "full", "lora", "prefix_tuning_projected"]
    legend.get_by_text("lora").click()
    colors = view.evaluate(
        """() => {
            const shown = [...Object.values(Bokeh.index)].find((each) => each.model.id.startsWith("runs"));
            const data = shown.model.renderers[0].data_source.data;
            return data.configuration.map((name, row) => [name, data.color[row]]);
        }"""
    )
    assert {color for name, color in colors if name == "lora"} == {style.PALETTE["purple"]}
    assert {color for name, color in colors if name != "lora"} == {"#9a9a9a88"}
    assert legend.get_by_text("lora").get_attribute("aria-pressed") == "true"
