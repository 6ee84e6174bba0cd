"""One run on several processes of this machine (`train.distributed=ddp|fsdp`)."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.config.errors import ConfigError
from harness.config.schema import Device, Distributed, Experiment, Quantization
from harness.tracking.record import CONFIG_FILE, RunRecord, Status, written_since
from harness.training.processes import Processes

# How long interrupted processes have to write a checkpoint and their record.
GRACE_SECONDS = 60
PARENT = "HARNESS_PARENT"


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
