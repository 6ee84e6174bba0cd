"""Reports show what was measured, and a text is only ever a text."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from run_directories import write_run

import harness
from harness.report import cells, finding, markdown, predicted, scores, tables, terminal, words
from harness.report import tuning as report_tuning
from harness.report.comparison import Comparison
from harness.report.pairwise import Pairwise
from harness.tracking.record import MEMORY
from harness.training.metrics import METRICS

EVIL = "<script>alert('x')</script> | [red]*a*[/red] $x$"


def row(**values: object) -> dict[str, object]:
    common = {"task": "sst2", "configuration": "lora", "method": "lora", "metric": "accuracy", "split": "validation"}
    numbers = {"n": 3, "mean": 0.9, "std": 0.01, "low": 0.8, "high": 1.0, "collapsed": 0, "diverged": 0, "failed": 0}
    common |= {"marked": "", "undertrained": ""}
    costs = {"share": 0.05, "trainable_parameters": 1000.0, "total_parameters": 20_000.0, "train_seconds": 10.0}
    speed = {"tokens_per_second": 2000.0, "adapter_file_bytes": 4096.0}
    nothing = dict.fromkeys(("base", "forgetting.before", "forgetting.after"), float("nan"))
    return {**common, **numbers, **costs, **speed, **nothing, "forgetting_metric": "", **values}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (4096, "4.1 kB"),
        (86_500_000, "86.5 MB"),
        (2.5e12, "2,500.0 GB"),
        (float("nan"), "–"),
    ],
)
def test_bytes_have_a_unit(value: float, shown: str) -> None:
    """Sizes are in decimal units, and what was not measured is a dash."""
    assert cells.size(value) == shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([2_522_112, 24_200, float("nan"), 1_200], ["2,522.1 kB", "24.2 kB", "–", "1.2 kB"]),
        ([86_500_000, 999_600], ["86.5 MB", "1.0 MB"]),
        ([16_060_000_000, 4_096, 0], ["16,060.0 MB", "0.0041 MB", "0.0 MB"]),
        ([512, 3_000_000], ["0.51 kB", "3,000.0 kB"]),
        ([999, 12], ["999 B", "12 B"]),
    ],
)
def test_bytes_of_a_column_are_in_one_unit(values: list[float], shown: list[str]) -> None:
    """That of the least, or a larger one where the most would have more than six digits."""
    write = cells.sizes(values)
    assert [write(value) for value in values] == shown


def test_each_column_of_bytes_in_a_report_has_one_unit() -> None:
    """A head of a thousand bytes beside a whole model, also in figures of the runs that were asked for."""
    sizes = (1_234, 2_522_112, 69_000)
    rows = [
        row(configuration=str(size), adapter_file_bytes=size, **{"cost.train_peak_bytes": 50.0 * size})
        for size in sizes
    ]
    (table,) = tables.score_tables(pd.DataFrame(rows), columns=["adapter", "cost.train_peak_bytes"])
    columns = {name: [cells[place] for cells in table.rows] for place, name in enumerate(table.columns)}
    assert columns["adapter"] == ["1.2 kB", "2,522.1 kB", "69.0 kB"]
    assert columns["peak memory"] == ["61.7 kB", "126,105.6 kB", "3,450.0 kB"]


@pytest.mark.parametrize(
    ("value", "shown"), [(1.0, "100%"), (0.0191, "1.91%"), (0.0006, "0.060%"), (float("nan"), "–")]
)
def test_small_shares_keep_their_digits(value: float, shown: str) -> None:
    """A share below one percent has three places."""
    assert cells.share(value) == shown


def test_a_single_run_shows_no_deviation() -> None:
    """The cell says n=1 in place of a standard deviation."""
    [table] = tables.score_tables(pd.DataFrame([row(n=1, std=float("nan"))]))
    assert table.rows[0][:4] == ("lora", "0.9000", "n=1", "1")


def test_collapsed_and_diverged_runs_are_remarked() -> None:
    """The remark counts them among all runs of the row."""
    [table] = tables.score_tables(pd.DataFrame([row(collapsed=1, diverged=1)]))
    assert table.rows[0][-1] == "1 of 4 no better than majority, 1 of 4 diverged"


def test_what_a_backbone_knew_is_shown_where_it_was_asked() -> None:
    """Its own score, and its loss on general text before and after; otherwise there are no such columns."""
    asked = {"base": 0.5, "forgetting_metric": "masked_loss", "forgetting.before": 0.94, "forgetting.after": 1.21}
    [table] = tables.score_tables(pd.DataFrame([row(**asked)]))
    shown = dict(zip(table.columns, table.rows[0], strict=True))
    assert (shown["backbone alone"], shown["masked loss before"], shown["after"]) == ("0.5000", "0.940", "1.210")
    [without] = tables.score_tables(pd.DataFrame([row()]))
    assert not {"backbone alone", "after"} & set(without.columns)


def test_unequal_tuning_budgets_are_remarked() -> None:
    """Methods of one task with different numbers of trials are not compared silently."""
    common = {"task": "sst2", "without_score": 0, "best": 0.9, "median": 0.8, "worst": 0.7, "chosen": 0.01, "edge": ""}
    common |= {"search": "grid", "beyond": 0, "stopped": 0, "chosen_second": ""}
    rows = [
        {**common, "configuration": name, "trials": n, "grid": "", "used": "0.1"} for name, n in (("a", 3), ("b", 4))
    ]
    table = report_tuning.tuning_table(pd.DataFrame(rows))
    assert table is not None
    assert table.rows[0][-1] == "not the same number of trials for every method; final runs used 0.1"


@pytest.mark.parametrize(
    ("edge", "remark"),
    [
        ("", "2 rates beyond its grid tried"),
        ("highest", "highest of its grid, also after 2 rates beyond its grid: the best may lie beyond"),
    ],
)
def test_rates_beyond_a_grid_are_remarked_and_are_no_unequal_budget(edge: str, remark: str) -> None:
    """The rule was the same for all, and where it ended at the limit the table says so."""
    common = {"task": "sst2", "without_score": 0, "best": 0.9, "median": 0.8, "worst": 0.7, "chosen": 0.01}
    common |= {"search": "grid", "stopped": 0, "chosen_second": "", "grid": "", "used": "0.01"}
    rows = [
        {**common, "configuration": "a", "trials": 3, "beyond": 0, "edge": ""},
        {**common, "configuration": "b", "trials": 5, "beyond": 2, "edge": edge},
    ]
    table = report_tuning.tuning_table(pd.DataFrame(rows))
    assert table is not None
    assert [cells[-1] for cells in table.rows] == ["", remark]


def test_markdown_shows_markup_as_text() -> None:
    """Neither HTML nor a column's end can be put into a Markdown table."""
    text = markdown.markdown("t", "l", [cells.Table("x", ("method",), [(EVIL,)])], [], [])
    assert "<script" not in text
    assert r"\| \[red\]\*a\*\[/red\]" in text


