"""LoRA: a low-rank difference on chosen projections (Hu et al. 2021, arXiv 2106.09685)."""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from harness.architectures import ROLES, Backbone
from harness.config import ConfigError, Quantization, near_misses
from harness.methods.peft import PeftAdapter

if TYPE_CHECKING:
    from torch import nn


class Bias(Enum):
    """Which bias terms are trained beside the low-rank matrices."""

    none = "none"
    all = "all"
    lora_only = "lora_only"


@dataclass(frozen=True)
class Lora:
    """W x + (alpha / rank) B A x with A of shape rank x in and B of shape out x rank, B zero at the start.

    Attributes:
        target_modules: Roles (attention_qv, attention, mlp, all_linear), or endings of module names.
    """

    name: str
    learning_rate: float
    learning_rates: list[float]
    rank: int
    alpha: float
    dropout: float
    target_modules: list[str]
    bias: Bias

    def check(self, key: str) -> None:
        if self.rank < 1:
            raise ConfigError(f"{key}.rank={self.rank}: a rank of 1 or more is needed")
        if not self.alpha > 0:
            raise ConfigError(f"{key}.alpha={self.alpha}: a positive number is needed")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"{key}.dropout={self.dropout}: a share from 0 to below 1 is allowed")
        if not self.target_modules:
            raise ConfigError(f"{key}.target_modules=[]: name a role or modules; {near_misses('', ROLES)}")

    def quantization(self) -> Quantization | None:
        return None

    def virtual_tokens(self) -> int:
        return 0

    def expected_parameters(self, backbone: Backbone) -> int:
        """Sum rank (in + out) over the adapted matrices (section 4.2), and the biases that are trained too."""
        modules = dict(backbone.model.named_modules())
        targets = {name: modules[name] for name in self.targets(backbone)}
        total = 0
        for name, module in targets.items():
            rows, columns = width(module)
            if self.rank > min(rows, columns):
                raise ConfigError(f"method.rank={self.rank}: {name} is {rows} x {columns}, which has no larger rank")
            total += self.rank * (rows + columns)
        for name, parameter in backbone.model.named_parameters():
            owner, _, leaf = name.rpartition(".")
            trained = self.bias is Bias.all or (self.bias is Bias.lora_only and owner in targets)
            if leaf == "bias" and trained and not backbone.is_head(name):
                total += parameter.numel()
        return total

    def targets(self, backbone: Backbone) -> list[str]:
        """Full names of the adapted modules.

        Raises:
            ConfigError: A name matches no linear module of the backbone.
        """
        linear = [n for n, m in backbone.model.named_modules() if width(m) != (0, 0) and not backbone.is_head(f"{n}.")]
        found: list[str] = []
        for target in self.target_modules:
            pattern = backbone.architecture.targets(target) if target in ROLES else rf"(.*\.)?{re.escape(target)}"
            matched = [name for name in linear if re.fullmatch(pattern, name)]
            if not matched:
                endings = {name.rpartition(".")[2] for name in linear}
                raise ConfigError(
                    f"method.target_modules={target}: no linear module of this backbone has that name or role; "
                    f"{near_misses(target, {*ROLES, *endings})}"
                )
            found += [name for name in matched if name not in found]
        return found

    def attach(self, backbone: Backbone) -> PeftAdapter:
        from peft import LoraConfig

        names = self.targets(backbone)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=self.dropout,
            bias=self.bias.value,
            target_modules=names,
            # GPT-2 keeps its weights transposed, in Conv1D.
            fan_in_fan_out=type(backbone.model.get_submodule(names[0])).__name__ == "Conv1D",
        )
        return PeftAdapter.attach(backbone, config)

    def restore(self, backbone: Backbone, folder: Path) -> PeftAdapter:
        return PeftAdapter.restore(backbone, folder)


def width(module: "nn.Module") -> tuple[int, int]:
    """Output and input width of a linear module, also of GPT-2's Conv1D; (0, 0) for anything else."""
    if type(module).__name__ == "Conv1D":
        return module.weight.shape[1], module.weight.shape[0]  # type: ignore[index,union-attr,return-value]
    rows, columns = getattr(module, "out_features", 0), getattr(module, "in_features", 0)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else (0, 0)
