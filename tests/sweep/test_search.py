"""Trials of an equal budget are spread over each method's own ranges, follows from the seed, and the best is chosen."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.config.build import build
from harness.config.compose import compose
from harness.config.identity import identity
from harness.config.schema import Search
from harness.config.sources import conf_root
from harness.run import prepare, run
from harness.sweep.outcome import Outcome
from harness.sweep.search import (
    RATE,
    Range,
    TuningBudget,
    edge,
    grid_points,
    random_points,
    ranges_of,
    searcher,
    spread,
)
from harness.sweep.tuning import Candidate, Trial, choices_table

RATES = Range(RATE, (1e-4, 1e-3, 1e-2))
METHODS = sorted(path.stem for path in (conf_root() / "conf/method").glob("*.yaml"))


def budget(search: str, trials: int, seed: int = 0) -> TuningBudget:
    return TuningBudget(Search[search], trials, seed, startup_trials=4, parallel_trials=2)


def trial(rate: float, status: str, score: float | None) -> Trial:
    scores = {"primary_metric": "x", "development": None if score is None else {"x": score}}
    return Trial({RATE: rate}, Outcome(status, scores=scores))


@pytest.mark.parametrize(
    ("rates", "number", "taken"),
    [
        ([1, 2, 3, 4, 5], 3, [1, 3, 5]),
        ([1, 2, 3, 4, 5], 5, [1, 2, 3, 4, 5]),
        ([1, 2, 3, 4, 5], 1, [3]),
        ([1, 2, 3, 4], 1, [2]),
        ([1, 2, 3, 4], 2, [1, 4]),
        ([1, 2, 3, 4, 5, 6, 7], 4, [1, 3, 5, 7]),
    ],
)
def test_trials_spread_evenly_over_the_whole_range(rates, number, taken) -> None:
    """Both ends are tried whenever there is more than one trial."""
    assert spread(rates, number) == taken


@pytest.mark.parametrize(("trials", "rates", "scales"), [(9, 3, 3), (6, 3, 2), (3, 3, 1), (4, 2, 2), (2, 2, 1)])
def test_a_grid_of_two_ranges_takes_as_many_learning_rates_as_it_can(trials: int, rates: int, scales: int) -> None:
    """The learning rate is what matters above all."""
    points = grid_points((RATES, Range("method.alpha", (4, 16, 64))), trials, "lora")
    assert len(points) == trials
    assert len({point[RATE] for point in points}) == rates
    assert len({point["method.alpha"] for point in points}) == scales


def test_random_points_are_even_on_a_log_scale_and_more_go_on_where_fewer_ended() -> None:
    """A third of them in each third of the exponents; whole numbers stay whole."""
    points = random_points((RATES, Range("method.alpha", (4, 64))), 3000, seed=1)
    places = [math.log10(point[RATE]) for point in points]
    assert -4 <= min(places) < max(places) <= -2
    for low in (-4, -4 + 2 / 3, -4 + 4 / 3):
        assert sum(low <= place < low + 2 / 3 for place in places) == pytest.approx(1000, rel=0.1)
    assert {type(point["method.alpha"]) for point in points} == {int}
    assert random_points((RATES,), 5, seed=1) == [{RATE: point[RATE]} for point in points[:5]]
    assert random_points((RATES,), 5, seed=2) != random_points((RATES,), 5, seed=1)


def asked(search: str, trials: int, seed: int, best: float) -> Iterator[float]:
    """The rates of a search whose score falls off around the best, on a log scale."""
    found = searcher((RATES,), budget(search, trials, seed), "lora", higher_is_better=True)
    while settings := found.ask():
        rates = [point[RATE] for point in settings]
        found.tell([-abs(math.log(rate / best)) for rate in rates], [False] * len(rates))
        yield from rates


def test_tpe_comes_nearer_to_the_best_than_random_points_do() -> None:
    """On average over ten seeds, with thirty trials."""
    pytest.importorskip("optuna", reason="pip install 'peft-harness[optuna]' brings it")
    best = 3e-4

    def far(search: str) -> float:
        rates = [list(asked(search, 30, seed, best))[15:] for seed in range(10)]
        return sum(abs(math.log(rate / best)) for drawn in rates for rate in drawn)

    assert far("tpe") < 0.7 * far("random")


@pytest.mark.parametrize("seed", range(5))
def test_tpe_asks_for_no_point_twice_where_there_are_others(seed: int) -> None:
    """At the end of a range it comes back to the same few digits; a range of two values has no other."""
    pytest.importorskip("optuna", reason="pip install 'peft-harness[optuna]' brings it")
    rates = list(asked("tpe", 30, seed, best=1e-4))
    assert len(set(rates)) == len(rates) == 30
    found = searcher((Range(RATE, (1e-3, 1.001e-3)),), budget("tpe", 4), "lora", higher_is_better=True)
    assert len(found.ask()) == 2


def test_tpe_follows_from_its_seed_and_the_scores() -> None:
    """The same again, and a diverged trial says something about its place that a failed one does not."""
    pytest.importorskip("optuna", reason="pip install 'peft-harness[optuna]' brings it")
    assert list(asked("tpe", 12, 3, 1e-3)) == list(asked("tpe", 12, 3, 1e-3))
    assert list(asked("tpe", 12, 3, 1e-3)) != list(asked("tpe", 12, 4, 1e-3))
    high = {}
    for diverged in (True, False):
        found = searcher((RATES,), budget("tpe", 40), "lora", higher_is_better=True)
        rates = []
        while settings := found.ask():
            now = [point[RATE] for point in settings]
            lost = [rate > 1e-3 for rate in now]
            found.tell([None if gone else 0.5 for gone in lost], [gone and diverged for gone in lost])
            rates += now
        high[diverged] = sum(rate > 1e-3 for rate in rates)
    assert high[True] < high[False]


@pytest.mark.parametrize(
    ("value", "found"),
    [(1e-4, "lowest"), (1.2e-4, "lowest"), (1.3e-4, ""), (1e-3, ""), (7.5e-3, ""), (8.5e-3, "highest"), (2e-2, "")],
)
def test_the_edge_is_a_twentieth_of_the_range_on_a_log_scale(value: float, found: str) -> None:
    """At either end, and nowhere between."""
    assert edge(value, 1e-4, 1e-2) == found


def test_the_highest_development_score_wins_and_of_equals_the_smaller_rate() -> None:
    """A trial without a score never wins."""
    candidate = Candidate([], trials=[trial(0.3, "finished", 0.9), trial(0.2, "finished", 0.9)])
    candidate.trials += [trial(0.1, "finished", None), trial(0.4, "diverged", 1.0), trial(0.5, "stopped", 1.0)]
    candidate.choose()
    assert candidate.chosen is candidate.trials[1]
    assert candidate.reason() == "best of 5: 0.3: 0.9000, 0.2: 0.9000, 0.1: -, 0.4: -, 0.5: 1.0000 (stopped)"


def test_where_lower_is_better_the_lowest_development_score_wins() -> None:
    """Perplexity is such a score."""
    candidate = Candidate([], higher_is_better=False, trials=[trial(0.1, "finished", 3.0), trial(0.2, "finished", 2.0)])
    candidate.choose()
    assert candidate.chosen is candidate.trials[1]
    assert candidate.better_half(candidate.trials) == [candidate.trials[1]]


def extended(
    extend: int, score: Callable[[float], float | None], grid: tuple[float, ...] = (1e-3, 1e-2), **further: Any
) -> Candidate:
    """A candidate whose trials score as told, a null one being cut off as `lost` says."""
    lost = further.pop("lost", "failed")
    search = searcher((Range(RATE, grid),), budget("grid", len(grid)), "lora", higher_is_better=True)
    candidate = Candidate([], None, search, (Range(RATE, grid),), extend=extend, **further)
    while trials := candidate.ask():
        for one in trials:
            found = score(one.hyperparameters[RATE])
            one.outcome = trial(1.0, lost if found is None else "finished", found).outcome
        candidate.tell(trials)
    candidate.choose()
    return candidate


def tried(candidate: Candidate) -> list[float]:
    return [one.hyperparameters[RATE] for one in candidate.trials]


def peak(best: float) -> Callable[[float], float]:
    """Scores that fall off around the best rate, on a log scale."""
    return lambda rate: -abs(math.log(rate / best))


@pytest.mark.parametrize(
    ("best", "further"),
    [(2.0, [0.1, 1.0, 10.0]), (0.1, [0.1, 1.0]), (1e-5, [1e-4, 1e-5, 1e-6]), (2e-3, [1e-4]), (3e-3, [])],
)
def test_a_best_rate_at_an_edge_is_followed_on_the_same_log_grid_until_it_is_not(best, further) -> None:
    """To either side, and one rate past the best; one that lies inside is followed by none."""
    grid = (1e-3, 3e-3, 1e-2) if best == 3e-3 else (1e-3, 1e-2)
    candidate = extended(9, peak(best), grid)
    assert tried(candidate) == [*grid, *further]
    assert candidate.edges(False) == ""
    assert (f"({len(further)} beyond the grid)" in candidate.reason()) == bool(further)


def test_both_edges_are_followed_where_both_are_best() -> None:
    """A dip between two equal ends says nothing about which way to go."""
    candidate = extended(
        9, lambda rate: 0.1 if rate == 3e-3 else 0.5 if 5e-4 < rate < 2e-2 else 0.4, (1e-3, 3e-3, 9e-3)
    )
    assert tried(candidate) == [1e-3, 3e-3, 9e-3, 3.33e-4, 0.027]
    assert candidate.edges(False) == ""


def test_a_plateau_is_followed_nowhere() -> None:
    """Where a rate inside scores as high as the edge, the best is not beyond: all at the majority, for one."""
    assert tried(extended(9, lambda rate: 0.5, (1e-3, 3e-3, 9e-3))) == [1e-3, 3e-3, 9e-3]


def test_where_the_limit_is_reached_the_choice_is_said_to_lie_at_the_edge() -> None:
    """In the table at the end, and in the record of each final run; without a limit to reach nothing is added."""
    candidate = extended(2, peak(1e9))
    assert tried(candidate) == [1e-3, 1e-2, 0.1, 1.0]
    said = "also after the 2 further rates that hydra.sweeper.extend allows"
    assert candidate.note(False) == f"edge of its range, {said}"
    assert candidate.reason().startswith(f"best of 4 (2 beyond the grid, {said}): 0.001: ")
    assert said in choices_table([candidate], sampled=False)
    unlimited = extended(0, peak(1e9))
    assert (tried(unlimited), unlimited.note(False)) == ([1e-3, 1e-2], "edge of its range")


def test_a_rate_that_diverges_bounds_the_best_and_one_that_fails_does_not() -> None:
    """A failure says nothing about its place: it is not passed over, and the choice stays at the edge."""
    for lost, edges in (("diverged", ""), ("failed", "edge of its range")):
        candidate = extended(9, lambda rate: None if rate > 0.5 else peak(1e9)(rate), lost=lost)
        assert tried(candidate) == [1e-3, 1e-2, 0.1, 1.0]
        assert candidate.chosen is candidate.trials[2]
        assert candidate.note(False) == edges


@pytest.mark.parametrize(
    ("status", "score"), [("diverged", 1.0), ("finished", math.nan), ("finished", None), ("failed", None)]
)
def test_a_trial_without_a_sound_score_has_none(status: str, score: float | None) -> None:
    """A diverged trial never wins, whatever it scored before."""
    assert trial(0.1, status, score).score is None


def test_a_drawn_choice_near_the_end_of_its_range_is_flagged() -> None:
    """Of what could be drawn, not only of what was; a grid's last point needs no closeness."""
    trials = [trial(rate, "finished", rate) for rate in (1e-3, 5e-3)]
    candidate = Candidate(["method=lora"], ranges=(RATES,), trials=trials)
    candidate.choose()
    assert "edge of its range" in choices_table([candidate], sampled=False)
    assert "edge" not in choices_table([candidate], sampled=True)
    trials[1].hyperparameters[RATE] = 9.5e-3
    assert "edge of its range" in choices_table([candidate], sampled=True)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_declares_ranges_that_can_be_searched(name: str) -> None:
    """Its default learning rate lies within."""
    method = compose("config", [f"method={name}"]).method
    ranges = ranges_of(method, second=True)
    assert ranges[0].values[0] <= method.learning_rate <= ranges[0].values[-1]
    assert all(len(one.values) == 3 for one in ranges)


