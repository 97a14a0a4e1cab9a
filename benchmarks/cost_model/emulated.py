"""How well the model predicts an emulated cluster's steps at ranks, and of strategies, it has not
seen.

    python -m benchmarks.cost_model.emulated report [SWEEP...] [--markdown]

Without SWEEP it takes the newest sweep of each number of ranks that `benchmarks.emulate.grid` has
left in outputs/.

Fitted on 1, 2 and 4 ranks, it predicts all larger numbers; fitted without one strategy, on all
ranks, it predicts that strategy. Crossovers of tp, ep and dp_ep, over ranks and over top-k, are
predicted by the fit on 1, 2 and 4 ranks without the cells of the crossover itself. An interval is
the one that `predict` shows, which is wider beyond what was fitted. A held-out cell's rates are
those calibrated with the nearest fitted number of ranks; its skew is the measured one. Exit code 1
where a goal is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import analysis
from analysis.data.cell_summary import CellSummary, summaries
from analysis.data.frame import one_clock
from analysis.errors import InputError
from analysis.predict import fit, model, observed
from analysis.predict.fit import Measured
from analysis.stats import summarize
from benchmarks.cost_model import crossings
from benchmarks.cost_model.held_out import Score, rows_text, table
from runners.host import project_paths

FITTED_RANKS = (1, 2, 4)
CELLS = 60
RANKS_MEDIAN, RANKS_INSIDE, STRATEGY_MEDIAN = 0.15, 0.9, 0.25
MISS_HEADER = ["cell", "held out as", "measured ms", "predicted ms", "interval", "largest phase"]


INPUTS = (
    "inputs of a held-out cell's prediction: its measured skew, and the rates that were calibrated "
    "with the nearest fitted number of ranks"
)


class Judged(Score):
    """Errors of predictions, by the interval that `predict` shows."""

    def __init__(self, fitted: Sequence[Measured], held: Sequence[Measured]) -> None:
        super().__init__(fitted, [with_fitted_machine(m, fitted) for m in held])

    def factor(self, m: Measured) -> float:
        doublings = model.beyond(m.cell, self.coefficients, m.skew)[1]
        return self.coefficients.spread * model.WIDER_PER_DOUBLING**doublings

    def misses(self, name: str) -> list[list[str]]:
        """A row for each cell outside its interval."""
        return [self._miss(m, p, name) for m, p in self.pairs if not self.holds(m, p)]

    def _miss(self, m: Measured, predicted_s: float, name: str) -> list[str]:
        phases = model.time_s(m.cell, m.machine, self.coefficients, m.skew)[0]
        largest = max(phases, key=lambda phase: phases[phase])
        ends = (predicted_s / self.factor(m), predicted_s * self.factor(m))
        return [
            crossings.words(m), name, f"{1e3 * m.total_s:.1f}", f"{1e3 * predicted_s:.1f}",
            " to ".join(f"{1e3 * end:.1f}" for end in ends),
            f"{largest} {phases[largest] / sum(phases.values()):.0%}",
        ]  # fmt: skip


class Verdict(NamedTuple):
    """A goal, what came out, and whether that meets it."""

    goal: str
    result: str
    met: bool


def with_fitted_machine(m: Measured, fitted: Sequence[Measured]) -> Measured:
    """The cell with the machine of the fitted ones on the nearest number of ranks: a machine is one
    rank's, whatever their number."""
    machines = {ranks_of(one): one.machine for one in reversed(fitted)}
    return dataclasses.replace(m, machine=machines[observed.nearest(machines, ranks_of(m))])


def newest_grids(outputs: Path = project_paths.OUTPUTS) -> list[str]:
    """The newest sweep of each number of ranks of the grid; raises InputError for none."""
    newest = {}
    for folder in sorted(outputs.glob("*_grid-*")):
        if number := re.search(r"_grid-(\d+)$", folder.name):
            newest[int(number[1])] = str(folder)
    if not newest:
        raise InputError(
            f"SWEEP: none named, and no *_grid-N in {outputs}; allowed are folders of sweeps; "
            "run python -m benchmarks.emulate.grid"
        )
    return [newest[ranks] for ranks in sorted(newest)]


def load(sources: Sequence[str]) -> list[CellSummary]:
    """All cells; raises InputError unless all are of one emulated cluster."""
    frame = analysis.load(sources)
    one_clock(frame)
    if not frame["emulated"].all():
        raise InputError("SWEEP: real time; allowed are sweeps of an emulated cluster")
    return summaries(summarize.summarize(frame))


def left_out(cells: Sequence[CellSummary]) -> str:
    """How many cells are not judged and why: "left out: 2 failed, 1 measured without a usable
    calibration or by another metric"; empty for none."""
    counts = Counter(cell.outcome for cell in cells if not cell.measured)
    unusable = len(cells) - counts.total() - len(observed.measured(cells))
    words = [f"{count} {outcome}" for outcome, count in sorted(counts.items())]
    if unusable:
        words.append(f"{unusable} measured without a usable calibration or by another metric")
    return f"left out: {', '.join(words)}" if words else ""


