"""AdamW over what is trained."""

from typing import TYPE_CHECKING, Any

from harness.config.schema import TrainConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer


def make_optimizer(trained: "dict[str, Any]", settings: TrainConfig) -> "Optimizer":
    """AdamW (Loshchilov and Hutter 2019); vectors, which are biases and norms, do not decay."""
    from torch.optim import AdamW

    matrices = [p for p in trained.values() if p.ndim > 1]
    vectors = [p for p in trained.values() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=settings.learning_rate, fused=True)
