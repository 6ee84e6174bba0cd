"""LoRA and its family: a low-rank difference on chosen projections (Hu et al. 2021, arXiv 2106.09685)."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError, near_misses
from harness.config.schema import Quantization, TrainConfig
from harness.methods.optimizer import make_optimizer
from harness.methods.peft import find_modules
from harness.methods.peft_adapter import PeftAdapter, PeftBased, is_transposed
from harness.methods.peft_counts import matches, width
from harness.methods.peft_files import adalora_values
from harness.methods.size import Knob, from_two
from harness.models.architectures import ROLES, Backbone

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


class Bias(Enum):
    """Which bias terms are trained beside the low-rank matrices."""

    none = "none"
    all = "all"
    lora_only = "lora_only"


class InitWeights(Enum):
    """How A and B start; only pissa changes the frozen weights, which then hold what A and B do not."""

    default = "default"
    gaussian = "gaussian"
    orthogonal = "orthogonal"
    pissa = "pissa"


class AdamW(Enum):
    """The optimizer: torch's, or bitsandbytes' whose state moves to the CPU when a GPU runs out of memory."""

    adamw = "adamw"
    paged_adamw = "paged_adamw"


@dataclass(frozen=True)
class Lora(PeftBased):
    """W x + (alpha / rank) B A x with A of shape rank x in and B of shape out x rank, B zero at the start.

    Attributes:
        target_modules: Roles (attention_qv, attention, mlp, all_linear), or endings of module names.
        use_rslora: Divide alpha by the square root of the rank (Kalajdzievski 2023, arXiv 2312.03732).
        use_dora: Train each output's length apart from its direction (Liu et al. 2024, arXiv 2402.09353).
        init_weights: pissa starts from the main singular directions (Meng et al. 2024, arXiv 2404.02948).
        freeze_a: Train B alone, its gradient set right for the frozen A (LoRA-FA: Zhang et al. 2023, arXiv 2308.03303).
        loraplus_lr_ratio: How much faster B learns than A (LoRA+: Hayou et al. 2024, arXiv 2402.12354); null: alike.
        backbone_quantization: How the backbone is stored (QLoRA: Dettmers et al. 2023, arXiv 2305.14314); null: as
            `model.quantization` says.
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: list[str]
    bias: Bias
    use_rslora: bool
    use_dora: bool
    init_weights: InitWeights
    freeze_a: bool
    loraplus_lr_ratio: float | None
    optimizer: AdamW
    backbone_quantization: Quantization | None

    def size(self) -> Knob:
        return Knob("rank")

    def check(self, key: str) -> None:
        check_low_rank(key, {"rank": self.rank}, self.alpha, self.dropout, self.target_modules)
        ratio = self.loraplus_lr_ratio
        if ratio is not None and not 1 <= ratio < float("inf"):
            raise ConfigError(f"{key}.loraplus_lr_ratio={ratio}: a number from 1 on is needed, or null")
        if self.init_weights is InitWeights.orthogonal and self.rank % 2:
            raise ConfigError(f"{key}.rank={self.rank}: an even rank is needed for init_weights=orthogonal")
        own = {
            "freeze_a=true": self.freeze_a,
            "loraplus_lr_ratio": ratio is not None,
            "optimizer=paged_adamw": self.optimizer is AdamW.paged_adamw,
        }
        chosen = [name for name, given in own.items() if given]
        if len(chosen) > 1:
            raise ConfigError(f"{key}.{chosen[0]}: brings an optimizer of its own, which excludes {chosen[1]}")
        if self.freeze_a and self.use_dora:
            raise ConfigError(f"{key}.freeze_a=true: the optimizer that sets B's gradient right knows no use_dora")

    def quantization(self) -> Quantization | None:
        return self.backbone_quantization

    def trains_alone(self) -> str | None:
        own = {
            "use_dora=true": self.use_dora,
            "init_weights=pissa": self.init_weights is InitWeights.pissa,
            f"bias={self.bias.value}": self.bias is not Bias.none,
            "freeze_a=true": self.freeze_a,
            "optimizer=paged_adamw": self.optimizer is AdamW.paged_adamw,
        }
        return next((f"method.{name} has no packed form" for name, given in own.items() if given), None)

    def peft_config(self, backbone: Backbone) -> Any:
        from peft import LoraConfig

        names = find_modules(self.target_modules, backbone, "method.target_modules")
        initial: Any = {"default": True}.get(self.init_weights.value, self.init_weights.value)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=self.dropout,
            bias=self.bias.value,
            target_modules=names,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            init_lora_weights=initial,
            fan_in_fan_out=is_transposed(backbone, names),
        )

    def expected_parameters(self, backbone: Backbone) -> int:
        """Sum rank (in + out) over the adapted matrices (section 4.2), and the biases that are trained too."""
        quantized = backbone.quantization
        if self.init_weights in (InitWeights.pissa, InitWeights.orthogonal) and quantized is not Quantization.none:
            raise ConfigError(
                f"method={self.name}: init_weights={self.init_weights.value} decomposes the weights, which "
                f"{quantized.value} weights do not allow"
            )
        if self.use_dora and quantized is Quantization.int8:
            raise ConfigError(
                f"method={self.name}: use_dora needs the length of the weights, which peft can't take of int8"
            )
        names = find_modules(self.target_modules, backbone, "method.target_modules")
        check_width("method.rank", self.rank, names, backbone)
        total = super().expected_parameters(backbone)
        for name, parameter in backbone.model.named_parameters():
            owner, _, leaf = name.rpartition(".")
            trained = self.bias is Bias.all or (self.bias is Bias.lora_only and matches(owner, names))
            if "bias" in leaf and trained and not backbone.is_head(name):
                total += parameter.numel()
        if self.freeze_a:
            modules = backbone.model.named_modules()
            total -= self.rank * sum(width(module)[1] for name, module in modules if matches(name, names))
        return total

    def attach(self, backbone: Backbone) -> "LoraAdapter":
        return LoraAdapter.attach(backbone, self)

    def restore(self, backbone: Backbone, folder: Path) -> "LoraAdapter":
        return LoraAdapter.restore(backbone, self, folder)


