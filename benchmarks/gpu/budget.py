"""How often a step may wait for the GPU: the budget that the GPU script and the tests hold a form
to. Torch-free.

It is for bfloat16 and token-choice routers, forward and train, at any number of ranks and any
overlap, where the rows that other ranks compute take at most `moe.layer.base.ELSEWHERE_BYTES`.
In other dtypes, and but on Hopper and data centers' Blackwell, F.grouped_mm reads the experts' rows
on the host. A wait empties the GPU's queue, so that the GPU idles until the host has launched the
next kernel.
"""

from __future__ import annotations

from moe.spec import KERNELS_WITHOUT_COUNTS

KERNELS = KERNELS_WITHOUT_COUNTS  # the others need the experts' counts on the host
BY_DISPATCHER = {"local": 0, "allgather": 0, "alltoall": 1, "dedup": 1, "symm_mem": 0}
STRATEGIES = ("serial", "simple", "dp", "tp", "fsdp", "ep", "dp_ep", "ep_tp")


def host_waits(strategy: str, dispatcher: str, kernel: str) -> int | None:
    """The most waits of the host in a step; None where they are only noted, not limited."""
    if strategy not in STRATEGIES or kernel not in KERNELS:
        return None
    return BY_DISPATCHER.get(dispatcher)
