"""Whole models around the layer of conf/model/NAME.yaml: sizes, memory and time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from analysis import numbers
from analysis.errors import InputError
from analysis.predict import network
from analysis.predict.hardware import HardwareModel
from analysis.predict.model import Prediction
from moe import cost
from moe.cost import Call
from moe.cost.whole_memory import PHASES, MemoryPlan, MemoryUse, whole_memory
from moe.cost.whole_model import WholeModel, held_layers
from moe.parallel.algorithms import EXCHANGE
from moe.spec import Cell
from moe.strategies import degrees, rules_of

FOLDER = Path(__file__).with_name("whole_models")
TRAIN, PREFILL, DECODE = PHASES
MODES = {TRAIN: "train", PREFILL: "forward", DECODE: "forward"}
TOKENS_PER_RANK = {TRAIN: 4096, PREFILL: 4096, DECODE: 64}  # decode: one of each sequence
NOT_TIMED = (
    "attention, dense layers, embeddings, the all-reduce of their gradients, the optimiser's step "
    "and a pipeline's bubble are not timed"
)


@dataclass(frozen=True)
class Reserve:
    """What of a rank's memory is kept free for the context, communication buffers and what the
    allocator loses: a share of it, and bytes."""

    share: float = 0.1
    amount: float = 0.0

    @property
    def text(self) -> str:
        return numbers.bytes_text(self.amount) if self.amount else f"{self.share:.0%}"

    def left(self, memory_bytes: float) -> float:
        """Raises InputError where nothing is left of a rank's memory."""
        left = memory_bytes * (1 - self.share) - self.amount
        if left <= 0:
            raise InputError(
                f"--reserve {self.text}: allowed are amounts below the "
                f"{numbers.bytes_text(memory_bytes)} of a rank; reserve less"
            )
        return left


@dataclass(frozen=True)
class Deployment:
    """A whole model, and how it is run."""

    name: str
    model: WholeModel
    plan: MemoryPlan
    reserve: Reserve = field(default_factory=Reserve)

    @property
    def timed_layers(self) -> int:
        """MoE layers of a rank, which each take the time that is predicted of one."""
        return held_layers(self.model, self.plan.share)[0]

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass starts with another forward pass."""
        return self.plan.phase == TRAIN and self.plan.recompute == "full"

    def memory(self, cell: Cell, skew: float, memory_bytes: float) -> MemoryUse:
        """Of the busiest rank, beside what is left of `memory_bytes`."""
        left = self.reserve.left(memory_bytes)
        return whole_memory(self.model, cell, self.plan, left, skew)

    def of(
        self, prediction: Prediction, machine: HardwareModel, forward: Prediction | None = None
    ) -> Prediction:
        """The prediction of one layer for all MoE layers, with the memory of the whole model.
        `forward` is the layer's forward pass, where it is recomputed."""
        phases, total = dict(prediction.phases_ms), prediction.total_ms
        if self.plan.phase == TRAIN and self.plan.zero == 3 and not _sharded(prediction.cell):
            reduced = phases.get("gradients", 0.0)
            share = gather_share(prediction, machine)
            phases |= {"gradients": reduced * share, "weights": 2 * reduced * share}
            total += (3 * share - 1) * reduced
        if forward and self.recomputes:
            phases["recompute"] = recomputed_ms(forward)
            total += phases["recompute"]
        times = self.timed_layers * total / prediction.total_ms
        return dataclasses.replace(
            prediction,
            phases_ms={name: self.timed_layers * ms for name, ms in phases.items() if ms},
            total_ms=times * prediction.total_ms, low_ms=times * prediction.low_ms,
            high_ms=times * prediction.high_ms,
            memory=self.memory(prediction.cell, prediction.skew, machine.memory_bytes),
        )  # fmt: skip

    def in_phase(self, phase: str) -> Deployment:
        """The same model in another phase; in training with the usual options where none are."""
        return self.with_plan(dataclasses.replace(self.plan, phase=phase))

    def with_plan(self, plan: MemoryPlan) -> Deployment:
        return dataclasses.replace(self, plan=plan)

    def refused(self, strategy: str) -> str:
        """Why a strategy is left out, or nothing."""
        if self.plan.phase == TRAIN and self.plan.zero == 3 and strategy in ("simple", "dp"):
            return "with --zero 3 every rank gathers all experts, which is strategy fsdp"
        return ""

    def legend(self, predictions: Sequence[Prediction]) -> list[str]:
        """Lines: what time and memory are of."""
        plan = self.plan
        words = [f"{plan.phase} of {self.name}, {sum(held_layers(self.model, plan.share))} layers"]
        if plan.phase == TRAIN:
            words.append(plan_text(plan))
        else:
            words.append(f"sequences of {plan.context} tokens")
        words.append(f"{self.reserve.text} of a rank's memory reserved")
        lines = [f"ms: {self.timed_layers} MoE layers; {NOT_TIMED}"]
        if any(degrees(p.cell).tp > 1 for p in predictions):
            lines.append(f"tp: {TP_NOT_TIMED}")
        lines.append(f"memory: {'; '.join(words)}")
        shown = next((p for p in predictions if p.fits), None)
        if shown:
            parts = [f"{name} {numbers.bytes_text(n)}" for name, n in shown.memory.parts.items()]
            lines.append(f"memory of the first row that fits: {', '.join(parts)}")
        return lines


