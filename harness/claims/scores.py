"""Rules on scores: methods against methods on the same examples, by the comparisons that reports print."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from harness.claims.evidence import Evidence, Selection, Sweep
from harness.claims.verdict import Case, Finding, NoEvidence, decide
from harness.config.errors import ConfigError
from harness.report.comparison import Comparison, Resampled, compare
from harness.report.spread import FEWEST_RUNS
from harness.report.stats import CONFIDENCE, holm
from harness.training.metrics import higher_is_better

# So many rows that resampling them would change nothing: what a run counts once, such as its bytes, has none.
ENDLESS = 10_000


def check_selections(key: str, texts: Sequence[str]) -> None:
    for text in texts:
        try:
            Selection.parse(text)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None


@dataclass(frozen=True)
class OfMethods:
    """Keys of a rule on the runs of methods.

    Attributes:
        sweeps: Where runs are sought; one that no store has is named and does not count.
        methods: Selections of runs (`harness.claims.evidence.Selection`).
    """

    sweeps: list[str]
    methods: list[str]

    def check(self, key: str) -> None:
        check_selections(key, self.methods)


@dataclass(frozen=True)
class Against(OfMethods):
    """Keys of a rule that holds methods against one.

    Attributes:
        against: What each is held against.
    """

    against: str

    def check(self, key: str) -> None:
        super().check(key)
        check_selections(key, [self.against])


@dataclass(frozen=True)
class KeepsUp(Against):
    """Non-inferiority: a method's score is not below another's by more than a margin, all of the interval above it.

    Attributes:
        fewest: Runs of a method below which nothing is decided.
        margin: In the score's own points, for scores of which more is better.
        margin_share: As a share of the other's score, for perplexities, which have no common scale.
        two_sided: Equivalence: nor above it by more than the margin.
    """

    fewest: ClassVar[int] = FEWEST_RUNS
    margin: float
    margin_share: float
    two_sided: bool = False

    def check(self, key: str) -> None:
        super().check(key)
        if not (self.margin > 0 and self.margin_share > 0):
            raise ConfigError(f"{key}.margin={self.margin}, margin_share={self.margin_share}: both must be above 0")

    def judge(self, evidence: Evidence) -> list[Case]:
        def judged(pair: Pair) -> Case:
            margin = self.margin_share if pair.relative else self.margin
            most = margin if self.two_sided else math.inf
            remarks = [pair.remark]
            outcome = decide(pair.low, pair.high, -margin, most) if pair.counts else Finding.undecided
            # An interval shrinks with the root of what it comes from; equal methods need it within the margin.
            half = (pair.high - pair.low) / 2
            if outcome is Finding.undecided and pair.counts and half > margin:
                remarks.append(f"known to ±{half:.4f}: about {(half / margin) ** 2:,.0f} times the evidence is needed")
            return pair.case(outcome, -margin, most, remarks)

        return _judged(evidence, self.sweeps, self.methods, self.against, judged)


@dataclass(frozen=True)
class Better(Against):
    """Superiority: a method's score is above another's, p corrected by Holm over all pairs of the task."""

    fewest: ClassVar[int] = FEWEST_RUNS

    def judge(self, evidence: Evidence) -> list[Case]:
        def judged(pair: Pair) -> Case:
            told_apart = pair.counts and pair.corrected_p < 1 - CONFIDENCE
            outcome = decide(pair.low, pair.high, 0, math.inf) if told_apart else Finding.undecided
            remark = "" if told_apart or not pair.counts else "no detectable difference, which is not equality"
            return pair.case(outcome, 0, math.inf, [pair.remark, remark])

        return _judged(evidence, self.sweeps, self.methods, self.against, judged)


@dataclass(frozen=True)
class ChoiceMatters:
    """Some two of several configurations differ by more than a margin; it fails where no two can.

    Each pair is tested against the margin, Holm-corrected over all pairs of these configurations: of many that differ
    by just the margin, some two always seem further apart.

    Attributes:
        fewest: As for `KeepsUp`.
        sweeps: As for `KeepsUp`.
        among: Selections; every configuration that one finds takes part.
        margin: As for `KeepsUp`.
        margin_share: As for `KeepsUp`.
    """

    fewest: ClassVar[int] = FEWEST_RUNS
    sweeps: list[str]
    among: list[str]
    margin: float
    margin_share: float

    def check(self, key: str) -> None:
        check_selections(key, self.among)

    def judge(self, evidence: Evidence) -> list[Case]:
        cases: list[Case] = []
        for sweep in sweeps_of(evidence, self.sweeps, cases):
            for task in sorted(sweep.runs["task"].unique()):
                names = [name for text in self.among for name in sweep.configurations(task, Selection.parse(text))]
                cases.append(self._of_task(sweep, task, list(dict.fromkeys(names))))
        return cases

    def _of_task(self, sweep: Sweep, task: str, names: list[str]) -> Case:
        there = sweep.compared[task].comparisons
        # Comparisons have the method with the better mean first.
        wanted = [one for one in there if {one.a, one.b} <= {*names} and one.over_seeds]
        pairs = [_pair(sweep, task, one, one.a, one.b) for one in wanted]
        evidence = f"{sweep.name}, {task}"
        if not pairs:
            reason = "no two of these with three seeds or more and predictions are there"
            return Case(evidence, f"{len(names)} configurations", Finding.no_evidence, remark=reason)
        margin = self.margin_share if pairs[0].relative else self.margin
        found = beyond(pairs, margin)
        widest = max(found or pairs, key=lambda pair: pair.difference)
        learned = sweep.has_learned(task, names)
        whole = {name for pair in pairs for name in (pair.a, pair.b)} == {*names}
        outcome = Finding.holds if found else Finding.undecided
        if learned and whole and not found and all(-margin <= pair.low and pair.high <= margin for pair in pairs):
            outcome = Finding.fails
        remarks = [f"farthest apart of {len(pairs)} pairs; {len(found)} differ by more than that"]
        remarks += [] if whole else ["some have too few runs yet"]
        remarks += [] if learned else [NOTHING_LEARNED]
        case = widest.case(outcome if learned else Finding.undecided, margin, math.inf, remarks)
        return replace(case, runs=min(pair.runs for pair in pairs))


@dataclass(frozen=True)
class ForgetsLess(Against):
    """Superiority on general text: its perplexity, or masked loss, grows by a smaller factor than another's does.

    Welch's t over runs on the logarithm of after over before, Holm-corrected over the methods on the task.
    """

    fewest: ClassVar[int] = FEWEST_RUNS

    def judge(self, evidence: Evidence) -> list[Case]:
        cases: list[Case] = []
        for sweep in sweeps_of(evidence, self.sweeps, cases):
            if "forgetting.after" not in sweep.runs:
                cases.append(Case(sweep.name, "forgetting", Finding.no_evidence, remark=NOT_MEASURED))
                continue
            grown = np.log(sweep.runs["forgetting.after"] / sweep.runs["forgetting.before"])
            runs = sweep.runs.assign(grown=grown)[grown.notna()]
            for task, rows in runs.groupby("task", sort=True):
                groups = {name: group["grown"].tolist() for name, group in rows.groupby("configuration", sort=True)}
                cases += self._of_task(sweep, str(task), groups)
        return cases

    def _of_task(self, sweep: Sweep, task: str, grown: Mapping[str, list[float]]) -> Iterator[Case]:
        wanted = [pair for pair in sweep.pairs(task, self.methods, self.against) if {*pair} <= {*grown}]
        found = [across_runs(grown[a], grown[b]) for a, b in wanted]
        enough = [min(one.runs_a, one.runs_b) >= FEWEST_RUNS for one in found]
        corrected = holm([one.p if many else math.nan for one, many in zip(found, enough, strict=True)])
        for (a, b), one, p, many in zip(wanted, found, corrected, enough, strict=True):
            outcome = decide(one.low, one.high, -math.inf, 0) if p < 1 - CONFIDENCE else Finding.undecided
            value, low, high = (float(np.exp(end)) for end in (one.difference, one.low, one.high))
            remark = "" if many else ONE_RUN
            name = f"growth with {a} over that with {b}"
            runs = min(one.runs_a, one.runs_b)
            yield Case(f"{sweep.name}, {task}", name, outcome, value, low, high, 0.0, 1.0, "ratio", remark, runs)


# --- Pairs ----------------------------------------------------------------------------------------------------------

NOTHING_LEARNED = "neither is known to be better than the commonest answer, so nothing is compared"
NOT_MEASURED, NOT_FINISHED = "it was not measured there", "not finished in this sweep yet"
ONE_RUN = "too few runs of a method, or runs too unstable, say nothing of others"


@dataclass(frozen=True)
class Pair:
    """Method A against B on a task, oriented so that plus is better; `relative`, of a perplexity, is a share of B's."""

    sweep: str
    task: str
    metric: str
    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    corrected_p: float
    runs: int
    relative: bool
    over_seeds: bool
    learned: bool
    on_edge: tuple[str, ...]

    @property
    def counts(self) -> bool:
        return self.over_seeds and self.learned

    @property
    def remark(self) -> str:
        if not self.learned:
            return NOTHING_LEARNED
        if not self.over_seeds:
            return ONE_RUN
        names = ", ".join(self.on_edge)
        return f"best learning rate at the end of its grid: {names}" if names else ""

    def case(self, outcome: Finding, least: float, most: float, remarks: Sequence[str]) -> Case:
        name = f"{self.metric} of {self.a} less that of {self.b}"
        if self.relative:
            name = f"{self.metric} of {self.a} below that of {self.b}, as a share of it"
        ends = (self.difference, self.low, self.high, least, most, "change" if self.relative else "score")
        remark = "; ".join(remark for remark in remarks if remark)
        return Case(f"{self.sweep}, {self.task}", name, outcome, *ends, remark, self.runs)


