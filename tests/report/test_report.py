"""harness-report: from a store to files, or one sentence about what is wrong."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
import pytest
from run_directories import new_store, store_of, write_run

from harness.config.sources import conf_root
from harness.report import __main__ as report
from harness.report import report as report_report
from harness.report import tables
from harness.report.plots.style import KINDS

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with two sweeps, an evil name and a failure."""
    folder = tmp_path_factory.mktemp("store")
    runs = [
        write_run(folder / "runs", method=method, seed=seed, score=score + seed / 100)
        for method, score in (("lora", 0.8), ("full", 0.7), (EVIL, 0.6))
        for seed in range(2)
    ]
    runs.append(write_run(folder / "runs", seed=2, status="failed", error=f"ValueError: {EVIL}"))
    runs.append(write_run(folder / "runs", method="ia3", sweep="other"))
    return store_of(folder, *runs)


def test_a_report_is_printed_and_written(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The terminal, Markdown, CSV and HTML all have the mean; the last line says how to browse the runs."""
    report.main([f"tracking.uri={store}", "sweep=grid", f"out={tmp_path / 'report'}"])
    printed = capsys.readouterr().out
    for text in (
        printed,
        *((tmp_path / "report" / name).read_text() for name in ("report.md", "report.html", "report.tex")),
    ):
        assert "0.8050" in text
        assert "majority class" in text
        assert "ia3" not in text
    [listed] = re.findall(r"^Written to .*report: (.*)$", printed, re.MULTILINE)
    assert len(set(listed.split(", "))) == len(listed.split(", "))
    assert printed.rstrip().endswith(f"Every run: harness-report ui=true tracking.uri={store}")
    with (tmp_path / "report" / "scores.csv").open(newline="") as file:
        rows = {row["configuration"]: row for row in csv.DictReader(file)}
    assert float(rows["lora"]["mean"]) == pytest.approx(0.805)
    assert rows["lora"]["failed"] == "1"
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(
        {*report_report.FILES} - {"tuning.csv", "predictions.csv", "comparisons.csv", "across.csv", "noise.csv"}
        | {f"{name}.{kind}" for name in ("score_vs_parameters", "score_vs_seconds", "seeds") for kind in KINDS}
    )


@pytest.mark.slow
def test_the_same_store_gives_the_same_bytes(store: str, tmp_path: Path) -> None:
    """Every file of two reports on one store is equal."""
    for name in ("one", "two"):
        report.main([f"tracking.uri={store}", f"out={tmp_path / name}"])
    names = [path.name for path in (tmp_path / "one").iterdir()]
    assert len(names) >= 6
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


@pytest.mark.slow
def test_comparisons_of_predictions_are_the_same_bytes(tmp_path: Path) -> None:
    """What is resampled is drawn from a seed: on the same predictions two reports are equal, letters included."""
    for method, every in (("full", 10), ("lora", 9), ("head", 2)):
        for seed in range(2):
            wrong = [(row + seed) % every == 0 for row in range(90)]
            run_dir = write_run(tmp_path / "runs", method=method, seed=seed, score=1 - sum(wrong) / 90)
            table = {"split": "validation", "idx": range(90), "label": 0, "prediction": [int(flag) for flag in wrong]}
            pd.DataFrame(table).to_parquet(run_dir / "predictions.parquet", index=False)
    for name in ("one", "two"):
        report.main([f"store={tmp_path / 'runs'}", f"out={tmp_path / name}"])
    names = [path.name for path in (tmp_path / "one").iterdir()]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    verdicts = (tmp_path / "one" / "comparisons.csv").read_text()
    assert verdicts.count("no detectable difference") == 1
    assert "no detectable difference" in (tmp_path / "one" / "report.tex").read_text()


@pytest.mark.slow
def test_a_folder_of_runs_is_reported_as_its_store_is(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a store the same runs give the same tables, and the last line names the folder."""
    runs = Path(store.removeprefix("sqlite:///")).parent / "runs"
    report.main([f"store={runs}", "sweep=grid", f"out={tmp_path / 'folder'}"])
    assert capsys.readouterr().out.rstrip().endswith(f"Every run: {runs}")
    report.main([f"tracking.uri={store}", "sweep=grid", f"out={tmp_path / 'store'}"])
    # The page lists the runs' numbers in the store, and draws curves that a folder of records does not hold.
    names = {path.name for path in (tmp_path / "store").iterdir()} - {"runs.csv", "report.html"}
    assert all((tmp_path / "folder" / n).read_bytes() == (tmp_path / "store" / n).read_bytes() for n in names)


@pytest.mark.slow
def test_filters_keep_what_was_asked_for(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several values with commas, and the report says that it is not about everything."""
    arguments = ["method=lora,full", "status=finished", "since=2026-11-01", f"out={tmp_path}"]
    report.main([f"tracking.uri={store}", *arguments])
    assert "Only runs with method=lora,full status=finished since=2026-11-01." in capsys.readouterr().out
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert sorted(row["method"] for row in csv.DictReader(file)) == ["full", "full", "lora", "lora"]


def test_no_cell_of_a_csv_file_is_run_by_a_spreadsheet(tmp_path: Path) -> None:
    """A name that is a formula has a quote before it; figures stay figures."""
    evil = '=HYPERLINK("http://evil","x")'
    for sweep in (evil, "+cmd|' /C calc'!A0", "-2+3", "@sum(a1)"):
        write_run(tmp_path / "runs", sweep=sweep, score=0.25)
    report.main([f"store={tmp_path / 'runs'}", f"out={tmp_path / 'report'}"])
    with (tmp_path / "report/runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert f"'{evil}" in [row["sweep"] for row in rows]
    assert not [cell for row in rows for cell in row.values() if cell[:1] in tuple("=+@")]
    assert {row["validation.accuracy"] for row in rows} == {"0.25"}
    assert report_report.plain_cells(pd.DataFrame({"a": ["-0.5", "-", "+3e-4", "-a"], "b": [-1.0] * 4})).to_dict(
        "list"
    ) == {
        "a": ["-0.5", "-", "+3e-4", "'-a"],
        "b": [-1.0] * 4,
    }


@pytest.mark.slow
def test_files_that_a_store_lost_are_told_of_at_the_top(tmp_path: Path) -> None:
    """The runs are counted before the first table; a whole store is not mentioned."""
    uri = store_of(tmp_path, *(write_run(tmp_path / "runs", method=method) for method in ("full", "lora")))
    report.main([f"tracking.uri={uri}", f"out={tmp_path / 'whole'}"])
    assert "not where the store says" not in (tmp_path / "whole/report.md").read_text()
    (tmp_path / "mlartifacts").rename(tmp_path / "elsewhere")
    report.main([f"tracking.uri={uri}", f"out={tmp_path / 'lost'}"])
    beginning = (tmp_path / "lost/report.md").read_text().split("\n|")[0]
    assert "The files of 2 of 2 runs are not where the store says" in beginning


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_signs_gets_the_report_without_them(tmp_path: Path, encoding: str) -> None:
    """Signs that its encoding lacks are question marks, and the status is 0."""
    write_run(tmp_path / "runs", status="failed", error="gr\u00f6\u00dfer \u2013 \u4eca\u5929")
    write_run(tmp_path / "runs")
    command = [sys.executable, "-m", "harness.report", f"store={tmp_path / 'runs'}", f"out={tmp_path / 'report'}"]
    ended = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    assert b"?" in ended.stdout


def test_a_damaged_file_is_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are reported, and the command succeeds."""
    write_run(tmp_path / "runs")
    broken = write_run(tmp_path / "runs") / "result.json"
    broken.write_text("{")
    report.main([f"store={tmp_path / 'runs'}", f"out={tmp_path / 'report'}"])
    assert f"skipped: {broken} is damaged" in capsys.readouterr().out
    assert "skipped: " in (tmp_path / "report" / "report.md").read_text()


def test_records_of_other_versions_are_shown_and_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A later version's record and one without fields have rows that say so."""
    for name, change in (("lora", {"schema_version": 9}), ("full", {"identity": "left out"}), ("head", {})):
        path = write_run(tmp_path / "runs", method=name) / "result.json"
        content = json.loads(path.read_text()) | change
        path.write_text(json.dumps({key: value for key, value in content.items() if value != "left out"}))
    report.main([f"store={tmp_path / 'runs'}", f"out={tmp_path / 'report'}"])
    assert (
        "with missing fields count like the others: 1 record of version 9, 1 without identity."
        in capsys.readouterr().out
    )
    with (tmp_path / "report" / "scores.csv").open(newline="") as file:
        marks = {row["configuration"]: row["marked"] for row in csv.DictReader(file)}
    assert marks["lora"] == "1 record of version 9"
    assert (marks["full"], marks["head"]) == ("1 without identity", "")


@pytest.mark.slow
def test_several_tasks_have_a_table_over_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranks come first, and their numbers are in across.csv."""
    for task in ("micro/sentiment", "micro/entailment"):
        for method, score in (("full", 0.9), ("lora", 0.8)):
            write_run(tmp_path / "runs", method=method, task=task, score=score)
    report.main([f"store={tmp_path / 'runs'}", f"out={tmp_path / 'report'}"])
    printed = capsys.readouterr().out
    assert printed.index("Over tasks") < printed.index("average rank") < printed.index("trainable")
    with (tmp_path / "report" / "across.csv").open(newline="") as file:
        assert [(row["configuration"], row["rank"]) for row in csv.DictReader(file)] == [
            ("full", "1.0"),
            ("lora", "2.0"),
        ]


def test_two_runs_are_held_side_by_side(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Directories and ids name the same runs; what differs is shown, and why there is no paired test."""
    runs = Path(store.removeprefix("sqlite:///")).parent / "runs"
    first, second = sorted(runs.iterdir())[1:3]
    ids = [json.loads((folder / "result.json").read_text())["run_id"] for folder in (first, second)]
    shown = []
    for names in ((first, second), ids):
        report.main([f"compare={names[0]},{names[1]}", f"tracking.uri={store}", f"out={tmp_path / 'out'}"])
        shown.append(capsys.readouterr().out)
    # How long sending took is known only once it is sent; how wide its figure is moves the columns.
    lines = [[line.split() for line in text.splitlines() if "track_seconds" not in line] for text in shown]
    lines = [[words for words in text if not set("".join(words)) <= set("┏━┳┓┡╇┩└─┴┘")] for text in lines]
    assert lines[0] == lines[1]
    assert "A is lora lr=1e-3 s1 micro/sentiment" in shown[0]
    assert "B is full lr=1e-3 s0 micro/sentiment" in shown[0]
    assert "No paired test: it kept no predictions" in shown[0]
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.slow
def test_an_evil_name_is_shown_as_text(store: str, tmp_path: Path) -> None:
    """A method and an error with markup in them put none into the HTML page, pictures and plots included."""
    report.main([f"tracking.uri={store}", f"out={tmp_path}"])
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert r"\u003cscript\u003ealert(1)\u003c/script\u003e" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.slow
def test_files_of_an_earlier_report_do_not_stay(store: str, tmp_path: Path) -> None:
    """A report without failures removes the list of those of the report before it, and nothing else."""
    (tmp_path / "mine.txt").write_text("kept")
    for sweep in ("grid", "other"):
        report.main([f"tracking.uri={store}", f"out={tmp_path}", f"sweep={sweep}"])
    assert not (tmp_path / "failures.csv").exists()
    assert (tmp_path / "mine.txt").exists()


def test_a_sweep_that_has_only_trials_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep stopped while it tuned shows its trials."""
    trials = [write_run(tmp_path / "runs", stage="tune", learning_rate=rate) for rate in (1e-4, 1e-3, 1e-2)]
    report.main([f"tracking.uri={store_of(tmp_path, *trials)}", f"out={tmp_path / 'report'}"])
    assert "How the learning rates were chosen" in capsys.readouterr().out


def test_runs_that_all_failed_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store with nothing but failures lists their reasons."""
    uri = store_of(tmp_path, write_run(tmp_path / "runs", status="failed", error="no memory"))
    report.main([f"tracking.uri={uri}", f"out={tmp_path / 'report'}"])
    assert "no memory" in capsys.readouterr().out


def test_sync_sends_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both spellings send what is missing, and say what was there and what is damaged."""
    write_run(tmp_path / "runs")
    (write_run(tmp_path / "runs") / "result.json").write_text("{")
    uri = new_store(tmp_path)
    report.main(["--sync", str(tmp_path / "runs"), f"tracking.uri={uri}"])
    report.main([f"sync={tmp_path / 'runs'}", f"tracking.uri={uri}"])
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        f"sent 1, already there 0, damaged 1: {uri}",
        f"sent 0, already there 1, damaged 1: {uri}",
    ]
    assert "result.json is damaged" in shown.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("swep=x", "swep=x: there is no key swep; did you mean sweep? Valid: "),
        ("tracking.ur=x", "did you mean tracking.uri"),
        ("out", "out: a value is needed"),
        ("--sync", "sync=: a value is needed"),
        ("--sync {tmp}/nowhere", "sync={tmp}/nowhere is not a folder"),
        (
            "tracking.uri={store} sweep=gird",
            "no runs found in tracking.uri={store}; did you mean grid? There are: grid (7",
        ),
        ("tracking.uri=sqlite:///{tmp}/none.db", "there is no such store"),
        ("tracking.uri=mlruns", "tracking.uri=mlruns is not a tracking store"),
        ("tracking.uri=http://u:secret@127.0.0.1:9", "the server cannot be reached"),
        ("http://u:secret@127.0.0.1:9", "there is no key"),
        ("tracking.uri={store} method=lroa", "method=lroa: no runs found in tracking.uri={store}; did you mean lora? "),
        (
            "tracking.uri={store} since=2030-01-01",
            "since=2030-01-01: no runs found in tracking.uri={store}; all of them",
        ),
        ("tracking.uri={store} since=tomorrow", "since=tomorrow is no date; write it as 2026-01-31"),
        ("store={tmp}/nowhere", "store={tmp}/nowhere is not a folder"),
        ("store={tmp}", "store={tmp}: no runs found in it"),
        ("store={store}", "store={store} is no folder; write tracking.uri={store}"),
        ("tracking.uri={store} compare=a", "compare=a: give two run directories or ids"),
        (
            "tracking.uri={store} compare=a,b",
            "compare=a: neither a folder with a result.json nor the id of one of the 8",
        ),
        ("tracking.uri={store} out=/proc/x", "out=/proc/x: the folder cannot be written"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: str, sentence: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, one line on the error stream, no password and no stack trace."""
    assert report.main([part.format(tmp=tmp_path, store=store) for part in arguments.split()]) == 2
    shown = capsys.readouterr()
    assert sentence.format(tmp=tmp_path, store=store) in shown.err
    assert shown.err.startswith("harness-report: ")
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert "secret" not in shown.err


def test_help_is_fast() -> None:
    """--help names every key and needs under 1.5 s."""
    began = time.monotonic()
    command = [sys.executable, "-m", "harness.report", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - began < 1.5
    assert all(key in shown for key in ("sweep=", "out=", "tracking.uri=", "tracking.experiment=", "--sync"))


# --- Definitions ----------------------------------------------------------------------------------------------------


def define(text: str, name: str = "mine") -> None:
    """Write a definition into the working directory."""
    Path("reports").mkdir(exist_ok=True)
    Path("reports", f"{name}.yaml").write_text(text)


def test_a_definition_chooses_what_is_shown(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Title, rows, columns with a figure of the runs, baseline and pictures are those of the file, in report/NAME."""
    define(
        "title: Mine <b>\nsweep: grid\nmethod: [lora, full]\ncolumns: [n, validation.loss]\nbaseline: lora\n"
        "plots: [seeds]\n"
    )
    report.main(["mine", f"tracking.uri={store}"])
    printed = capsys.readouterr().out
    assert printed.startswith("Mine <b>\n")
    out = Path("report", "mine")
    assert {path.name for path in out.iterdir() if path.suffix in (".svg", ".png")} == {f"seeds.{k}" for k in KINDS}
    [head] = [line for line in (out / "report.md").read_text().splitlines() if line.startswith("| method | accuracy")]
    assert head == "| method | accuracy | n | loss (validation) | remarks |"
    with (out / "scores.csv").open(newline="") as file:
        rows = {row["configuration"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"lora", "full", "majority class"}
    assert float(rows["lora"]["validation.loss"]) == 0.5
    assert "<h1>Mine &lt;b&gt;</h1>" in (out / "report.html").read_text()


def test_a_flag_counts_instead_of_the_definition(store: str, tmp_path: Path) -> None:
    """Also where the definition has several values and the flag one."""
    define("sweep: [grid, other]\nmethod: [lora, full]")
    report.main(["mine", f"tracking.uri={store}", "method=ia3", f"out={tmp_path / 'out'}"])
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["ia3"]
    assert not Path("report").exists()


def test_the_baseline_is_what_others_are_held_against(tmp_path: Path) -> None:
    """Where a definition or a flag names it."""
    for method, every in (("full", 10), ("lora", 9)):
        for seed in range(2):
            wrong = [(row + seed) % every == 0 for row in range(90)]
            run_dir = write_run(tmp_path / "runs", method=method, seed=seed, score=1 - sum(wrong) / 90)
            table = {"split": "validation", "idx": range(90), "label": 0, "prediction": [int(flag) for flag in wrong]}
            pd.DataFrame(table).to_parquet(run_dir / "predictions.parquet", index=False)
    report.main([f"store={tmp_path / 'runs'}", f"out={tmp_path / 'out'}", "baseline=lora", "plots=seeds"])
    assert "## micro/sentiment: against lora" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("path", sorted((conf_root() / "reports").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_definition_is_one(path: Path) -> None:
    """Its keys are known, its sweeps are there, and what it names can be drawn and shown."""
    if path.stem == "claims":
        pytest.skip("the ledger of claims has a format of its own")
    options = report.parse([path.stem])
    assert options.name == path.stem
    assert all((conf_root() / "sweeps" / f"{sweep}.yaml").exists() for sweep in options.sweep or ())
    assert all(any(fnmatch(name, known) for known in report_report.PICTURES) for name in options.plots or ())
    assert all(name in tables.COLUMNS or "." in name for name in options.columns or ())
    assert all((conf_root() / "conf" / "method" / f"{name}.yaml").exists() for name in options.method or ())


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        ("", "glue_minlm", "glue_minlm: there is no key and no definition of a report of this name; did you mean"),
        ("swep: grid", "mine", "reports/mine.yaml: mine.swep: no such key; did you mean sweep?"),
        ("sweep: {a: 1}", "mine", "reports/mine.yaml: mine.sweep: "),
        ("- sweep", "mine", "reports/mine.yaml: keys with values are needed, such as sweep: NAME"),
        ("sweep: [", "mine", "reports/mine.yaml cannot be read: "),
        ("sweep: grid", "mine columns=intervall", "columns=intervall: there is no such column; did you mean interval?"),
        ("columns: [validation.los]", "mine", "columns=validation.los: there is no such column; did you mean"),
        ("sweep: grid\nbaseline: lroa", "mine", "baseline=lroa: no run is of such a method; did you mean lora?"),
        ("plots: [seed]", "mine", "plots=seed: there is no such picture; did you mean seeds?"),
        ("sweep: gird", "mine", "sweep=gird: no runs found in tracking.uri={store}; did you mean grid?"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_definition_is_one_sentence(
    text: str, arguments: str, sentence: str, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file, the key, what is allowed; exit status 2 and nothing written."""
    define(text)
    assert report.main([*arguments.split(), f"tracking.uri={store}"]) == 2
    shown = capsys.readouterr()
    assert sentence.format(store=store) in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert not Path("report").exists()
