"""Racing: trials advance in rounds, and one is stopped once the development rows say that it is not its method's best.

All trials are scored on the same rows, so two of them are compared row by row, which tells far smaller differences than
the two scores do. At a round each trial is tested against every better one, one-sided, of the null hypothesis that it
does as well on the rows' population. Where the two do equally well, the difference of a row falls to either side with
equal chance: the exact sign test of McNemar 1947 (Psychometrika 12(2)) where rows are right or wrong, else Fisher's
randomization test (1935, The Design of Experiments, section 21) by draws. A metric that is no mean over rows, such as a
correlation, is one over its jackknife's pseudo-values (Arvesen 1969, Ann. Math. Statist. 40(6)).

What is guaranteed: with a chance of at least 1 - level over the draw of the development rows, no round drops the trial
whose weights at that round do best on the population. Each of R rounds may use level / R, whenever it comes: a
group-sequential test with Bonferroni's boundary, which needs no independence, since every round sees the same rows
(Jennison and Turnbull 2000, Group Sequential Methods, has others, where the looks' correlation is known). A round's
share is parted among the K - 1 trials that could drop the best. So the race may be stopped at any round. It is exact
where rows are right or wrong and drawn independently, and where two equal trials are exchangeable row by row; for
pseudo-values it holds as the rows become many. Tested are the weights that a round ends with, which no development row
chose, and not the best so far, which the rows did.

What is not guaranteed: that the best at a round is the best at the end. A high rate may look bad until the schedule has
brought it down. `python -m harness.replay` measures how often that costs the choice, on sweeps that ran to their ends.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness import tracking
from harness.sweep.outcome import Outcome
from harness.tracking.record import DEVELOPMENT_FILE
from harness.tracking.uri import parse
from harness.training.metrics import METRICS, higher_is_better

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

log = logging.getLogger(__name__)

# Differences that agree to this share of the largest are of one size: what summing in another order leaves.
ALIKE = 1e-9
# A p value by draws is known once so many of them were as extreme (Besag and Clifford 1991, Biometrika 78(2)).
ENOUGH = 20
# Draws for a test at a level: so many times more than it takes to go below it.
DRAWS_A_LEVEL, FEWEST_DRAWS = 5, 999
# Draws at once.
CHUNK = 500


@dataclass(frozen=True)
class Race:
    """Error level of a race, and among how many tests it is parted.

    Attributes:
        level: Chance that the best is dropped in any round.
        rounds: How many there are.
        trials: How many of a method began.
    """

    level: float
    rounds: int
    trials: int

    @property
    def level_of_a_test(self) -> float:
        return self.level / (self.rounds * max(self.trials - 1, 1))


def beaten(
    values: Sequence["np.ndarray"],
    leader: int,
    race: Race,
    p_value_of: "Callable[[int, int], float] | None" = None,
) -> set[int]:
    """The trials that are dropped at a round, by their places.

    Args:
        values: Of each trial that is still in: one value per row, more is better, whose mean is its score.
        leader: The trial that would be chosen today, which always goes on.
        race: The error level.
        p_value_of: The p value for the places of a better trial and a worse one; null: computed.
    """
    level = race.level_of_a_test
    ask = p_value_of or (lambda better, worse: p_value(values[better], values[worse], level))
    means = [float(value.mean()) for value in values]
    order = sorted(range(len(values)), key=lambda place: -means[place])
    return {
        place
        for number, place in enumerate(order)
        if place != leader
        and any(means[other] > means[place] and ask(other, place) <= level for other in order[:number])
    }


def p_value(better: "np.ndarray", worse: "np.ndarray", level: float, seed: int = 0) -> float:
    """One-sided p value of the null hypothesis that `worse` does as well as `better` on the population of the rows.

    Args:
        better: One value per row.
        worse: The same rows in the same order.
        level: What it will be held against: a p value far above is not known more precisely than needed.
        seed: Of the draws, where there are any.
    """
    import numpy as np

    differences = better - worse
    largest = float(np.abs(differences).max(initial=0.0))
    differences = differences[np.abs(differences) > ALIKE * largest] if largest > 0 else differences[:0]
    if not len(differences):
        return 1.0
    if np.ptp(np.abs(differences)) <= ALIKE * largest:
        return upper_tail(int((differences > 0).sum()), len(differences))
    return _by_draws(differences, max(FEWEST_DRAWS, math.ceil(DRAWS_A_LEVEL / level)), seed)


@cache
def upper_tail(heads: int, flips: int) -> float:
    """The chance of so many heads or more."""
    from scipy.stats import binom

    return float(binom.sf(heads - 1, flips, 0.5))


def _by_draws(differences: "np.ndarray", draws: int, seed: int) -> float:
    """The share of random signs that give as large a sum as the signs that were found."""
    import numpy as np

    generator = np.random.default_rng(seed)
    found = float(differences.sum()) * (1 - ALIKE)
    extreme = 0
    for start in range(0, draws, CHUNK):
        signs = generator.integers(0, 2, (min(CHUNK, draws - start), len(differences)), dtype=np.int8) * 2 - 1
        as_large = np.flatnonzero(signs @ differences >= found)
        if extreme + len(as_large) >= ENOUGH:
            return ENOUGH / (start + int(as_large[ENOUGH - extreme - 1]) + 1)
        extreme += len(as_large)
    return (extreme + 1) / (draws + 1)


# --- What a row came to ---------------------------------------------------------------------------------------------


def values_of_rows(rows: "pd.DataFrame", metric: str) -> "np.ndarray | None":
    """One value per row, more is better, whose mean is the score; null where the rows do not tell.

    A loss over tokens weighs each row by them; perplexity goes by its loss, of which it is the exponential.

    Args:
        rows: `score`, with `tokens` or without, or `prediction` and `label`: one evaluation of `development.parquet`.
        metric: The primary metric.
    """
    import numpy as np

    sign = 1.0 if higher_is_better(metric) else -1.0
    if "score" in rows:
        scores = rows["score"].to_numpy(dtype=float)
        if "tokens" in rows:
            weights = rows["tokens"].to_numpy(dtype=float)
            scores = np.where(weights > 0, scores, 0.0) * weights / weights.mean()
        return sign * scores
    if metric not in METRICS or not {"prediction", "label"} <= set(rows):
        return None
    return sign * pseudo_values(METRICS[metric], rows["prediction"].to_numpy(), rows["label"].to_numpy())


def pseudo_values(
    metric: "Callable[[np.ndarray, np.ndarray], float]", predictions: "np.ndarray", labels: "np.ndarray"
) -> "np.ndarray":
    """The jackknife's: n times the metric of all n rows, less n - 1 times that of all rows but one."""
    import numpy as np

    count = len(predictions)
    whole = metric(predictions, labels)
    kept = np.ones(count, dtype=bool)
    without = np.empty(count)
    for row in range(count):
        kept[row] = False
        without[row] = metric(predictions[kept], labels[kept])
        kept[row] = True
    return count * whole - (count - 1) * without


