"""Counted bytes against the kernel's: cells in a network namespace whose loopback nobody else uses.

    python -m benchmarks.cost_model.wire_bytes [--ranks 4] [--steps 20]

Linux only; needs no privilege beyond user namespaces. Every rank's collectives go over the
namespace's loopback interface, whose own counters are read before and after the steps. A packet's
headers (Ethernet 14, IPv4 20, TCP 32 bytes) are taken off what the interface counted; what is left
beyond the counted bytes is gloo's own messages and barriers. Exit code 1 when a cell is further
than 1% from the interface's count.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

HEADER_BYTES = 14 + 20 + 32
LIMIT = 0.01
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
CELLS = [  # strategy, dispatcher, tokens
    ("ep", "alltoall", "sharded"),
    ("ep", "alltoall", "replicated"),
    ("ep", "local", "replicated"),
    ("tp", "local", "sharded"),
    ("dp", "local", "replicated"),
]


def loopback() -> tuple[int, int]:
    """Bytes and packets that the interface has sent, by /proc/self/net, which is the namespace's
    own where /sys may not be."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "lo":
            fields = rest.split()
            return int(fields[8]), int(fields[9])
    raise RuntimeError("/proc/self/net/dev has no loopback interface")


def bring_up() -> None:
    """A new namespace has its loopback down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))


def rank_main(steps: int) -> int:
    """Exit code of a rank: 0 when all cells agree, and always 0 but on the first rank."""
    import torch
    import torch.distributed as dist

    from moe.build import build
    from moe.parallel.comm import Comm
    from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
    from moe.workload import batches

    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    comm = Comm(torch.device("cpu"), ranks, rank)
    layer = LayerSpec(dim=1024, hidden=64, dim_out=1024, num_experts=8, topk=2, topk_requested=2)
    good = True
    for name, dispatcher, tokens in CELLS:
        work = WorkloadSpec(batch_size=2048, tokens=tokens)
        strategy = StrategySpec(name=name, dispatcher=dispatcher, kernel="loop")
        cell = Cell(layer, strategy, work, RankLayout(world_size=ranks))
        made, x = build(cell, comm), batches.inputs(cell, rank, comm.device)
        with torch.no_grad():
            with comm.counting() as rows:
                made(x)
            total = torch.tensor([sum(row["sent_bytes"] for row in rows)], dtype=torch.float64)
            dist.all_reduce(total)
            dist.barrier()
            before = loopback()
            dist.barrier()
            for _ in range(steps):
                made(x)
            dist.barrier()
            after = loopback()
            dist.barrier()  # nobody goes on before all have read
        if rank == 0:
            sent, packets = after[0] - before[0], after[1] - before[1]
            label = f"{name} {dispatcher} {tokens}"
            good = report(label, total.item() * steps, sent, packets) and good
    dist.destroy_process_group()
    return 0 if good else 1


def report(name: str, counted: float, sent: int, packets: int) -> bool:
    """Prints a line; whether the interface's count is within the limit."""
    payload = sent - packets * HEADER_BYTES
    print(
        f"{name:24} counted {counted / 1e6:9.3f} MB  interface {sent / 1e6:9.3f} MB "
        f"({sent / counted - 1:+.3%})  {packets} packets  without headers "
        f"{payload / 1e6:9.3f} MB ({payload / counted - 1:+.3%})",
        flush=True,
    )
    return abs(sent / counted - 1) <= LIMIT


MODULE = "benchmarks.cost_model.wire_bytes"


def launch(ranks: int, steps: int) -> int:
    bring_up()
    command = [sys.executable, "-m", "torch.distributed.run", "--local-addr=127.0.0.1",
               "--master-addr=127.0.0.1", "--master-port=29500", f"--nproc-per-node={ranks}",
               "-m", MODULE, "--rank", f"--steps={steps}"]  # fmt: skip
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return subprocess.run(command, env=env, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        return rank_main(args.steps)
    if args.inside:
        return launch(args.ranks, args.steps)
    again = [
        sys.executable,
        "-m",
        MODULE,
        "--inside",
        f"--ranks={args.ranks}",
        f"--steps={args.steps}",
    ]
    return subprocess.run(["unshare", "--map-root-user", "--net", *again], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
