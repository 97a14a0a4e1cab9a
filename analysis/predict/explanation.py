"""The two sides of `explain`, from records: what a cell took, and what it needs by the cost model.

Needs are those of `features` and `network` at the calibrated rates of the cell's machine, with the
slots and bytes of the record. Where both cells have one machine and number of ranks, both are taken
at one calibration. Without one they are FLOPs and bytes.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import numbers
from analysis.data.cell_summary import CellSummary
from analysis.predict import features, observed
from analysis.predict.hardware import HardwareModel
from analysis.stats.explain import Passes, Side
from analysis.stats.pairing import Unit, series
from analysis.stats.parts import (
    ARITHMETIC,
    BYTES,
    CORES,
    HOST,
    MEMORY,
    RATE,
    READS,
    SKEW,
    UNEXPLAINED,
)
from moe import cost, peers
from moe.cost import Load
from moe.parallel.algorithms import fit_name
from moe.spec import Cell
from runners.records import emulation

# Terms of `features` by part. What is started (operations, experts) has no rate of the machine.
PARTS = {"matrix": ARITHMETIC, "read": READS, "move": READS, "fresh": MEMORY}
SAME_MACHINE = ("fingerprint", "ranks", "threads", "backend", "nodes")
Needs = dict[str, float]


def sides(
    cells: tuple[CellSummary, CellSummary],
    frames: tuple[pd.DataFrame, pd.DataFrame],
    names: tuple[str, str],
) -> tuple[Side, Side]:
    """A and B, each of the attempts behind its cell."""
    calibrations = [cell.calibration for cell in cells]
    if _same_machine(*calibrations):
        calibrations[1] = calibrations[0]
    machines = [
        observed.machine_of(calibration, cell.world_size, emulation.of_values(cell.emulation))
        if calibration
        else None
        for calibration, cell in zip(calibrations, cells, strict=True)
    ]
    if None in machines:  # both by the same units
        machines = [None, None]
    a, b = (
        side(name, cell, frame, machine)
        for name, cell, frame, machine in zip(names, cells, frames, machines, strict=True)
    )
    return a, b


def _same_machine(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return bool(a) and all(a.get(name) == b.get(name) for name in SAME_MACHINE)


def side(
    name: str, summary: CellSummary, frame: pd.DataFrame, machine: HardwareModel | None
) -> Side:
    """One side; `machine` has the calibrated rates of a rank, None where there are none."""
    attempts = frame.iloc[summary.index]
    over = _threads_per_core(summary, attempts)
    cell = peers.equivalent(summary.cell)
    experts, backward = _computed(cell, summary, machine, over)
    links, links_back = _sent(cell, summary, machine)
    waits = attempts["host_waits_max"].dropna()
    wait_s = float(summary.calibration.get("wait_s") or 0.0)
    host_waits = float(waits.max()) if len(waits) else 0.0
    return Side(
        name, summary.median_ms, series(frame, summary), _passes(attempts), experts, links,
        [{**own, **sent} for own, sent in zip(backward, links_back, strict=True)] if machine
        else backward, over, 1e3 * wait_s * host_waits, summary.kernel_ran,
        _facts(cell, summary, over, len(waits), host_waits), _absent(machine),
    )  # fmt: skip


def _passes(attempts: pd.DataFrame) -> Passes:
    """Phases of every pass by launch; of older records those of each rank's middle pass."""
    columns = ["host", "sweep", "launch", "phase_passes_ms", "phase_per_rank_ms"]
    by_launch: dict[Unit, Sequence[Sequence[Mapping[str, float]]]] = {}
    for host, sweep, launch, passes, ranks in attempts[columns].itertuples(index=False):
        by_launch[str(host), str(sweep), int(launch)] = passes or ([ranks] if ranks else [])
    return by_launch


def _threads_per_core(summary: CellSummary, attempts: pd.DataFrame) -> float:
    """Threads of the ranks of a machine over its cores, 1 at least; 1 on GPUs."""
    place = summary.cell.placement
    facts = attempts["environment"].iloc[-1] or {}
    known = [facts.get(name) for name in ("cores", "cpu_quota")]
    cores = min((float(value) for value in known if value), default=0.0)
    local = facts.get("local_ranks") or place.world_size
    if place.device != "cpu" or not cores:
        return 1.0
    return max(1.0, float(local) * place.threads / cores)