def check_low_rank(key: str, ranks: dict[str, int], alpha: float, dropout: float, target_modules: list[str]) -> None:
    """Refuse what no low-rank method can have.

    Raises:
        ConfigError: A value is out of its range.
    """
    for name, rank in ranks.items():
        if rank < 1:
            raise ConfigError(f"{key}.{name}={rank}: a rank of 1 or more is needed")
    if not alpha > 0:
        raise ConfigError(f"{key}.alpha={alpha}: a positive number is needed")
    if not 0 <= dropout < 1:
        raise ConfigError(f"{key}.dropout={dropout}: a share from 0 to below 1 is allowed")
    if not target_modules:
        raise ConfigError(f"{key}.target_modules=[]: name a role or modules; {near_misses('', ROLES)}")


def check_width(key: str, rank: int, targets: list[str], backbone: Backbone) -> None:
    """Refuse a rank that one of the adapted matrices can't have.

    Raises:
        ConfigError: It is above the smaller side.
    """
    for name, module in backbone.model.named_modules():
        rows, columns = width(module)
        if matches(name, targets) and rank > min(rows, columns):
            raise ConfigError(f"{key}={rank}: {name} is {rows} x {columns}, its rank at most {min(rows, columns)}")


class LoraAdapter(PeftAdapter):
    """LoRA with the optimizers of its family."""

    method: Lora

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self.method.freeze_a:
            for name, parameter in self.model.named_parameters():
                if ".lora_A." in name:
                    parameter.requires_grad = False

    def kept_whole(self) -> "Iterable[nn.Parameter]":
        """LoRA-FA's optimizer computes with the frozen A."""
        return [*super().kept_whole(), *(p for name, p in self.model.named_parameters() if ".lora_A." in name)]

    def optimizer(self, trained: "dict[str, nn.Parameter]", settings: TrainConfig) -> "Optimizer | None":
        import torch
        from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer

        model: Any = self.model
        if self.method.loraplus_lr_ratio is not None:
            return create_loraplus_optimizer(
                model,
                torch.optim.AdamW,
                lr=settings.learning_rate,
                loraplus_lr_ratio=self.method.loraplus_lr_ratio,
                loraplus_weight_decay=settings.weight_decay,
                fused=True,
            )
        if self.method.freeze_a:
            rank, alpha = self.method.rank, self.method.alpha
            return create_lorafa_optimizer(
                model,
                r=rank,
                lora_alpha=alpha,  # type: ignore[arg-type]  # any number will do
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
            )
        if self.method.optimizer is AdamW.paged_adamw:
            return paged_adamw(trained, settings)
        return None


def paged_adamw(trained: "dict[str, nn.Parameter]", settings: TrainConfig) -> "Optimizer":
    """The harness's groups of parameters in bitsandbytes' AdamW; only a GPU has memory to page."""
    from bitsandbytes import optim

    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in make_optimizer(trained, settings).param_groups
    ]
    on_gpu = all(parameter.is_cuda for parameter in trained.values())
    return (optim.PagedAdamW if on_gpu else optim.AdamW)(groups, lr=settings.learning_rate)


