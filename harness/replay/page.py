"""Page, table and picture of a replay: what was spent and what was chosen, against the error level."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.replay.races import Curves
from harness.report.cells import NONE, Table
from harness.report.markdown import markdown
from harness.report.plots.style import COLORS, MARKERS, SETTINGS, figure_of, files

# What is aimed at: at most this share of the tokens, and a choice as good at least so often.
MOST_SPENT, LEAST_TIED = 0.35, 0.95
FIGURES = ["spent", "same", "tied", "lost"]
COLUMNS = ("rule", "rungs", "tokens spent", "same rate", "same tie group", "score lost", "most")
CAPTION = (
    "Tokens spent: of those that all trials take to their ends. Same rate: the choice is that of the whole sweep on "
    "the same rows. Same tie group: it is, or a paired test on all recorded rows (two-sided, 5%, no correction) does "
    "not tell the two apart at their ends. Score lost: final score of the whole sweep's choice less that of the "
    "rule's, on all recorded rows; the mean, and the largest in any replay. The first line is what chance does: two "
    "whole sweeps that choose on different draws of the rows."
)
NOTES = (
    "Each replay draws as many development rows as there are, with replacement; they decide what the whole sweep "
    "chooses and what the rule does. The recorded rows stand for the population. Methods, tasks and seeds weigh the "
    "same; their trials were trained once, so that replays of one method on one task share its trained weights.",
    "A race guarantees, up to its error level, that no round drops the trial that does best on the population at that "
    "round. That a trial behind on the way is behind at the end is not guaranteed: it is what the columns measure.",
    "The race that is named first was picked from all in the table by these very replays, which makes it look better "
    "than it is.",
)


def overall(found: pd.DataFrame) -> pd.DataFrame:
    """The means over methods, tasks and seeds: one row per rule, in the order of the rules."""
    grouped = found.groupby(["rungs", "level"], sort=False, dropna=False)
    return grouped[FIGURES].mean().assign(most_lost=grouped["most_lost"].max()).reset_index()


def page(found: pd.DataFrame, curves: Sequence[Curves], replays: int) -> str:
    """Write the replay as Markdown, what was found first.

    Args:
        found: Of `replay`.
        curves: What was replayed.
        replays: How many draws of each.
    """
    rules = overall(found)
    rows = [(_name(rule), str(rule["rungs"]) or NONE, *_figures(rule)) for _, rule in rules.iterrows()]
    tables = [Table("What each rule spends and chooses", COLUMNS, rows, CAPTION, ("rule", "rungs"))]
    best = _recommended(rules)
    if best is not None:
        chosen = found[(found["rungs"] == best["rungs"]) & (found["level"].eq(best["level"]))]
        single = [
            (str(row["task"]), str(row["configuration"]), str(row["trials"]), *_figures(row))
            for _, row in chosen.iterrows()
        ]
        columns = ("task", "method", "trials", *COLUMNS[2:])
        title = f"{_name(best)} at {best['rungs']}, method by method"
        tables.append(Table(title, columns, single, text_columns=("task", "method")))
    notes = [*NOTES, "What was raced: " + "; ".join(_raced(curves)) + "."]
    return markdown("Races replayed", _lead(rules, len(curves), replays), tables, notes, ["racing"])


def _name(rule: Any) -> str:
    if not rule["rungs"]:
        return "whole sweep, other rows"
    return "better half" if pd.isna(rule["level"]) else f"race, {rule['level']:g}"


def _figures(row: Any) -> tuple[str, ...]:
    shares = [f"{row[name]:.1%}" for name in ("spent", "same", "tied")]
    return (*shares, f"{row['lost']:.4f}", f"{row['most_lost']:.4f}")


def _raced(curves: Sequence[Curves]) -> list[str]:
    """The tasks, each with its methods and its rows."""
    tasks: dict[tuple[str, int], list[str]] = {}
    for one in curves:
        tasks.setdefault((one.task, one.count), []).append(f"{one.configuration} ({len(one.rates)} rates)")
    return [f"{task} ({count} rows): {', '.join(names)}" for (task, count), names in tasks.items()]


def _recommended(rules: pd.DataFrame) -> Any | None:
    """Of the races whose choice is as good often enough, that which spends least; else that whose choice is best."""
    races = rules[rules["level"].notna()]
    if races.empty:
        return None
    good = races[races["tied"] >= LEAST_TIED]
    return good.loc[good["spent"].idxmin()] if len(good) else races.loc[races["tied"].idxmax()]


def _lead(rules: pd.DataFrame, races: int, replays: int) -> str:
    """What was found, held against what is aimed at."""
    best, halves = _recommended(rules), rules[rules["level"].isna() & (rules["rungs"] != "")]
    reached = rules[(rules["rungs"] != "") & (rules["spent"] <= MOST_SPENT) & (rules["tied"] >= LEAST_TIED)]
    aim = f"at most {MOST_SPENT:.0%} of the tokens with a choice as good in at least {LEAST_TIED:.0%}"
    raced = "One race" if races == 1 else f"{races} races"
    parts = [f"{raced} of a method's learning rates on a task, replayed {replays} times each."]
    if best is not None:
        parts.append(
            f"A race at level {best['level']:g} with rungs {best['rungs']} spends {best['spent']:.1%} of the tokens of "
            f"whole trials and chooses the same rate, or one not told apart from it, in {best['tied']:.1%} of replays."
        )
    for _, half in halves.iterrows():
        parts.append(
            f"Stopping the worse half at {half['rungs']} spends {half['spent']:.1%} and does so in {half['tied']:.1%}."
        )
    if reached.empty:
        parts.append(f"No rule reaches {aim} of replays.")
    else:
        names = ", ".join(f"{_name(rule)} at {rule['rungs']}" for _, rule in reached.iterrows())
        parts.append(f"These reach {aim} of replays: {names}.")
    return " ".join(parts)


def picture(found: pd.DataFrame) -> dict[str, bytes]:
    """Draw both curves against the error level, one line per set of rungs; contents by ending."""
    import matplotlib

    rules = overall(found)
    panels = {"spent": ("tokens spent", MOST_SPENT), "tied": ("same rate or tie group", LEAST_TIED)}
    with matplotlib.rc_context(SETTINGS):
        figure, axes = figure_of(len(panels), 2, 5.2, 3.9)
        handles = {}
        rungs = [one for one in rules["rungs"].unique() if one]
        for axis, (name, (text, aim)) in zip(axes, panels.items(), strict=True):
            for one, color, marker in zip(rungs, COLORS, MARKERS, strict=False):
                races = rules[(rules["rungs"] == one) & rules["level"].notna()]
                (line,) = axis.plot(races["level"], races[name], color=color, marker=marker, markersize=4)
                handles[f"rounds at {one}"] = line
                half = rules[(rules["rungs"] == one) & rules["level"].isna()]
                handles["better half at the same"] = axis.axhline(
                    float(half[name].iloc[0]), color=color, linestyle=":", linewidth=1
                )
            handles["aimed at"] = axis.axhline(aim, color="#777777", linestyle="--", linewidth=1)
            axis.set_xlabel("error level of the race")
            axis.set_ylabel(text)
            axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        drawn = files(figure)
    return {kind: drawn[kind] for kind in ("png", "dark.png")}
