"""Verdicts: intervals become outcomes, outcomes a test's verdict, and verdicts of tests the verdict on a claim."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Finding(StrEnum):
    """Verdict on one case."""

    holds = "holds"
    fails = "fails"
    undecided = "undecided"
    no_evidence = "no evidence"


class Verdict(StrEnum):
    """Verdict on a test, and on a claim."""

    supported = "supported"
    refuted = "refuted"
    mixed = "mixed"
    untestable = "not testable at this scale"


@dataclass(frozen=True)
class Case:
    """One comparison or figure that a claim is about.

    Attributes:
        evidence: Where it comes from: a sweep, a plan, a file.
        name: What was measured, and of what.
        outcome: Whether the claim holds there.
        value: What was found; NaN without evidence.
        low: Lower end of its 95% interval; the value itself where it is counted and has none.
        high: Upper end.
        least: The claim holds from here ...
        most: ... to here.
        unit: How the figure is written: score, change, ratio, times, share, count or number.
        remark: What a reader should know of it.
        runs: Fewest runs of a method that it rests on; NaN where it rests on none, or nobody wrote down how many.
    """

    evidence: str
    name: str
    outcome: Finding
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    least: float = -math.inf
    most: float = math.inf
    unit: str = "number"
    remark: str = ""
    runs: float = math.nan


class NoEvidence(Exception):
    """The stores lack what a rule reads; the message says what to run."""


def decide(low: float, high: float, least: float, most: float) -> Finding:
    """Hold an interval against the range in which a claim holds, its ends included.

    Wholly inside, the claim holds; wholly outside, it fails; across an end, or without an interval, nothing is decided.
    So "no detectable difference" is no equality: only an interval inside of a margin is (the two one-sided tests of
    Schuirmann 1987, J. Pharmacokinet. Biopharm. 15(6), each at 2.5%).
    """
    if math.isnan(low) or math.isnan(high):
        return Finding.undecided
    if least <= low and high <= most:
        return Finding.holds
    return Finding.fails if high < least or low > most else Finding.undecided


def of_cases(outcomes: Iterable[Finding]) -> Verdict:
    """Sum up a test: cases without evidence do not count.

    Supported or refuted where all cases say so; not testable where none is decided; else mixed.
    """
    counted = {outcome for outcome in outcomes if outcome is not Finding.no_evidence}
    if counted <= {Finding.undecided}:
        return Verdict.untestable
    if counted == {Finding.holds}:
        return Verdict.supported
    return Verdict.refuted if counted == {Finding.fails} else Verdict.mixed


def of_tests(verdicts: Iterable[Verdict]) -> Verdict:
    """Sum up a claim, which says that all of its tests come out: one that cannot be made keeps it from being supported.

    It is refuted where every test that can be made is refuted, and mixed where some are, or one is mixed.
    """
    found = set(verdicts)
    made = found - {Verdict.untestable}
    if made == {Verdict.refuted}:
        return Verdict.refuted
    if made <= {Verdict.supported}:
        return Verdict.supported if made == found and made else Verdict.untestable
    return Verdict.mixed
