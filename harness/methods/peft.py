"""Methods that the peft library implements, attached through its own configuration classes."""

import re
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from harness.config.build import locate
from harness.config.errors import ConfigError, near_misses
from harness.methods import peft_files
from harness.methods.peft_adapter import INITS, PeftBased, is_transposed, quiet
from harness.methods.peft_counts import matches, width
from harness.methods.peft_inner import config_classes
from harness.methods.peft_rules import LEFT_OUT, PROJECTED_PREFIX, RULES
from harness.methods.size import Knob
from harness.models.architectures import ROLES, Backbone

# Beside the roles of an architecture: all its normalization layers.
NORMS = "norms"
# The value projection alone: LoRA's two without the query; where they are fused, whole.
VALUE = "value"
# What classes are put on where the configuration does not say.
DEFAULT_TARGETS = {"IA3Config": ["attention_kv", "mlp_output"], "LNTuningConfig": [NORMS]}
SPECIAL_TOKENS = "special"

FOLLOWS = "it follows from the backbone and the task"
IMPORTS = "it names code to import, which a configuration may not"
NEEDS_DATA = "it needs a pass over data before training, which no run here makes"
SAME_FOR_ALL = "name the modules in target_modules instead"
NOT_COUNTED = "what it adds is not counted here"
REFUSED_KEYS: dict[str, str] = {
    **dict.fromkeys(("task_type", "peft_type", "peft_version", "inference_mode", "modules_to_save"), FOLLOWS),
    **dict.fromkeys(("base_model_name_or_path", "revision", "fan_in_fan_out", "token_dim"), FOLLOWS),
    **dict.fromkeys(("num_transformer_submodules", "num_attention_heads", "num_layers", "progressbar"), FOLLOWS),
    **dict.fromkeys(("tokenizer_name_or_path", "tokenizer_kwargs"), "the backbone's own tokenizer is used"),
    **dict.fromkeys(("auto_mapping", "megatron_config", "megatron_core"), IMPORTS),
    **dict.fromkeys(("eva_config", "corda_config", "lora_ga_config", "loftq_config"), NEEDS_DATA),
    **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"), SAME_FOR_ALL),
    **dict.fromkeys(("rank_pattern", "alpha_pattern", "n_frequency_pattern", "block_size_pattern"), NOT_COUNTED),
    **dict.fromkeys(
        ("lambda_pattern", "trainable_token_indices", "target_parameters", "layer_replication"), NOT_COUNTED
    ),
    **dict.fromkeys(("velora_config", "monteclora_config", "kasa_config", "use_bdlora", "arrow_config"), NOT_COUNTED),
    **dict.fromkeys(("use_qalora", "qalora_group_size", "runtime_config", "ensure_weight_tying"), NOT_COUNTED),
    **dict.fromkeys(("target_svd_config", "alora_invocation_tokens"), NOT_COUNTED),
    "bias": "only method=lora trains biases as well",
    "save_only_topk_weights": "what is saved could not be trained on",
}
# Of those, what a class counts after all.
ALLOWED_KEYS = {"OSFConfig": {"rank_pattern"}}
# Of a prompt, as peft writes it into saved configurations -> what it is of the backbone's configuration.
SHAPE = {"num_layers": "num_hidden_layers", "num_attention_heads": "num_attention_heads", "token_dim": "hidden_size"}
SHAPE |= {"num_transformer_submodules": ""}
COUNTED_FROM_ONE = ("r", "num_virtual_tokens", "n_frequency", "block_size", "group_size", "gralora_k", "u")


