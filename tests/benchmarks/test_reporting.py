"""Ten thousand runs are read and reported on in seconds, held against pandas and matplotlib by themselves.

pytest -m slow -s tests/benchmarks/test_reporting.py
"""

import io
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from run_directories import store_of, write_run

from harness.config.compose import compose
from harness.config.sources import conf_root
from harness.report import __main__ as report
from harness.report import curves, scores
from harness.report import report as report_report
from harness.report.definitions import Definition
from harness.tracking.record import COST_FIELDS

pytestmark = pytest.mark.slow
# As many times what pandas' own reading of the same tables takes, and as many plain figures' time: 79 were seen, and 53
# before each of nine pictures had a dark twin.
READING, RENDERING, PAGE_BYTES = 1.5, 110, 5_000_000
METHODS = sorted(path.stem for path in (conf_root() / "conf/method").glob("*.yaml"))
TASKS, SCORES, SEEDS, ROWS = ("micro/sentiment", "micro/entailment"), 10, 5, 300


def originals(folder: Path) -> list[Path]:
    """Run directories with what a real run leaves: a whole configuration, every cost, curves and predictions."""
    random = np.random.default_rng(0)
    found = []
    for task in TASKS:
        config: Any = OmegaConf.to_container(compose("config", [f"task={task}", "tracking=none"]), resolve=True)
        labels = random.integers(0, 2, ROWS)
        for place in range(SCORES):
            wrong = random.random(ROWS) < 0.05 + 0.04 * place
            steps = [
                {"step": step, "loss": 1 / step, "learning_rate": 1e-3, "tokens_per_second": 2e3}
                | {"development.accuracy": 0.9 - 1 / step, "development.loss": 1 / step}
                for step in range(40, 330, 40)
            ]
            cost = {name: float(random.integers(1000, 10**6)) for name in COST_FIELDS if name != "predicted"}
            cost |= {"latency_ms": {name: {"1": random.random(), "8": 1.0} for name in ("base", "attached", "merged")}}
            after = {"metric": "masked_loss", "before": 3.0, "after": 3.0 + random.random(), "tokens": 4096}
            score = 1 - wrong.mean()
            splits = {
                "validation": {"accuracy": score, "f1": score, "matthews": score},
                "development": {"accuracy": score - 0.01, "loss": 0.4},
                "majority": {"accuracy": 0.5},
                "base": {"accuracy": 0.52},
            }
            run_dir = write_run(
                folder, task=task, cost=cost, steps=steps,
                scores={"primary_metric": "accuracy", **splits, "forgetting": after},
            )  # fmt: skip
            content = json.loads((run_dir / "result.json").read_text())
            content["config"] = config
            (run_dir / "result.json").write_text(json.dumps(content))
            table = {"split": "validation", "idx": range(ROWS), "label": labels, "prediction": labels ^ wrong}
            pd.DataFrame(table).to_parquet(run_dir / "predictions.parquet", index=False)
            found.append(run_dir)
    return found


