"""A whole model's memory against what was published, every row.

Of some rows the number of ranks or a vocabulary is chosen by the row itself; the last lines have
the errors of the others alone.

    python -m benchmarks.cost_model.memory [--markdown]

Parameters, counted once over all ranks, against published counts; peaks of training against those
in memory_reports.yaml, which has what was run and where it is from.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from analysis.predict import candidates, whole
from moe.build import supports
from moe.cost.whole_memory import MemoryPlan, MemoryUse, whole_memory
from moe.cost.whole_model import Share, WholeModel, parameter_count, parameter_groups
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, Unsupported, WorkloadSpec

REPORTS = Path(__file__).with_name("memory_reports.yaml")
RANKS = (8, 64, 256)
FORMS = (
    StrategySpec("simple"), StrategySpec("tp"), StrategySpec("ep", "alltoall"),
    StrategySpec("dp_ep", "alltoall", 4), StrategySpec("ep_tp", "alltoall", 4),
    StrategySpec("fsdp"),
)  # fmt: skip


class Peak(NamedTuple):
    """A report with what is computed for it, in bytes."""

    name: str
    source: str
    reported: float
    use: MemoryUse
    note: str
    resident: float = 0.0  # between steps, where reported
    independent: bool = True  # of anything chosen by the row


class Parameters(NamedTuple):
    """Published parameters, and those of all ranks together in the farthest of `forms` forms."""

    name: str
    published: float
    counted: float
    forms: int


def parameter_rows() -> list[Parameters]:
    """Every model, over RANKS and FORMS."""
    rows = []
    for name in whole.names():
        model, published = whole.load(name), whole.published_parameters(name)
        layer = candidates.plain(candidates.model_layer(name))
        counts = []
        for ranks in RANKS:
            for strategy in FORMS:
                work = WorkloadSpec(batch_size=ranks * 8, tokens="sharded")
                cell = Cell(layer, strategy, work, RankLayout(ranks, "nccl", "cuda"))
                try:
                    supports(cell)
                except Unsupported:
                    continue
                counts.append(parameter_count(parameter_groups(model, cell), ranks))
        farthest = max(counts, key=lambda n: abs(n / published - 1))
        rows.append(Parameters(name, published, farthest, len(counts)))
    return rows


def peaks() -> list[Peak]:
    """Every report, in the file's order."""
    written: dict[str, Any] = yaml.safe_load(REPORTS.read_text("utf-8"))
    return [_peak(report, written["models"]) for report in written["reports"]]


def _peak(report: dict[str, Any], models: dict[str, Any]) -> Peak:
    layer, model = _model(report["model"], models)
    ep, tp, stages = report["ep"], report.get("tp", 1), report.get("stages", 1)
    group, in_stage = ep * tp, report["ranks"] // stages
    tokens = report["sequence"] * report.get("sequences", 1)
    dense_tp = report.get("dense_tp", tp)
    strategy = (
        StrategySpec("ep_tp", "alltoall", ep, tp) if tp > 1 else StrategySpec("ep", "alltoall")
    )
    work = WorkloadSpec(batch_size=tokens * group // dense_tp, tokens="sharded", mode="train")
    cell = Cell(layer, strategy, work, RankLayout(group, "nccl", "cuda"))
    share = Share(report.get("layers", 0), report.get("dense_layers", -1),
                  report.get("embeddings", 0), dense_tp, in_stage // group)  # fmt: skip
    plan = MemoryPlan(
        optimizer=report.get("optimizer", "adamw"), recompute=report.get("recompute", "none"),
        context=report["sequence"], flash=report.get("flash", True), fused=True,
        in_flight=report.get("in_flight", 0), logits=report.get("logits", 1), share=share,
        gradient_bytes=report.get("gradient_bytes", 0), moment_bytes=report.get("moment_bytes", 0),
    )  # fmt: skip
    note = report.get("note", "")
    if report.get("ranks_from_resident"):
        note = "ranks from memory between steps"
    use = whole_memory(model, cell, plan)
    if "card" in report:
        parts = use.parts | {"reserve": whole.Reserve().share * float(report["card"])}
        use, note = MemoryUse(parts), "shown by nvidia-smi"
    return Peak(report["name"], report["source"], float(report["peak"]), use, note,
                float(report.get("resident", 0)), not report.get("note") and
                not report.get("ranks_from_resident"))  # fmt: skip


def _model(name: str, models: dict[str, Any]) -> tuple[LayerSpec, WholeModel]:
    if name not in models:
        return candidates.plain(candidates.model_layer(name)), whole.load(name)
    sizes = models[name]["layer"]
    layer = LayerSpec(**sizes, topk_requested=sizes["topk"], activation="silu_gated", bias="none",
                      dtype="bfloat16")  # fmt: skip
    return layer, WholeModel(**models[name]["whole"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    markdown = parser.parse_args().markdown
    _print_parameters(markdown)
    print()
    _print_peaks(markdown)
    return 0


def _print_parameters(markdown: bool) -> None:
    if markdown:
        print("| model | published, billions | counted, billions | error |\n|---|---|---|---|")
    form = "| {} | {:.2f} | {:.2f} | {:+.2%} |" if markdown else "{:48} {:8.2f} {:8.2f} {:+.2%}"
    for name, published, counted, _ in parameter_rows():
        print(form.format(name, published / 1e9, counted / 1e9, counted / published - 1))


def _print_peaks(markdown: bool) -> None:
    if markdown:
        print("| trained | reported GB | computed GB | error | of which | | source |")
        print("|---|---|---|---|---|---|---|")
    form = "| {} | {:.1f} | {:.1f} | {:+.0%} | {} | {} | {} |"
    if not markdown:
        form = "{:70} {:6.1f} {:6.1f} {:+.0%}  {}  {}  {}"
    every = peaks()
    for peak in every:
        parts = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in peak.use.parts.items())
        print(form.format(peak.name, peak.reported / 1e9, peak.use.total / 1e9,
                          peak.use.total / peak.reported - 1, parts, peak.note,
                          peak.source))  # fmt: skip
    print(f"\n{_judged(every, 'reports')}; ", end="")
    print(_judged([p for p in every if p.independent], "of them with nothing chosen by the row"))


def _judged(some: list[Peak], name: str) -> str:
    errors = [abs(peak.use.total / peak.reported - 1) for peak in some]
    within = sum(error <= 0.15 for error in errors)
    return (
        f"{len(errors)} {name}: {within} within 15%, median absolute error "
        f"{statistics.median(errors):.0%}, {max(errors):.0%} at most"
    )


if __name__ == "__main__":
    sys.exit(main())
