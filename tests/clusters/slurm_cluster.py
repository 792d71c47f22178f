"""A real SLURM of one node, on this machine, for the length of a test module."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "munged", "unshare")
START_SECONDS = 60


def why_not() -> str | None:
    """Why no SLURM can be started here; None if one can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: slurmctld slurmd slurm-client munge)"
    if os.geteuid() != 0:
        return "only root can start SLURM's daemons"
    return None


@contextmanager
def slurm_cluster(folder: Path, hidden: Path) -> Iterator[None]:
    """Run SLURM's daemons; the node sees an empty folder in the place of ``hidden``."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool", "log"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    cores = os.cpu_count() or 1
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, cores=cores))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(configuration)
    try:
        _start_munge()
        _run("slurmctld")
        hide = f"mount -t tmpfs none '{hidden}' && exec slurmd"
        _run("unshare", "--mount", "--propagation", "private", "sh", "-c", hide)
        _wait_for_node()
        yield
    finally:
        with suppress(subprocess.SubprocessError):
            _run("scancel", "--user=root")
        for name in ("slurmd", "slurmctld"):
            _end(folder / f"{name}.pid")
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _start_munge() -> None:
    """Start munge, which signs what the daemons say to each other, unless it runs."""
    if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
        return
    key = Path("/etc/munge/munge.key")
    if not key.exists():
        key.write_bytes(os.urandom(1024))
    shutil.chown(key, "munge", "munge")
    key.chmod(0o400)
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    _run("su", "-s", "/bin/sh", "munge", "-c", "munged")
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, "munged does not answer"
        time.sleep(0.2)


def _wait_for_node() -> None:
    deadline = time.monotonic() + START_SECONDS
    while "idle" not in _run("sinfo", "--noheader", "--format=%T"):
        assert time.monotonic() < deadline, _run("sinfo")
        time.sleep(0.2)


def _end(pid_file: Path) -> None:
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, 15)
        for _ in range(50):
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, 9)


def _run(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return done.stdout
