"""One run on several processes of this machine (`train.distributed=ddp|fsdp`): each computes its share of every batch.

Data parallel: every process computes the gradient of its rows and steps with the sum of all gradients. The sum is taken
once a step over what is trained, which is little; wrapping the model, as torch's DistributedDataParallel does to
overlap it with the backward pass, would come between the methods and their modules.

Under ddp every process holds the whole model. Under fsdp it holds a share of the frozen weights, which are nearly all,
and torch's fully_shard brings a layer's together while it computes; what is trained, every process holds whole.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.config.schema import Device, Distributed, Experiment, Quantization
from harness.tracking.record import CONFIG_FILE, RunRecord, Status, written_since

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch import device as TorchDevice

# Gradients are summed in pieces of so many numbers, so that little memory is needed beside them.
BUCKET = 2**24
# How long interrupted processes have to write a checkpoint and their record.
GRACE_SECONDS = 60
PARENT = "HARNESS_PARENT"


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
        return total.tolist()  # type: ignore[no-any-return]

    def of_first(self, value: Any) -> Any:
        """What the first process has, so that all decide alike."""
        return self.of_all(value)[0]

    def of_all(self, value: Any) -> list[Any]:
        """What each process has, in their order."""
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


def wanted(experiment: Experiment) -> int:
    """How many processes a run asks for.

    Raises:
        ConfigError: There are not so many GPUs, or on a CPU no number is given, or the weights can't be spread.
    """
    settings = experiment.train
    if settings.distributed is Distributed.none:
        return 1
    import torch

    from harness import models

    quantization = models.choose_quantization(experiment)
    if settings.distributed is Distributed.fsdp and quantization is not Quantization.none:
        raise ConfigError(
            f"train.distributed=fsdp: {quantization.value} weights are packed and can't be spread; "
            "train.distributed=ddp keeps them whole"
        )
    gpus = torch.cuda.device_count() if settings.device is not Device.cpu else 0
    if settings.processes is None and not gpus:
        raise ConfigError(
            f"train.distributed={settings.distributed.value}: there is no GPU to count processes by; set "
            "train.processes"
        )
    count = settings.processes or gpus
    if gpus and count > gpus:
        raise ConfigError(f"train.processes={count}: this machine has {gpus} GPUs, and each process needs its own")
    return count


def run(experiment: Experiment, count: int, run_dir: Path) -> RunRecord | None:
    """Carry out the run whose configuration lies in `run_dir`, on so many processes.

    Returns:
        What the first process recorded; null when they ended without a record.

    Raises:
        KeyboardInterrupt: It was interrupted before there was anything to record.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "harness.distributed", str(run_dir)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, PARENT: str(os.getpid())}
    began = time.time()
    # A session of its own: Ctrl-C reaches the processes once, from here.
    launched = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        launched.wait()
    except KeyboardInterrupt:
        launched.send_signal(signal.SIGTERM)
        try:
            launched.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(launched.pid, signal.SIGKILL)
            launched.wait()
        if not written_since(run_dir, began):
            raise
    finally:
        if launched.poll() is None:
            os.killpg(launched.pid, signal.SIGKILL)
            launched.wait()
    return RunRecord.read(run_dir) if written_since(run_dir, began) else None


def main() -> int:
    """One of the processes, as torch's launcher starts it."""
    import logging

    from accelerate import PartialState
    from omegaconf import OmegaConf

    from harness import models
    from harness import run as runner

    threading.Thread(target=_end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
    run_dir = Path(sys.argv[1])
    inputs = runner.prepare(OmegaConf.load(run_dir / CONFIG_FILE))  # type: ignore[arg-type]
    device = models.choose_device(inputs.experiment.train.device.value)
    # Where there is no GPU it must be told so, else each process takes itself for the only one.
    state = PartialState(cpu=device.type == "cpu")
    assert state.num_processes == int(os.environ["WORLD_SIZE"])
    spread = inputs.experiment.train.distributed is Distributed.fsdp
    processes = Processes(state.process_index, state.num_processes, state.device, spread)
    level = logging.INFO if processes.is_first else logging.WARNING
    name = f"[process {processes.rank} of {processes.count}]"
    logging.basicConfig(level=level, format=f"[%(asctime)s] %(levelname)s %(name)s: {name} %(message)s")
    with TemporaryDirectory(prefix="harness-") as scratch:
        # What the others write beside the first is the same and not wanted.
        folder = run_dir if processes.is_first else Path(scratch)
        try:
            with runner.kill_as_interrupt():
                result = runner.run(inputs, folder, processes)
        except ConfigError as error:
            result = runner.begin(inputs)
            result.status, result.error = Status.failed, str(error)
            result.write(folder)
    return int(result.status not in (Status.finished, Status.interrupted, Status.diverged))


def _end_with(parent: int) -> None:
    """End this process when the run that started it is gone, else it would go on beside one that is started again."""
    while True:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
