"""What the README says was found is what the published tables hold."""

import csv
import re

import pandas as pd
import pytest

from harness.config.sources import conf_root

REPORTS = conf_root() / "reports"
# As they are written there; what ends in the README's places.
TASKS = {"SST-2": "glue/sst2", "STS-B": "glue/stsb", "CoLA": "glue/cola", "MRPC": "glue/mrpc", "RTE": "glue/rte"}


@pytest.fixture(scope="module")
def findings() -> list[str]:
    """The items of the README's list, each on a line."""
    text = (conf_root() / "README.md").read_text(encoding="utf-8")
    listed = text.split("Three things found here", 1)[1].split("\n\n")[1]
    items = [" ".join(item.split()) for item in re.split(r"^\* ", listed, flags=re.MULTILINE) if item]
    assert len(items) == 3
    return items


def test_the_leaderboards(findings: list[str]) -> None:
    """Scores that are published, and those that its page has beside the highest."""
    page = (REPORTS / "peft_leaderboard/report.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"(\d+) of the (\d+) other scores can't be distinguished from", page)
    others, all_others = map(int, told)
    assert len(pd.read_csv(REPORTS / "peft_leaderboard/scores.csv")) == all_others + 1
    assert findings[0].startswith(f"Of the {all_others + 1} scores")
    assert f"can't be told from {others} others" in findings[0]


def test_the_learning_rates(findings: list[str]) -> None:
    """The least and the most ratio of optima, and how far their intervals go; undecided while all cases are."""
    with (REPORTS / "claims/cases.csv").open(newline="") as file:
        cases = [case for case in csv.DictReader(file) if case["id"] == "lora-lr-10x"]
    least, most = (pick(float(case["value"]) for case in cases) for pick in (min, max))
    low, high = min(float(case["low"]) for case in cases), max(float(case["high"]) for case in cases)
    assert f"was {least:.3g} to {most:.0f} times" in findings[1]
    assert f"intervals from {low:.3g} to {high:.0f}:" in findings[1]
    assert {case["outcome"] for case in cases} == {"undecided"}
    assert len({case["evidence"] for case in cases}) == 3


def test_glues(findings: list[str]) -> None:
    """Every figure is in the table, and all of its tasks are named."""
    table = pd.read_csv(REPORTS / "glue/scores.csv").dropna(subset=["std"])
    told = set(re.findall(r"\b0\.\d{4}\b", findings[2]))
    held = {f"{value:.4f}" for name in ("mean", "std") for value in table[name]}
    assert len(told) >= 5
    assert told <= held
    assert {task for name, task in TASKS.items() if name in findings[2]} == set(table["task"])
