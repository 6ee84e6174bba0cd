"""Rules that need no runs: plans of architectures without weights, and what quantizing weight matrices leaves."""

import math
from dataclasses import dataclass
from pathlib import Path

from harness.claims.costs import line
from harness.claims.evidence import Evidence, counted, parameters_by_kind, planned, quantized
from harness.claims.verdict import Case, Finding, NoEvidence, decide
from harness.config.errors import ConfigError, near_misses
from harness.config.mistakes import choices
from harness.quantization.schemes import SCHEMES
from harness.report.stats import summarize


@dataclass
class Point:
    """A point of `harness-plan`, and the range in which a figure of it has to be.

    Attributes:
        overrides: As on the command line.
        figure: By its name in `harness.claims.evidence.counted` or `planned`.
        least: The claim holds from here on.
        most: And up to here.
        published: The figure as it was printed.
    """

    overrides: list[str]
    figure: str
    least: float = 0.0
    most: float = math.inf
    published: str = ""


@dataclass(frozen=True)
class Planned:
    """Figures of plans lie in ranges; counted, so without intervals.

    Attributes:
        points: Each a case.
    """

    points: list[Point]

    def judge(self, evidence: Evidence) -> list[Case]:
        return [self._case(point) for point in self.points]

    def _case(self, point: Point) -> Case:
        value = _figure(tuple(point.overrides), point.figure)
        unit = "share" if point.figure.endswith("share") else "times" if point.figure == "reduction" else "count"
        name = f"{point.figure.replace('_', ' ')}: {' '.join(point.overrides)}"
        remark = f"published: {point.published}" if point.published else ""
        ends = (value, value, value, point.least, point.most, unit)
        return Case("plan", name, decide(value, value, point.least, point.most), *ends, remark)


@dataclass(frozen=True)
class PlannedRatio:
    """A figure of a plan over that of another on the same backbone.

    Attributes:
        points: Overrides that both have, as a text: a case each.
        method: Overrides of the one, as a text.
        against: Of the other.
        figure: By its name in `harness.claims.evidence.counted` or `planned`, or several with plus signs between them.
        least: The claim holds from this ratio on.
        most: And up to this one.
    """

    points: list[str]
    method: str
    against: str
    figure: str
    least: float = 0.0
    most: float = math.inf

    def judge(self, evidence: Evidence) -> list[Case]:
        cases = []
        for point in self.points:
            ours, theirs = (
                sum(_figure((*point.split(), *own.split()), name) for name in self.figure.split("+"))
                for own in (self.method, self.against)
            )
            value = ours / theirs
            figure = self.figure.replace("_", " ").replace("+", " + ")
            name = f"{figure} of {self.method} over that of {self.against}"
            ends = (value, value, value, self.least, self.most, "ratio")
            remark = f"{ours / 1e9:,.1f} over {theirs / 1e9:,.1f} GB" if "_bytes" in self.figure else ""
            cases.append(Case(f"plan, {point}", name, decide(value, value, self.least, self.most), *ends, remark))
        return cases


@dataclass(frozen=True)
class PlannedLine:
    """As `LinearInBits`, for backbones that are planned.

    Attributes:
        points: Overrides that all have, as a text: a case each.
        stored: Overrides -> bits per weight.
        least: The claim holds from this correlation on.
    """

    points: list[str]
    stored: dict[str, float]
    least: float

    def judge(self, evidence: Evidence) -> list[Case]:
        return [
            line(
                f"plan, {point}",
                {bits: _figure((*point.split(), *own.split()), "weight_bytes") for own, bits in self.stored.items()},
                self.least,
            )
            for point in self.points
        ]


@dataclass(frozen=True)
class ParametersByKind:
    """The share of a backbone's parameters in one kind of module; counted on the architecture.

    Attributes:
        models: Names of `conf/model/`; all where the list is empty.
        kind: attention, mlp, embeddings or rest.
        least: The claim holds from this share on.
    """

    models: list[str]
    kind: str
    least: float

    def judge(self, evidence: Evidence) -> list[Case]:
        cases = []
        for model in self.models or sorted(choices("model")):
            shares = parameters_by_kind(model)
            if self.kind not in shares:
                raise ConfigError(f"kind={self.kind}: no such kind of module; {near_misses(self.kind, shares)}")
            value = shares[self.kind]
            others = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items() if kind != self.kind)
            ends = (value, value, value, self.least, 1.0, "share")
            cases.append(
                Case("architecture", f"{self.kind}, {model}", decide(value, value, self.least, 1), *ends, others)
            )
        return cases


@dataclass(frozen=True)
class WeightsError:
    """One way to quantize weight matrices leaves less of an error than another, t interval over a backbone's matrices.

    Attributes:
        models: Backbones whose weights are here, by the names of their folders: a case each.
        figure: A column of `harness.quantization.schemes.measure`.
        scheme: Of `harness.quantization.schemes.SCHEMES`.
        against: Another.
    """

    models: list[str]
    figure: str
    scheme: str
    against: str

    def check(self, key: str) -> None:
        for name in (self.scheme, self.against):
            if name not in SCHEMES:
                raise ConfigError(f"{key}: there is no scheme {name}; {near_misses(name, SCHEMES)}")

    def judge(self, evidence: Evidence) -> list[Case]:
        cases = []
        for model in dict.fromkeys([*self.models, *(folder.name for folder in evidence.backbones)]):
            name = f"{self.figure.replace('_', ' ')} of {self.scheme} less that of {self.against}"
            try:
                folder: Path = evidence.model_folder(model)
            except NoEvidence as reason:
                cases.append(Case(f"weights of {model}", name, Finding.no_evidence, remark=str(reason)))
                continue
            table = quantized(folder)
            table = table[table["origin"] == "model"].pivot(index="matrix", columns="scheme", values=self.figure)
            found = summarize(table[self.scheme] - table[self.against])
            means = table[[self.scheme, self.against]].mean()
            remark = f"means over {found.n} matrices: {means.iloc[0]:.4g} and {means.iloc[1]:.4g}"
            ends = (found.mean, found.low, found.high, -math.inf, 0.0, "number")
            cases.append(Case(f"weights of {model}", name, decide(found.low, found.high, -math.inf, 0), *ends, remark))
        return cases


@dataclass(frozen=True)
class Elsewhere:
    """A part of a claim that nothing here can test.

    Attributes:
        needs: What it would take.
    """

    needs: str

    def judge(self, evidence: Evidence) -> list[Case]:
        return [Case("", "", Finding.no_evidence, remark=f"it needs {self.needs}")]


def _figure(overrides: tuple[str, ...], figure: str) -> float:
    """A figure of a plan.

    Raises:
        ConfigError: There is no such figure, or the point can't be planned.
    """
    figures = counted(overrides)
    if figure not in figures:
        figures = figures | planned(overrides)
    if figure not in figures:
        raise ConfigError(f"figure={figure}: {' '.join(overrides)} has none; {near_misses(figure, figures)}")
    return figures[figure]
