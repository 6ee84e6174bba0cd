"""Time of a sweep that has nothing left to do.

python -m pytest -m slow -s tests/benchmarks/test_sweep_resume.py
"""

import random
import sqlite3
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from run_directories import write_run

from harness import tracking
from harness.__main__ import register_plugins, run_point
from harness.config.compose import without_hydra
from harness.config.sources import conf_root
from harness.run import Identities, identify
from harness.sweep import sweepers
from harness.sweep.outcome import gathering
from harness.sweep.resolve import Resolution
from harness.tracking.record import COST_FIELDS

pytestmark = pytest.mark.slow

SWEEP = [
    "method=lora,full,bitfit,head,ia3",
    "task=micro/sentiment,micro/entailment",
    "train.learning_rate=1e-4,2e-4,3e-4,4e-4,5e-4,1e-3,2e-3,3e-3,4e-3,5e-3",
    "seed=range(0,100)",
]
POINTS = 10_000
SAMPLE = 20
# Of the time in which Hydra composes as many points.
SHARE = 0.01
NAME = "sweep.name='multirun'"


def fill(store: Path, identities: list[str], folder: Path) -> None:
    """Send one finished run, and copy its rows in the database for the others."""
    run_dir = write_run(folder, sweep="multirun", identity=identities[0], cost=dict.fromkeys(COST_FIELDS, 1.0))
    tracking.send(run_dir, f"sqlite:///{store}", "peft-harness")
    with closing(sqlite3.connect(store)) as connection:
        (first,) = connection.execute("SELECT run_uuid FROM tags WHERE key = 'identity'").fetchone()
        others = [(uuid.uuid4().hex, identity) for identity in identities[1:]]
        connection.execute("CREATE TEMP TABLE others (run_uuid, identity)")
        connection.executemany("INSERT INTO others VALUES (?, ?)", others)
        for table in ("runs", "tags", "params", "latest_metrics", "metrics"):
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[1] != "run_uuid"]
            # The two tags that are a run's own; everything else is alike.
            own = "CASE r.key WHEN 'identity' THEN o.identity WHEN 'harness.run_id' THEN o.run_uuid ELSE r.value END"
            taken = [own if (table, name) == ("tags", "value") else f"r.{name}" for name in names]
            connection.execute(
                f"INSERT INTO {table} (run_uuid, {', '.join(names)}) "
                f"SELECT o.run_uuid, {', '.join(taken)} FROM others o CROSS JOIN {table} r WHERE r.run_uuid = ?",
                [first],
            )
        connection.commit()


def test_ten_thousand_finished_points_are_skipped_in_a_hundredth_of_composing_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the processor's time, with the store asked once; imports of libraries are not counted."""
    register_plugins()
    asked: list[int] = []
    finished = tracking.finished

    def counted(*given: Any, **named: Any) -> Any:
        asked.append(1)
        return finished(*given, **named)

    with initialize_config_dir(str(conf_root() / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", SWEEP, RunMode.MULTIRUN)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        resolution, identities = Resolution(loader, master), Identities()
        told = [[NAME, *overrides] for overrides in sweepers.grid(None, SWEEP, context)]
        known = [identities(resolution.plain(overrides)) for overrides in told]
        assert len(set(known)) == POINTS
        processor = time.process_time()
        for number in random.Random(0).sample(range(POINTS), SAMPLE):
            assert identify(without_hydra(loader.load_sweep_config(master, told[number]))) == known[number]
        composing = (time.process_time() - processor) / SAMPLE * POINTS
        fill(tmp_path / "mlflow.db", known, tmp_path / "first")

        monkeypatch.setattr(tracking, "finished", counted)
        plugin = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=run_point, config=master)
        processor, clock = time.process_time(), time.perf_counter()
        with gathering() as outcomes:
            plugin.sweep(SWEEP)
        seconds = time.process_time() - processor
    shown = capsys.readouterr()
    with capsys.disabled():
        print(
            f"\n{POINTS} points skipped in {seconds:.1f} s ({time.perf_counter() - clock:.1f} by the clock)", end="; "
        )
        print(f"{seconds / composing:.2%} of the {composing:.0f} s in which Hydra composes them")
    assert f"{POINTS} of {POINTS} points have their result in the store" in shown.err
    assert len(asked) == 1
    assert all(outcome.skipped and outcome.status == "finished" for outcome in outcomes)
    assert seconds < SHARE * composing
