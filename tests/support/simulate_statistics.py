"""Simulate what reports claim: how often tests are wrong, how often they find a difference, what intervals hold.

    python tests/support/simulate_statistics.py        every figure, into docs/statistics.md between its two marks

Scores are in points of an accuracy on `ROWS` examples; each world is a table of methods as a report would test it, by
the very functions that reports call. `tests/report/test_simulations.py` holds the figures to their limits.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

from harness.report import single_scores
from harness.report.family import FALSE_DISCOVERY, HOLM, TOO_UNSTABLE, Member, compare_family
from harness.report.intervals import over_seeds
from harness.report.spread import Replicates, seed_part, spreads, unstable
from harness.report.stats import holm, interquartile_mean

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "statistics.md"
BEGIN, END = "<!-- simulated: begin -->", "<!-- simulated: end -->"
ROWS, LEVEL = 872, 0.8
# Of the mean score of a method, other examples; half of it is shared by all methods.
ROW_VARIANCE = LEVEL * (1 - LEVEL) / ROWS
METHODS = 53
WORLDS = 400
BOTH = (HOLM, FALSE_DISCOVERY)
LUCK = [f"{figure}, n={seeds}" for seeds in (3, 5) for figure in ("error", "tables tested", "interval there")]


def published() -> np.ndarray:
    """The per-seed standard deviations of the 53 methods of reports/all_methods, full fine-tuning first."""
    table = pd.read_csv(ROOT / "reports" / "all_methods" / "scores.csv").dropna(subset=["std"])
    return table.sort_values("configuration", key=lambda names: names != "full", kind="stable")["std"].to_numpy()


def cases() -> dict[str, np.ndarray]:
    """Standard deviations by seed of the methods of a table, the baseline first."""
    every = np.arange(METHODS)
    return {
        "all 1 point": np.full(METHODS, 0.01),
        "all 3 points": np.full(METHODS, 0.03),
        "1 and 3 points, half each": np.where(every % 2, 0.03, 0.01),
        "1 point, 8 of 53 have 5": np.where(every % 7 == 3, 0.05, 0.01),
        "as published": published(),
        "6 methods, 1 point, two have 3": np.array([0.01, 0.01, 0.01, 0.03, 0.03, 0.01]),
    }


def chosen_cases() -> dict[str, np.ndarray]:
    """Spreads of equal methods without a baseline; few, as all pairs are tested."""
    return {
        "6 methods, 1 point": np.full(6, 0.01),
        "6 methods, 3 points": np.full(6, 0.03),
        "10 methods, 1 point": np.full(10, 0.01),
    }


def scattering_baselines() -> dict[str, np.ndarray]:
    """Tables of which the baseline alone scatters far more than the others."""
    return {
        "4: 5 points, 0.5": np.array([0.05, *[0.005] * 3]),
        "6: 5 points, 1": np.array([0.05, *[0.01] * 5]),
        "6: 3 points, 0.5": np.array([0.03, *[0.005] * 5]),
        "20: 5 points, 1": np.array([0.05, *[0.01] * 19]),
    }


def world(
    generator: np.random.Generator, deviations: np.ndarray, seeds: int, shift: Sequence[float] | np.ndarray = 0.0
) -> tuple[dict[str, Member], dict[str, Replicates]]:
    """Draw one table: methods that are equal but for `shift`, with runs of the same seeds."""
    count = len(deviations)
    shared = generator.normal() * np.sqrt(ROW_VARIANCE / 2)
    examples = shared + generator.normal(size=count) * np.sqrt(ROW_VARIANCE / 2)
    means = LEVEL + np.broadcast_to(shift, count) + examples
    scores = means[:, None] + deviations[:, None] * generator.normal(size=(count, seeds))
    numbers = np.arange(seeds, dtype=float)
    runs = {str(place): Replicates(row, numbers, numbers) for place, row in enumerate(scores)}
    # A difference has twice the part of its examples' variance that is not shared.
    members = {name: Member(float(one.scores.mean()), seeds, ROW_VARIANCE / 2, ROWS) for name, one in runs.items()}
    return members, runs


def against_baseline(
    members: dict[str, Member], runs: dict[str, Replicates], correction: str = HOLM
) -> list[tuple[float, float, float, float, str]]:
    """Difference from the baseline, interval, corrected p and verdict of each other method, as a report has them."""
    pairs = [(name, "0") for name in members if name != "0"]
    found = compare_family(members, spreads(runs, ROW_VARIANCE), pairs, correction)
    return [(one.difference, one.low, one.high, one.corrected_p, one.verdict) for one in found]


def family_error(deviations: np.ndarray, seeds: int, worlds: int, seed: int = 0) -> float:
    """The share of tables of equal methods in which any is distinguished from the baseline; Holm."""
    generator = np.random.default_rng(seed)
    wrong = 0
    for _ in range(worlds):
        wrong += any(p < 0.05 for *_, p, _ in against_baseline(*world(generator, deviations, seeds)))
    return wrong / worlds


def errors_from_the_highest(deviations: np.ndarray, seeds: int, worlds: int, seed: int = 0) -> tuple[float, float]:
    """The share of tables of equal methods of which any is told from the highest observed.

    Corrected over all pairs, as reports do, and over those with the highest, as if it had been fixed in advance.
    """
    generator = np.random.default_rng(seed)
    wrong = np.zeros(2)
    for _ in range(worlds):
        members, runs = world(generator, deviations, seeds)
        pairs = list(itertools.combinations(members, 2))
        best = max(members, key=lambda name: members[name].mean)
        found = compare_family(members, spreads(runs, ROW_VARIANCE), pairs, HOLM)
        held = [one for one in found if best in (one.a, one.b)]
        alone = holm([one.p for one in held])
        wrong += [any(one.corrected_p < 0.05 for one in held), bool((alone < 0.05).any())]
    return float(wrong[0]) / worlds, float(wrong[1]) / worlds


def single_errors(scores: int, questions: int, worlds: int, seed: int = 1) -> tuple[float, float]:
    """As `errors_from_the_highest`, of equal scores that others published once each."""
    generator = np.random.default_rng(seed)
    wrong = np.zeros(2)
    for _ in range(worlds):
        shares = np.sort(generator.binomial(questions, 0.48, size=scores) / questions)[::-1]
        names = [str(place) for place in range(scores)]
        asked = {"configuration": names, "accuracy": shares, "questions": questions}
        judged = single_scores.judge(pd.DataFrame(asked | dict.fromkeys(single_scores.COSTS, np.nan)))
        alone = holm(single_scores.unpaired(shares * questions, np.full(scores, float(questions)))[0, 1:].tolist())
        wrong += [not judged.rows["level"].all(), bool((alone < 0.05).any())]
    return float(wrong[0]) / worlds, float(wrong[1]) / worlds


def unstable_baseline(deviations: np.ndarray, seeds: int, worlds: int, seed: int = 0) -> tuple[float, float, float]:
    """What does not hold: family error, share of tables in which the baseline is tested, and coverage in those."""
    generator = np.random.default_rng(seed)
    wrong, tables_tested, held = 0, 0, []
    for _ in range(worlds):
        rows = against_baseline(*world(generator, deviations, seeds))
        tested = [row for row in rows if row[-1] != TOO_UNSTABLE]
        wrong += any(row[3] < 0.05 for row in tested)
        tables_tested += bool(tested)
        held += [row[1] <= 0 <= row[2] for row in tested]
    return wrong / worlds, tables_tested / worlds, float(np.mean(held))


def family_error_of_the_plain_pool(deviations: np.ndarray, seeds: int, worlds: int, seed: int = 0) -> float:
    """As `family_error`, by Student's t with one variance pooled over the methods that are not unstable."""
    generator = np.random.default_rng(seed)
    wrong = 0
    for _ in range(worlds):
        members, runs = world(generator, deviations, seeds)
        own = np.array([one.scores.var(ddof=1) for one in runs.values()])
        calm = ~unstable(own, np.full(len(own), seeds - 1.0), ROW_VARIANCE)
        means = np.array([one.mean for one in members.values()])
        error = np.sqrt(ROW_VARIANCE + 2 * own[calm].mean() / seeds)
        p = 2 * t.sf(abs(means - means[0]) / error, calm.sum() * (seeds - 1))[1:]
        wrong += bool(calm[0] and calm[1:].any() and (p[calm[1:]] * calm[1:].sum() < 0.05).any())
    return wrong / worlds


