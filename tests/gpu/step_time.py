"""A step of the harness against a bare loop's, and against transformers' Trainer, on the same batches."""

import copy
import math
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from parts import (
    Evaluation,
    Setting,
    Trainer,
    attach,
    bucketed,
    build,
    compose,
    models,
    random_backbone,
    random_rows,
    recorded,
    shape_of,
    text_collator,
    wait_for,
)
from training_steps import bare_step, harness_step

# The steps of 1B are long: fewer of them are as steady.
BLOCKS, STEPS_A_BLOCK, WARM_UP = 7, {"1B": 5}, 10
SHORT_STEPS_A_BLOCK = 20
DRY_BLOCKS, DRY_STEPS_A_BLOCK, DRY_WARM_UP = 2, 2, 1


def main(setting: Setting) -> bool:
    done = [(line["model"], line["device"]) for line in setting.written("time") if line["status"] == "finished"]
    ended_well = True
    chosen = [("encoder", _encoder), ("1B", _decoder)]
    if not setting.dry:
        chosen.append(("encoder, attention by cuDNN", _encoder_by_cudnn))
    for name, make in chosen:
        if (name, setting.device_name) in done:
            continue
        with recorded(setting, "time", model=name) as line:
            _compare(setting, line, *make(setting))
        ended_well &= line["status"] == "finished"
    return ended_well


def _encoder(setting: Setting) -> tuple[Any, ...]:
    """LoRA on the real encoder and real rows, whose steps are so short that all that is not the model shows."""
    task = ["task=micro/sentiment"]
    if setting.data is not None:
        task = ["task=glue/sst2", f"task.data_dir={setting.data}/glue/sst2", "task.max_train_rows=2000"]
    further = ["tracking=none", "train.epochs=1", f"train.batch_size={8 if setting.dry else 32}"]
    experiment = build(compose("config", [*setting.encoder_overrides, *task, *further]))
    models.quiet_libraries()
    folder = models.resolve(experiment.model)
    configuration = models.load_config(folder, 2, False)
    torch.manual_seed(0)
    backbone = models.load_model(folder, configuration, experiment, setting.autocast or torch.float32)
    tokenizer = models.load_tokenizer(folder, backbone.architecture)
    backbone.model.config.pad_token_id = tokenizer.pad_token_id
    features = experiment.task.encode(experiment.task.load().splits["train"], tokenizer)
    adapter = attach(experiment, backbone, setting.device)
    return (
        experiment,
        adapter,
        features,
        experiment.task.collator(backbone, tokenizer, setting.device),
        setting.autocast,
    )


def _encoder_by_cudnn(setting: Setting) -> tuple[Any, ...]:
    """The same with what torch prefers on its own, and what a run switches off: a plan for each new shape."""
    made = _encoder(setting)
    torch.backends.cuda.enable_cudnn_sdp(True)
    return made


def _decoder(setting: Setting) -> tuple[Any, ...]:
    """LoRA on a Llama shape, whose steps keep a GPU busy."""
    rows, length = (2, 64) if setting.dry else (4, 512)
    overrides = [*shape_of("1B", setting.dry), f"train.batch_size={rows}", f"task.max_length={length}"]
    experiment = build(compose("config", [*overrides, "task.stride=32"]))
    backbone = random_backbone(experiment, setting.device, torch.bfloat16)
    adapter = attach(experiment, backbone, setting.device)
    features = random_rows(backbone.model.config.vocab_size, rows * 64, length)
    return experiment, adapter, features, text_collator(setting.device), torch.bfloat16


def _compare(
    setting: Setting,
    line: dict[str, Any],
    experiment: Any,
    adapter: Any,
    features: list[Any],
    collate: Any,
    autocast: torch.dtype | None,
) -> None:
    device = setting.device
    blocks, steps, warm_up = BLOCKS, STEPS_A_BLOCK.get(line["model"], SHORT_STEPS_A_BLOCK), WARM_UP
    if setting.dry:
        blocks, steps, warm_up = DRY_BLOCKS, DRY_STEPS_A_BLOCK, DRY_WARM_UP
    trainer = Trainer(
        adapter=adapter,
        features=features,
        collate=collate,
        settings=experiment.train,
        data_seed=0,
        autocast=autocast,
        loss=lambda batch: experiment.task.loss(adapter, batch),
        score=lambda: Evaluation({"loss": math.nan}, {}),
        primary_metric=experiment.task.primary_metric,
        identity="gpu",
        metered=False,
    )
    lengths = [row["length"] for row in features]
    count = warm_up + blocks * steps
    order = [rows for epoch in range(count) for rows in bucketed(lengths, experiment.train.batch_size, 0, epoch)][
        :count
    ]
    batches = [collate(features, rows) for rows in order]
    bare, theirs = (copy.deepcopy(adapter.model) for _ in range(2))
    run_step = {
        "harness": harness_step(trainer),
        "bare": bare_step(bare, experiment.train, autocast),
    }
    seconds: dict[str, list[float]] = {name: [] for name in run_step}
    for batch in batches[:warm_up]:
        for step in run_step.values():
            step(batch)
    for number in range(blocks):
        block = batches[warm_up + number * steps :][:steps]
        # Whoever goes second finds the caches warm: they take turns. Within a block a GPU is not waited for.
        for name in sorted(run_step, reverse=number % 2 == 1):
            wait_for(device)
            start = time.perf_counter()
            for batch in block:
                run_step[name](batch)
            wait_for(device)
            seconds[name].append((time.perf_counter() - start) / steps)
    line["rows"] = experiment.train.batch_size
    line["steps"] = blocks * steps
    line["harness_seconds"], line["bare_seconds"] = median(seconds["harness"]), median(seconds["bare"])
    line["against_bare"] = median(ours / plain for ours, plain in zip(*seconds.values(), strict=True))
    line["trainer_seconds"] = _trainer_seconds(setting, theirs, batches, warm_up, autocast)
    # Blocks of one and of the other may see another machine: its own mean against Trainer's.
    mean = sum(seconds["harness"]) / blocks
    line["against_trainer"] = mean / line["trainer_seconds"]


def _trainer_seconds(
    setting: Setting, model: Any, batches: list[Any], warm_up: int, autocast: torch.dtype | None
) -> float:
    """Seconds of a step of transformers' Trainer, which is handed the batches as they are."""
    from transformers import Trainer as TransformersTrainer
    from transformers import TrainerCallback, TrainingArguments

    clock: dict[int, float] = {}

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (warm_up, len(batches)):
                wait_for(setting.device)
                clock[state.global_step] = time.perf_counter()

    class InOrder(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return (batch.inputs for batch in batches)

    arguments = TrainingArguments(
        output_dir=str(Path(setting.work) / "trainer"),
        max_steps=len(batches),
        per_device_train_batch_size=1,
        bf16=autocast is not None,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=10,
        use_cpu=setting.dry,
        dataloader_pin_memory=False,
        accelerator_config={"dispatch_batches": False},
    )
    trainer = TransformersTrainer(
        model=model,
        args=arguments,
        train_dataset=InOrder(),
        data_collator=lambda one: one[0],
        callbacks=[Clock()],
    )
    trainer.train()
    return (clock[len(batches)] - clock[warm_up]) / (len(batches) - warm_up)
