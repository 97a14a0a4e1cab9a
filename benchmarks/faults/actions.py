"""What is done to a running sweep from outside, and around it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from runners.track.client import descendants

POLL_S = 0.02
API_KEY = "0123456789" * 4  # as long as W&B's own
USUAL_S = 7.0  # about how long an undisturbed sweep takes


@dataclass
class Trial:
    """One sweep with a fault in it."""

    folder: Path
    dice: random.Random
    process: subprocess.Popen[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    wrapper: list[str] = field(default_factory=list)  # a command that runs the launcher's
    mounted: list[Path] = field(default_factory=list)
    helper: subprocess.Popen[bytes] | None = None
    wrong: list[str] = field(default_factory=list)
    deadline: float = 0.0

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def running(self) -> bool:
        assert self.process is not None
        return self.process.poll() is None and time.monotonic() < self.deadline

    def wait_for(self, there: Callable[[], bool]) -> bool:
        while self.running():
            if there():
                return True
            time.sleep(POLL_S)
        return False

    def child(self, words: str) -> int:
        """A process of the sweep's with these words in its command line; 0 if there is none."""
        for pid in descendants(self.pid):
            with suppress(OSError):
                if words.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return 0


def nothing(trial: Trial) -> None:
    pass


def launched(trial: Trial) -> bool:
    return trial.wait_for(lambda: (trial.folder / "launches" / "0" / "logs" / "agent.log").exists())


def pause(trial: Trial, most_s: float = USUAL_S) -> None:
    until = time.monotonic() + trial.dice.uniform(0, most_s)
    trial.wait_for(lambda: time.monotonic() > until)


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_agent(trial: Trial) -> None:
    if launched(trial):
        pause(trial)
        if pid := trial.child("runners.launch.torchrun_agent"):
            send(pid, signal.SIGKILL)


def kill_launcher(trial: Trial) -> None:
    pause(trial, USUAL_S + 2)
    send(trial.pid, signal.SIGKILL)


def kill_launcher_of_tracker(trial: Trial) -> None:
    if trial.wait_for(lambda: trial.child("runners.track") > 0):
        pause(trial, 2.0)
        send(trial.pid, signal.SIGKILL)


def _stop(trial: Trial, *numbers: int) -> None:
    if launched(trial):
        time.sleep(0.1)  # for the handler to be there
        pause(trial)
        for number in numbers:
            send(trial.pid, number)
            time.sleep(0.1)


def interrupt(trial: Trial) -> None:
    _stop(trial, signal.SIGINT)


def interrupt_twice(trial: Trial) -> None:
    _stop(trial, signal.SIGINT, signal.SIGINT)


def terminate(trial: Trial) -> None:
    _stop(trial, trial.dice.choice([signal.SIGTERM, signal.SIGHUP]))


def kill_tracker(trial: Trial) -> None:
    if trial.wait_for(lambda: trial.child("runners.track") > 0):
        pause(trial, 0.3)
        send(trial.child("runners.track") or trial.pid + (1 << 22), signal.SIGKILL)


def look_for_stacks(trial: Trial) -> None:
    logs = sorted(trial.folder.glob("launches/0/logs/*/attempt_0/*/stderr.log"))
    if len(logs) != 2 or any("most recent call first" not in log.read_text() for log in logs):
        trial.wrong.append("a rank's stack is not in its log")


def look_for_refusal(trial: Trial) -> None:
    logs = sorted(trial.folder.glob("launches/0/logs/*/attempt_0/*/stderr.log"))
    if not any("not of this launch" in log.read_text() for log in logs):
        trial.wrong.append("the stranger was not refused")


def until_it_ends(trial: Trial) -> None:
    trial.wait_for(lambda: False)


# --- disks and memory ---------------------------------------------------------------------------


def _mount(trial: Trial, folder: Path, size_kib: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size_kib}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    trial.mounted.append(folder)


def unmount(trial: Trial) -> None:
    for folder in trial.mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def small_disk(trial: Trial) -> None:
    """A whole sweep takes 100 KiB here: which write fails first is random."""
    _mount(trial, trial.folder, trial.dice.randrange(24, 96, 4))


def until_it_ends_then_grow(trial: Trial) -> None:
    until_it_ends(trial)
    remount = ["mount", "-o", "remount,size=64m", str(trial.folder)]
    subprocess.run(remount, check=True)


def small_tracker_disk(trial: Trial) -> None:
    _mount(trial, trial.folder / "wandb", trial.dice.randrange(4, 64, 4))


def fill_shared_memory(trial: Trial) -> None:
    """A /dev/shm of the sweep's own, without room."""
    script = (
        "mount -t tmpfs -o size=64k tmpfs /dev/shm && "
        '{ head -c 1M /dev/zero >/dev/shm/full 2>/dev/null; exec "$@"; }'
    )
    trial.wrapper += ["unshare", "--mount", "sh", "-c", script, "sh"]


# --- the network --------------------------------------------------------------------------------

TAKER = """
import socket, sys
taken = []
try:
    while True:
        taken.append(socket.create_server(("127.0.0.1", 0)))
except OSError:
    print(len(taken), flush=True)
    sys.stdin.read()
"""


def take_all_ports(trial: Trial) -> None:
    """A network of the sweep's own with eight ports, all of them in use."""
    script = (
        "ip link set lo up 2>/dev/null; echo 50000 50007 >/proc/sys/net/ipv4/ip_local_port_range; "
        'exec "$@"'
    )
    inside = [sys.executable, "-c", TAKER]
    trial.helper = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script, "sh", *inside],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert trial.helper.stdout is not None
    trial.helper.stdout.readline()
    trial.wrapper += ["nsenter", f"--net=/proc/{trial.helper.pid}/ns/net"]


def give_ports_back(trial: Trial) -> None:
    if trial.helper:
        trial.helper.communicate(b"", timeout=20)


def look_for_key(trial: Trial) -> None:
    """In every record and log of the sweep, W&B's own included."""
    files = [path for path in trial.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    trial.wrong += [f"{f}: holds the key" for f in files if API_KEY.encode() in f.read_bytes()]


def no_server(trial: Trial) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    trial.environment |= {
        "WANDB_BASE_URL": f"http://127.0.0.1:{port}",
        "WANDB_API_KEY": API_KEY,
        "WANDB_INIT_TIMEOUT": "2",
        "WANDB_FINISH_TIMEOUT": "2",
        "WANDB_HTTP_TIMEOUT": "2",
    }


# --- a dead filesystem --------------------------------------------------------------------------


def blocking_log(trial: Trial) -> None:
    """A pipe in place of a rank's log: opening it blocks, as on a file server that has failed."""
    path = trial.folder / "launches" / "0" / "samples" / f"rank{trial.dice.randrange(2)}.jsonl"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)


def unblock_when_ended(trial: Trial) -> None:
    until_it_ends(trial)
    for path in trial.folder.glob("launches/0/samples/*"):
        if path.is_fifo():
            path.unlink()