def ranks_of(m: Measured) -> int:
    return m.cell.placement.world_size


class Judgement:
    """All groups of held-out cells, and the crossovers; raises InputError for too few cells."""

    def __init__(self, cells: Sequence[Measured]) -> None:
        self.cells = cells
        self.few = [m for m in cells if ranks_of(m) in FITTED_RANKS]
        many = [m for m in cells if ranks_of(m) not in FITTED_RANKS]
        if not many:
            raise InputError(
                f"SWEEP: no cell on more than {max(FITTED_RANKS)} ranks; allowed are sweeps of "
                "both; measure 8 ranks"
            )
        self.ranks = Judged(self.few, many)
        self.by_ranks = {
            ranks: Judged(self.few, [m for m in many if ranks_of(m) == ranks])
            for ranks in sorted(set(map(ranks_of, many)))
        }
        self.by_strategy = self._without_a_strategy()
        slices = crossings.slices(cells)
        self.crossings = [self._crossing(one) for one in slices]

    def _without_a_strategy(self) -> dict[str, Judged]:
        """Strategies that leave enough cells to fit."""
        names = sorted({m.cell.strategy.name for m in self.cells})
        parts = {
            name: [[m for m in self.cells if (m.cell.strategy.name == name) is held]
                   for held in (False, True)]
            for name in names
        }  # fmt: skip
        return {
            name: Judged(kept, held)
            for name, (kept, held) in parts.items()
            if len(kept) >= fit.MIN_CELLS
        }

    def _crossing(self, one: crossings.Slice) -> crossings.Crossing:
        own = {id(m) for pair in one.pairs for m in pair}
        kept = [m for m in self.few if id(m) not in own]
        coefficients = fit.fit(kept, folds=0)
        return one.judged(lambda m: fit.predicted_s(with_fitted_machine(m, kept), coefficients))

    def rows(self) -> list[list[str]]:
        rows = [["all of more ranks", *self.ranks.cells()]]
        rows += [[f"{n} ranks", *score.cells()] for n, score in self.by_ranks.items()]
        rows += [[f"strategy {n} left out", *s.cells()] for n, s in self.by_strategy.items()]
        return rows

    @property
    def strategy_median(self) -> float:
        """Median error over the cells of all strategies, each predicted without its own."""
        errors = [error for score in self.by_strategy.values() for error in score.errors]
        return statistics.median(errors) if errors else math.nan

    def verdicts(self) -> list[Verdict]:
        count, median, inside = len(self.cells), self.ranks.median, self.ranks.inside
        crossed = [c for c in self.crossings if c.crosses]
        near = sum(c.near for c in crossed)
        return [
            Verdict(f"at least {CELLS} cells", str(count), count >= CELLS),
            Verdict(f"ranks held out: median error at most {RANKS_MEDIAN:.0%}", f"{median:.1%}",
                    median <= RANKS_MEDIAN),
            Verdict(f"ranks held out: at least {RANKS_INSIDE:.0%} inside their intervals",
                    f"{inside:.0%}", inside >= RANKS_INSIDE),
            Verdict(f"a strategy left out: median error at most {STRATEGY_MEDIAN:.0%}",
                    f"{self.strategy_median:.1%}", self.strategy_median <= STRATEGY_MEDIAN),
            Verdict("crossovers within one grid step",
                    f"{near} of {len(crossed)}" if crossed else "none in the grid",
                    0 < len(crossed) == near),
        ]  # fmt: skip

    def misses(self) -> list[list[str]]:
        rows = [row for n, s in self.by_ranks.items() for row in s.misses(f"{n} ranks")]
        return rows + [
            row for n, s in self.by_strategy.items() for row in s.misses(f"strategy {n}")
        ]


def text(judgement: Judgement, markdown: bool) -> str:
    """The report: errors by group, crossovers that there are or were predicted, cells outside their
    intervals, goals."""
    crossed = [c.row() for c in judgement.crossings if c.crosses]
    alike = f"{len(judgement.crossings) - len(crossed)} of {len(judgement.crossings)} pairs cross "
    misses, verdicts = judgement.misses(), judgement.verdicts()
    goals = [[v.goal, v.result, "met" if v.met else "missed"] for v in verdicts]
    parts = [
        table(judgement.rows(), markdown),
        INPUTS,
        *([rows_text(crossings.HEADER, crossed, markdown)] if crossed else []),
        f"{alike}nowhere, as predicted",
        rows_text(MISS_HEADER, misses, markdown) if misses else "every cell is in its interval",
        rows_text(["goal", "result", "met"], goals, markdown),
    ]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("report",))
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args(arguments)
    try:
        cells = load(args.sweeps or newest_grids())
        judgement = Judgement(observed.measured(cells))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text(judgement, args.markdown))
    if line := left_out(cells):
        print(f"\n{line}")
    return 0 if all(verdict.met for verdict in judgement.verdicts()) else 1


if __name__ == "__main__":
    sys.exit(main())
