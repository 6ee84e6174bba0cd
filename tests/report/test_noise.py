"""The scatter of scores is split by its causes as a crossed design allows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_directories import store_of, write_run

from harness.report import scores
from harness.report.noise import _parts, noise, noise_table


def test_the_parts_of_simulated_scores_are_those_that_made_them() -> None:
    """On average over many draws: 0.03 by seed, 0.01 by order, 0.02 by both together; the variances are unbiased."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(400):
        cells = (
            0.8 + 0.03 * draw.normal(size=(6, 1)) + 0.01 * draw.normal(size=(1, 6)) + 0.02 * draw.normal(size=(6, 6))
        )
        found.append(_parts(cells))
    squares = pd.DataFrame(found)[["seed", "data_seed", "both"]].pow(2).mean()
    assert np.sqrt(squares["seed"]) == pytest.approx(0.03, rel=0.1)
    assert np.sqrt(squares["both"]) == pytest.approx(0.02, rel=0.05)
    # Negative estimates are cut off at nothing, which lifts the mean of the smallest a little.
    assert np.sqrt(squares["data_seed"]) == pytest.approx(0.01, rel=0.2)


def test_scores_that_only_the_seed_decides_have_no_other_noise() -> None:
    """And what three runs can tell apart follows from the total: t of 4 degrees of freedom is 2.776."""
    parts = _parts(np.array([[0.7, 0.7, 0.7], [0.8, 0.8, 0.8], [0.9, 0.9, 0.9]]))
    assert parts["seed"] == pytest.approx(0.1)
    assert [parts["data_seed"], parts["both"]] == pytest.approx([0, 0], abs=1e-9)
    assert parts["difference"] == pytest.approx(2.776 * 0.1 * np.sqrt(2 / 3), rel=1e-3)


def test_only_crossed_seeds_are_split(tmp_path: Path) -> None:
    """Seeds that change together say nothing of the causes; a seed with a run missing does not take part."""
    runs = [
        write_run(tmp_path / "runs", method="lora", seed=seed, data_seed=data_seed, score=0.8 + seed / 100)
        for seed in (0, 1, 2)
        for data_seed in (0, 1)
        if (seed, data_seed) != (2, 1)
    ]
    runs += [write_run(tmp_path / "runs", method="full", seed=seed, score=0.9) for seed in (0, 1, 2)]
    found = noise(scores.load(store_of(tmp_path, *runs)))
    assert found["configuration"].tolist() == ["lora"]
    assert (found["seeds"][0], found["data_seeds"][0]) == (2, 2)
    table = noise_table(found)
    assert table is not None
    assert table.rows[0][:3] == ("micro/sentiment", "lora", "2 x 2")
    assert noise_table(found[:0]) is None