@dataclass(frozen=True)
class PeftMethod(PeftBased):
    """Any configuration class of peft, by name.

    Attributes:
        config: `_target_` names the class, as in peft.VeraConfig; the other keys are its own. `target_modules` and
            `feedforward_modules` take roles (attention_qv and so on, norms for normalization layers) or endings of
            module names.
        config_file: An adapter_config.json to take it from; read when the method is made, so that its content and not
            its place says what a run is.
    """

    config: dict[str, Any] | None
    config_file: str | None = None

    def __post_init__(self) -> None:
        if self.config_file is None:
            return
        if self.config is not None:
            raise ConfigError("method.config: method.config_file brings it; give one of the two")
        object.__setattr__(self, "config", peft_files.read(self.config_file, "method.config_file"))
        object.__setattr__(self, "config_file", None)

    def check(self, key: str) -> None:
        key = f"{key}.config"
        cls = self._class(key)
        hints = get_type_hints(cls)
        defaults = peft_files.default_values(cls)
        refused = set(REFUSED_KEYS) - ALLOWED_KEYS.get(cls.__name__, set())
        valid = {field.name for field in fields(cls)} - refused
        for name, value in self.options().items():
            if name in refused and name in hints:
                # At its default a key changes nothing; a prompt's shape is held against the backbone's.
                if value == defaults[name] or (name in SHAPE and type(value) is int):
                    continue
                raise ConfigError(f"{key}.{name}={value}: can't be set: {REFUSED_KEYS[name]}")
            if name not in valid:
                raise ConfigError(f"{key}.{name}: {cls.__name__} has no such key; {near_misses(name, valid)}")
            roles = name in ("target_modules", "feedforward_modules") and _is_names(value)
            special = name == "token_indices" and value == SPECIAL_TOKENS
            null = value is None and cls.__dataclass_fields__[name].default is None  # type: ignore[attr-defined]
            if not (roles or special or null or fits(value, hints[name])):
                raise ConfigError(f"{key}.{name}={value}: {in_words(hints[name])} is needed")
            if (
                name in COUNTED_FROM_ONE
                and isinstance(value, int)
                and value < (0 if cls.__name__ == "OFTConfig" else 1)
            ):
                raise ConfigError(f"{key}.{name}={value}: a whole number from 1 on is needed")
            if name == "init_lora_weights" and value not in INITS:
                raise ConfigError(
                    f"{key}.{name}={value}: {', '.join(map(str, INITS))} is allowed; others change the frozen weights "
                    "or need data; method=pissa has one of them"
                )
        try:
            with quiet():
                found: dict[str, Any] = {
                    name: ["any"] for name in ("target_modules", "feedforward_modules") if name in valid
                }
                if self.options().get("prompt_tuning_init") == "TEXT":
                    found["tokenizer_name_or_path"] = "any"
                self._make(found)
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
        if self.virtual_tokens() == 0 and "num_virtual_tokens" in hints:
            raise ConfigError(f"{key}.num_virtual_tokens: a whole number from 1 on is needed")

    def _class(self, key: str) -> type:
        target = (self.config or {}).get("_target_")
        if not isinstance(target, str):
            raise ConfigError(
                f"{key}={self.config}: name a class of peft, as in {key}='{{_target_: peft.VeraConfig, r: 256}}'"
            )
        classes = {cls.__name__ for cls in config_classes()}
        name = target.rpartition(".")[2]
        if not target.startswith("peft.") or name not in classes:
            raise ConfigError(
                f"{key}._target_={target}: not a configuration class of peft; {near_misses(name, set(RULES))}"
            )
        if name in LEFT_OUT:
            raise ConfigError(f"{key}._target_={target}: not run here: {LEFT_OUT[name]}")
        if name == "AdaLoraConfig":
            raise ConfigError(
                f"{key}._target_={target}: method=adalora has it, with a schedule that fits the run; it takes"
                " method.config_file too"
            )
        return locate(f"peft.{name}", f"{key}._target_")

    def options(self) -> dict[str, Any]:
        """The class's keys, without the class."""
        return {name: value for name, value in (self.config or {}).items() if name != "_target_"}

    def size(self) -> Knob | None:
        if self.options().get("prefix_projection"):
            return PROJECTED_PREFIX
        return RULES[self._class("method.config").__name__].size

    def virtual_tokens(self) -> int:
        return int(self.options().get("num_virtual_tokens") or 0)

    def _make(self, found: dict[str, Any]) -> Any:
        cls = self._class("method.config")
        own = {"progressbar": False} if cls.__name__ == "FrodConfig" else {}
        return cls(**{**self.options(), **found, **own})

    def peft_config(self, backbone: Backbone) -> Any:
        cls = self._class("method.config")
        names = {field.name for field in fields(cls)}
        options = self.options()
        found: dict[str, Any] = {}
        for key in ("target_modules", "feedforward_modules"):
            if key not in names or cls.__name__ in ("AdaptionPromptConfig", "TrainableTokensConfig"):
                continue
            fallback = DEFAULT_TARGETS.get(cls.__name__, ["attention_qv"])
            wanted = options.get(key) or (fallback if key == "target_modules" else ["mlp_output"])
            wanted = [wanted] if isinstance(wanted, str) else wanted
            found[key] = find_modules(wanted, backbone, f"method.config.{key}")
        if "feedforward_modules" in found:
            among = [name for name in found["target_modules"] if matches(name, found["feedforward_modules"])]
            if options.get("feedforward_modules") and not among:
                given = options["feedforward_modules"]
                raise ConfigError(f"method.config.feedforward_modules={given}: none of them is among target_modules")
            found["feedforward_modules"] = among
        if "fan_in_fan_out" in names and "target_modules" in found:
            found["fan_in_fan_out"] = is_transposed(backbone, found["target_modules"])
        if options.get("token_indices") == SPECIAL_TOKENS:
            found["token_indices"] = sorted(set(load_tokenizer(backbone, self.name).all_special_ids))
        if "num_virtual_tokens" in names:
            found |= self._prompt_shape(backbone, cls.__name__)
        return self._make(found)

    def _prompt_shape(self, backbone: Backbone, cls: str) -> dict[str, Any]:
        """Shape of the prompt, which peft reads from some architectures' configurations only."""
        configuration = backbone.model.config
        self._check_shape(backbone)
        layers = configuration.num_hidden_layers
        # Peft would make a second prompt for a decoder beside an encoder, and train it without ever reading it.
        alone = {"num_transformer_submodules": 1}
        if cls == "PrefixTuningConfig":
            # With grouped queries there are fewer keys and values than queries; peft divides these by the groups.
            heads = configuration.num_attention_heads
            head = getattr(configuration, "head_dim", None) or configuration.hidden_size // heads
            layers, heads = decoder_shape(configuration) or (layers, heads)
            return {"num_layers": layers, "num_attention_heads": heads, "token_dim": head * heads, **alone}
        embedding: Any = backbone.model.get_input_embeddings().weight
        found = {"num_layers": layers, "num_attention_heads": 1, "token_dim": embedding.shape[1], **alone}
        if str(self.options().get("prompt_tuning_init")) == "TEXT":
            found["tokenizer_name_or_path"] = load_tokenizer(backbone, self.name).name_or_path
        return found

    def _check_shape(self, backbone: Backbone) -> None:
        """Refuse a saved configuration of another backbone's shape."""
        for key, attribute in SHAPE.items():
            given = self.options().get(key)
            own = getattr(backbone.model.config, attribute) if attribute else 1
            if given is not None and given != own:
                raise ConfigError(f"method.config.{key}={given}: it follows from the backbone, which has {own}")


