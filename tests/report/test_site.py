"""Published reports as one static site: nothing is lost on the way, and no link leads nowhere."""

import html
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from run_directories import write_run

from harness.config.errors import ConfigError
from harness.config.sources import conf_root
from harness.report import __main__ as report
from harness.report import markdown, site
from harness.report.cells import Table

EVIL = "<script>alert(1)</script> | [a](b) *c*"


def test_a_page_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Title, opening, tables with their captions, notes: markup comes back as the text that it was."""
    rows = [("lora", "0.9000", "[0.8000, 0.9500]"), (EVIL, "0.8000", "–"), ("majority class", "0.5000", "")]
    table = Table(f"T {EVIL}", ("method", "accuracy", "95% interval"), rows, "Caption *x*.", ("method",))
    later = Table("t: against full", ("method", "p"), [("a", "1.0000")], "", ("method",), detail=True)
    notes = [f"Note {EVIL}", "Other."]
    text = markdown.markdown(f"Title {EVIL}", "First.\nSecond.", [table, later], notes, ["score_vs_a"])
    (tmp_path / "report.md").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"score_vs_a\.png: a page shows it, and it is not there"):
        site.read(tmp_path / "report.md")
    (tmp_path / "score_vs_a.png").write_bytes(b"light")
    (tmp_path / "score_vs_a.dark.png").write_bytes(b"dark")
    found = site.read(tmp_path / "report.md")
    assert list(found.pictures) == ["score vs a"]
    shown = found.pictures["score vs a"]
    assert '<source media="(prefers-color-scheme: dark)" srcset="score_vs_a.dark.png">' in shown
    assert '<img alt="score vs a" src="score_vs_a.png"' in shown
    assert (found.title, found.lead, found.notes) == (
        f"Title {EVIL}",
        ["First.", "Second."],
        [f"Note {EVIL}", "Other."],
    )
    one, two = found.tables
    assert (one.title, one.columns, one.rows, one.caption) == (table.title, table.columns, rows, table.caption)
    assert one.forest is not None
    assert one.forest.marks[0] == (0.9, 0.8, 0.95)
    assert one.forest.reference == 0.5
    assert (one.detail, two.detail) == (False, True)


def test_marks_stand_in_the_column_of_the_means(tmp_path: Path) -> None:
    """Also where what was varied stands before it."""
    rows = [("lora", "64", "0.9000", "0.01", "3", "[0.8000, 0.9500]"), ("lora", "1", "0.7", "0.02", "3", "[0.6, 0.8]")]
    columns = ("method", "rank", "accuracy", "± sd", "n", "95% interval")
    table = Table("t: rank", columns, rows, "", ("method",))
    (tmp_path / "report.md").write_text(markdown.markdown("T", "Found.", [table], [], []), encoding="utf-8")
    (found,) = site.read(tmp_path / "report.md").tables
    assert found.forest is not None
    assert (found.forest.column, found.forest.marks[0]) == ("accuracy", (0.9, 0.8, 0.95))


@pytest.mark.slow
def test_published_reports_become_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page of reports/ is there, every link of the index leads to a file, and no name of a store is markup."""
    shutil.copytree(conf_root() / "reports/lora_rank", tmp_path / "reports/lora_rank")
    shutil.copytree(conf_root() / "reports/multi_task", tmp_path / "reports/multi_task")
    for seed in range(2):
        for method in ("lora", "<b>evil</b>"):
            write_run(tmp_path / "runs", method, seed=seed)
    monkeypatch.chdir(tmp_path)
    assert report.main(["store=runs", "out=reports/mine"]) == 0
    assert site.main(["out=site"]) == 0
    index = (tmp_path / "site/index.html").read_text()
    links = re.findall(r'href="([^"#]+)"', index)
    assert {"reports/lora_rank/report.html", "reports/multi_task/multi_task.html", "reports/mine/report.html"} <= set(
        links
    )
    assert all((tmp_path / "site" / link).is_file() for link in links)
    assert "<b>evil" not in index
    # The page that the report's own command wrote is not replaced by one of its Markdown.
    own = (tmp_path / "reports/mine/report.html").read_bytes()
    assert (tmp_path / "site/reports/mine/report.html").read_bytes() == own
    scores = pd.read_csv(conf_root() / "reports/lora_rank/scores.csv")
    read = site.read(tmp_path / "reports/lora_rank/report.md")
    assert sum(len(table.rows) for table in read.tables if table.title in set(scores["task"])) == len(scores)


def test_every_published_report_has_its_page_beside_it(tmp_path: Path) -> None:
    """With every figure of its tables and every picture; one of another command's is left as it is."""
    reports = conf_root() / "reports"
    pages = [path for path in sorted(reports.rglob("*.md")) if path.name != site.READ_ME]
    assert len(pages) > 20
    for path in pages:
        text = html.unescape(path.with_suffix(".html").read_text(encoding="utf-8"))
        found = site.read(path)
        assert found.title in text
        assert all(cell in text for table in found.tables[:1] for row in table.rows for cell in row), path
        for name in re.findall(r'<img [^>]*src="([^":]+)"', text):
            assert (path.parent / name).is_file()
    shutil.copytree(reports / "lora_rank", tmp_path / "reports/lora_rank")
    shutil.copytree(reports / "claims", tmp_path / "reports/claims")
    own = tmp_path / "reports/lora_rank/report.html"
    theirs = (tmp_path / "reports/claims/claims.html").read_bytes()
    own.write_text(own.read_text().replace("</title>", "stale</title>"))
    assert site.main([f"reports={tmp_path / 'reports'}", "beside=true"]) == 0
    assert "stale" not in own.read_text()
    assert (tmp_path / "reports/claims/claims.html").read_bytes() == theirs


def test_a_folder_that_is_not_there_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence with the key, exit status 2."""
    assert site.main(["reports=nowhere"]) == 2
    assert capsys.readouterr().err == "site: reports=nowhere: there is no such folder\n"
