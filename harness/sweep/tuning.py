"""Tuning with an equal budget: the trials of each method on each task, which goes on, which is chosen, and why."""

import math
from dataclasses import dataclass, field

from harness.sweep.outcome import Outcome
from harness.sweep.progress import SCORE_DIGITS, primary_score, table
from harness.sweep.racing import Race, dropped
from harness.sweep.search import RATE, Hyperparameters, Range, Searcher, beyond, edge
from harness.tracking.record import Status

RATE_EDGE = "edge of its range"


@dataclass
class Trial:
    """A point that is tried, and what became of it."""

    hyperparameters: Hyperparameters
    outcome: Outcome | None = None
    # Of the steps, how far it was let go.
    share: float = 0.0

    @property
    def name(self) -> str:
        """The learning rate, and other hyper-parameters with their names: `0.002 alpha=16`."""
        parts = [
            f"{value:g}" if key == RATE else f"{key.removeprefix('method.')}={value:g}"
            for key, value in self.hyperparameters.items()
        ]
        return " ".join(parts)

    @property
    def score(self) -> float | None:
        """The development score; null, which never wins, for a trial that did not run to its end."""
        return self._development if self._status == Status.finished else None

    @property
    def score_so_far(self) -> float | None:
        """The development score up to where the trial was stopped, or to its end."""
        return self._development if self._status == Status.stopped else self.score

    @property
    def diverged(self) -> bool:
        return self._status == Status.diverged

    @property
    def stopped(self) -> bool:
        return self._status == Status.stopped

    @property
    def told_something(self) -> bool:
        """Whether its place is known to be better or worse: not of one that failed for another reason."""
        return self.score is not None or self.stopped or self.diverged

    @property
    def _status(self) -> str | None:
        return self.outcome.status if self.outcome else None

    @property
    def _development(self) -> float | None:
        return primary_score(self.outcome, "development") if self.outcome else None