def copied(uri: str, count: int) -> None:
    """Fill a store with copies of the runs in it, row by row, of other methods, ranks and seeds.

    Sending a run takes a tenth of a second; these are the rows that sending wrote, under other names.
    """
    tables = ("runs", "tags", "params", "metrics", "latest_metrics")
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as store, store:
        sent = [row for (row,) in store.execute("SELECT run_uuid FROM params GROUP BY run_uuid ORDER BY run_uuid")]
        by_task = {task: [] for task in TASKS}  # type: dict[str, list[str]]
        for task, run in store.execute("SELECT value, run_uuid FROM tags WHERE key = 'task' ORDER BY run_uuid"):
            by_task[task].append(run)
        content = {}
        for table in tables:
            names = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
            for run in sent:
                rows = store.execute(f"SELECT {', '.join(names)} FROM {table} WHERE run_uuid = ?", [run]).fetchall()
                content[run, table] = [dict(zip(names, row, strict=True)) for row in rows]
        made: dict[str, list[tuple[Any, ...]]] = {table: [] for table in tables}
        for number in range(count):
            point, seed = divmod(number, SEEDS)
            rank, rest = divmod(point, len(TASKS) * 50)
            method, task = METHODS[rest // len(TASKS)], TASKS[rest % len(TASKS)]
            source = by_task[task][(rank * 7 + rest + seed % 2) % SCORES]
            told = {
                "runs": {"name": f"{method} {task} micro_encoder seed {seed}"},
                "tags": {"method": method, "identity": f"copy {number}", "harness.run_id": f"{number:032x}"},
                "params": {
                    "method.name": method,
                    "method.rank": str(1 + rank),
                    "seed": str(seed),
                    "data_seed": str(seed),
                },
                "metrics": {},
                "latest_metrics": {"cost.trainable_parameters": 1000.0 * (1 + rank) * (1 + rest)},
            }
            for table in tables:
                for row in content[source, table]:
                    changed = row | {"run_uuid": f"copy{number:028x}"}
                    changed |= told[table] if table == "runs" else {"value": told[table].get(row["key"], row["value"])}
                    made[table].append(tuple(changed.values()))
        for run in sent:
            for table in reversed(tables):
                store.execute(f"DELETE FROM {table} WHERE run_uuid = ?", [run])
        for table, rows in made.items():
            names = list(content[sent[0], table][0])
            store.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", rows)


def store_of_copies(folder: Path, count: int) -> str:
    uri = store_of(folder, *originals(folder / "runs"))
    copied(uri, count)
    return uri


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and the seconds that this process computed for it."""
    began = time.process_time()
    found = work()
    return found, time.process_time() - began


def read_by_pandas(uri: str) -> list[pd.DataFrame]:
    """The same tables, by pandas' `read_sql_query` and `pivot`, and every step of every metric."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as store:
        wide = [
            pd.read_sql_query(f"SELECT run_uuid, key, value FROM {table}", store).pivot(index="run_uuid", columns="key")
            for table in ("tags", "params", "latest_metrics")
        ]
        return [*wide, pd.read_sql_query("SELECT * FROM metrics", store)]


def plain_figure() -> None:
    """Two panels of five clouds with a legend, laid out and saved as SVG and PNG by matplotlib alone."""
    figure = Figure(layout="constrained")
    random = np.random.default_rng(0)
    for axes in figure.subplots(1, 2):
        for name in "abcde":
            axes.scatter(random.random(100), random.random(100), label=name)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    for kind in ("svg", "png"):
        figure.savefig(io.BytesIO(), format=kind, dpi=150)


def test_ten_thousand_runs_are_read_and_rendered(tmp_path: Path) -> None:
    """Of a thousand configurations on each of two tasks: read as fast as pandas reads, all rendered as 80 figures."""
    uri = store_of_copies(tmp_path, 10_000)
    by_pandas = median(timed(lambda: read_by_pandas(uri))[1] for _ in range(3))
    (frame, lines), reading = timed(lambda: (scores.load(uri), curves.load(uri)))
    assert len(frame) == 10_000
    assert frame["param.method.rank"].nunique() == 20
    assert len(lines) > 10_000
    plain_figure()
    before = [timed(plain_figure)[1] for _ in range(3)]
    _, rendering = timed(
        lambda: report_report.write(report_report.build(frame, Definition(), lines), tmp_path / "report")
    )
    figure = median([*before, *(timed(plain_figure)[1] for _ in range(3))])
    sizes = {path.name: path.stat().st_size for path in sorted((tmp_path / "report").iterdir())}
    print(
        f"\n10,000 runs, {len(frame.columns)} columns: read in {reading:.1f} s, {reading / by_pandas:.2f} times what "
        f"pandas takes; rendered in {rendering:.1f} s, {rendering / figure:.0f} times a plain figure"
    )
    print(", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items()))
    assert reading < READING * by_pandas
    assert rendering < RENDERING * figure


def test_the_page_of_a_thousand_runs_is_small(tmp_path: Path) -> None:
    """Under five megabytes, plots and their script included."""
    uri = store_of_copies(tmp_path, 1000)
    report.main([f"tracking.uri={uri}", f"out={tmp_path / 'report'}"])
    size = (tmp_path / "report" / "report.html").stat().st_size
    print(f"\nthe page of 1,000 runs: {size / 1e6:.2f} MB")
    assert size < PAGE_BYTES
