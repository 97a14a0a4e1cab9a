"""Where one way to move tokens overtakes another: predicted, and measured.

    python -m benchmarks.cost_model.crossover measure           # ep by all-to-all and all-gather,
    and tp python -m benchmarks.cost_model.crossover measure --ranks 4
    python -m benchmarks.cost_model.crossover report            # table, crossings, and a picture

2 ranks, 1,024 tokens, D = O = 512, 16 experts chosen evenly, top-k 1 to 8, tokens sharded.
`calibrated` is the cost model with what the machine's calibration says, nothing fitted; `fitted`
has coefficients from the cells of all other top-k. A crossing is where the ratio of two times
passes 1, between two neighbours of the grid.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import analysis
from analysis.data.cell_summary import summaries
from analysis.predict import fit, observed
from analysis.predict.fit import Measured
from analysis.predict.model import Coefficients
from analysis.stats import summarize

ROOT = Path(__file__).resolve().parents[2]

TOPKS = (1, 2, 3, 4, 6, 8)
PAIRS = (("ep/alltoall", "ep/allgather"), ("ep/alltoall", "tp"), ("ep/allgather", "tp"))
GRID = [
    "tokens=sharded", "batch_size=1024", "num_experts=16", "workload=balanced", "tracker=none",
    "report=false", "model.dim=512", "model.dim_out=512", "topk=" + ",".join(map(str, TOPKS)),
]  # fmt: skip
ASKED = {
    "ep": ["strategy=ep", "strategy.dispatcher=alltoall,allgather"],
    "tp": ["strategy=tp"],
}
HIDDEN = (128, 512)  # little and more arithmetic for what is moved


def measure(ranks: int) -> int:
    for name, asked in ASKED.items():
        for hidden in HIDDEN:
            command = [sys.executable, "runners/bench.py", "-m", f"name=crossover-{name}-{ranks}",
                       f"world_size={ranks}", f"model.hidden={hidden}", *asked, *GRID]  # fmt: skip
            done = subprocess.run(command, cwd=ROOT, check=False)
            if done.returncode:
                return done.returncode
    return 0


def load(ranks: int) -> list[Measured]:
    sources = [
        str(path)
        for name in ASKED
        for path in sorted((ROOT / "outputs").glob(f"*_crossover-{name}-{ranks}"))
    ]
    if not sources:
        return []
    return observed.measured(summaries(summarize.summarize(analysis.load(sources))))


def kind(m: Measured) -> str:
    strategy = m.cell.strategy
    return f"ep/{strategy.dispatcher}" if strategy.name == "ep" else strategy.name


def calibrated_s(m: Measured) -> float:
    """Every efficiency 1: the machine at its calibrated best, operations free."""
    best = {("", term): 1.0 for term in ("matrix", "read", "move", "alpha", "wire")}
    return fit.predicted_s(m, Coefficients(best))


def fitted_s(m: Measured, cells: Sequence[Measured]) -> float:
    others = [one for one in cells if one.cell.layer.topk != m.cell.layer.topk]
    return fit.predicted_s(m, fit.fit(others, folds=0))


def crossing(ratio: Sequence[float]) -> float | None:
    """Index, between grid points, at which the ratio passes 1; None where it does not."""
    for i in range(len(ratio) - 1):
        if (ratio[i] - 1) * (ratio[i + 1] - 1) <= 0 and ratio[i] != ratio[i + 1]:
            return i + (1 - ratio[i]) / (ratio[i + 1] - ratio[i])
    return None


def place_text(
    at: float | None, ratio: Sequence[float], grid: Sequence[int] = TOPKS, name: str = "k"
) -> str:
    if at is None:
        return "never: " + ("always faster" if ratio[0] < 1 else "always slower")
    low = grid[int(at)]
    high = grid[min(int(at) + 1, len(grid) - 1)]
    return f"{name} = {low + (at - int(at)) * (high - low):.1f}"


def report(ranks: int) -> int:
    cells = load(ranks)
    if not cells:
        print(
            "nothing measured yet; run python -m benchmarks.cost_model.crossover measure",
            file=sys.stderr,
        )
        return 2
    print(f"{ranks} ranks\n")
    print("| hidden | way | k | measured ms | calibrated ms | error | fitted ms | error |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for m in sorted(cells, key=lambda m: (m.cell.layer.hidden, kind(m), m.cell.layer.topk)):
        found = [m.total_s, calibrated_s(m), fitted_s(m, cells)]
        rows.append((m, found))
        real, best, fitted = (1e3 * value for value in found)
        cell = f"| {m.cell.layer.hidden} | {kind(m)} | {m.cell.layer.topk} | {real:.2f} "
        print(cell + f"| {best:.2f} | {best / real - 1:+.0%} "
              f"| {fitted:.2f} | {fitted / real - 1:+.0%} |")  # fmt: skip
    for name, at in (("calibrated", 1), ("fitted", 2)):
        errors = [abs(found[at] / found[0] - 1) for _, found in rows]
        within = statistics.fmean(error <= 0.2 for error in errors)
        print(f"\n{name}: median error {statistics.median(errors):.1%}, largest "
              f"{max(errors):.1%}, within 20%: {within:.0%} of {len(errors)} cells")  # fmt: skip
    crossings(rows)
    picture(rows, ROOT / "outputs" / f"crossover-{ranks}.png")
    return 0


def crossings(rows: Sequence[tuple[Measured, list[float]]]) -> None:
    print("\n| hidden | pair | measured | calibrated | fitted | fitted is off by |")
    print("|---|---|---|---|---|---|")
    for hidden in HIDDEN:
        for one, other in PAIRS:
            ratios = [series(rows, hidden, one, other, at) for at in (0, 1, 2)]
            if not all(len(ratio) == len(TOPKS) for ratio in ratios):
                continue
            places = [crossing(ratio) for ratio in ratios]
            off = "-"
            if places[0] is not None and places[2] is not None:
                off = f"{abs(places[0] - places[2]):.1f} grid steps"
            texts = [place_text(at, ratio) for at, ratio in zip(places, ratios, strict=True)]
            print(f"| {hidden} | {one} / {other} | {' | '.join(texts)} | {off} |")


def series(
    rows: Sequence[tuple[Measured, list[float]]], hidden: int, one: str, other: str, at: int
) -> list[float]:
    """Ratio of two ways' times by top-k."""
    times = {
        (kind(m), m.cell.layer.topk): found[at]
        for m, found in rows
        if m.cell.layer.hidden == hidden
    }
    return [times[one, k] / times[other, k] for k in TOPKS if {(one, k), (other, k)} <= set(times)]


def picture(rows: Sequence[tuple[Measured, list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    pyplot.style.use(ROOT / "analysis" / "style.mplstyle")
    figure, panels = pyplot.subplots(1, len(HIDDEN), figsize=(9, 3.6), layout="constrained")
    for panel, hidden in zip(panels, HIDDEN, strict=True):
        for number, (one, other) in enumerate(PAIRS):
            draw: Callable[..., object] = panel.plot
            colour = f"C{number}"
            for at, style in ((0, "o-"), (2, "x--")):
                ratio = series(rows, hidden, one, other, at)
                if len(ratio) == len(TOPKS):
                    label = f"{one} / {other}" + (", predicted" if at else "")
                    draw(TOPKS, ratio, style, color=colour, label=label)
        panel.axhline(1.0, color="0.4", linewidth=0.8)
        panel.set(title=f"hidden {hidden}", xlabel="top-k", ylabel="ratio of times", yscale="log")
        for level in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            level(ticker.FormatStrFormatter("%g"))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path)
    print(f"\n{path.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measure", "report"))
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    return measure(args.ranks) if args.what == "measure" else report(args.ranks)


if __name__ == "__main__":
    sys.exit(main())
