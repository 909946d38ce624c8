"""Slurm on this machine alone: its own key, ports, state and logs in one folder, so that it meets no other Slurm."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])  # where Debian has the daemons
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")

# No accounting, as on small clusters. No cgroups, which containers lack. `cred_expire` is what a job that is requeued
# waits for, two minutes otherwise; the scheduler's parameters have it look each second.
CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=node NodeAddr=127.0.0.1 NodeHostname=localhost CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Unavailable(Exception):
    """Slurm cannot run here; says why."""


class Slurm:
    """A running Slurm with one node, on which two jobs run at once.

    Args:
        folder: Which holds all that it writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def answers(self, *command: str) -> str:
        """What a command says; nothing where it fails."""
        try:
            return self.run(*command)
        except subprocess.SubprocessError:
            return ""

    def start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.log").open("wb") as log:
            program = str(shutil.which(command[0], path=PATH))
            options = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "env": self.environment}
            command = (program, *command[1:])
            self._daemons.append(subprocess.Popen(command, cwd=self.folder, start_new_session=True, **options))

    def processes(self) -> list[int]:
        """Its daemons and jobs that live, which all have its environment."""
        for daemon in self._daemons:
            daemon.poll()
        mark, found = f"SLURM_CONF={self.environment['SLURM_CONF']}\0".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def stop(self) -> None:
        """End jobs, then daemons, then whatever is left."""
        self.answers("scancel", "--full", "--signal=KILL", "--user=root")
        with suppress(TimeoutError):
            until(lambda: not self.answers("squeue", "--noheader"), "an empty queue", limit_s=10)
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signum)
            with suppress(TimeoutError):
                until(lambda: not self.processes(), "the daemons to end", limit_s=10)


def until(is_so: Callable[[], object], what: str, limit_s: float = 60) -> None:
    """Wait.

    Raises:
        TimeoutError: If it takes longer than so many seconds.
    """
    deadline = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {limit_s} s for {what}")
        time.sleep(0.05)


def _free_ports(num: int) -> list[int]:
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(num)]
    ports = [server.getsockname()[1] for server in with_ports]
    for server in with_ports:
        server.close()
    return ports


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Slurm, while it is needed.

    Raises:
        Unavailable: If it is not installed, or does not start.
    """
    if missing := [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]:
        raise Unavailable(f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        raise Unavailable("Slurm's daemons are started as root only")
    slurm = Slurm(folder)
    controller_port, node_port = _free_ports(2)
    config = CONFIG.format(folder=folder, controller_port=controller_port, node_port=node_port)
    (folder / "slurm.conf").write_text(config)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    own = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed", "log")]
    try:
        # By force, as the folder's parents are readable to their owner alone.
        slurm.start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket", *own)
        try:
            until((folder / "munge.socket").exists, "munged", limit_s=10)
            slurm.start("slurmctld", "-D")
            slurm.start("slurmd", "-D", "-N", "node")
            until(lambda: slurm.answers("sinfo", "--noheader", "--format=%T") == "idle\n", "an idle node", limit_s=30)
        except TimeoutError as error:
            logs = [line for path in sorted(folder.glob("*.log")) for line in path.read_text().splitlines()[-3:]]
            raise Unavailable(f"Slurm does not start: {error}; {' | '.join(logs)}") from error
        yield slurm
    finally:
        slurm.stop()
