"""torch.distributed's calls in an emulated rank: paced, and with an all-to-all of its own.

gloo's all-to-all announces its receives behind the data that it sends, so that on slow links a rank
waits for the announcement of its peer: measured 32% to 66% too slow. Here every receive is posted
before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from benchmarks.emulate.pace import Pace
from moe.parallel import comm

PACED = ("all_reduce", "broadcast", "barrier", "reduce_scatter_tensor")


class AllSent:
    """The open sends and receives of an exchange."""

    def __init__(self, works: Sequence[Any], pace: Pace) -> None:
        self.works, self.pace = works, pace

    def wait(self) -> None:
        self.pace.settle()
        for work in self.works:
            work.wait()
        self.pace.mark()


def exchange(
    out: Tensor, x: Tensor, received: Sequence[int], sent: Sequence[int], group: Any
) -> list[Any]:
    """Starts an all-to-all of rows between members: `sent[i]` rows of x to member i, `received[i]`
    rows of `out` from it. Returns the open works; a rank's own rows are the caller's."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    outs, ins = out.split(list(received)), x.split(list(sent))
    works = []
    for step in range(1, size):
        peer = (rank - step) % size
        if received[peer]:
            works.append(dist.irecv(outs[peer], group=group, group_src=peer))
    for step in range(1, size):
        peer = (rank + step) % size
        if sent[peer]:
            works.append(dist.isend(ins[peer], group=group, group_dst=peer))
    return works


def install(pace: Pace) -> None:
    """Replaces the calls in this process. Computing is settled before each of them. What the calls
    themselves need of the processor is not dilated, nor are sums that the library makes."""

    def paced(call: Callable[..., Any]) -> Callable[..., Any]:
        def settled_first(*arguments: Any, **options: Any) -> Any:
            pace.settle()
            result = call(*arguments, **options)
            pace.mark()
            return result

        return settled_first

    def all_to_all_single(
        out: Tensor,
        x: Tensor,
        output_split_sizes: Sequence[int] | None = None,
        input_split_sizes: Sequence[int] | None = None,
        group: Any = None,
        async_op: bool = False,
    ) -> AllSent | None:
        pace.settle()
        size = dist.get_world_size(group)
        received = output_split_sizes or [out.shape[0] // size] * size
        sent = input_split_sizes or [x.shape[0] // size] * size
        work = AllSent(exchange(out, x, received, sent, group), pace)
        pace.mark()
        rank = dist.get_rank(group)
        out.split(list(received))[rank].copy_(x.split(list(sent))[rank])
        if async_op:
            return work
        work.wait()
        return None

    for name in PACED:
        setattr(dist, name, paced(getattr(dist, name)))
    dist.all_to_all_single = all_to_all_single  # type: ignore[assignment]
    comm._all_gather = paced(comm._all_gather)
