"""Methods that the peft library implements, attached through its own configuration classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.methods import TrainingHooks

if TYPE_CHECKING:
    from torch import nn

    from harness.architectures import Backbone


class PeftAdapter(TrainingHooks):
    """A `PeftModel`; what it saves loads with `peft.PeftModel.from_pretrained`, without this package.

    The head is copied by peft (`modules_to_save`): the copy is trained and counted, the original is switched back to.
    """

    def __init__(self, model: Any) -> None:
        self.model: nn.Module = model

    @classmethod
    def attach(cls, backbone: "Backbone", config: Any) -> "PeftAdapter":
        """Put a `peft.PeftConfig` on a backbone."""
        from peft import TaskType, get_peft_model

        config.task_type = TaskType(backbone.kind.value)
        config.modules_to_save = list(backbone.head) or None
        return cls(get_peft_model(backbone.model, config))

    @classmethod
    def restore(cls, backbone: "Backbone", folder: Path) -> "PeftAdapter":
        """Load what `save` wrote.

        Raises:
            ValueError: The files are missing, damaged, or of another backbone.
        """
        from peft import PeftModel
        from safetensors import SafetensorError

        if not (folder / "adapter_model.safetensors").is_file():
            raise ValueError(f"{folder} holds no adapter_model.safetensors")
        try:
            return cls(PeftModel.from_pretrained(backbone.model, str(folder), is_trainable=True))
        except (RuntimeError, SafetensorError, KeyError) as error:
            first = str(error).strip().split("\n")[0]
            raise ValueError(f"{folder} can't be put on this backbone: {first}") from error

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

    @contextmanager
    def disabled(self) -> Iterator[None]:
        with self.model.disable_adapter():  # type: ignore[operator]
            yield

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(str(folder), safe_serialization=True)  # type: ignore[operator]
        # peft's card is a form with every field left to fill in.
        (folder / "README.md").unlink(missing_ok=True)

    def detach(self) -> None:
        self.model.unload()  # type: ignore[operator]

    def merge(self) -> "nn.Module":
        merged = getattr(self.model, "merge_and_unload", None)
        if merged is None:
            raise ValueError(f"{type(self.model).__name__} has no weights that could be folded into the backbone's")
        return merged()
