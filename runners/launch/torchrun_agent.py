"""torchrun's agent of one node, with four additions: it forks its ranks after importing torch; it
dies with the launcher; it reports which ranks failed; and its store cannot be reached from outside
the launch.

python -m runners.launch.torchrun_agent [--alone] [--anew] LAUNCH_DIR [torchrun arguments] -m MODULE
ARGS

MODULE is what every rank runs; it has `main(arguments) -> int`, and may have `prepare(arguments)`,
which does the ranks' imports once, in the agent. With --anew every rank is a Python process of its
own that imports torch by itself, as torchrun starts them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import socket
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runners.host import isolation
from runners.launch import launch_files

LOOPBACK = "127.0.0.1"


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    isolation.isolate(options.alone)  # before torch, which starts threads
    isolation.die_with_parent(sign=signal.SIGKILL)
    os.environ["MOE_AGENT_PID"] = str(os.getpid())
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    from runners.launch import forked

    parsed = parse_args(options.torchrun)
    if parsed.standalone:
        keep_store_on_loopback()
        parsed.rdzv_backend, parsed.rdzv_endpoint = "c10d", "localhost:0"
        parsed.rdzv_id = str(uuid.uuid4())
    parsed.start_method = "fork"
    with forked.without_cuda():
        config, command, command_arguments = config_from_args(parsed)
    start: Callable[..., object] = elastic_launch(config, command)
    if not options.anew and forked.may_fork():
        module = importlib.import_module(parsed.training_script)
        if hasattr(module, "prepare"):
            module.prepare(parsed.training_script_args)
        entry = forked.entry(module.main, parsed.training_script_args)
        start, command_arguments = elastic_launch(config, entry), []
    try:
        start(*command_arguments)
    except ChildFailedError as error:
        failures = [
            {"rank": rank, "exitcode": failure.exitcode, "pid": failure.pid}
            for rank, failure in error.failures.items()
        ]
        (Path(options.launch_dir) / launch_files.FAILURES).write_text(json.dumps(failures))
        print(error, file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m runners.launch.torchrun_agent",
        description="torchrun's agent of one node",
        allow_abbrev=False,
    )
    options.add_argument("--alone", action="store_true", help="in a network of its own")
    options.add_argument("--anew", action="store_true", help="every rank imports torch by itself")
    options.add_argument("launch_dir", help="where failures.json goes")
    options.add_argument("torchrun", nargs=argparse.REMAINDER, help="torchrun's own arguments")
    return options


def keep_store_on_loopback() -> None:
    """Makes torch's stores (the agents' rendezvous, the ranks' own) listen on loopback only; by
    themselves they listen on every interface."""
    from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend, dynamic_rendezvous

    backend: Any = c10d_rendezvous_backend  # its type stubs lack its imports
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