@dataclass(frozen=True)
class AdaLora(PeftBased):
    """P diag(E) Q, whose directions are weighed in training and cut to a budget (Zhang et al. 2023, arXiv 2303.10512).

    Attributes:
        initial_rank: Of every matrix at the start.
        target_rank: On average at the end.
        orthogonality: How much of the departure of P and Q from orthogonality is added to the loss (equation 4).
        warmup_share: Share of the steps before anything is cut.
        final_share: Share of the steps after the last cut.
        interval: Steps between two cuts.
        beta1, beta2: Smoothing of a direction's importance and of its uncertainty (equations 9 and 10).
        config_file: An adapter_config.json of peft's AdaLoraConfig to take the others from, its steps as shares.
    """

    initial_rank: int
    target_rank: int
    alpha: float
    dropout: float
    target_modules: list[str]
    orthogonality: float
    warmup_share: float
    final_share: float
    interval: int
    beta1: float
    beta2: float
    config_file: str | None = None

    def __post_init__(self) -> None:
        if self.config_file is None:
            return
        for name, value in adalora_values(self.config_file, "method.config_file").items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "config_file", None)

    def size(self) -> Knob:
        # Half as much again as in the end, as its paper has it; at rank 1 there is nothing to take away.
        return Knob("initial_rank", from_two, lambda size: {"target_rank": max(1, 2 * size // 3)})

    def check(self, key: str) -> None:
        ranks = {"initial_rank": self.initial_rank, "target_rank": self.target_rank}
        check_low_rank(key, ranks, self.alpha, self.dropout, self.target_modules)
        if self.target_rank >= self.initial_rank:
            raise ConfigError(f"{key}.target_rank={self.target_rank}: initial_rank={self.initial_rank} must be larger")
        if self.interval < 1:
            raise ConfigError(f"{key}.interval={self.interval}: at least one step is needed")
        if self.orthogonality < 0:
            raise ConfigError(f"{key}.orthogonality={self.orthogonality}: zero or a positive number is needed")
        for name in ("warmup_share", "final_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{key}.{name}={getattr(self, name)}: a share from 0 to below 1 is allowed")
        if self.warmup_share + self.final_share >= 1:
            raise ConfigError(f"{key}.final_share={self.final_share}: with warmup_share it leaves no steps to cut in")
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{key}.{name}={getattr(self, name)}: a number between 0 and 1 is needed")

    def peft_config(self, backbone: Backbone) -> Any:
        from peft import AdaLoraConfig

        names = find_modules(self.target_modules, backbone, "method.target_modules")
        return AdaLoraConfig(
            init_r=self.initial_rank,
            target_r=self.target_rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=self.dropout,
            orth_reg_weight=self.orthogonality,
            deltaT=self.interval,
            beta1=self.beta1,
            beta2=self.beta2,
            # The schedule is known when training starts.
            total_step=1,
            target_modules=names,
            fan_in_fan_out=is_transposed(backbone, names),
        )

    def expected_parameters(self, backbone: Backbone) -> int:
        """Sum initial_rank (in + out + 1) over the adapted matrices."""
        names = find_modules(self.target_modules, backbone, "method.target_modules")
        check_width("method.initial_rank", self.initial_rank, names, backbone)
        return super().expected_parameters(backbone)

    def attach(self, backbone: Backbone) -> "AdaLoraAdapter":
        return AdaLoraAdapter.attach(backbone, self)

    def restore(self, backbone: Backbone, folder: Path) -> "AdaLoraAdapter":
        return AdaLoraAdapter.restore(backbone, self, folder)


class AdaLoraAdapter(PeftAdapter):
    """AdaLoRA with its schedule: nothing is cut, then more and more, then nothing more."""

    method: AdaLora
    step = 0

    def start(self, total_steps: int) -> None:
        # Nothing is cut before its importance was seen in one step.
        final = min(round(self.method.final_share * total_steps), max(0, total_steps - 2))
        self.config.total_step = total_steps
        self.config.tfinal = final
        self.config.tinit = min(round(self.method.warmup_share * total_steps), total_steps - final - 1)

    def after_step(self, step: int) -> None:
        self.step = step
        if self.config.total_step > 1:
            self.model.base_model.update_and_allocate(step)  # type: ignore[union-attr,operator]

    def settled(self) -> bool:
        return self.step >= self.config.total_step - self.config.tfinal

    def state(self) -> "dict[str, Tensor]":
        import torch

        allocator: Any = self.model.base_model.rankallocator  # type: ignore[union-attr]
        state = {"step": torch.tensor(self.step)}
        for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            state |= {f"{kind}/{name}": tensor for name, tensor in getattr(allocator, kind).items()}
        kept = self.config.rank_pattern or {}
        return state | {f"rank_pattern/{name}": torch.tensor(mask) for name, mask in kept.items()}

    def load_state(self, state: "dict[str, Tensor]") -> None:
        allocator: Any = self.model.base_model.rankallocator  # type: ignore[union-attr]
        self.step = int(state["step"])
        for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            of_kind = {name: tensor for name, tensor in state.items() if name.startswith(f"{kind}/")}
            setattr(allocator, kind, {name.partition("/")[2]: tensor for name, tensor in of_kind.items()})
        kept = {name: mask for name, mask in state.items() if name.startswith("rank_pattern/")}
        self.config.rank_pattern = {name.partition("/")[2]: mask.tolist() for name, mask in kept.items()} or None