def test_what_is_tried_does_not_change_what_a_run_is() -> None:
    """Nor does how it was chosen; where it is stopped does."""

    def named(*overrides: str) -> str:
        return identity(build(compose("config", list(overrides))), {})

    chosen = ["sweep.search=tpe", "sweep.searched=[train.learning_rate]", "sweep.chosen_from='best of 3'"]
    searched = ["method.learning_rates=[1e-6,1]", "method.second_range={alpha:[1,2]}"]
    assert named() == named(*searched, *chosen)
    assert len({named(), named("sweep.stop_share=0.5"), named("sweep.stop_share=0.25")}) == 3


@pytest.mark.slow
def test_a_run_stopped_on_its_way_goes_on_to_the_bits_of_the_whole(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Through two stops; its checkpoint goes when it ends. A stopped run has the score of the steps it took."""
    options = [*tiny_experiment, "train.resume=true"]
    whole = run(prepare(compose("config", options)), tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole/steps.jsonl").read_text().splitlines()]
    scores = [line["development.accuracy"] for line in lines if "development.accuracy" in line]
    # 24 steps, an evaluation every 6: the first past a tenth of them is at 6, past a half of them at 12.
    for share, evaluations in ((0.1, 1), (0.5, 2)):
        folder = tmp_path / f"stopped {share}"
        stopped = run(prepare(compose("config", [*options, f"sweep.stop_share={share}"])), folder)
        assert (stopped.status, stopped.error) == ("stopped", None)
        assert stopped.scores["development"]["accuracy"] == max(scores[:evaluations])
        assert (folder / "steps.jsonl").read_text().count("development.accuracy") == evaluations
        assert Path(stopped.provenance["checkpoint"]).is_file()
    resumed = run(prepare(compose("config", options)), tmp_path / "resumed")
    assert (resumed.status, resumed.scores, resumed.identity) == ("finished", whole.scores, whole.identity)
    assert (tmp_path / "resumed/predictions.parquet").read_bytes() == (
        tmp_path / "whole/predictions.parquet"
    ).read_bytes()
    assert not Path(stopped.provenance["checkpoint"]).exists()


@pytest.mark.slow
def test_a_checkpoint_past_the_stop_is_not_what_a_stopped_run_scores(
    tiny_experiment: list[str], tmp_path: Path
) -> None:
    """As when all points of a sweep are run again beside the checkpoint of one that had gone on."""
    options = [*tiny_experiment, "train.resume=true"]
    first = run(prepare(compose("config", [*options, "sweep.stop_share=0.1"])), tmp_path / "first")
    run(prepare(compose("config", [*options, "sweep.stop_share=0.5"])), tmp_path / "on")
    again = run(prepare(compose("config", [*options, "sweep.stop_share=0.1"])), tmp_path / "again")
    assert (again.scores, again.status) == (first.scores, "stopped")


def test_a_run_without_an_evaluation_left_after_the_stop_just_finishes(
    tiny_experiment: list[str], tmp_path: Path
) -> None:
    """There is nothing to save by stopping at the last step."""
    result = run(prepare(compose("config", [*tiny_experiment, "sweep.stop_share=0.9"])), tmp_path / "run")
    assert result.status == "finished"
