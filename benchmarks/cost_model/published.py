"""The model with conf/cluster/*.yaml and conf/software/*.yaml against published times, every row.

    python -m benchmarks.cost_model.published [--markdown]

Two groups: `known` were at hand when the formulas were written, `left out` were compared after the
profiles' constants had been set. benchmarks/cost_model/anchors.py has the figures, their sources
and what cannot be predicted, with the reason. Of a table of nccl-tests two sizes are fitted.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from analysis.predict import features, hardware, model, network
from analysis.predict.hardware import HardwareModel, Link
from benchmarks.cost_model import anchors
from moe.cost import Call
from moe.parallel.traffic import GroupShape
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec

LINKS = "links"  # in place of a profile: the time of one collective
NCCL_RAMP = hardware.load("h100").inter.ramp  # between nodes


class Row(NamedTuple):
    """A published time beside the predicted one, in ms, with the profile that predicts it."""

    name: str
    software: str
    published_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        return self.predicted_ms / self.published_ms - 1


def moe_perf(rows: Sequence[tuple[LayerSpec, str, str, float, float]], label: str) -> Iterator[Row]:
    """Layers of Megatron-Core's test, by `fused` on h100."""
    machine = hardware.with_profile(hardware.load("h100"), "fused")
    for layer, dispatcher, name, forward, backward in rows:
        times = []
        for mode in ("forward", "train"):
            work = WorkloadSpec(batch_size=8 * 4096, tokens="sharded", mode=mode)
            cell = Cell(layer, StrategySpec("ep", dispatcher), work, RankLayout(8, "nccl", "cuda"))
            times.append(1e3 * model.time_s(cell, machine, model.of_machine(machine))[1])
        yield Row(f"{label} {name}, forward", "fused", forward, times[0])
        yield Row(f"{label} {name}, backward", "fused", backward, times[1] - times[0])


def low_latency() -> Iterator[Row]:
    """Low-latency messages carry a scale for every 128 values and a header (its test's count)."""
    machine = hardware.with_profile(hardware.load("h800_deepep"))
    for ranks, dispatch_us, combine_us in anchors.LOW_LATENCY:
        fp8, bf16 = 7168 + 7168 // 128 * 4 + 16, 7168 * 2
        for name, size, published in (
            ("dispatch", fp8, dispatch_us), ("combine", bf16, combine_us)
        ):  # fmt: skip
            moved = 128 * 8 * size * (ranks - 1) / ranks
            call = Call("all_to_all", GroupShape("world", ranks, 1), name, moved, moved)
            predicted = 1e3 * network.call_times(call, machine).total_s
            yield Row(f"DeepEP low latency EP{ranks}, {name}", "fused", published / 1e3, predicted)


def experts_ms(layer: LayerSpec, tokens: int, kernel: str, machine: HardwareModel) -> float:
    """One rank's layer without its router, as kernels are timed: queued ahead of the GPU."""
    work = WorkloadSpec(batch_size=tokens, tokens="sharded")
    form = StrategySpec("simple", kernel=kernel, graph="on")
    cell = Cell(layer, form, work, RankLayout(1, "nccl", "cuda"))
    phases, total = model.time_s(cell, machine, model.of_machine(machine))
    return 1e3 * (total - phases["router"])


def kernels() -> Iterator[Row]:
    """Kernels that `ours` has, on one GPU."""
    h100, h200 = (hardware.with_profile(hardware.load(name), "ours") for name in ("h100", "h200"))
    for sweep, table in anchors.LIGER.items():
        for tokens, experts, published in table:
            layer = LayerSpec(2048, 768, 2048, experts, 8, 8, "silu_gated", "none", 0, "bfloat16")
            predicted = experts_ms(layer, tokens, "liger", h100)
            name = f"Liger over {sweep}: {experts} experts, {tokens} tokens"
            yield Row(name, "ours", published, predicted)
    for dim, hidden, experts, topk, published in anchors.VEOMNI:
        layer = LayerSpec(dim, hidden, dim, experts, topk, topk, "silu_gated", "none", 0,
                          "bfloat16")  # fmt: skip
        predicted = experts_ms(layer, 32768, "grouped", h100)
        yield Row(f"VeOmni torch {dim} x {hidden}, {experts} experts", "ours", published, predicted)
    assert h200.profile is not None
    grouped, rate = h200.profile.kernels["grouped"], h200.matrix_rate("bfloat16")
    for rows, inner, outer, forward, backward in anchors.GROUPED_MM:
        flops = 2.0 * rows * inner * outer
        predicted = 1e3 * flops / (rate * grouped.matrix) * grouped.slowdown(inner, rows / 32)
        name = f"pytorch grouped_mm {rows} x {inner} x {outer}"
        yield Row(f"{name}, forward", "ours", forward, predicted)
        yield Row(f"{name}, backward", "ours", backward, features.BACKWARD * predicted)


