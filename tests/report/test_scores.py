"""The store becomes frames whose numbers can be checked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_directories import store_of, write_run

from harness.report import labels, predicted, scores, tables
from harness.report import tuning as report_tuning
from harness.report.cells import NONE
from harness.tracking.record import MEMORY


def frame_of(tmp_path: Path, *run_dirs: Path) -> pd.DataFrame:
    return scores.load(store_of(tmp_path, *run_dirs))


def test_a_run_is_a_row(tmp_path: Path) -> None:
    """Tags, primary metric, parameters and metrics of a run are columns with the documented names."""
    frame = frame_of(tmp_path, write_run(tmp_path / "runs", seed=3, options={"rank": 8}), write_run(tmp_path / "runs"))
    row = frame.iloc[0]
    assert len(frame) == 2
    assert (row["task"], row["method"], row["model"], row["seed"]) == ("micro/sentiment", "lora", "micro_encoder", 3)
    assert (row["validation"], row["development"], row["majority"]) == (0.9, 0.8, 0.5)
    assert (row["param.method.rank"], row["cost.train_seconds"], row["newest"]) == ("8", 10, True)
    assert row["started_at"] == pd.Timestamp("2026-11-01T10:00:00Z")


def test_only_the_sweep_that_was_asked_for_is_read(tmp_path: Path) -> None:
    """Runs of another sweep, or of none, stay out."""
    uri = store_of(tmp_path, *(write_run(tmp_path / "runs", sweep=sweep) for sweep in ("a", "b", None)))
    assert list(scores.load(uri, "b")["sweep"]) == ["b"]
    assert scores.load(uri, "c").empty


def test_the_main_table_agrees_with_numpy(tmp_path: Path) -> None:
    """Mean, sample standard deviation, n, share and mean costs are those computed by hand."""
    values = [0.81, 0.86, 0.79]
    runs = [
        write_run(tmp_path / "runs", seed=seed, score=value, cost={"train_seconds": 10.0 + seed})
        for seed, value in enumerate(values)
    ]
    [row, majority] = scores.summary(frame_of(tmp_path, *runs)).to_dict("records")
    assert (row["configuration"], row["n"]) == ("lora", 3)
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["std"] == pytest.approx(np.std(values, ddof=1))
    assert (row["train_seconds"], row["share"]) == (pytest.approx(11), pytest.approx(0.05))
    assert (majority["configuration"], majority["mean"]) == ("majority class", 0.5)


def test_rows_are_named_by_what_differs(tmp_path: Path) -> None:
    """A swept rank or another model makes a row of its own; seeds, stages and the covarying alpha do not."""
    runs = tmp_path / "runs"
    frame = frame_of(
        tmp_path,
        *(write_run(runs, seed=seed, options={"rank": rank, "alpha": 2 * rank}) for seed in (0, 1) for rank in (4, 8)),
        write_run(runs, options={"rank": 8, "alpha": 16}, model="other"),
        write_run(runs, method="full"),
    )
    assert sorted(set(labels.label(frame))) == [
        "full",
        "lora model=micro_encoder rank=4",
        "lora model=micro_encoder rank=8",
        "lora model=other rank=8",
    ]


def test_a_list_of_words_is_named_as_it_is_typed(tmp_path: Path) -> None:
    """Where nothing else could look the same."""
    lists = (["mlp"], ["query", "value"], ["query,value"], [".*\\.q"], [1, 2], [])
    runs = [write_run(tmp_path / "runs", options={"modules": modules}) for modules in lists]
    assert set(labels.label(frame_of(tmp_path, *runs))) == {
        "lora modules=mlp",
        "lora modules=query,value",
        'lora modules=["query,value"]',
        'lora modules=[".*\\\\.q"]',
        "lora modules=[1, 2]",
        "lora modules=none",
    }


def test_what_tuning_chose_names_a_row_only_where_nothing_else_does(tmp_path: Path) -> None:
    """Each size of an adapter at its own best rate is known by its size; two chosen rates of one size are two rows."""
    runs = tmp_path / "runs"
    chosen = {"wide": 1e-3, "narrow": 2e-3}

    def final(target: str, **changes: Any) -> Path:
        rate = {"learning_rate": chosen[target]}
        return write_run(runs, options={"modules": target}, **{"stage": "final", **rate, **changes})

    finals = [final(target, seed=seed) for target in chosen for seed in (0, 1)]
    assert set(labels.label(frame_of(tmp_path, *finals))) == {"lora modules=narrow", "lora modules=wide"}
    assert set(labels.label(frame_of(tmp_path, *finals, final("wide", learning_rate=5e-3)))) == {
        "lora modules=narrow learning_rate=0.002",
        "lora modules=wide learning_rate=0.001",
        "lora modules=wide learning_rate=0.005",
    }
    # Asked about, both being told apart by either.
    grid = [write_run(runs, learning_rate=rate, options={"modules": name}) for name, rate in chosen.items()]
    assert set(labels.label(frame_of(tmp_path, *grid))) == {"lora learning_rate=0.001", "lora learning_rate=0.002"}


def test_collapsed_diverged_and_failed_runs_are_counted(tmp_path: Path) -> None:
    """A run at the majority class counts into the mean and as collapsed; one without a score only in its column."""
    runs = tmp_path / "runs"
    frame = frame_of(
        tmp_path,
        write_run(runs, seed=0, score=0.9),
        write_run(runs, seed=1, score=0.5),
        write_run(runs, seed=2, status="diverged", error="the loss is nan"),
        write_run(runs, seed=3, status="failed", error="no memory"),
        write_run(runs, seed=4, score=float("nan")),
    )
    row = scores.summary(frame).iloc[0]
    assert (row["n"], row["mean"]) == (2, pytest.approx(0.7))
    assert (row["collapsed"], row["diverged"], row["failed"]) == (1, 1, 1)
    assert list(scores.failures(frame)["error"]) == ["the loss is nan", "no memory"]


def test_a_point_counts_once(tmp_path: Path) -> None:
    """Of several runs of one identity the newest counts, also when it failed."""
    runs = tmp_path / "runs"
    frame = frame_of(
        tmp_path,
        write_run(runs, identity="a", score=0.9),
        write_run(runs, identity="a", score=0.7),
        write_run(runs, identity="b", score=0.8),
        write_run(runs, identity="b", status="failed", error="why"),
    )
    row = scores.summary(frame).iloc[0]
    assert (row["n"], row["mean"], row["failed"]) == (1, 0.7, 1)


def test_a_method_of_which_every_run_failed_keeps_its_row(tmp_path: Path) -> None:
    """It has n=0 and no score, and stands last."""
    runs = tmp_path / "runs"
    failed = write_run(runs, method="head", status="failed", error="why")
    summary = scores.summary(frame_of(tmp_path, failed, write_run(runs)))
    assert list(summary["configuration"]) == ["lora", "head", "majority class"]
    assert (summary.iloc[1]["n"], np.isnan(summary.iloc[1]["mean"])) == (0, True)


def test_where_lower_is_better_the_lowest_stands_first(tmp_path: Path) -> None:
    """In the main table, and as the best trial."""

    def scored(method: str, value: float, stage: str, rate: float = 1e-3) -> Path:
        split = "development" if stage == "tune" else "validation"
        found = {"primary_metric": "perplexity", split: {"perplexity": value}, "base": {"perplexity": 5.0}}
        return write_run(tmp_path / "runs", method=method, stage=stage, learning_rate=rate, scores=found)

    runs = [scored("full", 3.0, "final"), scored("lora", 2.0, "final")]
    runs += [scored("lora", 2.5, "tune"), scored("lora", 2.2, "tune", 1e-2)]
    frame = frame_of(tmp_path, *runs)
    summary = scores.summary(frame)
    assert list(summary["configuration"]) == ["lora", "full"]
    assert list(summary["base"]) == [5.0, 5.0]
    tuning = report_tuning.tuning(frame).iloc[0]
    assert (tuning["best"], tuning["worst"], tuning["chosen"], tuning["edge"]) == (2.2, 2.5, 0.01, "highest")


def test_tuning_is_kept_apart(tmp_path: Path) -> None:
    """Trials make the tuning table with best, median, worst and edge; only final runs make the main one."""
    runs = tmp_path / "runs"
    trials = [
        write_run(runs, stage="tune", learning_rate=rate, development=score, score=None)
        for rate, score in ((1e-4, 0.6), (1e-3, 0.7), (1e-2, 0.9))
    ]
    trials.append(write_run(runs, stage="tune", learning_rate=1e-1, status="diverged", error="nan"))
    final = [write_run(runs, stage="final", learning_rate=1e-2, seed=seed, score=0.8 + seed / 10) for seed in (0, 1)]
    frame = frame_of(tmp_path, *trials, *final)
    [row] = report_tuning.tuning(frame).to_dict("records")
    assert (row["configuration"], row["trials"], row["without_score"]) == ("lora", 4, 1)
    assert (row["best"], row["median"], row["worst"]) == (0.9, 0.7, 0.6)
    assert (row["chosen"], row["edge"], row["used"]) == (0.01, "", "0.01")
    assert row["grid"] == "0.0001 0.001 0.01 0.1"
    summary = scores.summary(frame)
    assert (summary.iloc[0]["configuration"], summary.iloc[0]["n"], summary.iloc[0]["split"]) == (
        "lora",
        2,
        "validation",
    )


def test_a_choice_at_the_end_of_its_grid_is_flagged(tmp_path: Path) -> None:
    """The best learning rate being the lowest tried says that the grid may be too short."""
    runs = tmp_path / "runs"
    trials = [
        write_run(runs, stage="tune", learning_rate=rate, development=score)
        for rate, score in ((1e-4, 0.9), (1e-3, 0.7), (1e-2, 0.6))
    ]
    frame = frame_of(tmp_path, *trials)
    assert list(report_tuning.tuning(frame)["edge"]) == ["lowest"]
    assert scores.summary(frame).empty


def test_drawn_trials_are_held_against_the_range_they_were_drawn_from(tmp_path: Path) -> None:
    """The best of the drawn rates is flagged where it lies near an end of what could be drawn; stopped ones count."""
    runs, search = tmp_path / "runs", {"search": "random", "searched": ["train.learning_rate"]}
    found = {}
    for best in (5e-4, 9.6e-4):
        trials = [
            write_run(runs, stage="tune", learning_rate=rate, development=score, search=search, sweep=str(best))
            for rate, score in ((2e-4, 0.6), (3e-4, 0.7), (best, 0.9))
        ]
        # A trial that was stopped has a score so far, and one that then went on has two records.
        trials += [
            write_run(runs, stage="tune", learning_rate=rate, status="stopped", search=search, sweep=str(best))
            for rate in (best, 2.5e-4)
        ]
        place = tmp_path / str(best)
        place.mkdir()
        frame = frame_of(place, *trials)
        assert scores.failures(frame).empty
        [found[best]] = report_tuning.tuning(frame).to_dict("records")
    assert [row["edge"] for row in found.values()] == ["", "highest"]
    row = found[5e-4]
    assert (row["search"], row["trials"], row["stopped"], row["without_score"]) == ("random", 4, 1, 0)
    assert (row["best"], row["median"], row["worst"]) == (0.9, 0.7, 0.6)
    table = report_tuning.tuning_table(report_tuning.tuning(frame))
    assert table is not None
    assert table.rows[0][-1] == "highest of its range: the best may lie beyond; 1 stopped on the way"


def test_what_stopping_trials_saved_is_told_in_tokens(tmp_path: Path) -> None:
    """A trial that went on counts once, with its last record; where one record lacks its tokens nothing is claimed."""
    runs, quarter = tmp_path / "runs", {"train_seconds": 2.5, "tokens_per_second": 2000.0}
    trials = [write_run(runs, stage="tune", learning_rate=rate, development=rate) for rate in (0.2, 0.4)]
    trials += [
        write_run(runs, stage="tune", learning_rate=rate, status="stopped", cost=quarter) for rate in (0.1, 0.2, 0.3)
    ]
    frame = frame_of(tmp_path, *trials)
    found = report_tuning.tuning(frame)
    [row] = found.to_dict("records")
    assert (row["trials"], row["stopped"]) == (4, 2)
    assert row["spent"] == pytest.approx((1 + 1 + 0.25 + 0.25) / 4)
    table = report_tuning.tuning_table(found)
    assert table is not None
    assert "2 stopped on the way, 62% of the tokens of whole trials" in table.rows[0][-1]
    frame.loc[frame["param.train.learning_rate"] == "0.1", "cost.train_seconds"] = float("nan")
    assert report_tuning.tuning(frame)["spent"].isna().all()


def test_rates_beyond_the_declared_grid_are_counted_and_a_failed_one_is_no_edge(tmp_path: Path) -> None:
    """Declared are 1e-4 and 1e-3; of the rates past them 1e-1 failed and bounds nothing."""
    trials = [
        write_run(tmp_path / "runs", stage="tune", learning_rate=rate, development=score)
        for rate, score in ((1e-4, 0.6), (1e-3, 0.7), (1e-2, 0.9))
    ]
    trials.append(write_run(tmp_path / "runs", stage="tune", learning_rate=1e-1, status="failed", error="why"))
    [row] = report_tuning.tuning(frame_of(tmp_path, *trials)).to_dict("records")
    assert (row["trials"], row["beyond"], row["chosen"], row["edge"]) == (4, 2, 1e-2, "highest")


def test_a_second_range_makes_one_row_of_trials(tmp_path: Path) -> None:
    """Points that differ in it are trials of one configuration, and the choice names both."""
    runs, search = tmp_path / "runs", {"search": "grid", "searched": ["train.learning_rate", "method.alpha"]}
    trials = [
        write_run(runs, stage="tune", learning_rate=rate, development=score, search=search, options={"alpha": alpha})
        for rate, alpha, score in ((1e-4, 4, 0.6), (1e-4, 16, 0.7), (1e-3, 4, 0.8), (1e-3, 16, 0.75))
    ]
    final = write_run(runs, stage="final", learning_rate=1e-3, search=search, options={"alpha": 4}, seed=1)
    [row] = report_tuning.tuning(frame_of(tmp_path, *trials, final)).to_dict("records")
    assert (row["configuration"], row["trials"]) == ("lora", 4)
    assert (row["chosen"], row["chosen_second"], row["used"]) == (1e-3, "alpha=4", "0.001")


def test_control_characters_are_removed() -> None:
    """A text that a terminal would obey becomes one plain line."""
    assert scores.plain("red \x1b[31m\nnext\tline\x00") == "red [31m next line"


def test_costs_are_means_over_the_runs_of_a_row(tmp_path: Path) -> None:
    """What no run measured is missing, and a run that did not finish counts nowhere."""
    runs = [
        write_run(tmp_path / "runs", seed=0, cost={"activation_bytes": 100, "latency_ms": {"base": {"1": 2.0}}}),
        write_run(tmp_path / "runs", seed=1, cost={"activation_bytes": 300, "latency_ms": {"base": {"1": 4.0}}}),
        write_run(tmp_path / "runs", seed=2, status="failed", cost={"activation_bytes": 10_000}),
    ]
    [row] = scores.costs(frame_of(tmp_path, *runs)).to_dict("records")
    assert (row["activation_bytes"], row["base"]) == (200, 3)
    assert np.isnan(row["merged"])


def test_predictions_are_held_against_what_was_measured(tmp_path: Path) -> None:
    """A row is the run whose peak was predicted worst; runs without a prediction are left out."""
    measured = dict.fromkeys(MEMORY, 100)
    runs = [
        write_run(tmp_path / "runs", seed=0, cost={**measured, "predicted": measured}),
        write_run(tmp_path / "runs", seed=1, cost={**measured, "predicted": {**measured, "train_peak_bytes": 95}}),
        write_run(tmp_path / "runs", seed=2, cost=measured),
    ]
    [row] = predicted.predictions(frame_of(tmp_path, *runs)).to_dict("records")
    assert row["deviation.train_peak_bytes"] == pytest.approx(-0.05)
    assert row["deviation.weight_bytes"] == 0
    assert predicted.predictions(frame_of(tmp_path, runs[2])).empty


def test_a_row_that_trained_on_cached_features_is_named_so(tmp_path: Path) -> None:
    """Its costs are not those of the rows beside it; a run that found nothing to cache is one as ever."""
    runs = [
        write_run(tmp_path, "head", cost={"features_bytes": 10**6, "features_seconds": 3}, cached_features=told)
        for told in ({"used": True, "behind": "encoder.layer.5"}, {"used": True, "behind": "encoder.layer.5"})
    ]
    runs.append(
        write_run(
            tmp_path,
            "lora",
            cost={"step_seconds": 0.1},
            cached_features={"used": False, "reason": "it trains everywhere"},
        )
    )
    frame = frame_of(tmp_path, *runs)
    assert set(scores.summary(frame)["configuration"]) >= {"head cache_features=true", "lora"}
    [table] = tables.cost_tables(scores.costs(frame))
    assert table.columns[-2:] == ("features", "s features")
    assert [row[-1] for row in table.rows] == ["3.0", NONE]
    assert "not to be held against" in table.caption
    [without] = tables.cost_tables(scores.costs(frame[frame["method"] == "lora"]))
    assert "features" not in without.columns
