"""A node that lends its ranks and shares no folder with the launcher. Torch-free.

NodeAgent runs on the node, in an actor of Ray or in the program of a host that has joined. The
launcher calls its methods; arguments and results are plain values.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from runners.config.hosts import Hosts
from runners.host import environment
from runners.host.network import free_port
from runners.launch import node_files
from runners.launch.hosts_agent import start_agent
from runners.launch.local import LaunchProcess, start
from runners.plan import LaunchPlan, from_text

ALIKE = ("python", "torch", "triton", "transformers")  # versions that must be equal on all nodes
PREFIX, LOCK = "moe-bench-", ".lock"  # of an agent's folder
SIGNALS = ("stop", "go-")  # names of the files by which the launcher speaks to ranks


def versions() -> dict[str, str | None]:
    """What must be equal on all nodes: versions of packages, and a hash of this project's code."""
    known = environment.versions()
    return {name: known[name] for name in ALIKE} | {"code": code_hash()}


def code_hash() -> str:
    """Twelve hex digits over the source files of moe and runners."""
    digest = hashlib.sha256()
    for folder in package_folders():
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder.parent)).encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def package_folders() -> list[Path]:
    """Folders of the packages that a node needs."""
    return [Path(str(resources.files(name))) for name in ("moe", "runners")]


def different(node: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """How a node's versions differ from the first node's, in words; "" where they do not."""
    names = [name for name in first if node.get(name) != first[name]]
    return ", ".join(
        f"{name} {node.get(name) or 'is not there'} (first node: {first[name] or 'not there'})"
        for name in names
    )


class NodeAgent:
    """Starts ranks on this node, one launch at a time, and hands over what they write."""

    def __init__(self, node: int = 0, interface: str | None = None) -> None:
        """`interface` is this node's; None: the launcher's setting."""
        self.node, self.interface = node, interface
        remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = (self.folder / LOCK).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.plan: LaunchPlan | None = None
        self.process: LaunchProcess | None = None

    def free_port(self, address: str) -> int:
        """A port for the ranks' rendezvous on this node's address."""
        return free_port(address)

    def prepare(self, plan: str) -> None:
        """Takes over the plan of a launch, the text of its launch.json; ends the one before."""
        self.end()
        self.remove_files()
        self.plan = from_text(plan)
        self.plan.launch_dir = str(self.folder / str(self.plan.launch))
        Path(self.plan.launch_dir).mkdir()

    def receive(self, name: str, offset: int, data: bytes) -> None:
        """Writes a piece of a recorded routing; raises ValueError for any other file."""
        assert self.plan is not None
        if name not in self.plan.traces.values() or Path(name).name != name:
            raise ValueError(f"{name}: not a trace of this launch")
        with (Path(self.plan.launch_dir) / name).open("ab" if offset else "wb") as file:
            file.seek(offset)
            file.write(data)

    def start(self, hosts: Mapping[str, Any], token: str) -> None:
        """Starts this node's ranks; `hosts` are the fields of Hosts, `token` is the launch's."""
        assert self.plan is not None
        if self.plan.placement.nodes == 1:
            self.process = start(self.plan)
        else:
            own = {} if self.interface is None else {"interface": self.interface}
            place = Hosts(**{**hosts, "node_rank": self.node, **own})
            process = start_agent(self.plan, place, token)
            self.process = LaunchProcess(process, Path(self.plan.launch_dir))

    def poll(
        self, received: Mapping[str, int], signals: Sequence[str], last: bool
    ) -> dict[str, Any]:
        """Passes the launcher's signals (stop, go-<wave>) on to the ranks. Returns {returncode: of
        the ranks' parent, None while it runs; chunks: what was written beyond `received`}."""
        if self.plan is None or self.process is None:
            return {"returncode": 0, "chunks": []}
        launch_dir, placement = Path(self.plan.launch_dir), self.plan.placement
        for name in signals:
            if name.startswith(SIGNALS) and Path(name).name == name:
                (launch_dir / name).touch()
        running = self.process.running()  # before the files are read, so that none is missed
        chunks = node_files.changes(launch_dir, placement, self.node, received, last)
        returncode = None if running else self.process.process.returncode
        return {"returncode": returncode, "chunks": [list(chunk) for chunk in chunks]}

    def end(self) -> None:
        """Ends this node's ranks; their files stay until the next launch."""
        if self.process:
            self.process.end()

    def remove_files(self) -> None:
        """Removes what an earlier launch wrote."""
        for path in self.folder.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Ends ranks and removes all files."""
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def remove_leftovers() -> None:
    """Removes the folders of agents that were killed: nobody has their lock any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / LOCK, os.O_RDWR)
        except OSError:  # another user's, or no folder of an agent
            continue
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def host_facts(device: str = "cpu") -> dict[str, Any]:
    """The facts of this node that tell machines apart, as a launch records them, and `versions`
    under "alike"."""
    return {**environment.capture(device), "alike": versions()}
