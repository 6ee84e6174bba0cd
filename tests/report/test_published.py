"""Scores that others published stand below ours of the same task and metric, untested, whatever is in their file."""

from pathlib import Path

import pytest
from run_directories import write_run

from harness.config.errors import ConfigError
from harness.report import __main__ as command
from harness.report import published, runs
from harness.report.definitions import Definition
from harness.report.report import build

HEAD = "task,metric,score,method,model"


def file(folder: Path, *lines: str) -> str:
    path = folder / "theirs.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def told(folder: Path, *lines: str) -> dict[str, list[tuple[str, ...]]]:
    """Title -> rows, of the tables that a report of two tasks gets from a file."""
    for task in ("glue/rte", "glue/sst2"):
        for seed in range(3):
            write_run(folder / "runs", "lora", task=task, seed=seed, score=0.7)
    made = build(runs.load_runs(folder / "runs"), Definition(published=file(folder, *lines)))
    return {table.title: list(table.rows) for table in made.tables if table.title.endswith("by others")}


def test_what_others_published_of_a_task_stands_below_it(tmp_path: Path) -> None:
    """Of its own metric alone, in the order of the file; what it does not say stays empty."""
    lines = [f"{HEAD},parameters,source"]
    lines += ["glue/rte,accuracy,0.62,full,Small,28763648,a table", "glue/rte,accuracy,0.9,lora,Large,,another"]
    lines += ["glue/rte,f1,0.1,full,Small,,", "glue/qnli,accuracy,0.5,full,Small,,"]
    assert told(tmp_path, *lines) == {
        "glue/rte: published by others": [
            ("Small, full", "0.6200", "28,763,648", "a table"),
            ("Large, lora", "0.9000", "", "another"),
        ]
    }


def test_a_file_is_found_where_reports_that_have_a_name_are(tmp_path: Path) -> None:
    """Here, then in reports/ here, then among the shipped ones."""
    shipped = published.read("glue_published.csv")
    (tmp_path / "reports").mkdir()
    for folder, score in ((tmp_path / "reports", 0.1), (tmp_path, 0.2)):
        (folder / "glue_published.csv").write_text(f"{HEAD}\na,accuracy,{score},lora,Large\n")
        assert len(shipped) > 1
        assert list(published.read("glue_published.csv")["score"]) == [score]


def test_nothing_is_tested_against_them(tmp_path: Path) -> None:
    """The tables of ours are as they were without the file."""
    for seed in range(3):
        write_run(tmp_path / "runs", "lora", task="glue/rte", seed=seed, score=0.7 + seed / 100)
    frame = runs.load_runs(tmp_path / "runs")
    theirs = file(tmp_path, HEAD, "glue/rte,accuracy,0.99,full,Large")
    without, beside = build(frame, Definition()), build(frame, Definition(published=theirs))
    assert beside.lead == without.lead
    assert [table for table in beside.tables if not table.title.endswith("by others")] == without.tables


def test_hostile_text_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the page, in Markdown and in LaTeX, and a terminal is sent no control characters."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs", "lora", task="glue/rte", score=0.7)
    theirs = file(tmp_path, f"{HEAD},source", 'glue/rte,accuracy,0.5,full,"<script>alert(1)</script>",\x1b[2J | x')
    assert command.main(["store=runs", f"published={theirs}", "out=page"]) == 0
    page = Path("page/report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page + Path("page/report.md").read_text() + Path("page/report.tex").read_text()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["task,metric,value,method,model"], "columns score are missing; it has task, metric, value"),
        ([HEAD, "glue/rte,accuracy,0.5,full,A", "glue/rte,accuracy,high,full,A"], "the score of row 2 is 'high'"),
        ([HEAD, "glue/rte,accuracy,,full,A"], "the score of row 1 is '', not a number"),
        ([], "cannot be read as CSV"),
        ([HEAD, "glue/rte,accuracy,0.5,full,A,too,many"], "a row has more cells than there are columns"),
        ([HEAD, "glue/rte,accuracy,0.5,full,A", "glue/rte,accuracy,0.5,full,A,more"], "cannot be read as CSV"),
    ],
)
def test_a_file_that_is_no_such_table_is_told(lines: list[str], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        published.read(str(path))


def test_a_file_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one sentence, before anything is written."""
    write_run(tmp_path / "runs", "lora", task="glue/rte", score=0.7)
    assert command.main(["store=runs", "published=nowhere.csv"]) == 2
    assert "published=nowhere.csv: there is no such file" in capsys.readouterr().err
    assert not Path("report").exists()


def test_a_shipped_file_is_found_from_anywhere() -> None:
    """By its name in reports/; its scores are shares, as ours are."""
    scores = published.read("glue_published.csv")["score"]
    assert len(scores) > 40
    assert scores.between(0, 1).all()


@pytest.mark.parametrize("name", ["none.csv", ".", "x" * 5000, "\0"])
def test_what_is_no_file_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match="published="):
        published.read(name)
