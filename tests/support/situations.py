"""Sweeps of known truth for the sentences of a verdict: one for each situation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from moe.spec import Cell
from runners.records.record import Record
from tests.support import analysis_factory as factory

ROOMY = {**factory.ENVIRONMENT, "cores": 64}
Records = list[Record]


def timed(of: Cell, ms: float, noise: float = 0.002, **options: Any) -> Record:
    """A measured cell whose step takes about `ms`, on a machine with a core for every rank."""
    environment = options.pop("environment", ROOMY)
    scale = ms / factory.truth_ms(of)
    return factory.measured(of, scale=scale, noise=noise, environment=environment, **options)


def swept(name: str, axis: str, times_ms: dict[Any, float], **options: Any) -> Records:
    """A strategy along one axis of `factory.cell`."""
    fixed = options.pop("fixed", {})
    return [timed(factory.cell(name, **{axis: x}, **fixed), ms, **options)
            for x, ms in times_ms.items()]  # fmt: skip


def one_axis() -> Records:
    by_topk = {"simple": (1.0, 1.02, 1.0), "tp": (2.2, 2.0, 1.9), "ep": (3.0, 3.0, 3.0)}
    return [r for name, ms in by_topk.items()
            for r in swept(name, "topk", dict(zip((2, 4, 8), ms, strict=True)))]  # fmt: skip


def crossing() -> Records:
    return [
        *swept("tp", "batch", {8: 1.0, 32: 2.0, 128: 6.0}),
        *swept("ep", "batch", {8: 3.0, 32: 3.0, 128: 3.0}),
    ]


def noisy_tie() -> Records:
    return [r for name in ("tp", "ep") for r in swept(name, "topk", {2: 2.0, 4: 2.0}, noise=0.1)]


def exact_tie() -> Records:
    return [r for name in ("tp", "ep") for r in swept(name, "topk", {2: 2.0, 4: 2.0}, noise=0.001)]


def tie_behind() -> Records:
    slow = [r for n in ("tp", "ep") for r in swept(n, "topk", {2: 4.0, 4: 4.0}, noise=0.06)]
    return swept("simple", "topk", {2: 1.0, 4: 1.0}) + slow


def proportional() -> Records:
    return swept("ep", "batch", {8: 1.0, 16: 2.0, 32: 4.0}) + swept(
        "tp", "batch", {8: 2.0, 16: 4.0, 32: 8.0}
    )


def faster_on_more_ranks() -> Records:
    return [
        timed(factory.cell(name, ranks=ranks), ms / ranks)
        for name, ms in (("tp", 8.0), ("ep", 16.0))
        for ranks in (2, 4, 8)
    ]


def peak() -> Records:
    return swept("ep", "batch", {8: 1.0, 32: 8.0, 128: 1.0}, noise=0.05)


def peak_and_end() -> Records:
    return swept("ep", "batch", {8: 1.0, 32: 8.0, 128: 2.0})


def noisy_growth() -> Records:
    return swept("ep", "topk", {2: 1.0, 4: 1.0, 8: 1.0}, noise=0.4)


def two_axes(lead: Callable[[int, int], tuple[float, float]]) -> Records:
    return [
        timed(factory.cell(name, batch=batch, topk=topk), ms)
        for batch, topk in itertools.product((8, 64), (2, 4))
        for name, ms in zip(("tp", "ep"), lead(batch, topk), strict=True)
    ]


def one_strategy() -> Records:
    return swept("ep", "topk", {2: 1.0, 8: 1.3})


def one_cell() -> Records:
    return [timed(factory.cell("ep"), 1.0)]


def apart() -> Records:
    return [timed(factory.cell("tp", batch=8), 1.0), timed(factory.cell("ep", batch=16), 1.0)]


def strategies_alone() -> Records:
    by_name = {"simple": 1.0, "tp": 2.0, "ep": 2.5}
    return [timed(factory.cell(name), ms) for name, ms in by_name.items()]


def oversubscribed() -> Records:
    crowded = {"environment": factory.ENVIRONMENT}
    return swept("tp", "topk", {2: 1.0, 4: 1.0}, **crowded) + swept(
        "ep", "topk", {2: 2.0, 4: 2.0}, **crowded
    )


def some_oversubscribed() -> Records:
    one = swept("tp", "topk", {2: 1.0}, environment=factory.ENVIRONMENT)
    return one + swept("ep", "topk", {2: 2.0, 4: 2.0})


def drifting() -> Records:
    moved = {"anchors": factory.anchors(1.0, 1.4)}
    return swept("tp", "topk", {2: 1.0, 4: 1.0}, **moved) + swept(
        "ep", "topk", {2: 2.0, 4: 2.0}, **moved
    )


def failed_and_wrong() -> Records:
    broken = [factory.unmeasured(factory.cell("tp", topk=8), kind) for kind in ("failed",)]
    broken.append(factory.unmeasured(factory.cell("ep", topk=8), "wrong"))
    return swept("tp", "topk", {2: 1.0, 4: 1.0}) + swept("ep", "topk", {2: 2.0, 4: 2.0}) + broken


def one_failed() -> Records:
    return [*strategies_alone(), factory.unmeasured(factory.cell("dp"), "failed")]


def all_failed() -> Records:
    return [factory.unmeasured(factory.cell(name), "failed") for name in ("tp", "ep")]


def serial_wins() -> Records:
    others = swept("tp", "topk", {2: 4.0, 4: 4.0}) + swept("ep", "topk", {2: 6.0, 4: 5.0})
    return swept("serial", "topk", {2: 1.0, 4: 1.0}) + others


def spreading_pays() -> Records:
    others = swept("tp", "topk", {2: 4.0, 4: 4.0}) + swept("ep", "topk", {2: 6.0, 4: 8.0})
    return swept("serial", "topk", {2: 8.0, 4: 12.0}) + others


def spreading_pays_somewhere() -> Records:
    return swept("serial", "batch", {8: 1.0, 64: 8.0}) + swept("ep", "batch", {8: 3.0, 64: 5.0})


def spreading_undecided() -> Records:
    return [timed(factory.cell(name), 3.0, noise=0.1) for name in ("serial", "ep")]


def peer_behind() -> Records:
    return swept("simple", "batch", {8: 1.0, 64: 2.0}) + swept(
        "peer_transformers", "batch", {8: 1.5, 64: 2.8}
    )


def peer_ahead() -> Records:
    return [timed(factory.cell(n), ms) for n, ms in (("ep", 2.0), ("peer_deepspeed", 1.0))]


def peers_mixed() -> Records:
    both = ("batch", {8: 2.0, 64: 2.0})
    return [
        *swept("ep", *both),
        *swept("peer_deepspeed", "batch", {8: 1.0, 64: 3.0}),
        *swept("peer_transformers", "batch", {8: 4.0, 64: 3.5}),
    ]


def training() -> Records:
    return swept("tp", "mode", {"forward": 1.0, "train": 3.0}) + swept(
        "ep", "mode", {"forward": 2.0, "train": 5.0}
    )


def precision() -> Records:
    return swept("simple", "dtype", {"float32": 2.0, "bfloat16": 1.0})


def skewed() -> Records:
    loads = [("learned", 0.0), ("zipf", 0.6), ("zipf", 1.2)]
    slow = dict(zip(loads, (2.0, 2.4, 3.6), strict=True))
    even = dict.fromkeys(loads, 4.0)
    return swept("ep", "workload", slow) + swept("tp", "workload", even)


def sharded() -> Records:
    return swept("tp", "tokens", {"replicated": 1.3, "sharded": 1.0})


def launches(count: int) -> Records:
    return [record for launch in range(count)
            for name, ms in (("tp", 1.0), ("ep", 2.0))
            for record in swept(name, "topk", {2: ms, 4: ms}, launch=launch)]  # fmt: skip


def too_few_samples() -> Records:
    return swept("tp", "topk", {2: 1.0, 4: 1.0}, rounds=1)


def experts_follow_ranks() -> Records:
    return [timed(factory.cell("ep", ranks=r, experts=r), 1.0 * r, noise=0.01) for r in (2, 4, 8)]


def dispatchers() -> Records:
    return [
        timed(factory.cell("ep", dispatcher=d, topk=k), ms)
        for d, ms in (("local", 2.0), ("alltoall", 3.0))
        for k in (2, 4)
    ]


def many_strategies() -> Records:
    names = ("simple", "dp", "tp", "ep", "ep_tp", "dp_ep", "fsdp")
    return [r for n, name in enumerate(names)
            for r in swept(name, "batch", {8: 1.0 + n, 64: 2.0 + 2 * n})]  # fmt: skip


def two_machines() -> Records:
    """tp is faster on one machine, ep on the other."""
    records = []
    for host, times_ms in (("a" * 12, (1.0, 2.0)), ("b" * 12, (2.0, 1.0))):
        environment = {**ROOMY, "host": host}
        for name, ms in zip(("tp", "ep"), times_ms, strict=True):
            records.append(timed(factory.cell(name), ms, environment=environment, sweep=host))
    return records


def one_sample() -> Records:
    return [timed(factory.cell(name), ms, rounds=1) for name, ms in (("tp", 1.0), ("ep", 9.0))]
