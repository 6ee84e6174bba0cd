"""Adapters of the peft library, attached to a model."""

import copy
import inspect
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.config.errors import ConfigError
from harness.config.schema import Quantization
from harness.methods import CONFIG_FILE, WEIGHTS_FILE, TrainingHooks
from harness.methods.defaults import MethodDefaults
from harness.methods.peft_counts import describe, matches
from harness.methods.peft_inner import adapted_layer, copied_module, hand_over_prefix
from harness.methods.peft_rules import RULES, expected
from harness.models.architectures import Backbone, Kind
from harness.models.sizes import logical_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn


INITS = (True, False, "gaussian", "orthogonal")


@dataclass(frozen=True)
class PeftBased(MethodDefaults):
    """Common part of the methods that go through peft: they differ in the `peft.PeftConfig` they make."""

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


def is_transposed(backbone: Backbone, targets: list[str]) -> bool:
    """Whether the modules are GPT-2's Conv1D, which keeps its weights transposed."""
    return any(type(m).__name__ == "Conv1D" for name, m in backbone.model.named_modules() if matches(name, targets))


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
        with quiet():
            needed, whole = (
                {name: tuple(tensor.shape) for name, tensor in tensors.items()}
                # Peft by itself adds a language model's output layer, frozen as it is, where it is adapted.
                for tensors in (
                    get_peft_model_state_dict(model, save_embedding_layers=False),
                    get_peft_model_state_dict(model),
                )
            )
        if shapes not in (needed, whole):
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
        if in_cache:
            self._hooks.append(hand_over_prefix(self.model))
        if self.backbone.kind is Kind.causal_lm and not in_cache:
            self._hooks.append(self.model.register_forward_hook(cut, with_kwargs=True))

    def adapter_parameters(self) -> "dict[str, nn.Parameter]":
        return {n: p for n, p in self._trained().items() if ".modules_to_save." not in n}

    def head_parameters(self) -> "dict[str, nn.Parameter]":
        return {n: p for n, p in self._trained().items() if ".modules_to_save." in n}

    def _trained(self) -> "dict[str, nn.Parameter]":
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def reference_bytes(self) -> int:
        return sum(copy.nbytes for copy in self.changed.values())

    def total_parameters(self) -> int:
        # `original_module` is the untrained copy of the head: counting it would count the head twice.
        return logical_parameters(self.model, skip=".original_module.")

    def kept_whole(self) -> "Iterable[nn.Parameter]":
        return self.changed

    @contextmanager
    def disabled(self) -> Iterator[None]:
        trained = set(self._trained())
        values = {parameter: parameter.detach().clone() for parameter in self.changed}
        _set(self.changed)
        self._off = True
        try:
            if self.config.is_prompt_learning:
                heads = [m for m in self.model.modules() if isinstance(m, copied_module())]
                for head in heads:
                    head.enable_adapters(False)
                self.model.forward = self.model.base_model.forward  # type: ignore[union-attr]
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
        adapted, copied = adapted_layer(), copied_module()
        base = self.model.get_base_model()  # type: ignore[operator]
        if self.config.is_adaption_prompt:
            self.model.base_model.disable_adapter_layers()  # type: ignore[union-attr,operator]
        for hook in self._hooks:
            hook.remove()
        for name, module in list(base.named_modules()):
            if isinstance(module, adapted):
                base.set_submodule(name, module.get_base_layer())
            elif isinstance(module, copied):
                base.set_submodule(name, module.original_module)
        if hasattr(base, "peft_config"):
            del base.peft_config
        _set(self.changed)

    def stay(self) -> "nn.Module":
        raise ValueError(f"{self.method.name} is woven into the model, where another method of peft can't come on top")

    def merge(self) -> "nn.Module":
        reason = RULES[type(self.config).__name__].unmergeable
        if reason:
            raise ValueError(f"method={self.method.name} can't be merged: {reason}")
        if self.backbone.quantization is not Quantization.none:
            stored = self.backbone.quantization.value
            raise ValueError(
                f"method={self.method.name} is not merged: the sum, rounded to {stored}, scores differently"
            )
        # Of a copy: the adapter stays as it is.
        adapted, copied = adapted_layer(), copied_module()
        merged = copy.deepcopy(self.model.get_base_model())  # type: ignore[operator]
        shared = Counter(id(one) for _, one in merged.named_parameters(remove_duplicate=False))
        for name, module in list(merged.named_modules()):
            if isinstance(module, adapted):
                layer = module.get_base_layer()
                if shared[id(layer.weight)] > 1:
                    # An output layer tied to the embeddings: those stay as they are.
                    layer.weight = type(layer.weight)(layer.weight.detach().clone(), requires_grad=False)
                with quiet():
                    module.merge()
                merged.set_submodule(name, module.get_base_layer())
            elif isinstance(module, copied):
                merged.set_submodule(name, module.modules_to_save["default"])
        if hasattr(merged, "peft_config"):
            del merged.peft_config
        return merged


def _set(values: "dict[nn.Parameter, Tensor]") -> None:
    import torch

    with torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(value)
