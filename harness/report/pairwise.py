"""The methods of a task held against each other, from the predictions that their runs left in the store."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd

from harness import tracking
from harness.config.errors import ConfigError, near_misses
from harness.report import family, intervals
from harness.report.comparison import Comparison, Resampled, per_row_scores, read_predictions, resample_methods
from harness.report.definitions import Analysis, Pairs
from harness.report.family import Member
from harness.report.labels import label
from harness.report.scores import FINISHED, MAJORITY, compared
from harness.report.spread import FEWEST_RUNS, LEVEL, Replicates, Spreads, spreads
from harness.report.stats import RESAMPLES, Summary, holm, letters
from harness.tracking.record import PREDICTIONS_FILE
from harness.training.metrics import higher_is_better

# Methods of a task: 2,016 pairs. More of them are neither read nor legible.
MOST_METHODS = 64
# A metric of all rows at once is computed anew for each run and resample: so often at most, where that leaves enough.
MOST_COMPUTATIONS, FEWEST_RESAMPLES = 40_000, 400
# Stored predictions and the recorded score are of the same model if they agree to this share.
AGREEMENT = 1e-4
BEST, ALIKE = "highest observed", "not distinguished from the highest"
BASELINE = "full"


@dataclass(frozen=True)
class Pairwise:
    """Comparison of a task's methods on their predictions.

    Attributes:
        task: Its name.
        metric: Primary metric.
        split: `validation` or `development`.
        rows: Examples of the split; 0 where nothing could be compared.
        comparisons: Pairs of methods, corrected together: each with a baseline fixed in advance, or all; best first.
        summaries: Method -> mean with an interval over seeds and examples.
        groups: Method -> its letters, where all pairs were tested: methods that share one were not distinguished.
        best: The method with the highest score observed; empty where fewer than two are compared.
        level: Those that were not distinguished from it by Holm over all pairs, where all were tested.
        baseline: What the report holds the others against: full fine-tuning, or else the one that is observed highest.
        notes: Sentences on what was not compared, and on how small a difference can be seen.
        correction: `Holm` or `Benjamini-Hochberg`.
        every_pair: Whether all pairs were tested.
        chances: Method -> the probability that it is the best of those tested over seeds.
        blocked: Whether runs were paired by seed.
        fixed: Whether the baseline was fixed in advance, and not chosen by the scores that are tested.
    """

    task: str
    metric: str
    split: str
    rows: int
    comparisons: tuple[Comparison, ...]
    summaries: dict[str, Summary]
    groups: dict[str, str]
    best: str
    level: frozenset[str]
    baseline: str
    notes: tuple[str, ...]
    correction: str = family.HOLM
    every_pair: bool = False
    chances: Mapping[str, float] = field(default_factory=dict)
    blocked: bool = False
    fixed: bool = True


def compare_tasks(
    frame: pd.DataFrame,
    summary: pd.DataFrame,
    baseline: str | None = None,
    server: str | None = None,
    pairs: Pairs = Pairs.baseline,
    analysis: Analysis | None = None,
) -> list[Pairwise]:
    """Compare the methods of each task.

    Args:
        frame: One row per run (`scores.load`).
        summary: The main table (`scores.summary`).
        baseline: What the others are held against, a method or a row's name; null for full fine-tuning.
        server: Tracking URI of the server that has the predictions; null where they are on this machine.
        pairs: Whether each is held against the baseline alone, or also against each other. Where no baseline was fixed
            in advance it is each other too: the same scores chose the highest, so tests against it alone are too sure.
        analysis: Decides the correction; null for exploratory of more than `family.MOST_CONFIRMED` methods and a
            baseline that was fixed in advance.

    Raises:
        ConfigError: No task has the baseline.
    """
    if baseline is not None:
        there = {*summary["method"], *summary["configuration"]} - {"", MAJORITY}
        if baseline not in there:
            raise ConfigError(f"baseline={baseline}: no run is of such a method; {near_misses(baseline, there)}")
    runs = compared(frame)
    runs = runs[runs["status"] == FINISHED].assign(configuration=label(runs))
    return [
        _of_task(str(task), rows, runs[runs["task"] == task], baseline or BASELINE, server, pairs, analysis)
        for task, rows in summary.groupby("task", sort=True)
    ]


def _of_task(
    task: str,
    rows: pd.DataFrame,
    runs: pd.DataFrame,
    wanted: str,
    server: str | None,
    pairs: Pairs,
    analysis: Analysis | None,
) -> Pairwise:
    metric, split = str(rows["metric"].iloc[0]), str(rows["split"].iloc[0])
    scored = rows[(rows["configuration"] != MAJORITY) & (rows["n"] > 0)]
    names = list(scored["configuration"])
    asked = [name for name in names if name == wanted] or list(scored["configuration"][scored["method"] == wanted])
    baseline = next(iter([*asked, *names]), "")
    kept = names[:MOST_METHODS]
    if baseline not in kept:
        kept[-1:] = [baseline] if baseline else []
    chosen = runs[runs[split].notna() & runs["configuration"].isin(kept)]
    groups = dict(list(chosen.groupby("configuration")))
    lost = dict(zip(scored["configuration"], (scored["collapsed"] + scored["diverged"]).astype(int), strict=True))
    members, notes = _members({name: groups[name] for name in kept}, lost, split, metric, server)
    if len(kept) < len(names):
        notes.insert(0, f"Of {len(names)} methods the {len(kept)} best are compared.")
    seeded = {name: _runs(groups[name], split, lost[name]) for name in members}
    known = spreads(seeded, float(np.median([one.rows_variance for one in members.values()])) if members else 0.0)
    best = next(iter(members), "") if len(members) > 1 else ""
    # Of several rows of the method that was asked for, the scores choose too.
    fixed = len(asked) == 1 and baseline in members
    baseline = baseline if baseline in members else best
    every = pairs is Pairs.all or not fixed
    tested = [pair for pair in itertools.combinations(members, 2) if every or baseline in pair]
    few_or_chosen = len(members) <= family.MOST_CONFIRMED or not fixed
    confirms = few_or_chosen if analysis is None else analysis is Analysis.confirmatory
    correction = family.HOLM if confirms else family.FALSE_DISCOVERY
    higher, width = higher_is_better(metric), intervals.width(metric)
    comparisons = tuple(family.compare_family(members, known, tested, correction, higher, width))
    notes += _precision(members, known, comparisons)
    whole = len(members) == len(names)
    found = Pairwise(
        task,
        metric,
        split,
        next((one.rows for one in members.values()), 0),
        comparisons,
        # One method's interval over examples beside another's over seeds alone would be misread.
        {name: _summary(metric, one, seeded[name]) for name, one in members.items()} if whole else {},
        {},
        best,
        frozenset(),
        baseline,
        tuple(notes),
        correction,
        every,
        family.chances(members, known, higher),
        known.blocked,
        fixed,
    )
    return _grouped(found, known) if every else found


def _grouped(found: Pairwise, known: Spreads) -> Pairwise:
    """Add letters, and who was not distinguished from the highest; both need three runs, so that seeds are in them.

    From the highest by Holm over all pairs in tables that explore too: of what Benjamini and Hochberg's correction
    finds in all pairs few are wrong, but of the pairs with the one that the same scores put highest many.
    """
    names = [name for name in found.chances if name not in known.unstable]
    surely = holm([one.p for one in found.comparisons])
    pairs = [(one, p) for one, p in zip(found.comparisons, surely, strict=True) if {one.a, one.b} <= {*names}]
    apart = [(pair.a, pair.b) for pair, _ in pairs if pair.corrected_p < LEVEL]
    from_best = {name for pair, p in pairs if p < LEVEL and found.best in (pair.a, pair.b) for name in (pair.a, pair.b)}
    level = frozenset({*names} - from_best - {found.best}) if found.best in names else frozenset()
    return replace(found, groups=letters(names, apart) if pairs else {}, level=level)


def _runs(group: pd.DataFrame, split: str, lost: int) -> Replicates:
    """Sorted: the last bits of a variance depend on the order of the runs."""
    finite = group[np.isfinite(group[split].astype(float))].sort_values(["seed", "data_seed", split])
    scores, seeds, data_seeds = (finite[name].astype(float).to_numpy() for name in (split, "seed", "data_seed"))
    return Replicates(scores, seeds, data_seeds, lost)


def _summary(metric: str, member: Member, runs: Replicates) -> Summary:
    """Mean and interval of a method; none below three runs or with a lost one, but of published single results."""
    n, std = member.runs, float(np.std(runs.scores, ddof=1)) if member.runs > 1 else math.nan
    if member.lost:
        low, high = math.nan, math.nan
    elif n == 1 and member.replicates is None:
        low, high = intervals.over_examples(metric, member.mean, member.rows)
    else:
        seeds = (runs.seeds, runs.data_seeds)
        low, high = intervals.over_seeds(metric, runs.scores, *seeds, member.rows_variance, member.rows)
    return Summary(n, member.mean, std, low, high)


def _members(
    groups: dict[str, pd.DataFrame], lost: Mapping[str, int], split: str, metric: str, server: str | None
) -> tuple[dict[str, Member], list[str]]:
    """What is known of each method, in their order, and sentences on the others and on those without predictions."""
    column = f"{split}.rows"
    counted = {name for name, runs in groups.items() if column in runs and runs[column].notna().all()}
    counted = counted if metric == "accuracy" else set()
    rest = {name: runs for name, runs in groups.items() if name not in counted}
    found, notes = _resampled(rest, split, metric, server)
    members = {}
    for name, runs in groups.items():
        if name in counted:
            members[name] = family.counted_member(runs[split].tolist(), int(runs[column].min()), lost[name])
        elif name in found:
            members[name] = family.resampled_member(found[name], lost[name], metric)
    if counted:
        size = min(members[name].rows for name in counted)
        notes.append(
            f"No predictions of {few(sorted(counted))}: their intervals are binomial, of {size:,} examples, and their "
            "tests unpaired."
        )
    return members, notes


def _resampled(
    groups: dict[str, pd.DataFrame], split: str, metric: str, server: str | None
) -> tuple[dict[str, Resampled], list[str]]:
    """Read and resample what can be read; say of the rest why it cannot."""
    predictions: dict[str, list[pd.DataFrame]] = {}
    reasons: dict[str, str] = {}
    for name, runs in groups.items():
        try:
            files = [
                predictions_of(uri, run, server)
                for uri, run in zip(runs["artifact_uri"], runs["mlflow_run_id"], strict=True)
            ]
            predictions[name] = [read_predictions(file, split) for file in files]
        except ConfigError as error:
            reasons[name] = str(error)
    found: dict[str, Resampled] = {}
    if predictions:
        try:
            found = resample_methods(predictions, metric, resamples=_resamples(predictions, metric))
        except (ConfigError, ValueError) as error:
            reasons |= dict.fromkeys(predictions, str(error))
    for name, method in list(found.items()):
        recorded = np.sort(groups[name][split].to_numpy(dtype=float))
        if len(recorded) != len(method.scores) or not np.allclose(method.scores, recorded, AGREEMENT, AGREEMENT):
            reasons[name] = "its predictions give another score than its record"
            del found[name]
    kinds: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        kinds.setdefault(reason, []).append(name)
    return found, [f"Not compared: {few(names)} ({reason})." for reason, names in kinds.items()]


def lost_files(frame: pd.DataFrame) -> str:
    """A sentence about runs whose files are not where their store says, as after it was moved without them."""
    places = [urlsplit(uri) for uri in frame["artifact_uri"].dropna() if uri]
    local = [Path(unquote(parts.path)) for parts in places if parts.scheme in ("", "file")]
    lost = [folder for folder in local if not folder.is_dir()]
    if not lost:
        return ""
    return (
        f"The files of {len(lost)} of {len(frame)} runs are not where the store says ({lost[0].parent}), so their "
        "predictions can't be read and tests are weaker than they could be: put mlartifacts/ beside the store."
    )


def predictions_of(artifact_uri: str, mlflow_run_id: str = "", server: str | None = None) -> Path:
    """Where the predictions of a run are; those that only a server has are fetched.

    Raises:
        ConfigError: There are none.
    """
    file = tracking.artifact(artifact_uri, mlflow_run_id, server, PREDICTIONS_FILE)
    if file is not None:
        return file
    if server is not None and mlflow_run_id:
        raise ConfigError("the server has no predictions of it, or does not give them away")
    if urlsplit(artifact_uri).scheme not in ("", "file"):
        raise ConfigError("its predictions are with a server and not on this machine")
    raise ConfigError("it kept no predictions, or they are no longer where the store says")


def _resamples(predictions: dict[str, list[pd.DataFrame]], metric: str) -> int:
    runs = [run for group in predictions.values() for run in group]
    column = "loss" if metric == "perplexity" else metric
    if per_row_scores(runs[0], column) is not None:
        return RESAMPLES
    return min(RESAMPLES, max(FEWEST_RESAMPLES, MOST_COMPUTATIONS // len(runs)))


def few(names: Sequence[str]) -> str:
    """Name three at most, and count the rest."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _precision(members: Mapping[str, Member], known: Spreads, comparisons: Sequence[Comparison]) -> list[str]:
    """Say how small a difference can be seen, what is untested, and what comparisons of single runs are about."""
    if not comparisons:
        return []
    notes = []
    pairs = [(one.a, one.b) for one in comparisons]
    tested = sum(math.isfinite(one.p) for one in comparisons)
    smallest = family.detectable(members, known, pairs, tested)
    if math.isfinite(smallest):
        written = f"{smallest:.4f}" if smallest >= 0.00005 else "below 0.0001"
        notes.append(
            f"Minimum detectable difference: {written}, the smallest true difference that these runs would find every "
            f"other time, with other seeds, other examples and the correction for {tested:,} "
            f"comparison{'' if tested == 1 else 's'} in it."
        )
    lost = [name for name, one in members.items() if one.lost and one.runs > 1]
    wild = [name for name in members if name in known.unstable]
    if lost or wild:
        reasons = [f"{few(lost)} (a run collapsed or diverged)"] * bool(lost)
        reasons += [f"{few(wild)} (its runs differ more than those of the others)"] * bool(wild)
        notes.append(f"{family.TOO_UNSTABLE.capitalize()}, and not tested: {', '.join(reasons)}.")
    if any(one.runs < FEWEST_RUNS for one in members.values()):
        notes.append(
            f"Below {FEWEST_RUNS} runs of a method its comparisons are about these runs on other examples only; five "
            "seeds are recommended."
        )
    return notes