@dataclass
class Candidate:
    """A point of the grid while its hyper-parameters are chosen."""

    overrides: list[str]
    error: str | None = None
    searcher: Searcher | None = None
    ranges: tuple[Range, ...] = ()
    higher_is_better: bool = True
    extend: int = 0
    trials: list[Trial] = field(default_factory=list)
    # The learning rates of the grid itself, and how many were tried beyond it.
    grid: tuple[float, ...] = ()
    further: int = 0
    chosen: Trial | None = None

    @property
    def name(self) -> str:
        return " ".join(o for o in self.overrides if not o.startswith(("hydra.", "sweep."))) or "the default"

    def ask(self) -> list[Trial]:
        """The next trials; none when all of them were asked for, or it has none for an error."""
        trials = [Trial(values) for values in self.searcher.ask()] if self.searcher else []
        if self.trials and not trials:
            trials = self._beyond_the_grid()
            self.further += len(trials)
        self.trials += trials
        if not self.grid:
            self.grid = tuple(sorted({trial.hyperparameters[RATE] for trial in trials}))
        return trials

    def _beyond_the_grid(self) -> list[Trial]:
        """The next rate past each edge at which the best lies, and nowhere else; none past the limit."""
        scored = [trial for trial in self.trials if trial.score is not None]
        if self.further >= self.extend or len(self.grid) < 2 or not scored:
            return []
        best = self._ranked(scored)[0]
        rates = [trial.hyperparameters[RATE] for trial in self.trials if trial.told_something]
        at_best = {trial.hyperparameters[RATE]: trial for trial in reversed(scored) if trial.score == best.score}
        if any(min(rates) < rate < max(rates) for rate in at_best):
            return []
        tried = {trial.hyperparameters[RATE] for trial in self.trials}
        found = []
        for end, steps in ((min(rates), -1), (max(rates), 1)):
            past = sum(rate < self.grid[0] if steps < 0 else rate > self.grid[-1] for rate in set(rates))
            rate = beyond(self.grid, steps * (past + 1))
            # One that was tried and failed says nothing about its place; a further one would leave a hole.
            if end in at_best and rate not in tried:
                found.append(Trial({**at_best[end].hyperparameters, RATE: rate}))
        return found[: self.extend - self.further]

    def tell(self, trials: list[Trial]) -> None:
        """Let the search learn from the trials asked for last."""
        if self.searcher:
            self.searcher.tell([trial.score for trial in trials], [trial.diverged for trial in trials])

    def choose(self) -> None:
        """Choose the trial with the best development score; of equals the smaller values."""
        if self.error:
            return
        scored = [trial for trial in self.trials if trial.score is not None]
        if scored:
            self.chosen = self._ranked(scored)[0]
        else:
            self.error = f"{self.name}: none of its {len(self.trials)} trials has a development score"

    def better_half(self, trials: list[Trial]) -> list[Trial]:
        """Those of this candidate's trials that go on: the better half of those that have a score, rounded up."""
        scored = [trial for trial in trials if trial.score_so_far is not None]
        best = self._ranked(scored)[: math.ceil(len(trials) / 2)]
        return [trial for trial in scored if any(trial is one for one in best)]

    def unbeaten(self, trials: list[Trial], race: Race, store: str | None) -> list[Trial]:
        """Those of this candidate's trials that go on in a race: all that have a score and may still be its best."""
        scored = self._ranked([trial for trial in trials if trial.score_so_far is not None])
        lost = dropped([trial.outcome for trial in scored if trial.outcome], 0, race, store)
        return [trial for trial in trials if any(trial is one for n, one in enumerate(scored) if n not in lost)]

    def _ranked(self, trials: list[Trial]) -> list[Trial]:
        sign = -1 if self.higher_is_better else 1
        return sorted(trials, key=lambda trial: (sign * (trial.score_so_far or 0.0), *trial.hyperparameters.values()))

    def reason(self) -> str:
        """The trials and their scores, as a final run's record keeps them."""
        further = f" ({self.further} beyond the grid{self._limit()})" if self.further else ""
        return f"best of {len(self.trials)}{further}: " + ", ".join(map(with_score, self.trials))

    def note(self, sampled: bool) -> str:
        """What is to be said of the choice: at which edge it lies, and that the search went no further than allowed."""
        return ", ".join(filter(None, [self.edges(sampled) + self._limit(), self.spent()]))

    def spent(self) -> str:
        """How many trials were stopped on their way, and what share of the steps of whole trials was taken; else empty.

        About: a trial ends at the first evaluation past its share.
        """
        stopped = sum(trial.stopped for trial in self.trials)
        share = sum(trial.share for trial in self.trials) / max(len(self.trials), 1)
        return f"{stopped} stopped on the way, about {share:.0%} of the steps" if stopped else ""

    def _limit(self) -> str:
        """Say where the choice still lies at the edge and no more further rates are allowed."""
        at_limit = 0 < self.extend <= self.further and RATE_EDGE in self.edges(False)
        return f", also after the {self.extend} further rates that hydra.sweeper.extend allows" if at_limit else ""

    def edges(self, sampled: bool) -> str:
        """Say where the choice lies at an end of its range: of what was tried, or could have been drawn."""
        if self.chosen is None:
            return ""
        found = []
        for one in self.ranges:
            tried = [trial.hyperparameters[one.key] for trial in self.trials if trial.told_something]
            ends = (one.values[0], one.values[-1]) if sampled else (min(tried), max(tried))
            if edge(self.chosen.hyperparameters[one.key], *ends):
                found.append(RATE_EDGE if one.key == RATE else f"edge of the range of {one.key}")
        return ", ".join(found)


def with_score(trial: Trial) -> str:
    """A trial and its score; a dash where it has none."""
    score = trial.score_so_far
    text = "-" if score is None else f"{score:.{SCORE_DIGITS}f}"
    return f"{trial.name}: {text}{' (stopped)' if trial.stopped else ''}"


def choices_table(candidates: list[Candidate], sampled: bool) -> str:
    """Each point's trials and choice; a choice on the edge of its range says that the range may be too narrow."""
    rows = [
        [
            candidate.name,
            ", ".join(map(with_score, candidate.trials)),
            "" if candidate.chosen is None else candidate.chosen.name,
            candidate.error or candidate.note(sampled),
        ]
        for candidate in candidates
    ]
    return table(["tuned", "trial: development score", "chosen", "note"], rows)
