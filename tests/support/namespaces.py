"""Two hosts for tests on one machine: network namespaces joined by a cable, and a mount namespace
that hides a folder. Needs root and iproute2; a test fails where they cannot be made."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

INSTALL = "apt-get update && apt-get install -y iproute2, and run as root"
NAMED = 'hostname "$1" && shift && exec "$@"'
HIDDEN = 'mount -t tmpfs tmpfs "$1" && cd "$1" && shift && exec "$@"'


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20)
    if done.returncode:
        pytest.fail(f"network namespaces cannot be made: ip {' '.join(words)}: {done.stderr}")
    return done.stdout


@dataclass(frozen=True)
class Net:
    """Two namespaces; each end of the cable is called `cable`."""

    names: tuple[str, str]
    addresses: tuple[str, str]

    def run(self, host: int, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[host], *command]

    def received_bytes(self, host: int) -> int:
        path = "/sys/class/net/cable/statistics/rx_bytes"
        done = subprocess.run(self.run(host, "cat", path), capture_output=True, text=True)
        return int(done.stdout)

    def pids(self, host: int) -> list[int]:
        """Processes that are in a host's namespace."""
        return [int(word) for word in ip("netns", "pids", self.names[host]).split()]


def hidden(folder: Path, command: Sequence[str]) -> list[str]:
    """The command in a mount namespace in which `folder` is empty and the current folder."""
    return ["unshare", "--mount", "sh", "-c", HIDDEN, "sh", str(folder), *command]


def named(host_name: str, command: Sequence[str]) -> list[str]:
    """The command where the host is called `host_name`."""
    return ["unshare", "--uts", "sh", "-c", NAMED, "sh", host_name, *command]


@contextlib.contextmanager
def known_hosts(net: Net, lines: Sequence[str]) -> Iterator[None]:
    """Both hosts' /etc/hosts, while the block runs."""
    folders = [Path("/etc/netns") / name for name in net.names]
    try:
        for folder in folders:
            folder.mkdir(parents=True)
            (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        yield
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def two_hosts(prefix: str, network: str = "10.231.77") -> Iterator[Net]:
    """Two hosts while the block runs; the namespaces are removed at its end."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.fail(f"network namespaces cannot be made; {INSTALL}")
    first, second = (f"{prefix}-{os.getpid()}-{host}" for host in (0, 1))
    net = Net((first, second), (f"{network}.1", f"{network}.2"))
    added: list[str] = []
    try:
        for name in net.names:
            ip("netns", "add", name)
            added.append(name)
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable",
           "netns", second)  # fmt: skip
        for name, address in zip(net.names, net.addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield net
    finally:
        for name in added:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run(["ip", "netns", "delete", name], timeout=20)
