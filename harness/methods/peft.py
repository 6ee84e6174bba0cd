"""Methods that the peft library implements, attached through its own configuration classes."""

import copy
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from harness.architectures import ROLES, Backbone, Kind
from harness.config.build import locate
from harness.config.errors import ConfigError, near_misses
from harness.config.schema import Quantization
from harness.methods import CONFIG_FILE, WEIGHTS_FILE, MethodDefaults, TrainingHooks
from harness.methods.peft_counts import LEFT_OUT, RULES, describe, expected, matches, width

if TYPE_CHECKING:
    from torch import Tensor, nn

# Beside the roles of an architecture: all its normalisation layers.
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
INITS = (True, False, "gaussian", "orthogonal")
COUNTED_FROM_ONE = ("r", "num_virtual_tokens", "n_frequency", "block_size", "group_size", "gralora_k", "u")


@dataclass(frozen=True)
class PeftBased(MethodDefaults):
    """What the methods that go through peft share: they differ in the `peft.PeftConfig` they make."""

    def peft_config(self, backbone: Backbone) -> Any:
        """The `peft.PeftConfig` for a backbone, its modules named.

        Raises:
            ConfigError: The backbone has no such modules.
        """
        raise NotImplementedError

    def expected_parameters(self, backbone: Backbone) -> int:
        """The class's closed form over the modules it is put on."""
        config = self.peft_config(backbone)
        names = getattr(config, "target_modules", None) or []
        targets = [describe(name, module) for name, module in backbone.model.named_modules() if matches(name, names)]
        return expected(self.name, config, targets, backbone)

    def attach(self, backbone: Backbone) -> "PeftAdapter":
        return PeftAdapter.attach(backbone, self)

    def restore(self, backbone: Backbone, folder: Path) -> "PeftAdapter":
        return PeftAdapter.restore(backbone, self, folder)


