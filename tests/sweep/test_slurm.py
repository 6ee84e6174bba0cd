"""Sweeps on a real SLURM: Debian's programs, unpacked into a temporary folder, a node with two cores on loopback."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import answers, free_port, server
from toy_sweep import ToySweep

pytestmark = pytest.mark.slow

PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins libmunge2 libhwloc15".split()
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
PluginDir={libraries}/slurm-wlm
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which sbatch and the others find a SLURM that is up."""
    pytest.importorskip("submitit", reason="pip install 'peft-harness[slurm]'")
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("SLURM is tried by root of a Debian alone, out of a temporary folder: sudo make test")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        get = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *PACKAGES]
        got = subprocess.run(get, cwd=folder, capture_output=True, text=True)
        if got.returncode:
            subprocess.run(["apt-get", "-qq", "update"], capture_output=True, check=False)
            got = subprocess.run(get, cwd=folder, capture_output=True, text=True)
        if got.returncode:
            pytest.skip(f"SLURM's packages can't be had: {got.stderr.strip()[-300:]}")
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
        (libraries,) = (path.parent for path in folder.glob("usr/lib/*/slurm-wlm"))
        ports = {"controller": free_port(), "node": free_port()}
        file = folder / "slurm.conf"
        file.write_text(CONFIGURATION.format(host=socket.gethostname(), libraries=libraries, folder=folder, **ports))
        for each in ("state", "spool"):
            (folder / each).mkdir()
        environment = {
            "SLURM_CONF": str(file),
            "LD_LIBRARY_PATH": f"{libraries}:{libraries / 'slurm-wlm'}",
            "PATH": f"{folder / 'usr/bin'}:{os.environ['PATH']}",
        }

        def idle() -> bool:
            told = ["sinfo", "--noheader", "--format=%T"]
            shown = subprocess.run(told, env={**os.environ, **environment}, capture_output=True, text=True)
            return shown.stdout.strip() == "idle"

        programs = folder / "usr/sbin"
        controller = [str(programs / "slurmctld-wlm"), "-D", "-f", str(file)]
        node = [str(programs / "slurmd-wlm"), "-D", "-f", str(file), "-d", str(programs / "slurmstepd-wlm")]
        stack.enter_context(
            server(controller, folder / "controller.log", lambda: answers(ports["controller"]), **environment)
        )
        stack.enter_context(server(node, folder / "node.log", idle, **environment))
        yield environment


@pytest.mark.timeout(1800)
def test_a_sweep_on_slurm_keeps_the_guarantees(
    slurm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each point is a job; one that raises or is killed, also with its job, fails alone, one that hangs is stopped."""
    for name, value in {**slurm, "PYTHONPATH": str(Path(__file__).parents[1] / "support")}.items():
        monkeypatch.setenv(name, value)
    toy = ToySweep(tmp_path, monkeypatch)
    folder = tmp_path / "record"
    folder.mkdir()
    told = [["act=count", f"seed={seed}", f"+folder={folder}", "+wait=1"] for seed in range(2)]
    told += [["act=raise"], ["act=kill"], ["act=kill_parent"], ["act=hang", "sweep.timeout_minutes=0.1"]]
    outcomes = toy.launch(told, "hydra/launcher=submitit_slurm", "hydra.launcher.threads=1")
    assert [outcome["status"] for outcome in outcomes] == ["finished", "finished", *["failed"] * 4]
    raised, killed, gone, hanging = (outcome["error"] for outcome in outcomes[2:])
    assert raised == "RuntimeError: no such luck"
    assert "killed by SIGKILL" in killed
    assert re.fullmatch(r"SLURM job \d+ ended as FAILED without a result \(.+\)", gone)
    assert "took longer than sweep.timeout_minutes=0.1 and was stopped" in hanging
    assert sorted(line.split()[0] for line in (folder / "ended").read_text().splitlines()) == ["0", "1"]
    asked = (tmp_path / "sweep" / "submitit").glob("*_submission.sh")
    assert all("--cpus-per-task=1" in script.read_text() for script in asked)
