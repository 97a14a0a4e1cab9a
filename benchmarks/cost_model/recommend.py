"""What `advise` recommends for whole models on H100, by phase and number of GPUs.

    python -m benchmarks.cost_model.recommend [--markdown]

Of training the first of PLANS in which a form fits counts: later ones save more memory, but send or
compute more, of which only the recomputed layers are timed. Prefill has 4,096 tokens on a GPU,
training a sequence of 4,096, decode 64 sequences with 4,096 tokens each in their caches.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

from analysis import cli, numbers
from analysis.predict import candidates, command, problem, whole
from analysis.predict.model import Prediction
from moe.cost.whole_memory import PHASES
from moe.strategies import names as strategy_names

CLUSTER = "h100"
RANKS = (8, 64, 256)
PLANS: dict[str, dict[str, list[str]]] = {
    "train": {
        "ZeRO 1": [],
        "ZeRO 1, recompute": ["--recompute", "full"],
        "ZeRO 3, recompute": ["--recompute", "full", "--zero", "3"],
    },
    "prefill": {"": []},
    "decode": {"": []},
}
HEADER = ("model", "GPUs", "phase", "plan", "best", "ms", "GiB a GPU", "runner-up")


class Recommendation(NamedTuple):
    """`best` and what follows it fit; without a best, `nearest` misses by least."""

    model: str
    ranks: int
    phase: str
    plan: str
    best: Prediction | None
    others: list[Prediction]
    nearest: Prediction


def recommend(model: str, ranks: int, phase: str) -> Recommendation:
    """The first plan with which something fits, else the last."""
    for plan, words in PLANS[phase].items():
        predictions = _predictions(model, ranks, phase, words)
        fitting = [p for p in predictions if p.fits]
        nearest = min(predictions, key=lambda p: p.memory.missing)
        made = Recommendation(model, ranks, phase, plan, None, [], nearest)
        if fitting:
            return made._replace(best=fitting[0], others=fitting[1:])
    return made


def _predictions(model: str, ranks: int, phase: str, words: list[str]) -> list[Prediction]:
    options = cli.parser().parse_args(
        ["advise", "--cluster", CLUSTER, "--model", model, "--phase", phase, *words]
    )
    return command.ranked(problem.make(options, []), ranks, set(strategy_names()))[0]


def _row(made: Recommendation) -> tuple[str, ...]:
    cells = (made.model, str(made.ranks), made.phase, made.plan)
    if made.best is None:
        missing = numbers.bytes_text(made.nearest.memory.missing)
        name = candidates.name_of(made.nearest.cell.strategy)
        return (*cells, f"nothing fits: {name} misses by {missing}", "-", "-", "-")
    second = "-"
    if made.others:
        slower = made.others[0].total_ms / made.best.total_ms - 1
        second = f"{candidates.name_of(made.others[0].cell.strategy)}, {slower:.0%} slower"
    return (
        *cells, candidates.name_of(made.best.cell.strategy), numbers.short(made.best.total_ms),
        numbers.short(made.best.memory_bytes / (1 << 30)), second,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    markdown = parser.parse_args().markdown
    if markdown:
        print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for model in whole.names():
        for ranks in RANKS:
            for phase in PHASES:
                row = _row(recommend(model, ranks, phase))
                print("| " + " | ".join(row) + " |" if markdown else "  ".join(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