def false_discoveries(deviations: np.ndarray, seeds: int, worlds: int, seed: int = 0) -> float:
    """The mean share of false discoveries where a quarter of the methods are 10 points better; BH."""
    generator = np.random.default_rng(seed)
    truth = np.arange(len(deviations)) % 4 == 1
    shares = []
    for _ in range(worlds):
        found = against_baseline(*world(generator, deviations, seeds, 0.1 * truth), FALSE_DISCOVERY)
        told = np.array([p < 0.05 for *_, p, _ in found])
        shares.append((told & ~truth[1:]).sum() / max(told.sum(), 1))
    return float(np.mean(shares))


def power(deviations: np.ndarray, seeds: int, shift: float, correction: str, worlds: int, seed: int = 0) -> float:
    """How often each of a quarter of the methods is distinguished that is truly so much better than the baseline."""
    generator = np.random.default_rng(seed)
    truth = np.arange(len(deviations)) % 4 == 1
    found = [against_baseline(*world(generator, deviations, seeds, shift * truth), correction) for _ in range(worlds)]
    return float(np.mean([[p < 0.05 for *_, p, _ in one] for one in found], axis=0)[truth[1:]].mean())


def coverage(deviations: np.ndarray, seeds: int, worlds: int, seed: int = 0) -> float:
    """How often the interval of a difference that is tested holds the true one."""
    generator = np.random.default_rng(seed)
    held = [
        low <= 0 <= high
        for _ in range(worlds)
        for _, low, high, _, verdict in against_baseline(*world(generator, deviations, seeds))
        if verdict != TOO_UNSTABLE
    ]
    return float(np.mean(held))


