"""What can be known of scores that others published once each: a share of so many questions, one run, no answers.

Of such a score the questions are a sample: other ones would have given another. What other seeds would give is not in
it, so all that is said here is the least that has to be doubted.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.report.cells import NONE, Forest, Table, interval, number, probability, share, size
from harness.report.intervals import over_examples
from harness.report.labels import label
from harness.report.scores import FINISHED, compared
from harness.report.spread import LEVEL
from harness.report.stats import holm

METRIC = "accuracy"
DRAWS = 20_000
# What a score can cost, by the run's own figures -> heading.
COSTS = {
    "cost.train_seconds": "seconds",
    "cost.trainable_parameters": "trainable",
    "cost.adapter_file_bytes": "adapter",
}


@dataclass(frozen=True)
class Judged:
    """Scores of one task, the highest first.

    Attributes:
        rows: One row per score. Columns: configuration, accuracy, questions, low, high (95%, Wilson), p (from the
            highest, Holm over all pairs, since the same scores chose it), level (whether it is the highest or not
            distinguished from it), best (probability of being the best), first_rank, last_rank (how high and how low it
            may stand), the figures of `COSTS` and `front.NAME`, the probability of being on the front of score and that
            cost.
        pairs: How many pairs of scores there are.
        apart: How many of them are distinguished, corrected for all (Holm).
        smallest: The smallest difference from the highest that was distinguished; NaN where none was.
        neighbors: How many scores are distinguished from the next one below.
    """

    rows: pd.DataFrame
    pairs: int
    apart: int
    smallest: float
    neighbors: int


def single_scores(frame: pd.DataFrame) -> dict[str, Judged]:
    """Judge the tasks of which every score is one published share of a known number of questions.

    Args:
        frame: One row per run.
    """
    runs = compared(frame)
    column = f"validation.{METRIC}"
    if column not in runs or "validation.rows" not in runs:
        return {}
    runs = runs[(runs["status"] == FINISHED) & runs[column].notna()]
    runs = runs.assign(configuration=label(runs))
    found = {}
    for task, group in runs.groupby("task", sort=True):
        once = not group["configuration"].duplicated().any()
        if once and len(group) > 1 and (group["source"] != "").all() and group["validation.rows"].notna().all():
            found[str(task)] = judge(
                pd.DataFrame(
                    {
                        "configuration": group["configuration"],
                        METRIC: group[column].astype(float),
                        "questions": group["validation.rows"].astype(int),
                        **{name: group[name].astype(float) if name in group else math.nan for name in COSTS},
                    }
                )
            )
    return found


def judge(scores: pd.DataFrame) -> Judged:
    """Judge scores: `configuration`, `accuracy`, `questions` and the columns of `COSTS`."""
    rows = scores.sort_values([METRIC, "configuration"], ascending=[False, True]).reset_index(drop=True)
    right, asked = (rows[METRIC] * rows["questions"]).to_numpy(float), rows["questions"].to_numpy(float)
    p = unpaired(right, asked)
    count = len(rows)
    upper = np.triu_indices(count, 1)
    every = np.ones((count, count))
    every[upper] = holm(p[upper].tolist())
    every = np.minimum(every, every.T)
    apart = every < LEVEL
    ends = [over_examples(METRIC, score, number) for score, number in zip(rows[METRIC], rows["questions"], strict=True)]
    # The highest is so by the same scores: Holm over the pairs with it alone would shut equals out every other time.
    from_best = np.concatenate([[np.nan], every[0, 1:]])
    higher = np.tril(np.ones((count, count), dtype=bool), -1)
    drawn = _drawn(right, asked)
    rows = rows.assign(
        low=[low for low, _ in ends],
        high=[high for _, high in ends],
        p=from_best,
        level=~(from_best < LEVEL),
        best=(drawn == drawn.max(axis=1, keepdims=True)).mean(axis=0),
        first_rank=1 + (apart & higher).sum(axis=1),
        last_rank=count - (apart & higher.T).sum(axis=1),
        **{f"front.{name}": _on_front(drawn, rows[name].to_numpy(float)) for name in COSTS},
    )
    below = rows[~rows["level"]]
    smallest = float(rows[METRIC].iloc[0] - below[METRIC].max()) if len(below) else math.nan
    return Judged(rows, len(upper[0]), int(apart[upper].sum()), smallest, int(np.diagonal(apart, 1).sum()))


def unpaired(right: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Two-sided p of each two shares being one: the score test of two proportions, other questions for each."""
    from scipy.special import ndtr

    pooled = np.add.outer(right, right) / np.add.outer(asked, asked)
    variance = pooled * (1 - pooled) * np.add.outer(1 / asked, 1 / asked)
    difference = np.abs(np.subtract.outer(right / asked, right / asked))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 1.0, 2 * ndtr(-difference / np.sqrt(variance)))