def test_the_terminal_shows_markup_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """What rich would take for a color is printed."""
    terminal.show([cells.Table(EVIL, ("method",), [(EVIL,)])])
    assert capsys.readouterr().out.count("[red]*a*[/red]") == 2


def test_a_prediction_says_how_far_it_is_off() -> None:
    """Each figure has its deviation beside it, and the caption the largest of all."""
    values = {f"measured.{name}": 4096.0 for name in MEMORY} | {f"deviation.{n}": 0.0 for n in MEMORY}
    rows = [
        {"task": "sst2", "configuration": "lora", **values},
        {"task": "sst2", "configuration": "full", **values, "deviation.train_peak_bytes": -0.0123},
    ]
    table = predicted.prediction_table(pd.DataFrame(rows))
    assert table is not None
    assert table.rows[1][-2:] == ("4.1 kB", "-1.23%")
    assert table.caption.endswith("peak 1.23%.")
    assert predicted.prediction_table(pd.DataFrame()) is None


def found(best: str, level: set[str], names: tuple[str, ...] = ("lora", "full", "head"), **changed: object) -> Pairwise:
    """Every pair of these methods was tested; those in `level` are not distinguished from the best."""
    one = Pairwise(
        task="t",
        metric="accuracy",
        split="validation",
        rows=100,
        comparisons=(),
        summaries={},
        groups=dict.fromkeys(names, "a") if best else {},
        best=best,
        level=frozenset(level),
        baseline="full",
        notes=(),
        correction="Holm",
        every_pair=True,
        chances={best: 0.6} if best else {},
    )
    return replace(one, **changed)  # type: ignore[arg-type]


