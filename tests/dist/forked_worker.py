"""A rank that does what its arguments say: MODE FOLDER, for test_forked.py."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch


def siblings() -> int:
    """Ranks of this node that have been forked so far, this one included."""
    agent = os.getppid()
    return len(Path(f"/proc/{agent}/task/{agent}/children").read_text().split())


def main(arguments: list[str]) -> int:
    forked = siblings()
    mode, folder = arguments
    rank = int(os.environ["RANK"])
    last = rank == int(os.environ["WORLD_SIZE"]) - 1
    if mode == "tell":
        told = {
            "variables": {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")},
            "handlers": [
                signal.getsignal(number) is signal.SIG_DFL
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
            ],
            "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "agent": os.getppid(),
            "forked": forked,
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.is_initialized(),
        }
        (Path(folder) / f"{rank}.json").write_text(json.dumps(told))
        print(f"said by {rank}")
    elif mode == "raise" and last:
        raise ValueError("planted")
    elif mode == "killed" and last:
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode == "leave" or (mode == "one leaves" and last):
        os._exit(0)
    elif mode == "code":
        sys.exit("a word" if last else 0)
    elif mode == "wait":
        (Path(folder) / f"{rank}.json").write_text(str(os.getpid()))
        time.sleep(60)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