@dataclass(frozen=True)
class PeftMethod(PeftBased):
    """Any configuration class of peft, by name.

    Attributes:
        config: `_target_` names the class, as in peft.VeraConfig; the other keys are its own. `target_modules` and
            `feedforward_modules` take roles (attention_qv and so on, norms for normalisation layers) or endings of
            module names.
    """

    config: dict[str, Any] | None

    def check(self, key: str) -> None:
        key = f"{key}.config"
        cls = self._class(key)
        hints = get_type_hints(cls)
        valid = {field.name for field in fields(cls)} - set(REFUSED_KEYS)
        for name, value in self.options().items():
            if name in REFUSED_KEYS and name in hints:
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
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        target = (self.config or {}).get("_target_")
        if not isinstance(target, str):
            raise ConfigError(
                f"{key}={self.config}: name a class of peft, as in {key}='{{_target_: peft.VeraConfig, r: 256}}'"
            )
        classes = {cls.__name__ for cls in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
        name = target.rpartition(".")[2]
        if not target.startswith("peft.") or name not in classes:
            raise ConfigError(
                f"{key}._target_={target}: not a configuration class of peft; {near_misses(name, set(RULES))}"
            )
        if name in LEFT_OUT:
            raise ConfigError(f"{key}._target_={target}: not run here: {LEFT_OUT[name]}")
        if name == "AdaLoraConfig":
            raise ConfigError(f"{key}._target_={target}: method=adalora has it, with a schedule that fits the run")
        return locate(f"peft.{name}", f"{key}._target_")

    def options(self) -> dict[str, Any]:
        """The class's keys, without the class."""
        return {name: value for name, value in (self.config or {}).items() if name != "_target_"}

    def virtual_tokens(self) -> int:
        return int(self.options().get("num_virtual_tokens") or 0)

    def _make(self, found: dict[str, Any]) -> Any:
        cls = self._class("method.config")
        own = {"progressbar": False} if cls.__name__ == "FrodConfig" else {}
        return cls(**{**self.options(), **found, **own})

    def peft_config(self, backbone: Backbone) -> Any:
        cls = self._class("method.config")
        names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
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
        """What peft reads from some architectures' configurations only."""
        configuration = backbone.model.config
        layers = configuration.num_hidden_layers
        if cls == "PrefixTuningConfig":
            # With grouped queries there are fewer keys and values than queries; peft divides these by the groups.
            heads = configuration.num_attention_heads
            head = getattr(configuration, "head_dim", None) or configuration.hidden_size // heads
            return {"num_layers": layers, "num_attention_heads": heads, "token_dim": head * heads}
        embedding: Any = backbone.model.get_input_embeddings().weight
        found = {"num_layers": layers, "num_attention_heads": 1, "token_dim": embedding.shape[1]}
        if str(self.options().get("prompt_tuning_init")) == "TEXT":
            found["tokenizer_name_or_path"] = load_tokenizer(backbone, self.name).name_or_path
        return found


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


def is_transposed(backbone: Backbone, targets: list[str]) -> bool:
    """Whether the modules are GPT-2's Conv1D, which keeps its weights transposed."""
    return any(type(m).__name__ == "Conv1D" for name, m in backbone.model.named_modules() if matches(name, targets))


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


@contextmanager
def quiet() -> Iterator[None]:
    """Without peft's warnings: what they warn of is refused here, or known and written down."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class PeftAdapter(TrainingHooks):
    """A `PeftModel`; what it saves loads with `peft.PeftModel.from_pretrained`, without this package.

    The head is copied by peft (`modules_to_save`): the copy is trained and counted, the original is switched back to.
    """

    def __init__(
        self, model: Any, backbone: Backbone, method: PeftBased, changed: "dict[nn.Parameter, Tensor]"
    ) -> None:
        """Take a `PeftModel`.

        Args:
            changed: Parameters of the backbone that attaching or training changes, and the values they had.
        """
        import torch

        self.model: nn.Module = model
        self.backbone = backbone
        self.method = method
        self.changed = changed
        self.config = model.peft_config["default"]
        self._off = False
        self._hooks: list[Any] = []
        if self.config.is_prompt_learning:
            self._mend_prompts()
        if type(self.config).__name__ in ("FrodConfig", "ShiraConfig"):
            # Torch warns of checks on sparse tensors that are off, unless somebody said that they are.
            torch.sparse.check_sparse_tensor_invariants.disable()

    @classmethod
    def attach(cls, backbone: Backbone, method: PeftBased) -> Self:
        """Put a method's `peft.PeftConfig` on a backbone."""
        from peft import get_peft_model

        config = cls.configure(backbone, method)
        changed = cls.originals(backbone, config)
        with quiet():
            model = get_peft_model(backbone.model, config)
        for name, parameter in model.named_parameters():
            # On the meta device the count of ranks that AdaLoRA keeps passes for trained.
            if ".ranknum." in name:
                parameter.requires_grad = False
        return cls(model, backbone, method, changed)

    @staticmethod
    def configure(backbone: Backbone, method: PeftBased) -> Any:
        """The method's configuration with what the backbone and its head ask for.

        Raises:
            ConfigError: The method starts from the weights' values, and the backbone has none.
        """
        from peft import TaskType

        config = method.peft_config(backbone)
        config.task_type = TaskType(backbone.kind.value)
        if hasattr(config, "modules_to_save"):
            # Peft goes by the ends of names: ModernBERT's `head` would be found in a prompt encoder's `mlp_head` too.
            prefix = "base_model." if config.is_prompt_learning else ""
            config.modules_to_save = [prefix + name for name in backbone.head] or None
        if next(backbone.model.parameters()).is_meta:
            rules = RULES[type(config).__name__]
            if not rules.conv1d and is_transposed(backbone, getattr(config, "target_modules", None) or []):
                raise ConfigError(
                    f"method={method.name}: peft can't put it on Conv1D modules; loading makes quantized linear ones "
                    "of them, and a plan does not load"
                )
            if rules.needs_weights:
                raise ConfigError(f"method={method.name}: it starts from the weights' values, and a plan has none")
            if getattr(config, "init_lora_weights", True) not in INITS:
                config.init_lora_weights = True
        return config

    @staticmethod
    def originals(backbone: Backbone, config: Any) -> "dict[nn.Parameter, Tensor]":
        """Copies of the parameters that the method changes in place."""
        named = dict(backbone.model.named_parameters())
        names = (
            {name for name in named if name.endswith("bias")} if getattr(config, "bias", "none") != "none" else set()
        )
        if getattr(config, "init_lora_weights", True) not in INITS:
            # PiSSA leaves in the frozen weights only what its factors do not hold.
            names |= {name for name in named if matches(name, [f"{target}.weight" for target in config.target_modules])}
        return {named[name]: named[name].detach().clone() for name in names if not backbone.is_head(name)}

    @classmethod
    def restore(cls, backbone: Backbone, method: PeftBased, folder: Path) -> Self:
        """Load what `save` wrote.

        Raises:
            ValueError: The files are missing, damaged, or of another backbone or method.
        """
        from peft import PeftModel
        from peft.utils import get_peft_model_state_dict
        from safetensors import SafetensorError, safe_open

        path = folder / WEIGHTS_FILE
        config = method.peft_config(backbone)
        try:
            saved = json.loads((folder / CONFIG_FILE).read_text())
            with safe_open(path, framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder} holds no adapter that can be read: {error}") from error
        if saved.get("peft_type") != config.peft_type.value:
            raise ValueError(f"{folder} holds an adapter of {saved.get('peft_type')}, not of method={method.name}")
        changed = cls.originals(backbone, config)
        # Peft does not save the network that a prompt was made by: the prompt itself is what is trained on.
        prompts = config.is_prompt_learning
        try:
            with quiet():
                model = PeftModel.from_pretrained(backbone.model, str(folder), is_trainable=not prompts)
        except (RuntimeError, SafetensorError, KeyError, ValueError, AttributeError, TypeError) as error:
            first = str(error).strip().split("\n")[0]
            raise ValueError(f"{folder} holds an adapter that can't be put on this backbone: {first}") from error
        needed = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
        if needed != shapes:
            different = min(set(needed.items()) ^ set(shapes.items()))[0]
            raise ValueError(f"{path} was saved for another backbone or method: tensor {different} differs")
        if prompts:
            for name, parameter in model.named_parameters():
                parameter.requires_grad = "prompt_encoder." in name or ".modules_to_save." in name
        return cls(model, backbone, method, changed)

    def _mend_prompts(self) -> None:
        """Give decoders positions that do not count padding, and language models' logits without the prompt's.

        Peft drops the position ids that come with a batch as soon as a prompt stands before it, so a row would be read
        at positions that depend on how far its batch is padded.
        """
        import inspect

        base = self.model.get_base_model()  # type: ignore[operator]
        tokens = self.config.num_virtual_tokens
        in_cache = self.config.peft_type.value == "PREFIX_TUNING"
        counts = self.backbone.architecture.decoder and "position_ids" in inspect.signature(base.forward).parameters

        def drop(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            if not self._off and not in_cache:
                kwargs.pop("position_ids", None)
            return args, kwargs

        def count(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            mask = kwargs.get("attention_mask")
            # Generation gives positions itself: of the prompt, and then of one new token at a time.
            if not self._off and mask is not None and kwargs.get("position_ids") is None:
                kwargs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0).long()
            return args, kwargs

        def cut(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            if not self._off and "logits" in output:
                output.logits = output.logits[:, tokens:]
            return output

        self._hooks.append(self.model.register_forward_pre_hook(drop, with_kwargs=True))
        if counts and not in_cache:
            self._hooks.append(base.register_forward_pre_hook(count, with_kwargs=True))
        if self.backbone.kind is Kind.causal_lm and not in_cache:
            self._hooks.append(self.model.register_forward_hook(cut, with_kwargs=True))

    def adapter_parameters(self) -> "dict[str, nn.Parameter]":
        return {n: p for n, p in self._trained().items() if ".modules_to_save." not in n}

    def head_parameters(self) -> "dict[str, nn.Parameter]":
        return {n: p for n, p in self._trained().items() if ".modules_to_save." in n}

    def _trained(self) -> "dict[str, nn.Parameter]":
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def total_parameters(self) -> int:
        from harness.measure import logical_parameters

        # `original_module` is the untrained copy of the head: counting it would count the head twice.
        return logical_parameters(self.model, skip=".original_module.")

    def kept_whole(self) -> "Iterable[nn.Parameter]":
        return self.changed

    @contextmanager
    def disabled(self) -> Iterator[None]:
        from peft.utils.other import AuxiliaryTrainingWrapper

        trained = set(self._trained())
        values = {parameter: parameter.detach().clone() for parameter in self.changed}
        _set(self.changed)
        self._off = True
        try:
            if self.config.is_prompt_learning:
                heads = [m for m in self.model.modules() if isinstance(m, AuxiliaryTrainingWrapper)]
                for head in heads:
                    head.enable_adapters(False)
                self.model.forward = self.model.base_model.forward  # type: ignore[method-assign,union-attr,assignment]
                try:
                    yield
                finally:
                    del self.model.forward
                    for head in heads:
                        head.enable_adapters(True)
            else:
                with quiet():
                    context = self.model.disable_adapter()  # type: ignore[operator]
                    context.__enter__()
                try:
                    yield
                finally:
                    context.__exit__(None, None, None)
        finally:
            self._off = False
            _set(values)
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad = name in trained

    def saved_bytes(self) -> int:
        from peft import get_peft_model_state_dict

        # What is saved is not what is trained: projections come on top, the networks that make a prompt do not.
        with quiet():
            tensors = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        return sum(t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in tensors.values())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            self.model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)  # type: ignore[operator]
        # peft's card is a form with every field left to fill in.
        (folder / "README.md").unlink(missing_ok=True)

    def detach(self) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        base = self.model.get_base_model()  # type: ignore[operator]
        if self.config.is_adaption_prompt:
            self.model.base_model.disable_adapter_layers()  # type: ignore[union-attr,operator]
        for hook in self._hooks:
            hook.remove()
        for name, module in list(base.named_modules()):
            if isinstance(module, BaseTunerLayer):
                base.set_submodule(name, module.get_base_layer())
            elif isinstance(module, AuxiliaryTrainingWrapper):
                base.set_submodule(name, module.original_module)
        if hasattr(base, "peft_config"):
            del base.peft_config
        _set(self.changed)

    def stay(self) -> "nn.Module":
        raise ValueError(f"{self.method.name} is woven into the model, where another method of peft can't come on top")

    def merge(self) -> "nn.Module":
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        reason = RULES[type(self.config).__name__].unmergeable
        if reason:
            raise ValueError(f"method={self.method.name} can't be merged: {reason}")
        if self.backbone.quantization is not Quantization.none:
            stored = self.backbone.quantization.value
            raise ValueError(
                f"method={self.method.name} is not merged: the sum, rounded to {stored}, scores differently"
            )
        # Of a copy: the adapter stays as it is.
        merged = copy.deepcopy(self.model.get_base_model())  # type: ignore[operator]
        for name, module in list(merged.named_modules()):
            if isinstance(module, BaseTunerLayer):
                with quiet():
                    module.merge()
                merged.set_submodule(name, module.get_base_layer())
            elif isinstance(module, AuxiliaryTrainingWrapper):
                merged.set_submodule(name, module.modules_to_save["default"])
        if hasattr(merged, "peft_config"):
            del merged.peft_config
        return merged


def _set(values: "dict[nn.Parameter, Tensor]") -> None:
    import torch

    with torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(value)
