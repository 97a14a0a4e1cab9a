"""How well the model predicts cells it has not seen: half fitted, the other half predicted.

    python -m benchmarks.cost_model.held_out measure        # sweeps of (batch, k, dims, skew) on 1
    and 2 ranks python -m benchmarks.cost_model.held_out measure-more   # 4 and 8 ranks, reported
    beside it python -m benchmarks.cost_model.held_out report [--markdown]

Halves are drawn by a fixed seed; nothing of the other half is used. One sweep per slice, so that
each takes a few minutes: `measure NAME` takes only that slice.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import analysis
from analysis.data.cell_summary import summaries
from analysis.predict import fit, observed
from analysis.predict.fit import Measured
from analysis.stats import summarize

ROOT = Path(__file__).resolve().parents[2]

FOLDER = "outputs"
GRID = ["batch_size=32,128,512", "topk=1,2,4", "tokens=sharded", "tracker=none", "report=false"]
DIMS = ["dim=128", "hidden=256"], ["dim=256", "hidden=512"], ["dim=512", "hidden=1024"]
SLICES = {
    "one": ["world_size=1", "strategy=simple"],
    "tp": ["world_size=2", "strategy=tp"],
    "even": ["world_size=2", "strategy=ep", "workload.kind=imbalance", "workload.parameter=1.0"],
    "skew": ["world_size=2", "strategy=ep", "workload.kind=imbalance", "workload.parameter=1.6"],
}
MORE = {
    "four": ["world_size=4", "strategy=ep,tp"],
    "eight": ["world_size=8", "strategy=ep,tp"],
}
AXES = ("world_size", "batch_size", "topk", "dim", "skew", "strategy")


def measure(names: Sequence[str], more: bool) -> int:
    found = MORE if more else SLICES
    for name in names or found:
        for number, dims in enumerate(DIMS[:2] if more else DIMS):
            sizes = [f"model.{text}" for text in dims]
            grid = [*GRID, "topk=2"] if more else GRID
            command = [sys.executable, "runners/bench.py", "-m", f"name=heldout-{name}-{number}",
                       *grid, *found[name], *sizes,
                       f"model.dim_out={dims[0].partition('=')[2]}",
                       "measure.samples=12", "measure.samples_max=12"]  # fmt: skip
            done = subprocess.run(command, cwd=ROOT, check=False)
            if done.returncode:
                return done.returncode
    return 0


def load(names: Sequence[str]) -> list[Measured]:
    sources = [
        str(path)
        for name in names
        for path in sorted((ROOT / FOLDER).glob(f"*_heldout-{name}-*"))
        if not path.is_symlink()
    ]
    if not sources:
        return []
    return observed.measured(summaries(summarize.summarize(analysis.load(sources))))


def axis(name: str) -> Callable[[Measured], object]:
    def value(m: Measured) -> object:
        if name == "strategy":
            return f"{m.cell.strategy.name}"
        if name == "skew":
            return "even" if m.skew < 1.2 else "skewed"
        return {
            "world_size": m.cell.placement.world_size,
            "topk": m.cell.layer.topk,
            "batch_size": m.cell.workload.batch_size,
            "dim": m.cell.layer.dim,
        }[name]

    return value


class Score:
    """Errors of predictions for cells that were not fitted."""

    def __init__(self, fitted: Sequence[Measured], held: Sequence[Measured]) -> None:
        self.coefficients = fit.fit(fitted)
        self.pairs = [(m, fit.predicted_s(m, self.coefficients)) for m in held]

    @property
    def errors(self) -> list[float]:
        return [abs(p / m.total_s - 1) for m, p in self.pairs]

    def factor(self, m: Measured) -> float:
        """Of the cell's interval: its ends are the prediction divided and multiplied by it."""
        return self.coefficients.spread

    def holds(self, m: Measured, predicted_s: float) -> bool:
        return abs(math.log(predicted_s / m.total_s)) <= math.log(self.factor(m))

    @property
    def inside(self) -> float:
        return statistics.fmean(self.holds(m, p) for m, p in self.pairs)

    @property
    def median(self) -> float:
        return statistics.median(self.errors)

    def cells(self) -> list[str]:
        errors = sorted(self.errors)
        factor = statistics.median(self.factor(m) for m, _ in self.pairs)
        return [
            str(len(self.pairs)), f"{statistics.median(errors):.1%}",
            f"{errors[min(len(errors) - 1, int(0.9 * len(errors)))]:.1%}", f"{max(errors):.1%}",
            f"x {factor:.2f}", f"{self.inside:.0%}",
        ]  # fmt: skip


def halves(cells: Sequence[Measured], seed: int) -> tuple[list[Measured], list[Measured]]:
    order = list(cells)
    random.Random(seed).shuffle(order)
    return order[::2], order[1::2]


def table(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    header = ["held out", "cells", "median error", "90% within", "worst", "interval", "inside it"]
    return rows_text(header, rows, markdown)


def rows_text(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in [header, *rows]]
        return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    )


def report(markdown: bool) -> int:
    found = load(list(SLICES))
    if not found:
        print(
            "nothing measured yet; run python -m benchmarks.cost_model.held_out measure",
            file=sys.stderr,
        )
        return 2
    first, second = halves(found, 0)
    score = Score(first, second)
    rows = [["half of all cells", *score.cells()]]
    rows.append(["the other half", *Score(second, first).cells()])
    several = [Score(*halves(found, seed)) for seed in range(1, 21)]
    medians = [statistics.median(s.errors) for s in several]
    insides = [s.inside for s in several]
    for name in AXES:
        for value in sorted({axis(name)(m) for m in found}, key=str):
            held = [m for m in found if axis(name)(m) == value]
            kept = [m for m in found if axis(name)(m) != value]
            if not kept:
                continue  # one value only: nothing to leave out
            rows.append([f"all with {name}={value}", *Score(kept, held).cells()])
    for name, ranks in (("four", 4), ("eight", 8)):
        held = load([name])
        if held:
            rows.append([f"{ranks} ranks (oversubscribed)", *Score(found, held).cells()])
    print(table(rows, markdown))
    print(
        f"\n20 other halves: median error {min(medians):.1%} to {max(medians):.1%}, "
        f"inside {min(insides):.0%} to {max(insides):.0%}"
    )
    good = statistics.median(score.errors) < 0.15 and score.inside >= 0.9
    print(f"goal (median under 15%, 90% inside): {'met' if good else 'missed'}")
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measure", "measure-more", "report"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    if args.what == "report":
        return report(args.markdown)
    return measure(args.names, args.what == "measure-more")


if __name__ == "__main__":
    sys.exit(main())
