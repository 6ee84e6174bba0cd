"""Bytes, time and energy of training steps on shapes with random weights, and the plan beside them."""

import math
from dataclasses import replace
from typing import Any

import torch
from parts import (
    CONTEXT_BYTES,
    MEMORY,
    Energy,
    Evaluation,
    Setting,
    Step,
    Subject,
    Trainer,
    attach,
    build,
    compose,
    costs,
    free,
    measure,
    random_backbone,
    random_rows,
    recorded,
    shape_of,
    speed,
    text_collator,
    trained_parameters,
)

POINTS = [("1B", method, kept) for method in ("full", "lora", "qlora", "lora_int8") for kept in (False, True)]
POINTS += [("BERT", method, False) for method in ("full", "lora", "houlsby")]
POINTS += [("8B", method, kept) for method in ("qlora", "lora", "lora_int8", "full") for kept in (False, True)]
# The last one is the real shape, whose plan says that it does not fit.
DRY_POINTS = [("1B", "full", False), ("1B", "lora", False), ("1B", "qlora", True), ("1B", "lora_int8", True)]
DRY_POINTS += [("BERT", "lora", False), ("8B", "full", False)]
# What a dry run takes for the memory of the device.
DRY_ROOM = 24 * 10**9
# Rows, and tokens of each.
BATCHES, DRY_BATCH = {"1B": (4, 1024), "8B": (4, 1024), "BERT": (32, 128)}, (2, 64)
STEPS, DRY_STEPS = 10, 2
# The first step makes the optimizer's state, the second is counted.
COUNTED_STEPS = 2


def main(setting: Setting) -> bool:
    done = {_key(line) for line in setting.written("costs") if line["status"] in ("finished", "does not fit")}
    ended_well = True
    for size, method, checkpointing in DRY_POINTS if setting.dry else POINTS:
        point = {"size": size, "method": method, "checkpointing": checkpointing}
        if _key({**point, "device": setting.device_name}) in done:
            continue
        with recorded(setting, "costs", **point) as line:
            _measure(setting, line)
        ended_well &= line["status"] in ("finished", "does not fit")
    return ended_well


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("size", "method", "checkpointing", "device"))


def _measure(setting: Setting, line: dict[str, Any]) -> None:
    device = setting.device
    rows, length = DRY_BATCH if setting.dry else BATCHES[line["size"]]
    steps = DRY_STEPS if setting.dry else STEPS
    classes, stride = (2, []) if line["size"] == "BERT" else (None, ["task.stride=32"])
    experiment = build(
        compose(
            "config",
            [
                *shape_of(line["size"], setting.dry and line["size"] != "8B"),
                f"method={line['method']}",
                f"train.batch_size={rows}",
                f"task.max_length={length}",
                *stride,
                f"train.gradient_checkpointing={line['checkpointing']}",
            ],
        )
    )
    planned, why_not = costs(experiment, Step(rows, length, device.type))
    line |= {"rows": rows, "length": length, "planned": _bytes(planned), "unplanned": why_not}
    room = DRY_ROOM if setting.dry else torch.cuda.mem_get_info()[0]
    if planned["train_peak_bytes"] + CONTEXT_BYTES > room:
        needed = f"{planned['train_peak_bytes'] / 1e9:.1f} GB are planned and {room / 1e9:.1f} GB free"
        line |= {"status": "does not fit", "error": needed}
        return
    backbone = random_backbone(experiment, device, setting.autocast)
    adapter = attach(experiment, backbone, device)
    features = random_rows(backbone.model.config.vocab_size, rows * max(steps, COUNTED_STEPS), length, classes)
    collate = text_collator(device)
    line["weight_bytes"] = measure.weight_bytes(adapter.model)
    energy: list[Any] = []

    def trainer_of(steps: int, metered: bool) -> Trainer:
        """A trainer over all rows; its energy is read before the evaluation, which belongs to no step."""

        def score() -> Evaluation:
            energy.append((counter.joules(), counter.reason))
            subject = Subject(adapter, None, collate, rows, setting.autocast)  # type: ignore[arg-type]
            with subject.computing():
                loss = float(adapter.model(**collate(features, list(range(rows))).inputs).loss)
            return Evaluation({"loss": loss, experiment.task.primary_metric: math.exp(min(loss, 100.0))}, {})

        counter = Energy(device)
        return Trainer(
            adapter=adapter,
            features=features,
            collate=collate,
            settings=replace(experiment.train, max_steps=steps),
            data_seed=0,
            autocast=setting.autocast,
            loss=lambda batch: experiment.task.loss(adapter, batch),
            score=score,
            primary_metric=experiment.task.primary_metric,
            identity="gpu",
            metered=metered,
        )

    counted = trainer_of(COUNTED_STEPS, metered=True)
    counted.fit()
    step = counted.state.step_costs
    planned, _ = costs(experiment, Step(step["rows"], step["length"], device.type))
    line |= {name: step[name] for name in MEMORY if name in step}
    line |= {name: step[name] for name in ("cuda_allocated_bytes", "cuda_reserved_bytes")}
    line |= {"planned": _bytes(planned), "length": step["length"]}
    line["trained"] = sum(p.numel() for p in trained_parameters(adapter).values())
    flops_per_token = step["flops"] / step["padded_tokens"]
    del counted
    free()
    energy.clear()
    timed = trainer_of(steps, metered=False)
    progress = timed.fit()
    line["step_seconds"] = progress.train_seconds / steps
    line["tokens_per_second"] = progress.tokens / progress.train_seconds
    line["flops_per_second"] = flops_per_token * progress.padded_tokens / progress.train_seconds
    line["flops_ceiling"] = speed.flops_ceiling(device, setting.autocast or torch.float32)
    joules, line["no_joules"] = energy[0]
    line["joules_per_step"] = None if joules is None else joules / steps
    line["loss"] = progress.history[-1]["development.loss"]


def _bytes(planned: dict[str, Any]) -> dict[str, Any]:
    return {name: planned[name] for name in MEMORY}
