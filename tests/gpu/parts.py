"""Parts of the harness that the GPU steps use, gathered in one place, and what they share."""

import fcntl
import gc
import json
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from page import RESULTS, read_lines

from harness import measure, models
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.schema import Experiment, Quantization
from harness.config.versions import installed_versions
from harness.measure import speed
from harness.measure.energy import Energy
from harness.methods import trained_parameters
from harness.methods.skeleton import architecture_of
from harness.models.architectures import Backbone
from harness.models.precision import attend_without_plans, quantization_config
from harness.plan.costs import CONTEXT_BYTES, costs
from harness.run.estimate import Step
from harness.run.inputs import prepare
from harness.run.latency import latency
from harness.run.pipeline import run
from harness.sweep.points import CONSOLE_FILE
from harness.tracking.record import MEMORY, RESULT_FILE, RunRecord, finite
from harness.training.batches import IGNORED, Collator, bucketed
from harness.training.evaluation import Evaluation, Subject
from harness.training.trainer import Trainer

__all__ = [
    "CONSOLE_FILE",
    "CONTEXT_BYTES",
    "IGNORED",
    "MEMORY",
    "RESULT_FILE",
    "Backbone",
    "Collator",
    "ConfigError",
    "Energy",
    "Evaluation",
    "RunRecord",
    "Step",
    "Subject",
    "Trainer",
    "bucketed",
    "build",
    "compose",
    "costs",
    "latency",
    "measure",
    "models",
    "prepare",
    "run",
    "speed",
    "trained_parameters",
]

RECORDS = "records.jsonl"
# Of the tiny shapes of a dry run; all else of them is as in conf/model.
TINY_LLAMA = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
TINY_BERT = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
SHAPES = {"1B": "llama_3_2_1b", "8B": "llama_3_8b", "BERT": "bert_base"}


@dataclass(frozen=True)
class Setting:
    """What every step is told.

    Attributes:
        dry: Tiny sizes on the CPU.
        out: Takes the results.
        work: For files that nobody needs afterwards.
        encoder: Folder of a real pretrained encoder; null for the shipped one of the micro world.
        data: Folder with glue/; null for the tasks of the micro world.
    """

    dry: bool
    out: Path
    work: Path
    encoder: Path | None = None
    data: Path | None = None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def autocast(self) -> torch.dtype | None:
        """What is computed in, as `train.precision=auto` has it; null for float32."""
        return None if self.dry else torch.bfloat16

    @property
    def device_name(self) -> str:
        return platform.machine() if self.dry else torch.cuda.get_device_name()

    @property
    def encoder_overrides(self) -> list[str]:
        return ["model=micro_encoder"] if self.encoder is None else ["model=minilm", f"model.path={self.encoder}"]

    def write(self, step: str, **line: Any) -> None:
        """Add one line to the results, whole, whoever else writes."""
        append(self.out / RESULTS, {"step": step, "device": self.device_name, **line})

    def written(self, step: str) -> list[dict[str, Any]]:
        """What a step has measured so far, also what came back from an earlier start."""
        return [line for line in read_lines(self.out / RESULTS) if line["step"] == step]


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(finite(line)) + "\n")


def environment(setting: Setting) -> dict[str, Any]:
    """Device, driver and versions, for the head of the page."""
    found = {
        "python": platform.python_version(),
        "cores": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "packages": {name: version for name, version in installed_versions().items() if version},
    }
    if setting.dry:
        return found
    import pynvml

    pynvml.nvmlInit()
    properties = torch.cuda.get_device_properties(0)
    return {**found, "driver": pynvml.nvmlSystemGetDriverVersion(), "memory_bytes": properties.total_memory}


def shape_of(size: str, dry: bool) -> list[str]:
    """Overrides that name a shape by its published dimensions, and a task for it; a dry run's is tiny."""
    sizes, task = (TINY_BERT, "micro/sentiment") if size == "BERT" else (TINY_LLAMA, "lm/micro")
    tiny = [f"model.architecture.{name}={value}" for name, value in sizes.items()] if dry else []
    return [f"model={SHAPES[size]}", *tiny, f"task={task}", "tracking=none"]


def random_backbone(experiment: Experiment, device: torch.device, autocast: torch.dtype | None) -> Backbone:
    """A backbone with random weights, drawn on the device as they are computed with, and there packed as is wanted.

    Nothing is read from a disk, and an 8B shape is not drawn by the CPU. transformers packs the weights as it does
    when it loads a checkpoint.
    """
    attend_without_plans()
    configuration, quantization = architecture_of(experiment), models.choose_quantization(experiment)
    dtype = autocast or torch.float32
    torch.manual_seed(experiment.seed)
    drawn = models.empty_model(configuration, experiment.task.kind, quantization, dtype, str(device))
    model = drawn.model
    if quantization is not Quantization.none:
        double = experiment.model.double_quantization
        model = type(drawn.model).from_pretrained(
            None,
            config=configuration,
            state_dict=drawn.model.state_dict(),
            dtype=dtype,
            quantization_config=quantization_config(quantization, drawn.architecture, dtype, double),
        )
        models.keep_trainable(model)
    models.set_checkpointing(model, experiment.train.gradient_checkpointing)
    backbone = replace(drawn, model=model)
    del drawn
    free()  # else the allocator keeps what was drawn, and counts it as reserved
    return backbone


def attach(experiment: Experiment, backbone: Backbone, device: torch.device) -> Any:
    """The method on a backbone, what it trains in float32, as in a run."""
    adapter = experiment.method.attach(backbone)
    for parameter in trained_parameters(adapter).values():
        parameter.data = parameter.data.float()
    adapter.model.to(device)
    return adapter


def random_rows(vocabulary: int, count: int, length: int, classes: int | None = None) -> list[dict[str, Any]]:
    """Encoded rows of random tokens, each a token shorter than the one before: every batch has some padding.

    Their labels are the tokens, or one of so many classes.
    """
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        ids = torch.randint(vocabulary, (length - number % (length // 2),), generator=draw).tolist()
        row = {"input_ids": ids, "attention_mask": [1] * len(ids), "length": len(ids)}
        if classes is None:
            rows.append({**row, "labels": [IGNORED, *ids[1:]], "weight": len(ids) - 1})
        else:
            rows.append({**row, "label": number % classes, "weight": 1})
    return rows


def text_collator(device: torch.device) -> Collator:
    """What pads rows of a language model."""
    pads = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    return Collator(pads, left=False, positions=False, device=device)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def recorded(setting: Setting, step: str, **point: Any) -> Iterator[dict[str, Any]]:
    """Write what a point measured, or why it could not; its memory is free afterwards and the next point goes on."""
    line: dict[str, Any] = {**point, "status": "finished", "error": None}
    start = time.perf_counter()
    try:
        yield line
    except Exception as error:
        out_of_memory = isinstance(error, torch.OutOfMemoryError)
        line["status"] = "out_of_memory" if out_of_memory else "failed"
        line["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        logging.exception("%s %s", step, point)
    line["seconds"] = time.perf_counter() - start
    setting.write(step, **line)
    print(f"{step} {point}: {line['status']} {line['error'] or ''} {line['seconds']:.1f} s", flush=True)
    free()


def free() -> None:
    """Give back memory that nothing refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
