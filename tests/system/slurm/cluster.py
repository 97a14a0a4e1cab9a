"""A real Slurm on this one machine: munge, a controller, and nodes that differ by their port.

    python -m tests.system.slurm.cluster COMMAND...   runs a command with Slurm's commands pointing
    to it

Needs Debian's slurm-wlm and munge (built to allow several slurmd on one host), and root. Everything
lies in a temporary folder and is ended, by process id, when the command has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NODES = 2
LIMIT_S = 60.0
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo", "scontrol", "squeue")
INSTALL = "apt-get update && apt-get install -y slurm-wlm munge"


class NoSlurm(RuntimeError):
    """It cannot be started here; the message says what to do."""


CONFIG = """
ClusterName=moebench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
KillWait=5
InactiveLimit=0
JobRequeue=1
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"


@dataclass
class Cluster:
    """A running Slurm; `variables` point its commands to it."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Raises NoSlurm."""
        missing = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
        if missing:
            raise NoSlurm(f"{', '.join(missing)} not found; {INSTALL}")
        if os.geteuid() != 0:
            raise NoSlurm("Slurm's daemons are started as root here; run as root")
        self._munge()
        names = self._configure()
        self._daemon("slurmctld", "-D", "-c")
        for name in names:
            (self.folder / "spool" / name).mkdir(parents=True)
            self._daemon("slurmd", "-D", "-N", name)
        self._wait(len(names))

    def _munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for name in ("munge.log", "munge.seed"):
            (self.folder / name).touch(mode=0o600)
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket",
            f"--key-file={key}", f"--log-file={self.folder}/munge.log",
            f"--pid-file={self.folder}/munge.pid", f"--seed-file={self.folder}/munge.seed",
        )  # fmt: skip
        deadline = time.monotonic() + LIMIT_S
        while not (self.folder / "munge.socket").exists():
            if time.monotonic() > deadline or self.processes[-1].poll() is not None:
                raise NoSlurm(f"munged does not start: {self._tail('munged')}")
            time.sleep(0.05)

    def _configure(self) -> list[str]:
        host, names = socket.gethostname().split(".")[0], [f"moe{n}" for n in range(NODES)]
        ports = free_ports(NODES + 1)
        nodes = [
            NODE.format(name=name, host=host, port=port)
            for name, port in zip(names, ports[1:], strict=True)
        ]
        text = CONFIG.format(
            host=host, controller_port=ports[0], folder=self.folder, nodes="\n".join(nodes),
            names=",".join(names),
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "state").mkdir()
        return names

    def _daemon(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=search_path())
        assert path
        with (self.folder / f"{program}.out").open("ab") as out:
            self.processes.append(
                subprocess.Popen(
                    [path, *arguments], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                    env=self.variables, start_new_session=True,
                )
            )  # fmt: skip

    def _wait(self, count: int) -> None:
        """Until all nodes are idle."""
        deadline = time.monotonic() + LIMIT_S
        said = ""
        while time.monotonic() < deadline:
            done = self.run("sinfo", "--noheader", "--Node", "--format=%N %T")
            said = done.stdout + done.stderr
            if done.stdout.count("idle\n") == count:
                return
            ended = [p.args for p in self.processes if p.poll() is not None]
            if ended:
                raise NoSlurm(f"{ended[0]} ended: {self._tail('slurmctld')} {self._tail('slurmd')}")
            time.sleep(0.2)
        raise NoSlurm(f"nodes are not ready after {LIMIT_S:g} s: {said}")

    def run(self, *command: str, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, env=self.variables,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def _tail(self, program: str) -> str:
        try:
            return " ".join((self.folder / f"{program}.out").read_text().split()[-40:])
        except OSError:
            return "no output"

    def stop(self) -> None:
        """Jobs first, so that their processes go; then the daemons, the last started first."""
        if len(self.processes) > 1:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                self.run("scancel", "--quiet", "--user=root", limit_s=10)
                deadline = time.monotonic() + 20
                while self.run("squeue", "--noheader", limit_s=10).stdout.strip():
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.2)
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self.processes):
                if process.poll() is None:
                    process.send_signal(sign)
            deadline = time.monotonic() + 10
            while any(p.poll() is None for p in self.processes) and time.monotonic() < deadline:
                time.sleep(0.05)


def search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """A Slurm for the time of the block; raises NoSlurm."""
    with tempfile.TemporaryDirectory(prefix="moe-slurm-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def main(command: Sequence[str]) -> int:
    try:
        with running() as cluster:
            return subprocess.run(command, env=cluster.variables).returncode
    except NoSlurm as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
