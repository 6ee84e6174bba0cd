"""Schema of a configuration: its sections, their keys and types."""

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Quantization(Enum):
    """Storage of the backbone's linear layers."""

    none = "none"
    int8 = "int8"
    nf4 = "nf4"
    fp4 = "fp4"


class EarlierAdapter(Enum):
    """Ways to put an adapter that `model.path` names on its backbone before the method comes."""

    merged = "merged"
    stacked = "stacked"


class Scheduler(Enum):
    linear = "linear"
    cosine = "cosine"


class Precision(Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Distributed(Enum):
    none = "none"
    ddp = "ddp"
    fsdp = "fsdp"


class TrackingKind(Enum):
    local = "local"
    server = "server"
    none = "none"


class Rerun(Enum):
    none = "none"
    failed = "failed"
    all = "all"


class Stage(Enum):
    run = "run"
    tune = "tune"
    final = "final"


class Search(Enum):
    """Searches of the equal-budget sweeper."""

    grid = "grid"
    random = "random"
    tpe = "tpe"


@dataclass
class ModelConfig:
    """The backbone.

    Attributes:
        name: What reports call it.
        path: A Hub name or a local folder with `config.json`, safetensors weights and a tokenizer, or the `adapter/` of
            an earlier run, which brings its backbone; null for an architecture that can only be planned.
        earlier_adapter: What becomes of an earlier run's adapter: folded into the weights, or left beside them, frozen.
        revision: A Hub branch, tag or commit.
        pretrained: false starts from random weights of the same architecture.
        quantization: none, int8, nf4 or fp4.
        double_quantization: Quantize the scales of 4-bit weights too.
        architecture: Published dimensions, as in a transformers `config.json`, so that the planner needs no download.
    """

    name: str
    path: str | None
    revision: str | None
    pretrained: bool
    quantization: Quantization
    double_quantization: bool
    earlier_adapter: EarlierAdapter
    architecture: dict[str, Any] | None


@dataclass
class TrainConfig:
    """Settings of the training; conf/train/default.yaml explains each key."""

    learning_rate: float
    epochs: float
    max_steps: int | None
    batch_size: int
    gradient_accumulation_steps: int
    scheduler: Scheduler
    warmup_share: float
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: bool
    precision: Precision
    device: Device
    distributed: Distributed
    processes: int | None
    evaluations_per_epoch: int
    early_stopping_patience: int | None
    resume: bool
    checkpoint_dir: str
    checkpoint_minutes: float
    keep_adapter: bool
    all_rows: bool = False
    cache_features: bool = False
    features_dir: str = "runs/features"
    features_gigabytes: float = 20
    pool_batches: int | None = None


@dataclass
class EvaluateConfig:
    validation: bool
    base: bool
    batch_size: int


@dataclass
class ForgettingConfig:
    """Settings of the measurement of forgetting; conf/config.yaml explains each key."""

    text: str | None
    tokens: int


@dataclass
class MeasureConfig:
    """Settings of the measurements beside the scores; conf/config.yaml explains each key."""

    costs: bool
    predict: bool
    latency_batch_size: int
    target_score: float | None


@dataclass
class TrackingConfig:
    kind: TrackingKind
    uri: str | None
    experiment: str
    live: bool


@dataclass
class SweepConfig:
    """Settings of a sweep; conf/config.yaml explains each key."""

    name: str | None
    stage: Stage
    search: Search | None
    searched: list[str] | None
    chosen_from: str | None
    stop_share: float | None
    rerun: Rerun
    budget: float | None
    timeout_minutes: float | None
    fail_fast: bool
    slots_per_gpu: int
    # A positive whole number, or auto.
    pack: Any


@dataclass(frozen=True)
class Experiment:
    """A configuration that was checked; `method` and `task` are objects of the classes their YAML names.

    `resolved` is the same as plain values, for identity and records.
    """

    model: ModelConfig
    task: Any
    method: Any
    train: TrainConfig
    evaluate: EvaluateConfig
    forgetting: ForgettingConfig
    measure: MeasureConfig
    tracking: TrackingConfig
    sweep: SweepConfig
    seed: int
    data_seed: int
    resolved: dict[str, Any]

    @property
    def untouched(self) -> str:
        """Why the run scores no validation row; empty where it does."""
        if self.train.all_rows:
            return "train.all_rows=true: no row is left to score"
        return "" if self.evaluate.validation else "evaluate.validation=false: this trial only chooses hyper-parameters"


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "forgetting": ForgettingConfig,
    "measure": MeasureConfig,
    "tracking": TrackingConfig,
    "sweep": SweepConfig,
}
COMPONENTS = ("task", "method")
LARGEST_SEED = 2**32 - 1