# --- Frames ---------------------------------------------------------------------------------------------------------


def annotated(summary: pd.DataFrame, found: Sequence[Pairwise]) -> pd.DataFrame:
    """Add to the main table what comparing says.

    Columns: `groups`, the letters; `standing`, "highest observed", "not distinguished from the highest" or nothing, of
    methods with three runs or more; `best_probability`, that it is the best of those; `interval`, of what `low` and
    `high` are: "seeds", or "seeds and examples" where all methods could be compared.
    """
    table = summary.assign(groups="", standing="", interval="seeds", best_probability=math.nan)
    for one in found:
        of_task = table["task"] == one.task
        name = table.loc[of_task, "configuration"]
        table.loc[of_task, "groups"] = [one.groups.get(key, "") for key in name]
        standing = {one.best: BEST} if one.best in one.chances else {}
        standing |= dict.fromkeys(one.level, ALIKE)
        table.loc[of_task, "standing"] = [standing.get(key, "") for key in name]
        table.loc[of_task, "best_probability"] = [one.chances.get(key, math.nan) for key in name]
        if one.summaries:
            table.loc[of_task, "interval"] = "seeds and examples"
            for end in ("low", "high"):
                ends = {key: getattr(interval, end) for key, interval in one.summaries.items()}
                table.loc[of_task, end] = [ends.get(key, math.nan) for key in name]
    return table


def pairs(found: Sequence[Pairwise]) -> pd.DataFrame:
    """List every comparison: task, metric, split, rows, and the fields of `Comparison`."""
    return pd.DataFrame(
        [
            {"task": one.task, "metric": one.metric, "split": one.split, "rows": one.rows, **asdict(pair)}
            for one in found
            for pair in one.comparisons
        ]
    )


def tested(found: Pairwise) -> int:
    """How many pairs have a p: what is corrected for."""
    return sum(not pd.isna(pair.p) for pair in found.comparisons)
