"""LoRA points in one pack against one at a time, and against as many processes that share the device."""

import multiprocessing
import time
from typing import Any

import torch
from packed_steps import PackedSteps
from parts import Setting, build, compose, random_backbone, random_rows, recorded, shape_of, text_collator, wait_for

# Published shapes of about so many parameters: layers, width, width of the feed-forward block, heads, key heads.
SHAPES = {
    "0.1B": (12, 768, 2048, 12, 12),
    "0.5B": (24, 896, 4864, 14, 2),
    "1.5B": (28, 1536, 8960, 12, 2),
}
VOCABULARY, ROWS, LENGTH, SECONDS, DRY_SECONDS = 32000, 8, 128, 2.0, 0.2
POINTS, DRY_POINTS, SHARED = (1, 2, 4, 8), (1, 2), {"0.5B": (2, 4)}


def main(setting: Setting) -> bool:
    done = {
        (line["size"], line["points"], line["how"])
        for line in setting.written("packed")
        if line["status"] == "finished" and line["device"] == setting.device_name
    }
    ended_well = True
    sizes = ["0.1B"] if setting.dry else list(SHAPES)
    for size in sizes:
        for points in DRY_POINTS if setting.dry else POINTS:
            if (size, points, "packed") not in done:
                with recorded(setting, "packed", size=size, points=points, how="packed") as line:
                    _compare(setting, line)
                ended_well &= line["status"] == "finished"
        for points in (2,) if setting.dry else SHARED.get(size, ()):
            if (size, points, "slots") not in done:
                with recorded(setting, "packed", size=size, points=points, how="slots") as line:
                    line["point_steps_per_second"] = _share(setting, size, points)
                ended_well &= line["status"] == "finished"
    return ended_well


def _made(setting: Setting, size: str, points: int) -> tuple[PackedSteps, Any]:
    """Points on a backbone of that size with random weights, and a batch."""
    layers, width, inner, heads, key_heads = (2, 64, 128, 4, 2) if setting.dry else SHAPES[size]
    rows, length = (2, 32) if setting.dry else (ROWS, LENGTH)
    dimensions = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": 256 if setting.dry else VOCABULARY,
    }
    changed = [f"++model.architecture.{name}={value}" for name, value in dimensions.items()]
    drop = ["++model.architecture.head_dim=null"]
    told = [*shape_of("1B", setting.dry), *changed, *drop, f"train.batch_size={rows}", f"task.max_length={length}"]
    experiment = build(compose("config", [*told, "task.stride=16"]))
    backbone = random_backbone(experiment, setting.device, setting.autocast)
    features = random_rows(dimensions["vocab_size"], rows * 4, length)
    collate = text_collator(setting.device)
    made = PackedSteps(experiment, backbone, features, collate, setting.autocast, points)
    return made, collate(features, list(range(rows)))


def _compare(setting: Setting, line: dict[str, Any]) -> None:
    """Steps of points a second, packed and one at a time in turns, and the memory of each."""
    made, batch = _made(setting, line["size"], line["points"])
    line["parameters"] = sum(p.numel() for p in made.pack.model.parameters()) if made.pack else None
    for name, step in (("packed", made.packed), ("alone", made.one_at_a_time)):
        for _ in range(3):
            step(batch)
        if setting.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        line[f"{name}_steps_per_second"] = line["points"] * _rate(setting, lambda step=step: step(batch))
        peak = torch.cuda.max_memory_allocated() if setting.device.type == "cuda" else None
        line[f"{name}_peak_bytes"] = peak


def _rate(setting: Setting, step: Any) -> float:
    """Calls a second."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < (DRY_SECONDS if setting.dry else SECONDS):
        step()
        wait_for(setting.device)
        count += 1
    return count / (time.perf_counter() - start)


def _share(setting: Setting, size: str, points: int) -> float:
    """Steps of points a second of as many processes, all at once, as `sweep.slots_per_gpu` has them."""
    # A dry run's are forked, which saves their imports; a process that has used a GPU can't be.
    context: Any = multiprocessing.get_context("fork" if setting.dry else "spawn")
    ready, rates = context.Barrier(points), context.SimpleQueue()
    processes = [context.Process(target=_one, args=(setting, size, ready, rates)) for _ in range(points)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"of {points} processes, {sum(bool(p.exitcode) for p in processes)} failed")
    return sum(rates.get() for _ in processes)


def _one(setting: Setting, size: str, ready: Any, rates: Any) -> None:
    if setting.dry:
        torch.set_num_threads(1)  # those of the parent are not there
    made, batch = _made(setting, size, 1)
    for _ in range(3):
        made.one_at_a_time(batch)
    ready.wait(120)
    rates.put(_rate(setting, lambda: made.one_at_a_time(batch)))
