"""Latency of a 1B Llama shape alone, with an adapter, and with it merged; and what swapping adapters takes."""

import time
from statistics import median
from typing import Any

from parts import (
    Setting,
    Subject,
    attach,
    build,
    compose,
    latency,
    random_backbone,
    random_rows,
    recorded,
    shape_of,
    text_collator,
    wait_for,
)

METHODS, DRY_METHODS = ("lora", "ia3", "houlsby"), ("lora", "houlsby")
SIZES, LENGTH, SECONDS, SWAPS = (1, 8), 128, 6.0, 5
DRY_LENGTH, DRY_SECONDS, DRY_SWAPS = 32, 0.2, 2


def main(setting: Setting) -> bool:
    done = {(line["method"], line["device"]) for line in setting.written("latency") if line["status"] == "finished"}
    ended_well = True
    for method in DRY_METHODS if setting.dry else METHODS:
        if (method, setting.device_name) in done:
            continue
        with recorded(setting, "latency", size="1B", method=method) as line:
            _measure(setting, line)
        ended_well &= line["status"] == "finished"
    return ended_well


def _measure(setting: Setting, line: dict[str, Any]) -> None:
    device = setting.device
    length, seconds, swaps = (DRY_LENGTH, DRY_SECONDS, DRY_SWAPS) if setting.dry else (LENGTH, SECONDS, SWAPS)
    overrides = [*shape_of("1B", setting.dry), f"method={line['method']}", f"task.max_length={length}"]
    experiment = build(compose("config", [*overrides, "task.stride=16"]))
    backbone = random_backbone(experiment, device, setting.autocast)
    adapter = attach(experiment, backbone, device)
    rows = random_rows(backbone.model.config.vocab_size, 1, length)
    collate = text_collator(device)
    line["swap_ms"], adapter = _swap(setting, experiment, backbone, adapter, swaps)
    batches = [collate(rows, [0] * size) for size in SIZES]
    subject = Subject(adapter, None, collate, max(SIZES), setting.autocast)  # type: ignore[arg-type]
    with subject.computing():
        # Merges last, which uses the adapter up.
        timed = latency(adapter, batches, seconds, device)
    line |= {"length": length, "latency_ms": timed.milliseconds, "missing": timed.missing, "repeats": timed.repeats}


def _swap(setting: Setting, experiment: Any, backbone: Any, adapter: Any, swaps: int) -> tuple[float, Any]:
    """Median milliseconds of taking an adapter off and putting a saved one on, and that one."""
    folder = setting.work / f"adapter_{experiment.method.name}"
    folder.mkdir()
    adapter.save(folder)
    seconds = []
    for _ in range(swaps):
        wait_for(setting.device)
        start = time.perf_counter()
        adapter.detach()
        adapter = experiment.method.restore(backbone, folder)
        adapter.model.to(setting.device)
        wait_for(setting.device)
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds), adapter