def _drawn(right: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Draws x scores: what each true share may be (Jeffreys' prior, which favors none)."""
    generator = np.random.default_rng(0)
    return generator.beta(right + 0.5, asked - right + 0.5, size=(DRAWS, len(right)))


def _on_front(drawn: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """How probable it is that nothing as cheap is better; NaN where a cost is not known."""
    known = np.flatnonzero(~np.isnan(costs))
    found = np.full(len(costs), np.nan)
    for place in known:
        rivals = [other for other in known if other != place and costs[other] <= costs[place]]
        beaten = drawn[:, rivals].max(axis=1) > drawn[:, place] if rivals else np.zeros(len(drawn), dtype=bool)
        found[place] = 1 - beaten.mean()
    return found


# --- Tables ---------------------------------------------------------------------------------------------------------


def single_tables(found: dict[str, Judged]) -> list[Table]:
    """Make the tables of what single scores tell: the ranking, and for each cost its front with the cost per point."""
    tables = []
    for task, judged in found.items():
        tables.append(_ranking(task, judged))
        tables += [table for name in COSTS if (table := _front(task, judged, name))]
    return tables


def _ranking(task: str, judged: Judged) -> Table:
    rows = judged.rows
    cells = [
        (
            str(row["configuration"]),
            number(row[METRIC]),
            interval(row["low"], row["high"]),
            f"{row['first_rank']} to {row['last_rank']}",
            "★" if place == 0 else "≈" if row["level"] else "",
            probability(row["p"]),
            number(row["best"], 2),
        )
        for place, row in enumerate(rows.to_dict("records"))
    ]
    level, smallest = int(rows["level"].sum()), judged.smallest
    caption = (
        f"Each score is one run's share of {_asked(rows)} questions: intervals (Wilson) and tests (unpaired) are of "
        f"other questions, and other seeds come on top. {level} of {len(rows)} are the highest (★) or not "
        f"distinguished from it (≈; p by Holm over all {judged.pairs:,} pairs, since the highest was chosen by the "
        "same scores)"
        + ("" if math.isnan(smallest) else f": a gap to it of less than {number(smallest)} is noise")
        + f". Of all pairs {judged.apart:,} ({share(judged.apart / judged.pairs)}) are distinguished, of the "
        f"{len(rows) - 1} neighbors in the ranking {judged.neighbors}. Rank: as high and as low as the pairs that are "
        "distinguished leave it. Best: the probability of the highest true share, each being equally likely before."
    )
    columns = ("method", METRIC, "95% interval", "rank", "tie", "p", "best")
    marks = [(row[METRIC], row["low"], row["high"]) for row in rows.to_dict("records")]
    return Table(
        f"{task}: what single scores tell",
        columns,
        cells,
        caption,
        ("method", "rank", "tie"),
        secondary=("95% interval", "p"),
        forest=Forest(METRIC, marks),
        task=task,
    )


def _asked(rows: pd.DataFrame) -> str:
    low, high = int(rows["questions"].min()), int(rows["questions"].max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def front(judged: Judged, cost: str) -> pd.DataFrame:
    """The scores that nothing as cheap or cheaper exceeds, cheapest first, and what each point more costs.

    Columns: those of the rows, and `per_point`: the cost beyond the one before for each hundredth of score beyond it.
    """
    rows = judged.rows[judged.rows[cost].notna()].sort_values([cost, METRIC], ascending=[True, False])
    rows = rows[rows[METRIC] > rows[METRIC].cummax().shift(fill_value=-1.0)]
    return rows.assign(per_point=rows[cost].diff() / (100 * rows[METRIC].diff()))


def _front(task: str, judged: Judged, cost: str) -> Table | None:
    rows, heading = front(judged, cost), COSTS[cost]
    if rows.empty:
        return None
    near = judged.rows[
        (judged.rows[f"front.{cost}"] >= LEVEL) & ~judged.rows["configuration"].isin(rows["configuration"])
    ]
    written = size if cost.endswith("_bytes") else lambda value: number(value, 0)
    cells = [
        (
            str(row["configuration"]),
            number(row[METRIC]),
            written(row[cost]),
            number(row[f"front.{cost}"], 2),
            NONE if pd.isna(row["per_point"]) else written(row["per_point"]),
            observed,
        )
        for observed, group in (("yes", rows), ("", near.assign(per_point=math.nan).sort_values(cost)))
        for row in group.to_dict("records")
    ]
    caption = (
        "Observed: nothing as cheap scores higher. Probability: that this holds of the true shares, costs taken as "
        f"they are; rows that were not observed on the front and have {LEVEL} or more stand below it. Per point: "
        f"{heading} for each hundredth of accuracy beyond the row before."
    )
    columns = ("method", METRIC, heading, "probability", "per point", "observed")
    title = f"{task}: the front of accuracy and {heading}"
    return Table(title, columns, cells, caption, ("method", "observed"), detail=True)
