"""Job of a run, carried out and sent to its store; on several processes of this machine where it asks for them.

`python -m harness.run.job` is one of those processes (`train.distributed=ddp|fsdp`).
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from harness import models, tracking
from harness.config.compose import hydra_config, without_hydra
from harness.config.errors import ConfigError
from harness.config.schema import Device, Distributed, Experiment, Quantization, TrackingKind
from harness.config.sources import PRIMARY_CONFIG
from harness.run.inputs import WHY, Inputs, prepare
from harness.run.pipeline import run
from harness.run.recording import begin, recorded_config, write_config
from harness.run.together import run_together
from harness.tracking import record, uri
from harness.tracking.provenance import command_line
from harness.tracking.record import CONFIG_FILE, RunRecord, Status, written_since
from harness.training.interrupts import kill_as_interrupt
from harness.training.processes import Processes

log = logging.getLogger(__name__)

# How long interrupted processes have to write a checkpoint and their record.
GRACE_SECONDS = 60
PARENT = "HARNESS_PARENT"


def job(cfg: DictConfig) -> dict[str, Any]:
    """Run one point in the current Hydra job and record how it ended, also when it failed.

    Returns:
        status, error, identity, run_id, scores, run_dir, seconds, tracked, checkpoint (of a run that was stopped),
        stopped_alone (its sweep goes on).

    Raises:
        ConfigError: A user's mistake, found before anything was computed.
    """
    hydra = HydraConfig.get()
    inputs = replace(prepare(cfg), again=_again(hydra))
    store = inputs.experiment.tracking
    # A sweep asked before its first point; if the store fails meanwhile, the others run and keep their records.
    if store.kind is not TrackingKind.none and OmegaConf.is_missing(hydra.job, "num"):
        tracking.check(str(store.uri))
    run_dir = Path(hydra.runtime.output_dir)
    processes = wanted(inputs.experiment)
    with kill_as_interrupt():
        result = run(inputs, run_dir) if processes == 1 else _run_together(inputs, run_dir, processes)
    return _told(result, run_dir, inputs.experiment)


def jobs_in_a_pack(configs: Sequence[DictConfig]) -> list[dict[str, Any]]:
    """Run points that may train in one pack, each composed with its Hydra node, and record how each ended.

    Returns:
        As `job`, for each; of a user's mistake `status` and `error` alone.
    """
    points = []
    for config in configs:
        with hydra_config(config):
            run_dir = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
            points.append((replace(prepare(without_hydra(config)), again=_again(config.hydra)), run_dir))
    with kill_as_interrupt():
        ended = run_together(points)
    told = []
    for (inputs, run_dir), result in zip(points, ended, strict=True):
        if isinstance(result, RunRecord):
            one = _told(result, run_dir, inputs.experiment)
            # One that ran again alone has seconds of its own.
            alone = "out_of_memory_in_pack" in result.provenance
            told.append(one if alone else {**one, "packed": len(points)})
        else:
            status = "interrupted" if result is None else "failed"
            told.append({"status": status, "error": str(result or "interrupted before it began")})
    return told


def _told(result: RunRecord, run_dir: Path, experiment: Experiment) -> dict[str, Any]:
    """Send a run to its store, and tell how it ended."""
    return {
        "status": result.status,
        "error": result.error,
        "identity": result.identity,
        "run_id": result.run_id,
        "scores": result.scores,
        "run_dir": str(run_dir),
        "seconds": result.cost["total_seconds"],
        "tracked": _track(result, run_dir, experiment),
        "checkpoint": result.provenance.get("checkpoint"),
        "stopped_alone": bool(result.provenance.get("stopped_alone")),
    }


def _again(hydra: Any) -> tuple[str, ...]:
    """The command line of this run alone, also where it is a point of a sweep."""
    chosen = [] if hydra.job.config_name == PRIMARY_CONFIG else ["-cn", hydra.job.config_name]
    alone = [] if OmegaConf.is_missing(hydra.job, "num") else ["hydra.mode=RUN"]
    return tuple(map(uri.redact, ["harness", *chosen, *alone, *hydra.overrides.task]))


def _run_together(inputs: Inputs, run_dir: Path, count: int) -> RunRecord:
    """Carry out a run on several processes, the first of which records it."""
    record.check_free(run_dir, inputs.identity, inputs.experiment.sweep.name)
    write_config(run_dir, recorded_config(inputs.experiment))
    result = start_together(inputs.experiment, count, run_dir, inputs.why_precision)
    if result is None:
        result = begin(inputs)
        _fail(result, count)
        result.ended_at = datetime.now(UTC).isoformat()
        result.cost["total_seconds"] = None
        result.unmeasured["cost.total_seconds"] = "the run failed"
    result.provenance["command"] = command_line()
    result.write(run_dir)
    return result


def _fail(result: RunRecord, count: int) -> None:
    """Say in the record that a process of the run ended on its own."""
    result.status, result.error = Status.failed, f"one of its {count} processes ended; what it wrote says why"


def _track(result: RunRecord, run_dir: Path, experiment: Experiment) -> bool | None:
    """Send a recorded run to the store; what can't be sent stays in the run directory and can be sent later.

    Returns:
        Whether the store has it; null where no store is wanted, or there is no record to send.
    """
    store = experiment.tracking
    if store.kind is TrackingKind.none or not (run_dir / record.RESULT_FILE).exists():
        return None
    try:
        tracking.send(run_dir, str(store.uri), store.experiment)
    except Exception as error:  # any failure of a store, of its database or of the network to it
        sentence = uri.redact(str(error).strip().split("\n")[0])
        log.error(
            "the run is safe in %s but could not be tracked (%s); send it later: harness-report --sync %s",
            run_dir,
            sentence,
            run_dir,
        )
        return False
    return True


def wanted(experiment: Experiment) -> int:
    """Number of processes that a run asks for.

    Raises:
        ConfigError: There are not so many GPUs, or on a CPU no number is given, or the weights can't be spread.
    """
    settings = experiment.train
    if settings.distributed is Distributed.none:
        return 1
    import torch

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


def start_together(
    experiment: Experiment, count: int, run_dir: Path, why_precision: str | None = None
) -> RunRecord | None:
    """Carry out the run whose configuration lies in `run_dir`, on so many processes.

    Args:
        why_precision: See `Inputs`.

    Returns:
        What the first process recorded; null when they ended without a record.

    Raises:
        KeyboardInterrupt: It was interrupted before there was anything to record.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "harness.run.job", str(run_dir)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, PARENT: str(os.getpid())}
    if why_precision is not None:
        environment[WHY] = why_precision
    began = time.time()
    # A session of its own: Ctrl-C reaches the processes once, from here.
    launched = subprocess.Popen(command, env=environment, start_new_session=True)
    interrupted = False
    try:
        launched.wait()
    except KeyboardInterrupt:
        interrupted = True
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
    if not written_since(run_dir, began):
        return None
    result = RunRecord.read(run_dir)
    # Where one process dies the launcher ends the others politely, and the first takes that for an interruption.
    if result.status == Status.interrupted and launched.returncode and not interrupted:
        _fail(result, count)
    return result


def main() -> int:
    """One of the processes, as torch's launcher starts it."""
    from accelerate import PartialState

    threading.Thread(target=_end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
    run_dir = Path(sys.argv[1])
    inputs = prepare(OmegaConf.load(run_dir / CONFIG_FILE))  # type: ignore[arg-type]
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
            with kill_as_interrupt():
                result = run(inputs, folder, processes)
        except ConfigError as error:
            result = begin(inputs)
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
