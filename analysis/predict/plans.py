"""Ways to train or run a whole model in less memory, in the order in which they are tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from analysis.predict.model import Prediction
from analysis.predict.problem import PredictionProblem
from analysis.predict.whole import TRAIN, Deployment
from moe.cost.whole_memory import MemoryPlan


class Fitting(NamedTuple):
    """The options to add, the form that takes least with them, and its bytes on a rank."""

    options: str
    form: Prediction
    bytes: float


def on_all_layers(plan: MemoryPlan) -> Iterator[MemoryPlan]:
    """Of training: with recomputation, then with more of ZeRO. Each costs time or messages."""
    if plan.phase != TRAIN:
        return
    before = plan
    for stage in (plan.zero, 2, 3):
        more = dataclasses.replace(plan, recompute="full", zero=max(plan.zero, stage))
        if more != before:
            yield more
        before = more


def of_a_stage(deployed: Deployment) -> Iterator[MemoryPlan]:
    """With half of the layers on a rank, then a quarter, as a pipeline has; with all the above."""
    plan = [deployed.plan, *on_all_layers(deployed.plan)][-1]
    layers = plan.share.layers or deployed.model.layers
    while layers > 1:
        layers = -(-layers // 2)
        yield dataclasses.replace(plan, share=dataclasses.replace(plan.share, layers=layers))


def options_of(plan: MemoryPlan, asked: MemoryPlan) -> str:
    """What to add to the command: "--recompute full --zero 3"."""
    words = [
        f"--{name} {getattr(plan, name)}"
        for name in ("recompute", "zero")
        if getattr(plan, name) != getattr(asked, name)
    ]
    if plan.share.layers != asked.share.layers:
        words.append(f"--layers {plan.share.layers}")
    return " ".join(words)


def first_fitting(setup: PredictionProblem, predictions: Sequence[Prediction]) -> Fitting | None:
    """Of the plans that take less memory the first with which one of these forms fits."""
    deployed = setup.whole
    if deployed is None:
        return None
    for plan in [*on_all_layers(deployed.plan), *of_a_stage(deployed)]:
        other, fitting = deployed.with_plan(plan), []
        for form in predictions:
            if not other.refused(form.cell.strategy.name):
                memory = setup.machine(form.cell.placement.world_size).memory_bytes
                fitting.append((other.memory(form.cell, form.skew, memory), form))
        if not fitting:
            continue
        use, form = min(fitting, key=lambda one: one[0].total)
        if use.fits:
            return Fitting(options_of(plan, deployed.plan), form, use.total)
    return None
