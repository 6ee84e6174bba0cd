"""Processes of one run (`train.distributed=ddp|fsdp`): each computes its share of every batch.

Data parallel: every process computes the gradient of its rows and steps with the sum of all gradients. The sum is taken
once per step over what is trained, which is little; wrapping the model, as torch's DistributedDataParallel does to
overlap it with the backward pass, would come between the methods and their modules.

Under ddp every process holds the whole model. Under fsdp it holds a share of the frozen weights, which are nearly all,
and torch's fully_shard brings a layer's together while it computes; what is trained, every process holds whole.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch import device as TorchDevice

# Gradients are summed in pieces of so many numbers, so that little memory is needed beside them.
BUCKET = 2**24


class Processes:
    """The processes of a run, seen from one of them; alone, every method gives back what it is given.

    Attributes:
        rank: Which of them this is.
        count: How many there are.
        device: Where this one computes; null where the run may choose.
        spread: Whether each holds a share of the frozen weights: then a forward pass is everyone's or no one's.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, device: "TorchDevice | None" = None, spread: bool = False
    ) -> None:
        self.rank, self.count, self.device = rank, count, device
        self.spread = spread and count > 1
        self._control: Any = None
        if count > 1:
            from torch import distributed

            # Numbers that the CPU waits for anyway go past the GPU.
            self._control = distributed.new_group(backend="gloo")

    @property
    def is_first(self) -> bool:
        """The first records."""
        return self.rank == 0

    def spread_frozen(self, layers: "Iterable[nn.Module]", whole: "Iterable[nn.Parameter]") -> None:
        """Where frozen weights are to be spread, keep this process's share of those of each layer, on its device.

        Args:
            whole: What stays whole: the trained parameters, and those that are used outside of their layer.

        Raises:
            ConfigError: Nothing in the layers is frozen.
        """
        if not self.spread:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        assert self.device is not None
        kept = set(whole)
        mesh = init_device_mesh(self.device.type, (self.count,))
        layers = [layer for layer in layers if any(p not in kept for p in layer.parameters())]
        if not layers:
            raise ConfigError(
                "train.distributed=fsdp spreads the weights that stay frozen, and this method trains all of the "
                "layers: train.distributed=ddp is for it"
            )
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=kept)

    def share(self, rows: list[int]) -> list[int]:
        """This process's rows of a batch, which may be none."""
        return rows[self.rank :: self.count]

    def sum_gradients(self, parameters: "Iterable[nn.Parameter]") -> None:
        """Give every process the sum of all gradients; a parameter that none has a gradient of keeps none."""
        if self.count == 1:
            return
        import torch
        from torch import distributed

        trained = list(parameters)
        holders = self.sums([p.grad is not None for p in trained])
        wanted = [p for p, count in zip(trained, holders, strict=True) if count]
        for bucket in _buckets(wanted):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
            distributed.all_reduce(flat)
            for p, gradient in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = gradient.view_as(p).clone()

    def sum_tensor(self, value: "Tensor") -> "Tensor":
        """The sum over the processes, without waiting for a GPU."""
        if self.count > 1:
            from torch import distributed

            distributed.all_reduce(value)
        return value

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over the processes; of a truth value, how many hold it true."""
        if self.count == 1:
            return list(values)
        import torch
        from torch import distributed

        total = torch.tensor([float(value) for value in values], dtype=torch.float64)
        distributed.all_reduce(total, group=self._control)
        return total.tolist()

    def of_first(self, value: Any) -> Any:
        """The first process's value, so that all decide alike."""
        return self.of_all(value)[0]

    def of_all(self, value: Any) -> list[Any]:
        """Each process's value, in their order."""
        if self.count == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value, group=self._control)
        return found

    def part_random_numbers(self) -> None:
        """From here on the processes draw different random numbers, as the rows of one batch would."""
        if self.count > 1:
            import torch

            torch.manual_seed(torch.initial_seed() + self.rank)


def _buckets(parameters: "list[nn.Parameter]") -> "Iterable[list[nn.Parameter]]":
    """Parameters of one type together, up to `BUCKET` numbers or a single larger one."""
    bucket: list[nn.Parameter] = []
    for parameter in sorted(parameters, key=lambda p: str(p.dtype)):
        size = sum(p.numel() for p in bucket) + parameter.numel()
        if bucket and (size > BUCKET or bucket[0].dtype is not parameter.dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
