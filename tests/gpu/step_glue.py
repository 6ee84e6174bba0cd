"""Runs of the harness on real rows, seed by seed over tasks and methods: as many as the time allows."""

import multiprocessing
import os
import time
from dataclasses import asdict
from itertools import product

from parts import RECORDS, Setting, append, compose, prepare, recorded, run

# Epochs each task needs, in the order in which the tasks are wanted.
TASKS = {"glue/cola": 6, "glue/mrpc": 6, "glue/rte": 8, "glue/stsb": 4, "glue/sst2": 3}
MICRO_TASKS = {"micro/acceptability": 4, "micro/paraphrase": 4}
METHODS = ("full", "head", "bitfit", "houlsby", "lora", "ia3")
SEEDS = (1, 2, 3, 4, 5)
# Of SST-2's 67,349 rows.
MOST_ROWS = 10_000
# The encoder's steps are too short to keep a GPU busy; so many processes share it.
LANES = 8


def main(setting: Setting) -> bool:
    done = {line["point"] for line in setting.written("glue") if line["status"] == "finished"}
    waiting = [point for point in points(setting) if _name(point) not in done]
    lanes = 1 if setting.dry else LANES
    # Read by torch as a lane starts: the cores are shared too.
    os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // lanes, 1))
    # CUDA does not outlive a fork.
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_lane, args=(setting, waiting[first::lanes])) for first in range(lanes)]
    for lane in started:
        lane.start()
    for lane in started:
        lane.join()
    last = {line["point"]: line["status"] for line in setting.written("glue")}
    return all(lane.exitcode == 0 for lane in started) and set(last.values()) == {"finished"}


def points(setting: Setting) -> list[tuple[int, str, str]]:
    """Seed, task and method of every point; the first seed of all of them comes before the second of any."""
    tasks = MICRO_TASKS if setting.data is None else TASKS
    if setting.dry:
        return list(product(SEEDS[:1], list(tasks)[:1], ("bitfit", "lora")))
    return list(product(SEEDS, tasks, METHODS))


def _name(point: tuple[int, str, str]) -> str:
    seed, task, method = point
    return f"{task} {method} {seed}"


def _lane(setting: Setting, waiting: list[tuple[int, str, str]]) -> None:
    for point in waiting:
        _run(setting, point)


def _run(setting: Setting, point: tuple[int, str, str]) -> None:
    seed, task, method = point
    folder = setting.work / "glue" / f"{time.time_ns()}"
    overrides = [
        *setting.encoder_overrides,
        f"task={task}",
        f"method={method}",
        f"seed={seed}",
        f"train.epochs={(TASKS | MICRO_TASKS)[task]}",
        f"train.device={setting.device.type}",
        f"train.checkpoint_dir={folder}/checkpoints",
        "train.keep_adapter=false",
        "forgetting.text=null",
        "measure.costs=false",
        "tracking=none",
        "sweep.name=gpu_glue",
    ]
    if setting.data is not None:
        overrides += [f"task.data_dir={setting.data}/{task}", f"task.max_train_rows={MOST_ROWS}"]
    if setting.dry:
        overrides += ["task.max_train_rows=64", "task.max_validation_rows=64", "train.epochs=1"]
    with recorded(setting, "glue", point=_name(point), task=task, method=method, seed=seed) as line:
        record = run(prepare(compose("config", overrides)), folder)
        append(setting.out / RECORDS, asdict(record))
        line |= {"status": str(record.status), "error": record.error, "metric": record.scores["primary_metric"]}
        line["score"] = (record.scores.get("validation") or {}).get(line["metric"])
        line["majority"] = (record.scores.get("majority") or {}).get(line["metric"])
