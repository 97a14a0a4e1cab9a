"""Synthetic records with known truth, for the tests of the analysis."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from runners.records import record
from runners.records.record import Record, Samples, cell_key

ENVIRONMENT: dict[str, Any] = {
    "host": "0123456789ab",
    "cpu_model": "Imaginary 9000",
    "cores": 2,
    "gpus": [],
    "system": "Linux 6.1 x86_64",
    "versions": {"python": "3.11.9", "torch": "2.13.0", "project": "0.1.0"},
    "git": {"sha": "a" * 40, "dirty": None},
}
START_MS = 0.25  # what a block costs beside its steps
BASE_MS = {"serial": 0.4, "simple": 1.0, "dp": 0.9, "tp": 4.0, "ep": 2.0,
           "ep_tp": 3.0, "dp_ep": 1.6, "fsdp": 5.0}  # fmt: skip


def cell(
    strategy: str = "simple",
    *,
    batch: int = 8,
    topk: int = 2,
    ranks: int = 8,
    experts: int = 8,
    tokens: str = "replicated",
    threads: int = 1,
    dispatcher: str = "local",
    mode: str = "forward",
    workload: tuple[str, float] = ("learned", 0.0),
    degrees: tuple[int, int] = (0, 0),
    **layer: Any,
) -> Cell:
    """A cell of the reference's sweep; top-k over the experts is clamped, serial gets one rank.

    `workload` is its kind and parameter, `degrees` are ep and tp.
    """
    ranks = 1 if strategy == "serial" else ranks
    return Cell(
        layer=LayerSpec(num_experts=experts, topk=min(topk, experts), topk_requested=topk, **layer),
        strategy=StrategySpec(name=strategy, dispatcher=dispatcher, ep=degrees[0], tp=degrees[1]),
        workload=WorkloadSpec(
            batch_size=batch, tokens=tokens, mode=mode, kind=workload[0], parameter=workload[1]
        ),
        placement=RankLayout(world_size=ranks, threads=threads),
    )


def truth_ms(of: Cell) -> float:
    """A plausible duration: grows with slots, and with ranks where there is communication."""
    name = of.strategy.name
    work = 0.02 * of.workload.batch_size * of.layer.topk
    shared = 1 if name in ("serial", "simple") else of.placement.world_size
    talk = 0.0 if name in ("serial", "simple") else 0.2 * of.placement.world_size
    faster = 0.8 if of.workload.tokens == "sharded" else 1.0
    faster *= 3.0 if of.workload.mode == "train" else 1.0
    faster *= 0.7 if of.strategy.dispatcher == "alltoall" else 1.0
    even = of.workload.kind == "learned" or name not in ("ep", "ep_tp", "dp_ep")
    busiest = 1.0 if even else max(slots(of)) * of.placement.world_size / sum(slots(of))
    return (BASE_MS.get(name, 1.5) + work * busiest / shared + talk) * faster


def slots(of: Cell) -> list[int]:
    """Slots of every rank: even but for the skewed workloads, where rank 0 has the most."""
    ranks, total = of.placement.world_size, of.workload.batch_size * of.layer.topk
    kind, parameter = of.workload.kind, of.workload.parameter
    if of.strategy.name not in ("ep", "ep_tp", "dp_ep") or kind == "learned":
        return [3, 1] * (ranks // 2) or [16]
    steep = parameter if kind == "zipf" else 1.0
    shares = [(rank + 1) ** -steep for rank in range(ranks)]
    return [max(1, round(total * share / sum(shares))) for share in shares]


def samples(
    medians_ms: Sequence[float],
    ranks: int,
    rng: random.Random,
    *,
    warmup: int = 2,
    steps: int = 10,
    skew_ns: int = 1000,
    fixed: bool = False,
) -> Samples:
    """A round for each of the given times of a step, which a short block of `steps` and a long one
    of four times as many steps differ by; blocks begin with START_MS. A latency of one step and
    that start. Warm-up is twice as slow. With `fixed` one block without a start instead."""
    made, clock = Samples(), rng.randrange(10**12)
    series = [(n, "warmup", steps, 2 * medians_ms[0] * steps) for n in range(warmup)]
    for n, m in enumerate(medians_ms):
        if fixed:
            series += [(n, "fixed", steps, m * steps)]
            continue
        blocks = {"short": steps, "long": 4 * steps, "latency": 1}
        series += [(n, kind, count, m * count + START_MS) for kind, count in blocks.items()]
    for number, kind, count, value in series:
        length = round(value * 1e6)
        late = [0, *(rng.randrange(min(skew_ns, length)) for _ in range(ranks - 1))]
        made.round.append(number)
        made.position.append(0)
        made.steps.append(count)
        made.kind.append(kind)
        made.start_ns.append([clock + wait for wait in late])
        made.end_ns.append([clock + length - wait for wait in late])
        clock += length + 10**6
    return made


def measured(
    of: Cell,
    *,
    sweep: str = "sweep",
    launch: int = 0,
    wave: int = 0,
    label: str = "",
    rounds: int = 10,
    noise: float = 0.03,
    launch_effect: float = 0.0,
    scale: float = 1.0,
    seed: int = 0,
    **fields: Any,
) -> Record:
    """A correct, measured record with log-normal rounds around `truth_ms(of) * scale`."""
    rng = random.Random(f"{cell_key(of)}{label}{sweep}{launch}{seed}")
    center = truth_ms(of) * scale * rng.lognormvariate(0, launch_effect)
    values = [center * rng.lognormvariate(0, noise) for _ in range(rounds)]
    ranks = of.placement.world_size
    made: dict[str, Any] = {
        "key": cell_key(of),
        "cell": of,
        "label": label,
        "launch": launch,
        "wave": wave,
        "sweep": sweep,
        "gate": {"ok": True, "error": 1e-6, "tolerance": 1e-4, "tokens_checked": 8},
        "samples": samples(values, ranks, rng),
        "floor": dataclasses.asdict(samples([0.01] * 5, ranks, rng, warmup=0, steps=1, fixed=True)),
        "stop": {"rule": "fixed", "rounds": rounds, "target": None},
        "warmup": {"samples": 2, "steady": True},
        "phases": phases(center, ranks, of.workload.mode),
        "traffic": traffic(of),
        "memory": [
            {
                "peak_bytes": 1 << 28,
                "weights_bytes": 1 << 20,
                "step_bytes": 1 << 21,
                "method": "VmHWM since reset",
            }
        ]
        * ranks,
        "skew": {"expert_slots": [3, 1] * 4, "rank_slots": slots(of)},
        "kernel": {"name": "bmm"},
        "environment": {**ENVIRONMENT, "local_ranks": ranks},
        "meta": {"model": "reference", "scale": 1, "overrides": [f"strategy={of.strategy.name}"]},
        "created": f"2026-01-01T00:00:{launch:02d}+00:00",
    }
    return Record(**{**made, **fields})


def phases(center_ms: float, ranks: int, mode: str = "forward") -> dict[str, Any]:
    shares = {"router": 0.1, "dispatch": 0.2, "wait": 0.2, "experts": 0.4, "combine": 0.1}
    if mode == "train":
        shares = {name: part / 4 for name, part in shares.items()}
        shares |= {"backward": 0.5, "gradients": 0.2, "other": 0.05}
    per_rank = [{name: part * center_ms * 1e6 for name, part in shares.items()}] * ranks
    return {"passes": 5, "per_rank_ns": per_rank, "total_ns": [center_ms * 1e6] * ranks}


def traffic(of: Cell) -> list[list[dict[str, Any]]]:
    call = {"collective": "all_reduce", "group": "world", "calls": 1}
    sizes = {"sent_bytes": 4096, "received_bytes": 4096, "busbw_bytes": 7168}
    quiet = of.strategy.name in ("serial", "simple")
    return [[] if quiet else [{**call, **sizes}] for _ in range(of.placement.world_size)]


def unmeasured(of: Cell, outcome: str, message: str = "it broke", **fields: Any) -> Record:
    """A failed or wrong record: no samples."""
    error = {"message": message, "rank": 1, "log": "launches/0/logs/rank1.log"}
    gate = {"ok": False, "error": 0.5, "tolerance": 1e-4} if outcome == "wrong" else None
    made: dict[str, Any] = {
        "key": cell_key(of), "cell": of, "sweep": "sweep", "outcome": outcome,
        "error": error if outcome == "failed" else None, "gate": gate,
        "environment": dict(ENVIRONMENT), "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Record(**{**made, **fields})


def anchors(first_ms: float, last_ms: float, ranks: int = 8) -> dict[str, Any]:
    """What every record of a wave carries of its anchor cell."""
    rng = random.Random(0)
    places = {"first": first_ms, "middle": (first_ms + last_ms) / 2, "last": last_ms}
    taken = {
        place: dataclasses.asdict(samples([value] * 3, ranks, rng, warmup=0, fixed=True))
        for place, value in places.items()
    }
    return {"key": "0" * 12, **taken}


STRATEGIES = ("serial", "simple", "tp", "ep")


def reference_cells(strategies: Iterable[str] = STRATEGIES) -> dict[str, list[Cell]]:
    """The cells of the reference's three sweeps by their names."""
    sizes: Mapping[str, list[dict[str, int]]] = {
        "reference_topk": [{"topk": k} for k in (2, 4, 8)],
        "reference_batch": [{"topk": 4, "batch": b} for b in (8, 16, 32)],
        "reference_ranks": [{"topk": 4, "ranks": r, "experts": r} for r in (2, 4, 8)],
    }
    found = {
        name: [cell(s, **size) for s, size in itertools.product(strategies, axis)]
        for name, axis in sizes.items()
    }
    found["reference_topk"] += [cell("tp", topk=k, tokens="sharded") for k in (2, 4, 8)]
    return found


