"""torchrun's agent with three additions: it dies with the launcher, it says who failed first, and
nobody outside the launch can reach its store.

python -m runners.launch.agent LAUNCH_DIR [--alone] [torchrun arguments]
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from runners import bound

LOOPBACK = "127.0.0.1"


def main(arguments: list[str]) -> int:
    launch_dir, *torchrun = arguments
    alone = torchrun[:1] == ["--alone"]
    bound.enter(alone)  # before torch, which starts threads
    bound.die_with_parent(sign=signal.SIGKILL)
    os.environ["MOE_AGENT_PID"] = str(os.getpid())
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    if "--standalone" in torchrun:
        keep_store_on_loopback()
    try:
        run(parse_args(torchrun[alone:]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        failures = [
            {"rank": rank, "exitcode": failure.exitcode, "pid": failure.pid}
            for rank, failure in error.failures.items()
        ]
        (Path(launch_dir) / "failures.json").write_text(json.dumps(failures))
        print(error, file=sys.stderr)
        return 1
    return 0


def keep_store_on_loopback() -> None:
    """torch's stores (the agents' rendezvous, the ranks' own) listen on every interface, unless
    they are given a socket that does not."""
    from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend, dynamic_rendezvous

    backend: Any = c10d_rendezvous_backend  # its type stubs leave out what it imports
    handler: Any = dynamic_rendezvous.DynamicRendezvousHandler
    store = backend.TCPStore

    def on_loopback(host: str, port: int, *, is_master: bool, **rest: Any) -> Any:
        if not is_master:
            return store(host, port, is_master=False, **rest)
        listening = socket.create_server((LOOPBACK, port))
        port, handle = listening.getsockname()[1], listening.detach()
        return store(LOOPBACK, port, is_master=True, master_listen_fd=handle, **rest)

    backend.TCPStore = on_loopback
    handler._create_tcp_store_server = lambda self, address, port: on_loopback(
        address, port, is_master=True, multi_tenant=True
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
