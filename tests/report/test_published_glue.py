"""In the published GLUE table full fine-tuning beats a far smaller published model, and every mean has an interval."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.config.sources import conf_root

TABLE = conf_root() / "reports/glue/scores.csv"
# What others published, with split, setting and source.
OTHERS = conf_root() / "reports/glue_published.csv"
# 4.4 million parameters, full fine-tuning; of STS-B's two figures the higher one.
BAR = "BERT-Tiny"
SEEDS = 5


def bars() -> dict[str, float]:
    """Task -> the score that full fine-tuning of MiniLM must exceed, from 0 to 1."""
    rows = pd.read_csv(OTHERS)
    highest = rows[rows["model"] == BAR].groupby("task")["score"].max()
    return {str(task): float(value) for task, value in highest.items()}


def faults(scores: pd.DataFrame) -> list[str]:
    """Say what is wrong with a published table; nothing where all is well."""
    wanted, found = bars(), []
    published = sorted(scores["task"].unique())
    if not published or set(published) - set(wanted):
        found.append(f"tasks {published}: some of {sorted(wanted)} are wanted, and no others")
    for task, rows in scores[scores["task"].isin(wanted)].groupby("task"):
        methods = rows[rows["n"] + rows["collapsed"] + rows["diverged"] + rows["failed"] > 0]
        full = methods[methods["method"] == "full"]
        if len(full) != 1:
            found.append(f"{task}: {len(full)} rows of full fine-tuning")
        elif not full["mean"].iloc[0] > wanted[str(task)]:
            found.append(f"{task}: full fine-tuning at {full['mean'].iloc[0]}, {BAR} at {wanted[str(task)]}")
        if len(methods) < 2:
            found.append(f"{task}: nothing beside full fine-tuning")
        for row in methods.itertuples():
            if row.n != SEEDS:
                found.append(f"{task}: {row.configuration} has {row.n} of {SEEDS} seeds")
            # A collapsed run makes a mean of two kinds, which has no interval.
            if not row.collapsed and not row.low <= row.mean <= row.high:
                found.append(f"{task}: {row.configuration} has no interval around its mean")
    return found


def table(task: str = "glue/rte", **full: Any) -> pd.DataFrame:
    """A sound published table of two methods, with values of full fine-tuning that differ."""
    sound = {"task": task, "n": 5, "mean": 0.99, "low": 0.98, "high": 1.0, "collapsed": 0, "diverged": 0, "failed": 0}
    rows = [{**sound, "method": "full", "configuration": "full", **full}]
    rows.append({**sound, "method": "head", "configuration": "head", "mean": 0.6, "low": 0.55, "high": 0.65})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("task", sorted(bars()))
def test_a_sound_table_passes_the_gate_and_one_at_the_bar_does_not(task: str) -> None:
    """Above the smaller model's score on each of the five tasks."""
    assert len(bars()) == 5
    assert faults(table(task)) == []
    assert "BERT-Tiny" in faults(table(task, mean=bars()[task], low=-1.0))[0]


@pytest.mark.parametrize(
    ("scores", "fault"),
    [
        (table(method="lora"), "0 rows of full"),
        (table(n=4), "full has 4 of 5 seeds"),
        (table(low=float("nan")), "no interval"),
        (table(task="glue/wnli"), "are wanted, and no others"),
        (table().iloc[:1], "nothing beside full"),
        (table().iloc[:0], "are wanted"),
    ],
)
def test_the_gate_fails_on_what_should_not_be_published(scores: pd.DataFrame, fault: str) -> None:
    """Missing runs, seeds, intervals and tasks, and tasks that nobody asked for."""
    assert fault in "; ".join(faults(scores))


def test_the_published_table_passes_the_gate() -> None:
    """Whatever is published: full fine-tuning on each task, five seeds of each method, an interval on each mean."""
    if not TABLE.parent.exists():
        pytest.skip("reports/glue is not published yet; sweeps/glue.yaml says how it is made")
    assert TABLE.is_file()
    assert faults(pd.read_csv(TABLE)) == []


def test_published_rows_of_others_say_where_they_come_from() -> None:
    """Each has its split, its setting and its source, once."""
    rows = pd.read_csv(OTHERS, keep_default_na=False)
    assert all((rows[name] != "").all() for name in ("split", "setting", "source", "method", "model"))
    assert not rows.duplicated(["task", "metric", "model", "method", "setting"]).any()
    assert Path(OTHERS).read_text().isascii()