def all_reduce(size: int) -> Call:
    """The all-reduce of nccl-tests over 16 ranks."""
    moved = 2 * 15 / 16 * size
    return Call("all_reduce", GroupShape("world", 16, 1), "", moved, moved)


def two_nodes(smallest: tuple[int, float], largest: tuple[int, float]) -> HardwareModel:
    """h100 whose link between nodes is that of two rows (bytes, seconds) of a table."""
    alpha, (size, time) = smallest[1], largest
    base = hardware.load("h100")
    link = Link(1.0, alpha, 0.0, NCCL_RAMP)
    at_one = dataclasses.replace(base, inter=link, inter_efficiency=1.0)
    carried = network.call_times(all_reduce(size), at_one).wire_s  # bytes of a port, at 1 byte/s
    # time = alpha + w + ramp sqrt(alpha w), solved for sqrt(w)
    half = NCCL_RAMP * math.sqrt(alpha) / 2
    wire = (math.sqrt(half**2 + time - alpha) - half) ** 2
    return dataclasses.replace(at_one, inter=dataclasses.replace(link, bytes_per_s=carried / wire))


def collectives() -> Iterator[Row]:
    """nccl-tests: sizes between the fitted ones, and an all-to-all inside a node by h100."""
    for name, times in anchors.ALL_REDUCE.items():
        ends = min(times), max(times)
        machine = two_nodes(*((size, times[size] / 1e6) for size in ends))
        for size, published in times.items():
            if size not in ends:
                predicted = 1e3 * network.call_times(all_reduce(size), machine).total_s
                label = f"all-reduce {name}, {size >> 20} MiB"
                yield Row(label, LINKS, published / 1e3, predicted)
    size, published = anchors.ALL_TO_ALL
    call = Call("all_to_all", GroupShape("world", 4, 1), "", size * 3 / 4, size * 3 / 4)
    predicted = 1e3 * network.call_times(call, hardware.load("h100")).total_s
    yield Row("all-to-all of 4 H100, 500 MiB", LINKS, published / 1e3, predicted)


def groups() -> dict[str, list[Row]]:
    """Rows by group."""
    again = moe_perf(anchors.MOE_PERF_AGAIN, "moe_perf again")
    return {
        "known": [*moe_perf(anchors.MOE_PERF, "moe_perf"), *low_latency()],
        "left out": [*again, *kernels(), *collectives()],
    }


def median_error(rows: Sequence[Row]) -> float:
    """Median of absolute relative errors."""
    return statistics.median(abs(row.error) for row in rows)


def lines(rows: dict[str, list[Row]], markdown: bool) -> Iterator[str]:
    """Every row, a median for each group, and by profile."""
    form = "| {} | {} | {} | {:.3f} | {:.3f} | {:+.0%} |"
    if markdown:
        yield "| group | row | software | published ms | predicted ms | error |"
        yield "|---|---|---|---|---|---|"
    else:
        form = "{:9} {:46} {:6} {:8.3f} {:8.3f} {:+.0%}"
    for group, some in rows.items():
        for row in some:
            yield form.format(group, *row, row.error)
    yield ""
    for group, some in rows.items():
        parts = [f"{group}: {len(some)} rows, median absolute error {median_error(some):.1%}"]
        for name in dict.fromkeys(row.software for row in some):
            of_one = [row for row in some if row.software == name]
            parts.append(f"{name} {median_error(of_one):.1%} ({len(of_one)})")
        yield f"{'- ' * markdown}{'; '.join(parts)}"
    for name, reason in anchors.NOT_PREDICTABLE:
        yield f"{'- ' * markdown}not predictable: {name}: {reason}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    for line in lines(groups(), parser.parse_args().markdown):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