def decoder_shape(configuration: Any) -> tuple[int, int] | None:
    """Layers and heads of a decoder beside an encoder; null where there is none."""
    if not getattr(configuration, "is_encoder_decoder", False):
        return None
    layers, heads = (
        next((value for key in keys if (value := getattr(configuration, key, None)) is not None), fallback)
        for keys, fallback in (
            (("num_decoder_layers", "decoder_layers"), configuration.num_hidden_layers),
            (("decoder_attention_heads",), configuration.num_attention_heads),
        )
    )
    return layers, heads


def _is_names(value: Any) -> bool:
    values = [value] if isinstance(value, str) else value
    return isinstance(values, list) and bool(values) and all(isinstance(name, str) for name in values)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of an annotated type; whole numbers pass for floating ones, names for enums."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        enums = any(isinstance(part, type) and issubclass(part, Enum) for part in inner)
        # A class that takes an enum or its name as a string takes any string, and is silent about wrong ones.
        return any(fits(value, part) for part in inner if not (enums and part is str))
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in inner)
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is Any or hint is None or hint is NoneType:
        return hint is Any or value is None
    if hint is int:
        return type(value) is int
    if hint is float:
        return type(value) in (int, float)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value in [member.value for member in hint]
    return hint in (bool, str) and isinstance(value, hint)


def in_words(hint: Any) -> str:
    """An annotated type, as a user reads it."""
    if get_origin(hint) in (Union, UnionType):
        parts = get_args(hint)
        enums = any(isinstance(part, type) and issubclass(part, Enum) for part in parts)
        return " or ".join(dict.fromkeys(in_words(part) for part in parts if not (enums and part is str)))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(str(member.value) for member in hint)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
    return words.get(hint) or f"a {getattr(hint, '__name__', hint)}"


def find_modules(names: list[str], backbone: Backbone, key: str) -> list[str]:
    """The modules that roles or endings of names stand for, as endings of names where those say it exactly.

    Raises:
        ConfigError: A name matches no module of the backbone.
    """
    modules = {name: module for name, module in backbone.model.named_modules() if not backbone.is_head(f"{name}.")}
    linear = [name for name, module in modules.items() if width(module) != (0, 0)]
    norms = [name for name, module in modules.items() if "norm" in type(module).__name__.lower()]
    found: list[str] = []
    for name in names:
        if name == NORMS:
            matched = norms
        elif name == VALUE:
            both, query = (_of_role(role, backbone, linear) for role in ("attention_qv", "query"))
            matched = [module for module in both if module not in query] or both
        elif name in ROLES:
            matched = _of_role(name, backbone, linear)
        else:
            matched = [module for module in [*linear, *norms] if matches(module, [name])]
        if not matched:
            endings = {module.rpartition(".")[2] for module in linear}
            raise ConfigError(
                f"{key}={name}: no linear module of this backbone has that name or role; "
                f"{near_misses(name, {*ROLES, NORMS, VALUE, *endings})}"
            )
        found += [module for module in matched if module not in found]
    # Methods that share weights among layers know like modules by the endings of their names.
    endings_alone = list(dict.fromkeys(re.split(r"\.\d+\.", name)[-1] for name in found))
    same = {name for name, _ in backbone.model.named_modules() if matches(name, endings_alone)} == set(found)
    return endings_alone if same else found


def _of_role(role: str, backbone: Backbone, names: list[str]) -> list[str]:
    pattern = re.compile(backbone.architecture.targets(role))
    return [name for name in names if pattern.fullmatch(name)]


def load_tokenizer(backbone: Backbone, method: str) -> Any:
    """The tokenizer beside a backbone's weights.

    Raises:
        ConfigError: The backbone has no folder.
    """
    from harness import models

    folder = Path(backbone.model.config.name_or_path or "")
    if not backbone.model.config.name_or_path or not folder.is_dir():
        raise ConfigError(f"method={method}: it needs the backbone's tokenizer, and there is no folder to read it from")
    return models.load_tokenizer(folder, backbone.architecture)