def coverage_of_means(level: float, deviation: float, seeds: int, worlds: int, seed: int = 0) -> float:
    """How often a method's own interval over seeds and examples holds its true score."""
    generator = np.random.default_rng(seed)
    rows = level * (1 - level) / ROWS
    held = 0
    for _ in range(worlds):
        scores = level + generator.normal() * np.sqrt(rows) + deviation * generator.normal(size=seeds)
        low, high = over_seeds("accuracy", scores, rows_variance=rows, rows=ROWS)
        held += low <= level <= high
    return held / worlds


def crossed_error(parts: tuple[float, float, float], sides: tuple[int, int], worlds: int, seed: int = 0) -> float:
    """How often the mean of crossed runs is told from the truth: variances by seed, by data_seed and by both."""
    generator = np.random.default_rng(seed)
    a, b = sides
    first, second = np.repeat(np.arange(a), b), np.tile(np.arange(b), a)
    wrong = 0
    for _ in range(worlds):
        by_seed, by_order = generator.normal(size=(a, 1)), generator.normal(size=(1, b))
        cells = np.sqrt(parts[0]) * by_seed + np.sqrt(parts[1]) * by_order
        cells = cells + np.sqrt(parts[2]) * generator.normal(size=(a, b))
        part = seed_part(cells.ravel(), first, second)
        wrong += abs(cells.mean()) > t.isf(0.025, part.freedom) * np.sqrt(part.variance)
    return wrong / worlds


