"""`reports/claims.yaml`: the claims, who makes them, and the rules that test them, checked before anything is read."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from harness.claims import architecture, costs, rates, scores
from harness.claims.evidence import Evidence
from harness.claims.verdict import Case, Finding, Verdict, of_cases, of_tests
from harness.config.build import typed
from harness.config.errors import ConfigError, near_misses
from harness.config.sources import conf_root


class Rule(Protocol):
    """Rule that tests a claim: parameters as its fields, a method that makes cases of evidence.

    One that needs several runs of a method says how many, as `fewest`.
    """

    def judge(self, evidence: Evidence) -> list[Case]: ...


RULES: dict[str, type] = {
    "keeps_up": scores.KeepsUp,
    "better": scores.Better,
    "choice_matters": scores.ChoiceMatters,
    "forgets_less": scores.ForgetsLess,
    "optimal_rate_ratio": rates.OptimalRateRatio,
    "cost_ratio": costs.CostRatio,
    "same_run_ratio": costs.SameRunRatio,
    "cost_within": costs.CostWithin,
    "trained_share": costs.TrainedShare,
    "linear_in_bits": costs.LinearInBits,
    "soft_prompts": costs.SoftPrompts,
    "swapped_scores": costs.SwappedScores,
    "planned": architecture.Planned,
    "planned_ratio": architecture.PlannedRatio,
    "planned_line": architecture.PlannedLine,
    "parameters_by_kind": architecture.ParametersByKind,
    "weights_error": architecture.WeightsError,
    "elsewhere": architecture.Elsewhere,
}


@dataclass(frozen=True)
class Test:
    """One thing that a claim says, the rule's name, what it asks in words, and the rule."""

    rule: str
    says: str
    judge: Rule


@dataclass(frozen=True)
class Claim:
    """A sentence, who says it, the scale that it would need where it can't be tested, and its tests."""

    id: str
    claim: str
    source: str
    needs: str
    tests: tuple[Test, ...]


@dataclass(frozen=True)
class Ledger:
    """Sweep -> the command that runs it, and the claims."""

    evidence: Mapping[str, str]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Tested:
    """A test with what came of it."""

    test: Test
    verdict: Verdict
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Judged:
    """A claim with what came of it."""

    claim: Claim
    verdict: Verdict
    tests: tuple[Tested, ...]

    @property
    def cases(self) -> list[Case]:
        return [case for tested in self.tests for case in tested.cases]


def default_path() -> Path:
    return conf_root() / "reports" / "claims.yaml"


def load(path: Path) -> Ledger:
    """Read a ledger.

    Raises:
        ConfigError: It can't be read, a key is unknown or missing, a value is of the wrong type, a rule is unknown, or
            a test names a sweep that `evidence` does not list.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: it can't be read: {' '.join(str(error).split())}") from error
    content = _keys(content, ("evidence", "claims"), path.name)
    commands, claims = (_group(content[key], key) for key in ("evidence", "claims"))
    ledger = Ledger(
        {str(name): _text(command, f"evidence.{name}") for name, command in commands.items()},
        tuple(_claim(str(name), values, commands) for name, values in claims.items()),
    )
    if not ledger.claims:
        raise ConfigError("claims: there is none")
    return ledger


def _claim(name: str, values: Any, commands: Mapping[str, Any]) -> Claim:
    key = f"claims.{name}"
    values = _keys(values, ("claim", "source", "needs", "tests"), key)
    texts = {part: _text(values[part], f"{key}.{part}") for part in ("claim", "source", "needs")}
    tests = values["tests"]
    if not isinstance(tests, list) or not tests:
        raise ConfigError(f"{key}.tests: a list of tests is needed")
    made = tuple(_test(f"{key}.tests.{number}", test, commands) for number, test in enumerate(tests, 1))
    return Claim(name, **texts, tests=made)


def _test(key: str, values: Any, commands: Mapping[str, Any]) -> Test:
    values = dict(_group(values, key))
    for part in ("rule", "says"):
        if part not in values:
            raise ConfigError(f"{key}.{part}: a value is needed")
    rule, says = (_text(values.pop(part), f"{key}.{part}") for part in ("rule", "says"))
    if rule not in RULES:
        raise ConfigError(f"{key}.rule={rule}: there is no such rule; {near_misses(rule, RULES)}")
    made = typed(RULES[rule], values, key)
    for sweep in getattr(made, "sweeps", ()):
        if sweep not in commands:
            raise ConfigError(f"{key}.sweeps: evidence lists no sweep {sweep}; {near_misses(sweep, commands)}")
    return Test(rule, says, made)


def _keys(values: Any, names: tuple[str, ...], key: str) -> dict[str, Any]:
    values = _group(values, key)
    for name in values:
        if name not in names:
            raise ConfigError(f"{key}.{name}: no such key; {near_misses(str(name), names)}")
    for name in names:
        if name not in values:
            raise ConfigError(f"{key}.{name}: a value is needed")
    return values


def _group(values: Any, key: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{key}={values!r}: a group of keys is needed here")
    return values


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key}={value!r}: a text is needed")
    return " ".join(value.split())


def judge(claim: Claim, evidence: Evidence) -> Judged:
    """Test a claim on evidence.

    Raises:
        ConfigError: A point can't be planned, or a file is damaged; the message says of which test.
        ConnectionError: A store cannot be read.
    """
    tests = []
    for number, test in enumerate(claim.tests, 1):
        try:
            cases = tuple(test.judge.judge(evidence))
        except ConfigError as error:
            raise ConfigError(f"claims.{claim.id}.tests.{number}: {error}") from error
        tests.append(Tested(test, of_cases(case.outcome for case in cases), cases))
    return Judged(claim, of_tests(tested.verdict for tested in tests), tuple(tests))


def rejudge(claims: Iterable[Claim], cases: Path) -> list[Judged]:
    """Judge claims by the cases that an earlier judging wrote, as `cases.csv`: the pages anew, without its stores.

    A case that rests on fewer runs than its rule asks for today decides nothing. Nothing else is judged again: for that
    the runs would be needed.

    Raises:
        ConfigError: The file can't be read, or holds no cases of a test.
    """
    rows: dict[tuple[str, str], list[Case]] = {}
    kinds = {field.name: field.type for field in fields(Case)}
    try:
        with cases.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                # The first judgings did not write how many runs there were.
                row = {"runs": "", **row}
                values: dict[str, Any] = {name: row[name] for name in kinds}
                values |= {name: float(row[name] or "nan") for name, kind in kinds.items() if kind in (float, "float")}
                case = Case(**{**values, "outcome": Finding(row["outcome"])})
                rows.setdefault((row["id"], row["test"]), []).append(case)
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"cases={cases}: it can't be read: {error}") from error
    judged = []
    for claim in claims:
        tests = []
        for number, test in enumerate(claim.tests, 1):
            if (claim.id, str(number)) not in rows:
                raise ConfigError(f"cases={cases}: it holds no case of test {number} of {claim.id}")
            fewest = getattr(test.judge, "fewest", 0)
            found = tuple(scores.from_enough(case, fewest) for case in rows[claim.id, str(number)])
            tests.append(Tested(test, of_cases(case.outcome for case in found), found))
        judged.append(Judged(claim, of_tests(tested.verdict for tested in tests), tuple(tests)))
    return judged
