"""Collectives with the gradients this project defines: the loss counts once over all ranks.

A tensor that every rank holds whole ("replicated") carries the whole gradient on every rank; one
that differs between ranks carries its rank's own. torch's differentiable all_reduce sums the
gradients of replicated outputs again, which multiplies them by the number of ranks.

| function        | forward        | backward        |
|-----------------|----------------|-----------------|
| add_up          | all-reduce     | identity        |
| spread          | identity       | all-reduce      |
| gather_outputs  | all-gather     | own rows        |
| gather_tokens   | all-gather     | reduce-scatter  |
| add_and_scatter | reduce-scatter | all-gather      |
| exchange        | all-to-all     | all-to-all back |

`wire` is the dtype of messages, None for the tensor's own. Tokens are always gathered in their own
dtype, because every router must see the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from moe.parallel.comm import RankGroup

Wire = torch.dtype | None  # dtype of messages; None for the tensor's own


def _tracked(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def on_wire(call: Callable[[Tensor], Tensor], x: Tensor, wire: Wire) -> Tensor:
    """call(x) with x in the dtype `wire`; the result is converted back to x's dtype."""
    if wire is None or wire == x.dtype:
        return call(x)
    return call(x.to(wire)).to(x.dtype)


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: RankGroup) -> Tensor:
        return group.all_reduce_(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: RankGroup, wire: Wire) -> Tensor:
        ctx.group, ctx.wire = group, wire
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        sent = grad.clone() if ctx.wire in (None, grad.dtype) else grad.to(ctx.wire)
        return ctx.group.all_reduce_(sent).to(grad.dtype), None, None


class _GatherOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: RankGroup, sizes: Sequence[int]) -> Tensor:
        ctx.start, ctx.rows = sum(sizes[: group.index]), x.shape[0]
        return group.all_gather(x, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.narrow(0, ctx.start, ctx.rows), None, None


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: RankGroup, sizes: Sequence[int]) -> Tensor:
        ctx.group, ctx.sizes = group, sizes
        return group.all_gather(x, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.group.reduce_scatter(grad, ctx.sizes), None, None


class _AddAndScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: RankGroup, sizes: Sequence[int]) -> Tensor:
        ctx.group, ctx.sizes = group, sizes
        return group.reduce_scatter(x, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.group.all_gather(grad, ctx.sizes), None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        group: RankGroup,
        received: list[int],
        sent: list[int],
        opened: list[Any],
    ) -> Tensor:
        """`opened` is empty to wait for the rows; otherwise its item is replaced by the open
        work."""
        ctx.group, ctx.received, ctx.sent = group, received, sent
        out, work = group.all_to_all(x, received, sent, wait=not opened)
        opened[:] = [work]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.group.all_to_all(grad, ctx.sent, ctx.received)[0], None, None, None, None


def add_up(x: Tensor, group: RankGroup, wire: Wire = None) -> Tensor:
    """Sum of the group's partial results, replicated. May overwrite x."""
    if group.size == 1:
        return x
    if not _tracked(x):
        return on_wire(group.all_reduce_, x, wire)
    return on_wire(lambda part: _AddUp.apply(part, group), x, wire)


def spread(x: Tensor, group: RankGroup, wire: Wire = None) -> Tensor:
    """Marks a replicated x of which each member uses a part or computes a partial result."""
    if group.size == 1 or not _tracked(x):
        return x
    return _Spread.apply(x, group, wire)  # type: ignore[no-any-return]


def gather_outputs(x: Tensor, group: RankGroup, sizes: Sequence[int], wire: Wire = None) -> Tensor:
    """Every member's rows, replicated; ends a step that started with replicated tokens."""
    if group.size == 1:
        return x
    if not _tracked(x):
        return on_wire(lambda part: group.all_gather(part, sizes), x, wire)
    return on_wire(lambda part: _GatherOutputs.apply(part, group, sizes), x, wire)


def gather_tokens(x: Tensor, group: RankGroup, sizes: Sequence[int]) -> Tensor:
    """Every member's rows, from which each member computes a partial result."""
    if group.size == 1:
        return x
    if not _tracked(x):
        return group.all_gather(x, sizes)
    return _GatherTokens.apply(x, group, sizes)  # type: ignore[no-any-return]


def add_and_scatter(x: Tensor, group: RankGroup, sizes: Sequence[int], wire: Wire = None) -> Tensor:
    """This rank's rows of the sum of the group's partial results."""
    if group.size == 1:
        return x
    if not _tracked(x):
        return on_wire(lambda part: group.reduce_scatter(part, sizes), x, wire)
    return on_wire(lambda part: _AddAndScatter.apply(part, group, sizes), x, wire)


def exchange(
    x: Tensor, group: RankGroup, received: list[int], sent: list[int], wire: Wire = None
) -> Tensor:
    """`sent[i]` rows go to member i, `received[i]` rows come from it, in member order."""
    if group.size == 1:
        return x
    if not _tracked(x):
        return on_wire(lambda part: group.all_to_all(part, received, sent)[0], x, wire)
    return on_wire(lambda part: _Exchange.apply(part, group, received, sent, []), x, wire)


class PendingExchange:
    """An exchange under way. Call `wait` for its rows; other work can run before."""

    def __init__(
        self, x: Tensor, group: RankGroup, received: list[int], sent: list[int], wire: Wire = None
    ) -> None:
        self.dtype = x.dtype
        x = x if wire is None else x.to(wire)
        opened: list[Any] = [None]
        if group.size == 1:
            self.rows = x
        elif _tracked(x):
            self.rows = _Exchange.apply(x, group, received, sent, opened)
        else:
            self.rows, opened[0] = group.all_to_all(x, received, sent, wait=False)
        self.work, self.source = opened[0], x  # the source must outlive the transfer

    def wait(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
            self.work = None
        return self.rows.to(self.dtype)
