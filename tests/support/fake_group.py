"""Ranks as threads of one process, with the collectives of moe.parallel.comm.Group that a step
uses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
LIMIT_S = 30  # a rank that waits longer was left alone by the others


class Exchange:
    """Where `size` threads meet: everyone leaves something and takes what all have left."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.left: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=LIMIT_S)

    def swap(self, index: int, value: Any) -> list[Any]:
        self.left[index] = value
        self.barrier.wait()
        found = list(self.left)
        self.barrier.wait()
        return found


class Done:
    """Open work that has ended; it must be waited for once."""

    def __init__(self) -> None:
        self.waits = 0

    def wait(self) -> None:
        self.waits += 1


class FakeGroup:
    """The view of thread `index`; `sent` are the rows it gave to each member, call by call."""

    def __init__(self, exchange: Exchange, index: int) -> None:
        self.exchange, self.index, self.size = exchange, index, exchange.size
        self.comm = SimpleNamespace(device=torch.device("cpu"))
        self.sent: list[list[Tensor]] = []
        self.open: list[Done] = []

    def all_to_all(
        self, x: Tensor, received: Sequence[int], sent: Sequence[int], wait: bool = True
    ) -> tuple[Tensor, Done | None]:
        assert len(sent) == len(received) == self.size
        assert sum(sent) == len(x)
        parts = list(x.detach().clone().split(list(sent)))
        self.sent.append(parts)
        everyones = self.exchange.swap(self.index, parts)
        mine = [theirs[self.index] for theirs in everyones]
        assert [len(part) for part in mine] == list(received), "rows come that are not expected"
        if wait:
            return torch.cat(mine), None
        self.open.append(Done())
        return torch.cat(mine), self.open[-1]

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        assert len(x) == sizes[self.index]
        return torch.cat(self.exchange.swap(self.index, x))


def on_ranks(size: int, work: Callable[[FakeGroup], Result]) -> list[Result]:
    """work(group) of every rank, all at once; the first error of any is raised."""
    exchange = Exchange(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = work(FakeGroup(exchange, index))
        except BaseException as error:
            errors.append(error)
            exchange.barrier.abort()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    for error in real or errors:
        raise error
    return results
