"""Sweep folders made of hand-written records, for the tests and benchmarks of the tracker."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from runners.records import record as records
from runners.records.record import Record, Samples

STRATEGIES = ("simple", "tp", "ep")


def samples(ranks: int, count: int, base_ns: int) -> Samples:
    """One warm-up sample, then `count`, of two steps; rank r starts 1 us after rank r - 1."""
    taken = Samples()
    for index in range(count + 1):
        start = [10_000_000 * index + 1_000 * rank for rank in range(ranks)]
        taken.round.append(index // 2)
        taken.position.append(0)
        taken.steps.append(2)
        taken.kind.append("warmup" if index == 0 else "fixed")
        taken.start_ns.append(start)
        taken.end_ns.append([t + base_ns + 337 * index for t in start])
    return taken


def record(index: int = 0, count: int = 6, outcome: str = "measured", label: str = "") -> Record:
    """Attempt number `index` of the reference's grid of strategies and top-k."""
    topk = (2, 4, 8)[index // 3 % 3]
    cell = Cell(
        layer=LayerSpec(topk=topk, topk_requested=topk, weight_seed=index // 9),
        strategy=StrategySpec(name=STRATEGIES[index % 3]),
        workload=WorkloadSpec(batch_size=8),
        placement=RankLayout(world_size=2),
    )
    good = outcome == "measured"
    return Record(
        key=records.cell_key(cell),
        cell=cell,
        label=label,
        sweep="2026-01-02_03-04-05_topk",
        outcome=outcome,
        notes=["a note", "<b>another</b>"] if index == 1 else [],
        error=None if good else {"message": "rank 1 died", "rank": 1, "log": "launches/0/logs"},
        gate={"ok": good, "error": 1e-7 * (index + 1), "tolerance": 1e-4, "tokens_checked": 8},
        samples=samples(2, count, 1_000_003 * (index + 1)) if good else Samples(),
        floor=dataclasses.asdict(samples(2, 3, 30_000)),
        stop={"rule": "fixed", "rounds": 3, "samples_per_round": 2, "target": None},
        phases={"passes": 1, "steps": 1, "per_rank_ns": [{"router": 1e5}, {"router": 3e5}]},
        traffic=[[{"collective": "all_reduce", "calls": 1, "sent_bytes": 2**40 + 1}], []],
        memory=[{"peak_bytes": 1, "weights_bytes": 1, "method": "rss"}] * 2,
        skew={"expert_slots": [3, 1, 0, 0, 2, 2, 4, 4], "rank_slots": [6, 10]},
        measure={"rounds": 3, "model": "reference"},
        environment={"hostname": "böx", "cores": 1, "local_ranks": 2, "kernel": None, "x": {}},
        created=f"2026-01-02T03:04:{index % 60:02d}Z",
    )


def grid(outcomes: dict[int, str] | None = None, size: int = 9, count: int = 6) -> list[Record]:
    return [record(i, count, (outcomes or {}).get(i, "measured")) for i in range(size)]


def write_sweep(folder: Path, found: list[Record]) -> Path:
    for one in found:
        records.write(folder, one)
    return folder