def reference_records(launches: int = 1, **options: Any) -> list[Record]:
    """All cells of the reference's three sweeps, each measured in every launch."""
    return [
        measured(of, sweep=name, launch=launch, **options)
        for name, cells in reference_cells().items()
        for of in cells
        for launch in range(launches)
    ]


def rich_records() -> list[Record]:
    """What a full harness measures: every strategy, variants of ep, skew, and training."""
    forms: list[dict[str, Any]] = [
        *({"strategy": name} for name in ("serial", "simple", "dp", "tp", "fsdp")),
        {"strategy": "ep"}, {"strategy": "ep", "dispatcher": "alltoall"},
        {"strategy": "ep_tp", "degrees": (4, 2)}, {"strategy": "dp_ep", "degrees": (4, 0)},
    ]  # fmt: skip
    loads = [("learned", 0.0), ("zipf", 0.6), ("zipf", 1.2), ("k_hot", 2.0)]
    plan = {
        "training": [{"mode": m, "batch": b} for m in ("forward", "train") for b in (64, 256)],
        "skewed": [{"workload": load, "batch": 64} for load in loads],
    }
    return [
        measured(cell(**form, **setting), sweep=name, noise=0.02, calibration=CALIBRATION)
        for name, settings in plan.items()
        for setting in settings
        for form in forms
    ]


def write_all(folder: Path, records: Iterable[Record]) -> Path:
    """Records as sweep folders below `folder`, one per sweep name."""
    for made in records:
        record.write(folder / made.sweep, made)
    return folder


CALIBRATION: dict[str, Any] = {
    "fingerprint": "0123456789ab",
    "ranks": 8,
    "threads": 1,
    "backend": "gloo",
    "device": "cpu",
    "read_bytes_per_s": 1e10,
    "copy_bytes_per_s": 1e10,
    "read_warm_bytes_per_s": {"16384": 1e11, "1048576": 5e10, "33554432": 1e10},
    "matmul_flops_per_s": {"float32": {"256x512x512": 5e10, "peak": 5e10}},
    "shared": {
        "read_bytes_per_s": 2e10,
        "copy_bytes_per_s": 2e10,
        "matmul_flops_per_s": {"float32": 1e11},
    },
    "collectives": {
        "all_reduce": {"alpha_s": 1e-3, "beta_s_per_byte": 1e-9, "error": 0.1, "points": []}
    },
}