TP_NOT_TIMED = (
    "splits attention and vocabulary, too, which saves memory; the all-reduces that this takes are "
    "not timed"
)


def plan_text(plan: MemoryPlan) -> str:
    """ "adamw, master fp32, ZeRO 1 and no recomputation"."""
    again = "recomputation" if plan.recompute == "full" else "no recomputation"
    return f"{plan.optimizer}, master {plan.master}, ZeRO {plan.zero} and {again}"


def recomputed_ms(forward: Prediction) -> float:
    """Another forward pass; its exchanges too, but for weights that are gathered (fsdp): those
    that the backward pass gathers anyway serve both."""
    shared = forward.phases_ms.get("dispatch", 0.0) if _sharded(forward.cell) else 0.0
    return forward.total_ms - shared


def _sharded(cell: Cell) -> bool:
    """Whether ranks keep shards of all weights and gather them, as fsdp does."""
    return rules_of(cell.strategy.name).gathered_bytes(cell) > 0


def gather_share(prediction: Prediction, machine: HardwareModel) -> float:
    """Time of an all-gather over that of an all-reduce, of all that gradients are summed of.

    ZeRO 3 gathers weights before the forward and the backward pass, and scatters gradients, which
    takes as long as a gather (arXiv 1910.02054, section 7.2); stages 1 and 2 gather once, as an
    all-reduce does.
    """
    cell = prediction.cell
    load = cost.expected(cell, 0, prediction.skew)
    every = cost.collectives(cell, load, 0, machine.exchanged)
    calls = [call for call in every if call.purpose == "gradients"]
    reduced = sum(network.call_times(call, machine).total_s for call in calls)
    gathered = sum(network.call_times(_gather(call), machine).total_s for call in calls)
    return gathered / reduced if reduced else 0.0


def _gather(call: Call) -> Call:
    """The all-gather of what an all-reduce sums."""
    parts = call.group.size if call.algorithm == EXCHANGE else 2
    sent, received = call.sent_bytes / parts, call.received_bytes / parts
    return Call("all_gather", call.group, call.purpose, sent, received, call.calls)


def names() -> list[str]:
    """Models whose sizes are known, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> WholeModel:
    """Raises InputError for a model of which only the layer is known."""
    if name not in names():
        raise InputError(
            f"--model {name}: only its layer is known; whole models are {', '.join(names())}; add "
            "--one-layer for the layer alone"
        )
    return WholeModel(
        **{key: value for key, value in _written(name).items() if key != "parameters"}
    )


def published_parameters(name: str) -> float:
    """As the model's publisher, or who loaded it, counts them."""
    return float(_written(name)["parameters"])


def _written(name: str) -> dict[str, Any]:
    written: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    return written
