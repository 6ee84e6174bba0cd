"""The checked schema: everything a run was told is right before a model or a data set is loaded."""

import importlib
import logging
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.errors import ConfigError, near_misses
from harness.config.schema import COMPONENTS, LARGEST_SEED, SECTIONS, Distributed, Experiment
from harness.config.sources import register_resolvers

TRUSTED_PACKAGES = ("harness.", "peft.")


def build(cfg: DictConfig) -> Experiment:
    """Check a composed configuration and make its objects; loads no weights and no data.

    Raises:
        ConfigError: All mistakes found, a line each.
    """
    register_resolvers()
    return assemble(resolved(cfg))


def make_section(key: str, values: Any) -> tuple[Any, Any]:
    """The checked object of a section (or of `task`, `method` or a seed) and the same as plain values.

    Raises:
        ConfigError: A value is not allowed.
    """
    if key in SECTIONS:
        made = typed(SECTIONS[key], values, key)
    elif key in COMPONENTS:
        made = component(values, key)
    else:
        made = _seed(values, key)
    return made, _as_plain(made, values)


def assemble(plain: dict[str, Any], make: Callable[[str, Any], tuple[Any, Any]] = make_section) -> Experiment:
    """Check a resolved configuration and make its objects.

    Args:
        plain: The sections as plain values, without Hydra's own.
        make: Makes a section; a sweep that asks for thousands of points makes each different one once.

    Raises:
        ConfigError: All mistakes found, a line each.
    """
    mistakes: list[str] = []
    built: dict[str, Any] = {}
    values: dict[str, Any] = {}
    keys = (*SECTIONS, *COMPONENTS, "seed", "data_seed")
    for key in keys:
        try:
            built[key], values[key] = make(key, plain.get(key))
        except ConfigError as error:
            mistakes.append(str(error))
    mistakes += [f"{key}: no such key; {near_misses(key, keys)}" for key in plain if key not in keys]
    if not mistakes:
        mistakes += check_values(built)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    if built["sweep"].budget is not None:
        sized = built["method"].within_budget(Experiment(**built, resolved={}), plain["method"])
        built["method"], values["method"] = make("method", sized)
    return Experiment(**built, resolved=values)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The sections of a composed configuration as plain values, without Hydra's own.

    Raises:
        ConfigError: A value is missing, or refers to what is not there.
    """
    try:
        if missing := sorted(key for key in OmegaConf.missing_keys(cfg) if not key.startswith("hydra")):
            raise ConfigError("\n".join(f"{key}: a value is needed" for key in missing))
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_sentence(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def _as_plain(checked: Any, given: Any) -> Any:
    """Plain values of a checked object: 1 and 1.0 given for the same number become one, enums their names."""
    if not is_dataclass(checked):
        return checked
    values = OmegaConf.to_container(OmegaConf.structured(checked), enum_to_str=True)
    assert isinstance(values, dict)
    target = {"_target_": given["_target_"]} if "_target_" in given else {}
    return {**target, **{str(key): value for key, value in values.items()}}


def _seed(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_SEED:
        raise ConfigError(f"{key}={value}: a whole number from 0 to {LARGEST_SEED} is allowed")
    return value


def typed(schema: type, values: Any, key: str, check: bool = True) -> Any:
    """Make `schema` (a dataclass) from `values`, every key and type checked.

    Args:
        check: Whether the object checks itself, for which a task may read its files; false for what a run has recorded.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type; the message has the dotted key.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{key}={values!r}: a group of keys is needed here; {near_misses('', _names(schema))}")
    unknown = [name for name in values if name not in _names(schema)]
    if unknown:
        raise ConfigError(f"{key}.{unknown[0]}: no such key; {near_misses(str(unknown[0]), _names(schema))}")
    hints = {field.name: field.type for field in fields(schema)}
    values = {name: _as_list(value, hints[name], f"{key}.{name}") for name, value in values.items()}
    try:
        merged = OmegaConf.merge(_blank(schema, key), {key: values})
        result = OmegaConf.to_object(merged)[key]  # type: ignore[index,call-overload]
    except OmegaConfBaseException as error:
        raise ConfigError(_sentence(error)) from error
    if check and hasattr(result, "check"):
        result.check(key)
    return result


@cache
def _blank(schema: type, key: str) -> DictConfig:
    """The schema below its key, to be merged with values, which copies it; making it takes half of the time."""
    node = OmegaConf.structured(schema)
    OmegaConf.set_readonly(node, False)
    return OmegaConf.create({key: node})


def _as_list(value: Any, hint: Any, key: str) -> Any:
    """A list of texts, where one is meant: one word is a list of one.

    Raises:
        ConfigError: true or false stands in it, which is how YAML reads yes, no, on and off.
    """
    if hint not in (list[str], list[str] | None):
        return value
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and (truths := [one for one in value if isinstance(one, bool)]):
        listed = ", ".join(str(one).lower() if isinstance(one, bool) else str(one) for one in value)
        raise ConfigError(
            f"{key}=[{listed}]: {str(truths[0]).lower()} is no text; YAML reads yes, no, on and off as true and false: "
            'quote each, as in ["yes", "no"]'
        )
    return value


