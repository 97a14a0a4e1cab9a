"""What `advise` recommends for whole models on H100, by phase and number of GPUs.

    python -m benchmarks.cost_model.recommend [--markdown]

Of training the first plan of analysis/predict/plans.py in which a form fits counts: later ones save
more memory, but send or compute more. Prefill has 4,096 tokens on a GPU, training a sequence of
4,096, decode 64 sequences with 4,096 tokens each in their caches.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import NamedTuple

from analysis import cli, numbers
from analysis.predict import candidates, command, plans, problem, sentences, whole
from analysis.predict.model import Prediction, longer
from analysis.predict.whole import TRAIN
from moe.cost.whole_memory import PHASES, MemoryPlan
from moe.strategies import names as strategy_names
from moe.strategies import rules_of

CLUSTER = "h100"
RANKS = (8, 64, 256)
HEADER = ("model", "GPUs", "phase", "plan", "best", "ms", "GiB a GPU", "runner-up")


class Recommendation(NamedTuple):
    """`best` and what follows it fit; without a best, `nearest` misses by least."""

    model: str
    ranks: int
    plan: MemoryPlan
    best: Prediction | None
    others: list[Prediction]
    nearest: Prediction


def recommend(model: str, ranks: int, phase: str) -> Recommendation:
    """The first plan with which something fits, else the last."""
    words = ["advise", "--cluster", CLUSTER, "--model", model, "--phase", phase]
    setup = problem.make(cli.parser().parse_args(words), [])
    deployed = setup.whole
    assert deployed is not None
    for plan in [deployed.plan, *plans.on_all_layers(deployed.plan)]:
        setup = dataclasses.replace(setup, whole=deployed.with_plan(plan))
        predictions, _ = command.ranked(setup, ranks, set(strategy_names()))
        fitting = [p for p in predictions if p.fits]
        nearest = min(predictions, key=lambda p: p.memory.missing)
        if fitting:
            return Recommendation(model, ranks, plan, fitting[0], fitting[1:], nearest)
    return Recommendation(model, ranks, plan, None, [], nearest)


def plan_of(plan: MemoryPlan, form: Prediction) -> str:
    """ "ZeRO 1, recompute"; fsdp shards everything, whatever the stage. Nothing but of training."""
    if plan.phase != TRAIN:
        return ""
    shards = rules_of(form.cell.strategy.name).gathered_bytes(form.cell) > 0
    stage = "fsdp (shards everything)" if shards else f"ZeRO {plan.zero}"
    return f"{stage}, recompute" if plan.recompute == "full" else stage


def row(result: Recommendation) -> tuple[str, ...]:
    """The cells below HEADER."""
    best, plan = result.best, result.plan
    cells = (result.model, str(result.ranks), plan.phase, plan_of(plan, best or result.nearest))
    if best is None:
        missing = numbers.bytes_text(result.nearest.memory.missing)
        name = candidates.name_of(result.nearest.cell.strategy)
        return (*cells, f"nothing fits: {name} misses by {missing}", "-", "-", "-")
    second = "-"
    if result.others:
        other = sentences.runner_up(best, result.others)
        slower = longer(other.total_ms / best.total_ms)
        second = f"{candidates.name_of(other.cell.strategy)}, {slower}"
    return (
        *cells, candidates.name_of(best.cell.strategy), numbers.short(best.total_ms),
        numbers.short(best.memory_bytes / (1 << 30)), second,
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
                cells = row(recommend(model, ranks, phase))
                print("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