def middle_coverage(tasks: int, seeds: int, worlds: int, seed: int = 0) -> float:
    """How often the interval of the interquartile mean over tasks, half a deviation apart, holds the true one."""
    generator = np.random.default_rng(seed)
    apart = np.arange(tasks) / 2
    truth = apart.mean()
    found = [interquartile_mean(apart + generator.normal(size=(seeds, tasks)), resamples=200) for _ in range(worlds)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a Markdown table; figures have two or three places."""
    lines = [f"| {' | '.join(columns)} |", "|:---|" + "---:|" * (len(columns) - 1)]
    lines += [
        "| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row) + " |"
        for row in rows
    ]
    return "\n".join(lines)


def of_baselines(worlds: int) -> list[str]:
    """The tables of what a baseline does that the scores chose, or that is luckier than it should be."""
    several = (3, 5)
    chosen = [
        [name, str(n), *errors_from_the_highest(sd, n, worlds)] for name, sd in chosen_cases().items() for n in several
    ]
    chosen += [["63 scores of 1,319 questions", "1", *single_errors(63, 1319, worlds // 2)]]
    luck = [
        [name, *(figure for n in several for figure in unstable_baseline(sd, n, worlds))]
        for name, sd in scattering_baselines().items()
    ]
    return [
        "**Equal methods without a baseline: how often any is told from the highest observed, corrected over all "
        "pairs, and, which is not what reports do, over the pairs with the highest alone.**",
        table(["methods and their spread by seed", "n", "over all pairs", "over those with it"], chosen),
        "**What does not hold: a baseline that alone scatters far more than the others.** Mostly it is too unstable to "
        "be tested. Where its few runs agree by luck it is tested, and its intervals are too narrow then.",
        table(["methods: spread of the baseline, of the others", *LUCK], luck),
    ]


def tables(worlds: int) -> str:
    """Compute every table of the page."""
    several = (3, 5)
    families = [
        [name, *(family_error(sd, n, worlds) for n in several), *(coverage(sd, n, worlds // 4) for n in several)]
        + [family_error_of_the_plain_pool(sd, n, worlds) for n in several]
        for name, sd in cases().items()
    ]
    found = [
        [name, *(power(sd, n, shift, kind, worlds // 8) for n in several for shift in (0.03, 0.05) for kind in BOTH)]
        for name, sd in cases().items()
    ]
    lies = [[name, *(false_discoveries(sd, n, worlds // 8) for n in several)] for name, sd in cases().items()]
    means = [
        [f"{level}, spread {100 * sd:g} points", *(coverage_of_means(level, sd, n, 5 * worlds) for n in several)]
        for level in (0.8, 0.95)
        for sd in (0.005, 0.01, 0.03)
    ]
    sides = ((3, 3), (5, 5), (3, 5))
    crossed = [
        [f"{parts[0]:g}, {parts[1]:g}, {parts[2]:g}", *(crossed_error(parts, side, 10 * worlds) for side in sides)]
        for parts in ((1.0, 1.0, 0.1), (1.0, 0.0, 0.1), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    ]
    middle = [[str(tasks), *(middle_coverage(tasks, n, 2 * worlds) for n in several)] for tasks in (1, 2, 4, 8)]
    heads = [f"{kind}, n={n}, {shift} points" for n in several for shift in (3, 5) for kind in BOTH]
    return "\n\n".join(
        [
            f"{worlds:,} tables a figure for family errors, fewer or more for the others in proportion. Wanted are "
            "errors of 0.05 and intervals that hold the truth 0.95 of the time.",
            "**Equal methods: how often a table has any false difference from the baseline (Holm), and what "
            "intervals of differences hold.** Beside it one variance pooled over the stable methods, which is not what "
            "reports use.",
            table(["spreads by seed", "error, n=3", "n=5", "interval, n=3", "n=5", "plain pool, n=3", "n=5"], families),
            *of_baselines(worlds),
            "**Power: how often a true difference from the baseline is found.**",
            table(["spreads by seed", *heads], found),
            "**False discoveries among what Benjamini-Hochberg finds, a quarter of the methods 10 points better.**",
            table(["spreads by seed", "n=3", "n=5"], lies),
            "**A method's own interval over seeds and examples.**",
            table(["true accuracy", "n=3", "n=5"], means),
            "**Crossed seeds: how often the mean is told from the truth at 5%.**",
            table(["variances by seed, data_seed, both", "3 x 3", "5 x 5", "3 x 5"], crossed),
            "**Interquartile mean over tasks: what its interval holds.**",
            table(["tasks", "n=3", "n=5"], middle),
        ]
    )


def main() -> None:
    """Write the tables into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(WORLDS)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