def beyond(pairs: Sequence[Pair], margin: float) -> list[Pair]:
    """Those of some pairs, A the better, that differ by more than a margin, Holm-corrected over all of them."""
    corrected = holm([beyond_p(pair, margin) for pair in pairs])
    return [pair for pair, p in zip(pairs, corrected, strict=True) if pair.low > margin and p < 1 - CONFIDENCE]


def beyond_p(pair: Pair, margin: float) -> float:
    """How probable so large a difference is at most, either way, were the true one just the margin; NaN if not tested.

    A comparison says how probable a difference as large as its own is by chance, and from which size on it is 5%. What
    it draws from is a mixture of normal distributions. For these the logarithm of that probability is convex in the
    square of the size: between two known points, of which 100% at no difference is one, it lies below a straight line.
    """
    if math.isnan(pair.p) or math.isnan(pair.low):
        return math.nan
    half, over = pair.difference - pair.low, max(pair.difference - margin, 0.0)
    known = sorted([(0.0, 1.0), (half**2, 1 - CONFIDENCE), (pair.difference**2, max(pair.p, math.ulp(0.0)))])
    squares, chances = zip(*known, strict=True)
    further = math.exp(np.interp(over**2, squares, np.log(chances)))
    # The other way it is further from the margin than from none.
    return (further + pair.p) / 2