def means(*rows: tuple[str, float, int], majority: float | None = None) -> pd.DataFrame:
    """The main table: name, mean and trained parameters of each method."""
    told = [
        {"task": "t", "configuration": name, "method": name, "mean": mean, "n": 3, "trainable_parameters": count}
        for name, mean, count in rows
    ]
    if majority is not None:
        told.append({"task": "t", "configuration": scores.MAJORITY, "method": "", "mean": majority, "n": 0})
    return pd.DataFrame(told)


THREE = means(("lora", 0.9, 1000), ("full", 0.89, 90_000), ("head", 0.7, 10))


def test_the_first_sentence_says_ties_first_and_the_cheapest_of_them() -> None:
    """By comparison where there is one; the mean alone proves nothing."""
    cases = (found("lora", {"full"}), found("lora", set()), found("", set()), found("lora", set(), chances={}))
    said = [finding.verdicts(THREE, [one]) for one in cases]
    assert said == [
        "On t 1 of the 2 other methods tested can't be distinguished from lora, the highest observed, 0.9000 accuracy "
        "(the best with probability 0.60): full; the cheapest of these 2 is lora (1,000 trained parameters).",
        "On t lora has the highest score observed, 0.9000 accuracy (the best with probability 0.60), distinguished "
        "from all 2 others tested.",
        "On t lora has the highest score observed, 0.9000 accuracy; nothing tells whether by more than chance, as no "
        "predictions can be compared.",
        "On t no method can be called better yet: under three runs of a method say nothing of the next. lora has the "
        "highest score observed, 0.9000 accuracy.",
    ]
    assert finding.verdicts(THREE, [found("lora", set(), ("lora", "head"))]).endswith(
        "distinguished from the other tested; 1 more was not compared."
    )
    assert finding.verdicts(THREE, [found("full", set(), ("full", "head"))]).startswith(
        "On t full has the highest score observed of those compared, 0.8900"
    )
    assert finding.verdicts(THREE.head(1), [found("", set())]) == ""


def test_methods_held_against_the_baseline_are_counted() -> None:
    """Those level with it first, then how many are better and worse."""

    def pair(name: str, verdict: str, p: float) -> Comparison:
        return Comparison(name, "full", 0.1, 0.0, 0.2, p, p, verdict, 3, 3, True)

    pairs = (pair("lora", "no detectable difference", 0.5), pair("head", "full better", 0.001))
    one = found("lora", set(), groups={}, comparisons=pairs, every_pair=False)
    assert finding.verdicts(THREE, [one]) == (
        "On t 1 of 2 methods tested can't be distinguished from full (1 worse); the cheapest of these 2 is lora (1,000 "
        "trained parameters). lora has the highest score observed, 0.9000 accuracy (the best with probability 0.60)."
    )
    # A run or two of a method is not the method, and pairs without the baseline are no answer to it.
    once = replace(pair("vera", "full better in these runs", 0.001), runs_a=1, over_seeds=False)
    beside = replace(pair("lora", "lora better", 0.001), b="head")
    more = found("lora", set(), groups={}, comparisons=(*pairs, once, beside), every_pair=False)
    assert finding.verdicts(THREE, [more]) == finding.verdicts(THREE, [one]).replace(
        "(1 worse);", "(1 worse); 1 more has under three runs;"
    )


def test_what_does_not_beat_the_commonest_answer_is_never_called_best() -> None:
    """Neither where every mean lies below it, nor where every interval reaches it; of a loss, lower is better."""
    low = means(("lora", 0.68, 1), ("full", 0.60, 2), majority=0.69)
    assert finding.verdicts(low, [found("lora", {"full"})]) == (
        "On t nothing here beats the majority class (0.6900 accuracy)."
    )
    unsure = means(("lora", 0.70, 1), ("full", 0.60, 2), majority=0.69).assign(low=[0.66, 0.5, math.nan])
    assert "nothing here is known to beat the majority class (0.6900 accuracy)" in finding.verdicts(
        unsure, [found("lora", {"full"})]
    )
    known = unsure.assign(low=[0.695, 0.5, math.nan])
    assert "can't be distinguished" in finding.verdicts(known, [found("lora", {"full"}, ("lora", "full"))])
    loss = means(("lora", 0.8, 1), ("full", 0.75, 2), majority=0.69)
    assert "nothing here beats" in finding.verdicts(loss, [found("full", set(), metric="loss")])


