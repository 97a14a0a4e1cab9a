"""Isolation of ranks: parent-death signal and a private network namespace (Linux).

python -m runners.host.isolation [--alone] COMMAND...   runs COMMAND isolated. Torch-free.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, UP_LOOPBACK_RUNNING = 0x8914, 0x1 | 0x8 | 0x40
NETWORK = "MOE_NETWORK"  # variable with the network that ranks record: "own" or "loopback"


def die_with_parent(parent: int | None = None, sign: int = signal.SIGKILL) -> None:
    """Linux: the kernel sends `sign` to this process when the thread that started it ends."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, sign)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def unshare_network() -> bool:
    """Moves this process into a new network namespace with only a loopback interface; children
    inherit it. Returns False, with nothing changed, where the system refuses.

    Call it while the process has a single thread.
    """
    if not sys.platform.startswith("linux"):
        return False
    trial = os.fork()  # tried in a fork: failing halfway would leave this process without its user
    if trial == 0:
        with contextlib.suppress(BaseException):
            _leave_network()
            os._exit(0)
        os._exit(1)
    if os.waitpid(trial, 0)[1] != 0:
        return False
    _leave_network()
    return True


def _leave_network() -> None:
    user, group = os.geteuid(), os.getegid()
    flags = CLONE_NEWNET | (CLONE_NEWUSER if user else 0)
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        maps = (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"))
        for name, content in (*maps, ("gid_map", f"{group} {group} 1")):
            Path(f"/proc/self/{name}").write_text(content, "ascii")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", UP_LOOPBACK_RUNNING)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)


def isolate(alone: bool) -> None:
    """Isolates a launch's first process; records its kind of network in the environment."""
    os.environ[NETWORK] = "own" if alone and unshare_network() else "loopback"
    die_with_parent(int(os.environ.get("MOE_LAUNCHER_PID", "0")) or None, signal.SIGTERM)


def main(arguments: list[str]) -> None:
    isolate(arguments[0] == "--alone")
    command = arguments[1:] if arguments[0] == "--alone" else arguments
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
