"""Messages of ranks on GPUs over a backend that cannot read them: every one through the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from moe.parallel import comm as comms
from moe.parallel.comm import Comm, RankGroup

SMALL, LARGE = 4, 1 << 20  # rows: an exchange, and the library's own algorithm
CALLS: dict[str, Callable[[RankGroup, int], Any]] = {
    "all_reduce_": lambda group, rows: group.all_reduce_(torch.ones(rows, 2)),
    "all_gather": lambda group, rows: group.all_gather(torch.ones(rows, 2), [rows, rows]),
    "uneven all_gather": lambda group, rows: group.all_gather(torch.ones(rows, 2), [rows, 1]),
    "reduce_scatter": lambda group, rows: group.reduce_scatter(
        torch.ones(2 * rows, 2), [rows, rows]
    ),
    "uneven reduce_scatter": lambda group, rows: group.reduce_scatter(
        torch.ones(rows + 1, 2), [rows, 1]
    ),
    "all_to_all": lambda group, rows: group.all_to_all(torch.ones(rows, 2), [1, 2], [1, rows - 1]),
    "all_to_all, later": lambda group, rows: group.all_to_all(
        torch.ones(rows, 2), [1, 2], [1, rows - 1], wait=False
    ),
    "combine_ max": lambda group, rows: group.combine_(torch.ones(rows, 2), "max"),
    "combine_ sum": lambda group, rows: group.combine_(torch.ones(rows, 2), "sum"),
    "broadcast_": lambda group, rows: group.broadcast_(torch.ones(rows, 2)),
}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the calls that torch.distributed got, with host or device by what was passed."""
    log: list[str] = []
    host: list[Tensor] = []  # kept, so that no id is used twice

    def to_host(x: Tensor) -> Tensor:
        host.append(x.detach().clone())
        return host[-1]

    def recorded(name: str) -> Callable[..., None]:
        def call(*arguments: Any, **how: Any) -> None:
            tensors = [a for a in arguments if isinstance(a, Tensor)]
            staged = all(any(x is copy for copy in host) for x in tensors)
            log.append(f"{name}: {'host' if staged else 'device'}")
            assert not how.get("async_op")
            tensors[0].fill_(7.0)

        return call

    monkeypatch.setattr(Tensor, "cpu", to_host)
    for name in ("all_reduce", "all_to_all_single", "broadcast", "reduce_scatter_tensor"):
        monkeypatch.setattr(dist, name, recorded(name))
    monkeypatch.setattr(comms, "_all_gather", recorded("all_gather"))
    return log


def group() -> RankGroup:
    """Of two ranks on CUDA devices over gloo; their tensors are on the CPU here."""
    comm = Comm(torch.device("cpu"), 1, 0)
    comm.device, comm.world_size, comm.backend = torch.device("cuda", 0), 2, "gloo"
    return RankGroup(comm, "world", (0, 1))


@pytest.mark.parametrize("rows", [SMALL, LARGE])
@pytest.mark.parametrize("name", CALLS)
def test_every_message_goes_through_the_host_and_its_result_comes_back(
    name: str, rows: int, sent: list[str]
) -> None:
    result = CALLS[name](group(), rows)
    assert len(sent) == 1
    assert sent[0].endswith(": host")
    if isinstance(result, tuple):
        result, work = result
        assert work is None  # nothing is left to wait for
    summed = ("reduce" in name and "all_to_all" in sent[0]) or name == "combine_ sum"
    assert set(result.unique().tolist()) <= ({14.0, 7.0} if summed else {7.0})


def test_messages_that_the_backend_can_read_are_not_copied(sent: list[str]) -> None:
    nccl = group()
    nccl.comm.backend = "nccl"
    nccl.all_reduce_(torch.ones(3))
    assert sent == ["all_reduce: device"]