def test_rates_that_nothing_chose_are_warned_of(tmp_path: Path) -> None:
    """Two methods without a trial are; one method, or final runs of a search, are not."""
    for method in ("lora", "full"):
        write_run(tmp_path / "plain", method=method)
        write_run(tmp_path / "chosen", method=method, stage="final")
    write_run(tmp_path / "single")
    warned = [
        finding.untuned(harness.load_runs(tmp_path / name), pd.DataFrame()) for name in ("plain", "chosen", "single")
    ]
    assert warned == ["Learning rates were not tuned here; other rates may change the order.", "", ""]


def test_no_table_loses_its_method_column_at_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are left out by priority and named; the names of the methods stand whole beside the score."""
    names = ["full", "lora rank=8 alpha=16 learning_rate=0.002", "bitfit"]
    [table] = tables.score_tables(pd.DataFrame([row(configuration=name) for name in names]))
    terminal.show([table], width=80)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "Left out at this width: " in printed
    for name in ("full", "bitfit", names[1][:40]):
        assert f"│ {name}" in printed
    assert printed.count("0.9000") == 3
    kept, left = terminal.fitting(table, 80)
    assert {*kept.columns, *left} == {*table.columns}
    assert [name for name in table.columns if name in left][-1] != "remarks" or "remarks" in left
    assert {"95% interval", "± sd"} <= {*left}
    whole, none = terminal.fitting(table, 300)
    assert (whole.columns, none) == (table.columns, [])


def test_columns_that_say_nothing_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A deviation of one run, an interval of one run, and remarks that nobody made."""
    [table] = tables.score_tables(pd.DataFrame([row(n=1, std=float("nan"), low=float("nan"), high=float("nan"))]))
    terminal.show([table])
    printed = capsys.readouterr().out
    assert "n=1" not in printed
    assert "remarks" not in printed
    assert "│ 1 │" in printed.replace("  ", " ")
    assert "n=1" not in markdown.markdown("t", "l", [table], [], [])


def test_redirected_output_has_no_colors(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed into a file is text alone."""
    [table] = tables.score_tables(pd.DataFrame([row()]))
    terminal.show([table])
    assert "\x1b" not in capsys.readouterr().out


def test_what_was_varied_has_a_row_a_value(tmp_path: Path) -> None:
    """Ranks in their order and targets as words, each with its interval; what is the same everywhere has no column."""
    options = [{"rank": rank, "alpha": rank, "target_modules": targets, "dropout": 0.1}
               for targets in (["query"], ["query", "value"]) for rank in (16, 2)]  # fmt: skip
    runs = [
        write_run(tmp_path / "runs", seed=seed, score=0.75 + seed / 10, options=chosen)
        for chosen in options
        for seed in range(3)
    ]
    frame = harness.load_runs(tmp_path / "runs")
    [table] = tables.option_tables(scores.summary(frame), scores.options(frame))
    assert len(runs) == 12
    assert table.title == "micro/sentiment: rank, target modules"
    assert table.columns[:4] == ("method", "rank", "target modules", "accuracy")
    assert [row[:4] for row in table.rows] == [
        ("lora", rank, targets, "0.8500") for rank in ("2", "16") for targets in ("query, value", "query")
    ]
    assert table.rows[0][6].startswith("[")
    write_run(tmp_path / "single")
    alone = harness.load_runs(tmp_path / "single")
    assert tables.option_tables(scores.summary(alone), scores.options(alone)) == []


def test_a_long_table_is_cut_and_says_so() -> None:
    """In a terminal sooner than in a file."""
    table = cells.Table("t", ("method",), [(str(number),) for number in range(3000)], "Caption.")
    cut = cells.shortened(table)
    assert len(cut.rows) == cells.MOST_ROWS
    assert cut.caption == "The first 2,000 of 3,000 rows; all are in the CSV files. Caption."
    assert cells.shortened(cut) is cut


def test_metrics_have_names_that_people_write() -> None:
    """In tables, sentences and axes; none of those that a task can ask for is shown as a field of a record."""
    rows = [row(metric="rouge_l", configuration=name, mean=mean) for name, mean in (("lora", 0.5), ("full", 0.6))]
    (table,) = tables.score_tables(pd.DataFrame(rows))
    assert table.columns[:2] == ("method", "ROUGE-L")
    assert table.forest is not None
    assert table.forest.column == "ROUGE-L"
    assert "Mean ROUGE-L on the validation split" in table.caption
    assert words.heading("validation.token_f1") == "token F1 (validation)"
    assert not [name for name in METRICS if "_" in words.metric_name(name)]
    assert words.metric_name("") == "score"
