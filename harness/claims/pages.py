"""Verdicts as people read them: Markdown, CSV, one HTML page and a picture, the same bytes for the same evidence."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.claims.ledger import Judged, Tested
from harness.claims.picture import draw, draw_claim
from harness.claims.verdict import Case, Finding, Verdict
from harness.config.errors import ConfigError
from harness.report.cells import NONE, Table
from harness.report.markdown import markdown
from harness.report.page import page
from harness.report.scores import plain

TITLE = "What is said about these methods, and what was found"
NOTES = (
    "A verdict is computed from cases by the rule that stands beside the claim in reports/claims.yaml; none is typed "
    "in. A case holds where all of its 95% interval lies in the range of the claim, its ends included, fails where all "
    "of it lies outside, and is undecided across an end. A figure that is counted, such as parameters or bytes, is its "
    "own interval.",
    '"No detectable difference" is no equality: two methods count as equal only where the interval of their difference '
    "lies within the margin. Scores and forgetting of fewer than three runs of a method, other measurements of a "
    "single run, and tasks on which neither is known to be better than the commonest answer, decide nothing.",
    "A test is supported where all of its cases with evidence hold, refuted where all fail, not testable at this scale "
    "where none is decided, and mixed otherwise. A claim is supported where all of its tests are; one that can't be "
    "made keeps it from that. It is refuted where every test that can be made is.",
    "Scores are compared on stored predictions of the same examples, over seeds and examples; what is called better or "
    "worse is Holm-corrected over all pairs of the task, and that a choice matters is tested against the margin, "
    "Holm-corrected over all pairs of the choice. Where all cases have to hold no correction is due: each is tested at "
    "2.5% a side, and all of them are wrongly called so no more often than one. Costs are compared over runs (Welch's "
    "t on logarithms).",
    "What holds on small models and tasks need not on large ones, and the other way round: a verdict is about the "
    "evidence that its cases name.",
)


def counted(verdicts: Sequence[str]) -> str:
    """Count verdicts in one sentence."""
    counts = Counter(verdicts)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
    return f"{len(verdicts)} claim{'' if len(verdicts) == 1 else 's'}: {parts}."


def lead(judged: Sequence[Judged]) -> str:
    """Count the verdicts of claims in one sentence."""
    return counted([one.verdict for one in judged])


def verdict_table(judged: Sequence[Judged]) -> Table:
    """Make a table of one row per claim: the sentence and its verdict first."""
    rows = []
    for one in judged:
        counts = Counter(case.outcome for case in one.cases)
        rows.append((one.claim.claim, str(one.verdict), *(str(counts[kind]) for kind in Finding), one.claim.id))
    kinds = tuple(str(kind) for kind in Finding)
    caption = "Of how many cases each claim holds, fails, is undecided, or has no evidence."
    return Table(
        "Verdicts",
        ("sentence", "verdict", *kinds, "claim"),
        rows,
        caption,
        ("sentence", "verdict", "claim"),
        prose=("sentence",),
        secondary=(*kinds, "claim"),
    )


def found(one: Judged) -> str:
    """Say in one sentence per test what came of it."""
    return " ".join(f"({number}) {_sentence(tested)}" for number, tested in enumerate(one.tests, 1))


def _sentence(tested: Tested) -> str:
    counts = Counter(case.outcome for case in tested.cases)
    known = [case for case in tested.cases if not math.isnan(case.value)]
    tally = ", ".join(f"{counts[kind]} {kind}" for kind in Finding if counts[kind])
    measured = ""
    if len(known) == 1:
        measured = f"; {written(known[0].value, known[0].unit)} {interval(known[0])}".rstrip(f" {NONE}")
    elif known and len({case.unit for case in known}) == 1:
        ends = (min(case.value for case in known), max(case.value for case in known))
        measured = f"; from {written(ends[0], known[0].unit)} to {written(ends[1], known[0].unit)}"
    return f"{tested.verdict}: {tally}{measured}."


def claim_table(one: Judged) -> Table:
    """Make a table of one row per case."""
    rows = []
    for number, tested in enumerate(one.tests, 1):
        for case in tested.cases:
            measured = (written(case.value, case.unit), interval(case), holds_where(case))
            remark = ". ".join(plain(text) for text in (case.name, case.remark) if text)
            rows.append((remark, str(case.outcome), *measured, plain(case.evidence), str(number)))
    columns = ("case", "outcome", "found", "95% interval", "holds where", "evidence", "test")
    rules = " ".join(
        f"({number}) {tested.test.says} [{tested.test.rule}: {tested.verdict}]"
        for number, tested in enumerate(one.tests, 1)
    )
    caption = f"Said by: {one.claim.source}. Tests: {rules} To know more: {one.claim.needs}"
    return Table(
        f"{one.verdict}: {one.claim.claim} ({one.claim.id})",
        columns,
        rows,
        caption,
        ("case", "outcome", "holds where", "evidence", "test"),
        prose=("case",),
        secondary=("evidence", "test"),
        detail=True,
        picture=draw_claim(one),
    )


def written(value: float, unit: str) -> str:
    """Write a figure with its unit."""
    if math.isnan(value):
        return NONE
    # Plus 0.0, so that no difference is not written as -0.0000.
    if unit == "score":
        return f"{round(value, 4) + 0.0:+.4f}"
    if unit == "change":
        return f"{round(100 * value, 2) + 0.0:+.2f}%"
    if unit == "share":
        return f"{100 * value:.3g}%"
    if unit == "ratio":
        return f"{value:.3f}x"
    if unit == "times":
        # Whole ones alone would write an end of 4.96 as the 5 that it falls short of.
        return f"{value:.3g}x" if abs(value) < 10 else f"{value:,.0f}x"
    return f"{value:,.0f}" if unit == "count" or abs(value) >= 1000 else f"{value:.4g}"


def interval(case: Case) -> str:
    """Write the interval; a dash where the figure was counted, or nothing is known."""
    if math.isnan(case.low) or math.isnan(case.high) or case.low == case.high:
        return NONE
    return f"[{written(case.low, case.unit)}, {written(case.high, case.unit)}]"


def holds_where(case: Case) -> str:
    """Write the range in which the claim holds."""
    if math.isnan(case.value):
        return NONE
    low, high = written(case.least, case.unit), written(case.most, case.unit)
    has_low = case.least > (0 if case.unit in ("ratio", "times", "share", "count") else -math.inf)
    if case.least == case.most:
        return f"exactly {low}"
    if has_low and case.most < math.inf and not (case.unit == "share" and case.most == 1):
        return f"{low} to {high}"
    return f"at least {low}" if has_low else f"at most {high}" if case.most < math.inf else "shown beside"


# --- Files ----------------------------------------------------------------------------------------------------------


def claims_frame(judged: Sequence[Judged]) -> pd.DataFrame:
    """One row per claim: id, verdict, how many cases hold, fail and so on, what was found, sentence, source, needs."""
    rows = []
    for one in judged:
        counts = Counter(case.outcome for case in one.cases)
        numbers = {kind.name: counts[kind] for kind in Finding}
        texts = {"found": found(one), "claim": one.claim.claim, "source": one.claim.source, "needs": one.claim.needs}
        row: dict[str, Any] = {"id": one.claim.id, "verdict": str(one.verdict), **numbers, **texts}
        rows.append(row)
    return pd.DataFrame(rows)


def cases_frame(judged: Sequence[Judged]) -> pd.DataFrame:
    """One row per case: claim, test, rule, its verdict, and the fields of `Case`."""
    rows = [
        {"id": one.claim.id, "test": number, "rule": tested.test.rule, "verdict": str(tested.verdict), **vars(case)}
        for one in judged
        for number, tested in enumerate(one.tests, 1)
        for case in tested.cases
    ]
    return pd.DataFrame(rows).map(lambda value: plain(value) if isinstance(value, str) else value)


def write(judged: Sequence[Judged], damaged: Sequence[str], out: Path) -> list[str]:
    """Write the files; return their names.

    Raises:
        ConfigError: The folder cannot be written.
    """
    drawn = draw(judged)
    tables = [verdict_table(judged), *(claim_table(one) for one in judged)]
    text = (TITLE, lead(judged), tables, [*NOTES, *damaged])
    pictures = {"claims": drawn["svg"].decode()} if drawn else {}
    contents = {f"claims.{kind}": content for kind, content in drawn.items()}
    contents |= {
        "claims.md": markdown(*text, ["claims"] if drawn else []).encode(),
        "claims.html": page(*text, pictures).encode(),
        "claims.csv": _csv(claims_frame(judged)),
        "cases.csv": _csv(cases_frame(judged)),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"out={out}: the folder cannot be written ({error.strerror}); name another") from None
    return sorted(contents)


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()