def dropped(outcomes: Sequence[Outcome], leader: int, race: Race, store: str | None) -> set[int]:
    """The places of the outcomes whose trials are dropped at a round; one that left no rows to compare goes on.

    Args:
        outcomes: Of the trials that are still in, each up to this round.
        leader: The place of the trial that would be chosen today.
        race: The error level.
        store: URI of the sweep's store; null where it has none.
    """
    rows = {place: one for place, outcome in enumerate(outcomes) if (one := rows_of(outcome, store)) is not None}
    metric = str(outcomes[0].scores.get("primary_metric")) if outcomes else ""
    values = {place: found for place, one in rows.items() if (found := values_of_rows(one, metric)) is not None}
    if len(values) < len(outcomes):
        log.warning("%d of %d trials left no rows to race by and go on", len(outcomes) - len(values), len(outcomes))
    places = list(values)
    if len(places) < 2 or not _same_rows([rows[place] for place in places]):
        return set()
    first = places.index(leader) if leader in values else -1
    return {places[number] for number in beaten(list(values.values()), first, race)}


def rows_of(outcome: Outcome, store: str | None) -> "pd.DataFrame | None":
    """The rows of a trial's last evaluation, sorted by `idx`; null where it left none.

    Args:
        outcome: Of a trial that was stopped or ended, now or in an earlier start of its sweep.
        store: URI of the sweep's store; null where it has none.
    """
    file = file_of(outcome, store, DEVELOPMENT_FILE)
    if file is None:
        return None
    rows = read_rows(file)
    return rows[rows["step"] == rows["step"].max()]


def file_of(outcome: Outcome, store: str | None, name: str) -> Path | None:
    """A file of a trial's run directory, or of its artifacts where an earlier start ran it; null without one."""
    file = Path(outcome.run_dir or "") / name
    if not outcome.skipped and file.is_file():
        return file
    told = outcome.further
    server = store if store and parse(store).path is None else None
    return tracking.artifact(told.get("artifact_uri"), told.get("mlflow_run_id"), server, name)


def read_rows(file: Path) -> "pd.DataFrame":
    """Every evaluation in a `development.parquet`, sorted by step and `idx`."""
    import pandas as pd

    return pd.read_parquet(file).sort_values(["step", "idx"], kind="stable", ignore_index=True)


def _same_rows(trials: Sequence["pd.DataFrame"]) -> bool:
    """Whether trials were scored on the same rows, so that each row's difference means something."""
    first = trials[0]["idx"].tolist()
    return all(one["idx"].tolist() == first for one in trials[1:])
