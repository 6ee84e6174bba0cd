"""Configurations of peft's own file formats, as its method comparison and saved adapters hold them.

`adapter_config.json` lists every key of its class, most of them at their defaults, and some that tell of the library or
the base model. What is left of it is what somebody chose.
"""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from harness.config.errors import ConfigError, near_misses
from harness.config.sources import TRAINING_FILE

# What tells of the library, the base model or the task, which the run itself knows.
NOT_OF_METHOD = (
    "peft_type",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
)
# Of a key that a class does not have: what says nothing.
EMPTY: tuple[Any, ...] = (None, {}, [], "none")
# Of a training_params.json: what conf/train/peft_comparison.yaml reads, and what decides no result here: the model is
# chosen apart, adapters always train in float32, and how often a run is evaluated is train's.
TOLD = ("max_steps", "batch_size", "model_id", "eval_steps", "autocast_adapter_dtype")
OPTIMIZER_TOLD = ("lr", "weight_decay")
OTHER_METHODS = {"lora-fa": "method=lora_fa trains so", "lora+": "method=lora_plus trains so"}


def read(path: str, key: str) -> dict[str, Any]:
    """Read an adapter_config.json: `_target_` and the options that differ from the class's defaults.

    A key that this version of peft does not have is dropped if it is empty; `PeftMethod` refuses the others.

    Raises:
        ConfigError: It is no such file, or the training_params.json beside it asks for what no run here does.
    """
    content = _content(Path(path).expanduser(), f"{key}={path}")
    kind = content.get("peft_type")
    classes = _classes()
    if kind not in classes:
        raise ConfigError(f"{key}={path}: peft_type={kind} names no method of peft; {near_misses(str(kind), classes)}")
    _check_training(Path(path).expanduser().parent / TRAINING_FILE)
    cls = classes[kind]
    defaults = default_values(cls)
    options = {
        name: value
        for name, value in content.items()
        if name not in NOT_OF_METHOD
        and not (name in defaults and value == defaults[name])
        and not (name not in defaults and (value is False or value in EMPTY))
    }
    return {"_target_": f"peft.{cls.__name__}", **options}


# peft's key -> ours.
ADALORA = {"init_r": "initial_rank", "target_r": "target_rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
ADALORA |= {"orth_reg_weight": "orthogonality", "deltaT": "interval", "beta1": "beta1", "beta2": "beta2"}
SCHEDULE = {"tinit": "warmup_share", "tfinal": "final_share"}


def adalora_values(path: str, key: str) -> dict[str, Any]:
    """Read an adapter_config.json of AdaLoRA as the values of method=adalora; what it leaves open is left out.

    Raises:
        ConfigError: It is of another class, has no steps to take shares of, or sets what method=adalora has not.
    """
    config = read(path, key)
    target, steps = config.pop("_target_"), config.pop("total_step", None)
    if target != "peft.AdaLoraConfig":
        raise ConfigError(f"{key}={path}: it is of {target}; method=peft takes it")
    if not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"{key}={path}: total_step={steps}: a whole number from 1 on is needed, to take shares of")
    modules = config.pop("target_modules", None)
    more = [name for name in config if name not in {**ADALORA, **SCHEDULE}]
    if more:
        raise ConfigError(f"{key}={path}: {more[0]}={config[more[0]]}: method=adalora has no such option")
    told = default_values(_classes()["ADALORA"]) | config
    found = {ours: told[theirs] for theirs, ours in ADALORA.items()}
    found |= {ours: told[theirs] / steps for theirs, ours in SCHEDULE.items()}
    return found | ({} if modules is None else {"target_modules": modules})


def default_values(cls: type) -> dict[str, Any]:
    """Each key of a configuration class and its default; null for one without."""
    found = {}
    for field in fields(cls):
        made = field.default_factory
        value = made() if made is not MISSING else None if field.default is MISSING else field.default
        found[field.name] = getattr(value, "value", value)
    return found


def _classes() -> dict[str, type]:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    return {str(kind.value): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def _content(path: Path, told: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{told}: the file can't be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{told}: this is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{told}: an object with keys is needed, as peft writes it")
    return content


def _check_training(path: Path) -> None:
    """Refuse training parameters that no run here follows, rather than training otherwise without a word."""
    if not path.is_file():
        return
    content = _content(path, f"method.config_file: {path}")
    optimizer = content.pop("optimizer_type", "AdamW")
    if optimizer != "AdamW":
        advice = OTHER_METHODS.get(str(optimizer), "no run here has this optimizer")
        raise ConfigError(f"method.config_file: {path}: optimizer_type={optimizer}: {advice}")
    told = [f"optimizer_kwargs.{name}" for name in content.pop("optimizer_kwargs", {}) if name not in OPTIMIZER_TOLD]
    told += [name for name, value in content.items() if name not in TOLD and value not in EMPTY]
    if told:
        raise ConfigError(f"method.config_file: {path}: {', '.join(told)}: no run here follows this")
