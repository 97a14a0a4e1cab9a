"""The profile `ours` against this project's own rows of one GPU, every row.

    python -m benchmarks.cost_model.ours_gpu [--markdown]

Rows are those of the newest summary in benchmarks/gpu/results. Constants of conf/software/ours.yaml
were set from the rows marked `set`, from two products in docs/gpu.md (kernel `triton`), from
Mixtral's layer with 16,384 tokens in docs/results/gpu.md (kernel `grouped`) and from the summary's
facts; the others are checked. Routers are predicted as plain ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from analysis.predict import candidates, hardware, model
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec

RESULTS = Path(__file__).parents[1] / "gpu" / "results"
QWEN = "qwen3_30b_a3b"
SMALL = LayerSpec(2048, 768, 2048, 32, 8, 8, "silu_gated", "none", 0, "bfloat16")
SMALL_NAME = f"{QWEN}, a quarter of its experts"  # the layer of part `waits`
SET = {  # (kernel, tokens, graph) of Qwen3's layer, forward
    ("grouped", 32768, "off"), ("liger", 32768, "off"), ("grouped", 128, "on"),
    ("liger", 128, "on"), ("triton", 128, "on"), ("grouped", 1, "on"), ("grouped", 1, "off"),
}  # fmt: skip


class Row(NamedTuple):
    """A measured step beside the predicted one, in ms."""

    layer: str
    tokens: int
    step: str
    kernel: str
    use: str  # set | checked
    measured_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        return self.predicted_ms / self.measured_ms - 1


def newest(folder: Path = RESULTS) -> dict[str, Any]:
    """The newest summary of the GPU script; raises FileNotFoundError where there is none."""
    summaries = [json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")]
    if not summaries:
        raise FileNotFoundError(f"{folder}: no summary; see docs/gpu.md")
    latest: dict[str, Any] = max(summaries, key=lambda summary: summary["date"])
    return latest


def cluster_of(card: str) -> hardware.HardwareModel:
    """The cluster of this card's name, with the profile; raises StopIteration for none."""
    name = next(name for name in hardware.names() if name in card.lower())
    return hardware.with_profile(hardware.load(name), "ours")


def layer_of(name: str) -> LayerSpec:
    """A model's layer with a plain router and without shared experts, as the script times it."""
    return dataclasses.replace(candidates.plain(candidates.model_layer(name)), shared_experts=0)


def rows(summary: dict[str, Any]) -> Iterator[Row]:
    """Kernels, models of the part `bench`, and steps from CUDA graphs beside eager ones."""
    machine = cluster_of(summary["card"])
    fitted = model.of_machine(machine)

    def row(
        name: str,
        layer: LayerSpec,
        tokens: int,
        form: StrategySpec,
        mode: str,
        kind: str,
        ms: float,
    ) -> Row:
        work = WorkloadSpec(batch_size=tokens, tokens="sharded", mode=mode, kind=kind)
        cell = Cell(layer, form, work, RankLayout(1, "nccl", "cuda"))
        predicted_ms = 1e3 * model.time_s(cell, machine, fitted)[1]
        graph = ", graph" if form.graph == "on" else ""
        chosen = name == QWEN and kind == "balanced" and (form.kernel, tokens, form.graph) in SET
        return Row(name, tokens, mode + graph, f"{form.name} {form.kernel}",
                   "set" if chosen else "checked", ms, predicted_ms)  # fmt: skip

    for one in summary["kernels"]:
        strategy, kernel = one["strategy"].split()
        if strategy == "simple":
            form = StrategySpec("simple", kernel=kernel, graph=one["graph"])
            yield row(one["model"], layer_of(one["model"]), one["batch"], form, one["mode"],
                      "balanced", one["ms"])  # fmt: skip
    for one in summary["cells"]:
        yield row(one["model"], layer_of(one["model"]), one["batch"], StrategySpec("simple"),
                  "forward", "learned", one["simple_ms"])  # fmt: skip
    for one in summary["graphs"]:
        strategy, dispatcher, kernel, mode = one["form"].split()
        for graph, key in (("off", "eager_ms"), ("on", "graph_ms")):
            form = StrategySpec(strategy, dispatcher, kernel=kernel, graph=graph)
            yield row(SMALL_NAME, SMALL, one["batch"], form, mode, "learned", one[key])


def lines(rows: list[Row], markdown: bool) -> Iterator[str]:
    """Every row, set ones first, and the median error of each use."""
    form = "| {} | {} | {} | {} | {} | {:.3f} | {:.3f} | {:+.0%} |"
    if markdown:
        yield "| layer | tokens | step | form | use | measured ms | predicted ms | error |"
        yield "|---|---|---|---|---|---|---|---|"
    else:
        form = "{:38} {:6} {:15} {:20} {:8} {:8.3f} {:8.3f} {:+.0%}"
    key = ("set", "checked").index
    for row in sorted(rows, key=lambda row: (key(row.use), row[:4])):
        yield form.format(*row, row.error)
    yield ""
    parts = {
        "set": [row for row in rows if row.use == "set"],
        "checked": [row for row in rows if row.use == "checked"],
        "checked, GPU busy (graphs, or 4,096 tokens and more)": [
            row for row in rows if row.use == "checked" and busy(row)
        ],
        "checked, host busy": [row for row in rows if row.use == "checked" and not busy(row)],
    }
    for name, some in parts.items():
        median = statistics.median(abs(row.error) for row in some)
        yield f"{'- ' * markdown}{name}: {len(some)} rows, median absolute error {median:.0%}"


def busy(row: Row) -> bool:
    """Whether the GPU, not the host, sets the time."""
    return row.step.endswith("graph") or row.tokens >= 4096


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    for line in lines(list(rows(newest())), parser.parse_args().markdown):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