def _names(schema: type) -> list[str]:
    assert is_dataclass(schema)
    return [field.name for field in fields(schema)]


def _sentence(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None)
    text = str(error).split("\n")[0].strip().rstrip(".")
    if "Missing mandatory value" in text:
        text = "a value is needed"
    if "Structured config" in text and "incompatible" in text:
        text = "a value is needed"
    return f"{key}: {text}" if key and not text.startswith(str(key)) else text


def component(values: Any, key: str, check: bool = True) -> Any:
    """Make the object that a YAML file names by `_target_`.

    Only classes of this package and of peft may be named: a configuration is not a way to run any code.

    Args:
        check: As for `typed`.
    """
    if not isinstance(values, dict) or not isinstance(values.get("_target_"), str):
        raise ConfigError(f"{key}={values!r}: choose one, as in {key}={'lora' if key == 'method' else 'glue/sst2'}")
    target = values["_target_"]
    cls = locate(target, f"{key}._target_")
    if not is_dataclass(cls):
        raise ConfigError(f"{key}._target_={target}: a dataclass is needed")
    return typed(cls, {name: value for name, value in values.items() if name != "_target_"}, key, check)


def locate(target: str, key: str) -> type:
    """Find a class by its dotted name, in this package or in peft only.

    Raises:
        ConfigError: The name lies elsewhere, or there is no such class.
    """
    if not target.startswith(TRUSTED_PACKAGES):
        trusted = " and ".join(package[:-1] for package in TRUSTED_PACKAGES)
        raise ConfigError(f"{key}={target}: only classes of {trusted} can be named")
    module_name, _, name = target.rpartition(".")
    # peft imports bitsandbytes, which would tell of a kernel that only some CPUs have.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{key}={target}: there is no module {error.name}") from error
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        valid = [n for n, v in vars(module).items() if isinstance(v, type) and not n.startswith("_")]
        raise ConfigError(f"{key}={target}: there is no such class; {near_misses(name, valid)}")
    return cls


def pack_size(value: Any) -> int | None:
    """The number of runs that `sweep.pack` lets train together; null for auto.

    Raises:
        ConfigError: It is neither a positive whole number nor auto.
    """
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"sweep.pack={value}: a positive whole number or auto is allowed")
    return value


def check_values(built: dict[str, Any]) -> list[str]:
    """Check the ranges of the numbers in the sections, which types cannot express; returns one sentence per mistake."""
    train, evaluate, measure, sweep = (built[name] for name in ("train", "evaluate", "measure", "sweep"))
    positive = {
        "train.learning_rate": train.learning_rate,
        "train.epochs": train.epochs,
        "train.max_steps": train.max_steps,
        "train.batch_size": train.batch_size,
        "train.gradient_accumulation_steps": train.gradient_accumulation_steps,
        "train.pool_batches": train.pool_batches,
        "train.max_grad_norm": train.max_grad_norm,
        "train.processes": train.processes,
        "train.evaluations_per_epoch": train.evaluations_per_epoch,
        "train.early_stopping_patience": train.early_stopping_patience,
        "train.checkpoint_minutes": train.checkpoint_minutes,
        "train.features_gigabytes": train.features_gigabytes,
        "evaluate.batch_size": evaluate.batch_size,
        "forgetting.tokens": built["forgetting"].tokens,
        "measure.latency_batch_size": measure.latency_batch_size,
        "sweep.budget": sweep.budget,
        "sweep.timeout_minutes": sweep.timeout_minutes,
        "sweep.slots_per_gpu": sweep.slots_per_gpu,
    }
    mistakes = [
        f"{key}={value}: a positive number is needed"
        for key, value in positive.items()
        if value is not None and not 0 < value < float("inf")
    ]
    try:
        pack_size(sweep.pack)
    except ConfigError as error:
        mistakes.append(str(error))
    if not 0 <= train.warmup_share <= 1:
        mistakes.append(f"train.warmup_share={train.warmup_share}: a share from 0 to 1 is allowed")
    if train.cache_features and train.distributed is not Distributed.none:
        mistakes.append(
            f"train.cache_features=true: features are cached by runs of one process, and train.distributed="
            f"{train.distributed.value} asks for several; one of the two can be left out"
        )
    if sweep.stop_share is not None and not 0 < sweep.stop_share < 1:
        mistakes.append(f"sweep.stop_share={sweep.stop_share}: a share between 0 and 1 is allowed")
    needed = {
        "train.early_stopping_patience": train.early_stopping_patience,
        "measure.target_score": measure.target_score,
        "sweep.stop_share": sweep.stop_share,
    }
    mistakes += [
        f"{key}={value}: with train.all_rows=true there are no development rows to go by; null is needed"
        for key, value in needed.items()
        if train.all_rows and value is not None
    ]
    if not 0 <= train.weight_decay < float("inf"):
        mistakes.append(f"train.weight_decay={train.weight_decay}: zero or a positive number is allowed")
    return mistakes
