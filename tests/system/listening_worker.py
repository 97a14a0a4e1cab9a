"""A rank that joins its launch and lists the sockets on which it and its parent listen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from runners.plan import load
from runners.rank.process_group import RankPlace, TorchRanks

LISTENING = "0A"


def listening(pid: int) -> list[str]:
    """Addresses, in the kernel's hexadecimal."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(link.readlink()))
        except OSError:
            continue
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING and f"socket:[{words[9]}]" in sockets:
                found.append(words[1].split(":")[0])
    return found


def main(arguments: list[str]) -> int:
    plan = load(Path(arguments[0]))
    ranks = TorchRanks(RankPlace.from_environment(), plan.placement, 60)
    ranks.barrier()
    if ranks.rank == 0:
        found = listening(os.getpid()) + listening(os.getppid())
        (Path(plan.launch_dir) / "listening").write_text("\n".join(found))
    ranks.barrier()
    ranks.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