def _computed(
    cell: Cell, summary: CellSummary, machine: HardwareModel | None, over: float
) -> tuple[list[Needs], list[Needs]]:
    """What experts and backward need on every rank: an even share of the slots, and SKEW, which is
    what the rank's own slots need beyond it."""
    slots = summary.rank_slots or [cost.expected(cell).slots] * summary.world_size
    even = statistics.fmean(slots)
    train = cell.workload.mode == "train"
    needs: dict[str, list[Needs]] = {"experts": [], "backward": []}
    for phase, into in needs.items():
        if phase == "backward" and not train:
            into.extend({} for _ in slots)
            continue
        shared = _phase_needs(cell, phase, even, even, machine, over)
        for own in slots:
            rank = _phase_needs(cell, phase, own, even, machine, over)
            into.append({**shared, SKEW: sum(rank.values()) - sum(shared.values())})
    return needs["experts"], needs["backward"]


def _phase_needs(
    cell: Cell, phase: str, slots: float, even: float, machine: HardwareModel | None, over: float
) -> Needs:
    """By part: ms of a rank with a core for each of its threads, or FLOPs."""
    if machine is None:
        times = features.BACKWARD if phase == "backward" else 1.0
        flops = cost.expert_flops(cell, Load(slots)) + cost.shared_flops(cell, 0)
        return {ARITHMETIC: times * flops}
    step = features.busiest(cell, slots / even if even else 1.0)
    load = dataclasses.replace(step.load, slots=slots, rows=step.load.rows * _share(slots, step))
    terms = features.terms(dataclasses.replace(step, load=load), machine)
    needs: Needs = {}
    for (name, term), seconds in terms.items():
        if name == phase and term in PARTS:
            needs[PARTS[term]] = needs.get(PARTS[term], 0.0) + 1e3 * seconds / over
    return needs


def _share(slots: float, step: features.Step) -> float:
    return slots / step.load.slots if step.load.slots else 1.0


def _sent(
    cell: Cell, summary: CellSummary, machine: HardwareModel | None
) -> tuple[list[Needs], list[Needs]]:
    """What the links need on every rank by collective: (dispatch, combine and gradients; backward).

    A record has the bytes of a whole step. The share of the backward pass is that of the formulas.
    """
    calls = cost.collectives(cell, cost.expected(cell), 0, machine.exchanged if machine else None)
    links: list[Needs] = []
    backward: list[Needs] = []
    for rank in summary.traffic or [[] for _ in range(summary.world_size)]:
        own: dict[bool, Needs] = {False: {}, True: {}}
        for row in rank:
            name = _named(row)
            share = _backward_share(calls, str(row["collective"]), str(row["group"]))
            for back, part in ((False, 1 - share), (True, share)):
                if part:
                    own[back][name] = own[back].get(name, 0.0) + part * _call(row, machine)
        links.append(own[False])
        backward.append(own[True])
    return links, backward


def _named(row: Mapping[str, Any]) -> str:
    group = f" ({row['group']})" if row.get("group") not in (None, "", "world") else ""
    return f"{BYTES}: {row['collective']}{group}"


def _backward_share(calls: Sequence[cost.Call], collective: str, group: str) -> float:
    alike = [c for c in calls if c.collective == collective and c.group.name == group]
    total = sum(call.sent_bytes for call in alike)
    return sum(c.sent_bytes for c in alike if c.purpose == "backward") / total if total else 0.0


def _call(row: Mapping[str, Any], machine: HardwareModel | None) -> float:
    """ms of these calls at the calibrated rates, or their bytes."""
    moved = max(float(row.get("sent_bytes") or 0), float(row.get("received_bytes") or 0))
    if machine is None:
        return moved
    name = fit_name(str(row["collective"]), str(row.get("algorithm") or ""))
    link = machine.links.get(name, machine.intra)
    return 1e3 * (int(row.get("calls") or 1) * link.alpha_s + moved / link.bytes_per_s)


def _absent(machine: HardwareModel | None) -> dict[str, str]:
    if machine is not None:
        return {}
    return {READS: "no calibration of both", MEMORY: "no calibration of both"}


def _facts(
    cell: Cell, summary: CellSummary, over: float, counted: int, waits: float
) -> dict[str, str]:
    """Words by part: what this side has of it."""
    busiest = cost.expected(cell).slots
    slots = statistics.fmean(summary.rank_slots) if summary.rank_slots else busiest
    flops = cost.expert_flops(cell, Load(slots)) + cost.shared_flops(cell, 0)
    facts = {
        ARITHMETIC: f"{numbers.short(flops / 1e9)} GFLOP a rank",
        SKEW: f"busiest rank {observed.skew_of(summary):.2f} times the mean",
        RATE: f"kernel {summary.kernel_ran}" if summary.kernel_ran else "",
        HOST: f"{waits:g} waits" if counted else "time outside of the phases",
        CORES: f"{over:g} threads a core",
        UNEXPLAINED: "steps of a loop, less their phases one by one",
    }
    for rank in summary.traffic[:1]:
        for row in rank:
            sent, calls = float(row.get("sent_bytes") or 0), int(row.get("calls") or 1)
            facts[_named(row)] = f"{numbers.bytes_text(sent)} in {calls} calls"
    return facts