def from_enough(case: Case, fewest: int) -> Case:
    """A case of an earlier judging by today's rule: undecided where it rests on fewer runs of a method."""
    says_why = NOTHING_LEARNED in case.remark or ONE_RUN in case.remark
    if case.outcome is Finding.no_evidence or says_why or not case.runs < fewest:
        return case
    runs = f"{case.runs:.0f} run{'' if case.runs == 1 else 's'}"
    remark = f"older evidence, from {runs} of a method: too few to say anything of others"
    return replace(case, outcome=Finding.undecided, remark=remark)


def across_runs(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Compare what has one value per run and none per row, the lower the better: Welch's t over runs."""
    ordered = {name: np.sort(np.asarray(values, dtype=float)) for name, values in (("A", a), ("B", b))}
    resampled = {name: Resampled(v, np.tile(v, (2, 1)), ENDLESS, 0) for name, v in ordered.items()}
    return compare(resampled, higher_is_better=False)[0]


def sweeps_of(evidence: Evidence, names: Sequence[str], cases: list[Case]) -> Iterator[Sweep]:
    """The sweeps that are there; of each other a case that says how to run it."""
    for name in names:
        try:
            yield evidence.sweep(name)
        except NoEvidence as reason:
            cases.append(Case(name, "", Finding.no_evidence, remark=str(reason)))


def _judged(
    evidence: Evidence, sweeps: Sequence[str], methods: Sequence[str], against: str, judge: Callable[[Pair], Case]
) -> list[Case]:
    """A case a sweep, task and pair."""
    cases: list[Case] = []
    for sweep in sweeps_of(evidence, sweeps, cases):
        before = len(cases)
        for task in sorted(sweep.runs["task"].unique()):
            for a, b in sweep.pairs(task, methods, against):
                one = _between(sweep.compared[task].comparisons, a, b)
                if one is None:
                    notes = " ".join(sweep.compared[task].notes) or "their predictions cannot be read"
                    cases.append(Case(f"{sweep.name}, {task}", f"{a} and {b}", Finding.no_evidence, remark=notes))
                else:
                    cases.append(judge(_pair(sweep, task, one, a, b)))
        if len(cases) == before:
            sought = f"{', '.join(methods)} and {against}"
            cases.append(Case(sweep.name, sought, Finding.no_evidence, remark=NOT_FINISHED))
    return cases


def _between(comparisons: Sequence[Comparison], a: str, b: str) -> Comparison | None:
    return next((one for one in comparisons if {one.a, one.b} == {a, b}), None)


def _pair(sweep: Sweep, task: str, one: Comparison, a: str, b: str) -> Pair:
    """Comparison of A against B, whichever of the two it has first."""
    metric = sweep.compared[task].metric
    relative = not higher_is_better(metric)
    rows = sweep.summary[sweep.summary["task"] == task].set_index("configuration")
    scale = (1 if one.a == a else -1) / (-float(rows.loc[b, "mean"]) if relative else 1.0)
    low, high = sorted((scale * one.low, scale * one.high))
    return Pair(
        sweep.name,
        task,
        metric,
        a,
        b,
        scale * one.difference,
        low,
        high,
        one.p,
        one.corrected_p,
        min(one.runs_a, one.runs_b),
        relative,
        one.over_seeds,
        sweep.has_learned(task, (a, b)),
        tuple(name for name in (a, b) if (task, name) in sweep.on_edge),
    )
