"""Whole models around the layer of conf/model/NAME.yaml: sizes, options, memory and time."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from analysis import numbers
from analysis.errors import InputError
from analysis.predict.model import Prediction
from moe.cost.whole_memory import (
    MASTERS,
    OPTIMIZERS,
    PHASES,
    RECOMPUTES,
    ZERO_STAGES,
    MemoryPlan,
    whole_memory,
)
from moe.cost.whole_model import Share, WholeModel, held_layers

FOLDER = Path(__file__).with_name("whole_models")
BACKWARD = ("backward", "gradients", "launches")  # phases that recompute=full does not do again
RESERVE = 0.1  # of a rank's memory: context, communication buffers, what the allocator loses
TRAIN, PREFILL, DECODE = PHASES
MODES = {TRAIN: "train", PREFILL: "forward", DECODE: "forward"}
TOKENS_PER_RANK = {TRAIN: 4096, PREFILL: 4096, DECODE: 64}  # decode: one of each sequence
UNITS = {"": 1.0, "GB": 1e9, "GIB": float(1 << 30), "MB": 1e6, "MIB": float(1 << 20)}
OF_TRAINING = {
    "optimizer": OPTIMIZERS, "master": MASTERS, "zero": ZERO_STAGES, "recompute": RECOMPUTES,
}  # fmt: skip


@dataclass(frozen=True)
class Deployment:
    """A whole model, how it is run, and what is reserved: a share of a rank's memory, or bytes."""

    name: str
    model: WholeModel
    plan: MemoryPlan
    reserve: float = RESERVE

    @property
    def timed_layers(self) -> int:
        """MoE layers of a rank, which each take the time that is predicted of one."""
        return held_layers(self.model, self.plan.share)[0]

    def of(self, prediction: Prediction, memory_bytes: float) -> Prediction:
        """The prediction of one layer for all MoE layers, with the memory of the whole model."""
        left = (
            memory_bytes * (1 - self.reserve) if self.reserve < 1 else memory_bytes - self.reserve
        )
        memory = whole_memory(self.model, prediction.cell, self.plan, left, prediction.skew)
        phases = dict(prediction.phases_ms)
        if self.plan.recompute == "full":
            phases["recompute"] = sum(ms for name, ms in phases.items() if name not in BACKWARD)
        longer = sum(phases.values()) / sum(prediction.phases_ms.values())
        times = self.timed_layers * longer
        return dataclasses.replace(
            prediction, phases_ms={name: self.timed_layers * ms for name, ms in phases.items()},
            total_ms=times * prediction.total_ms, low_ms=times * prediction.low_ms,
            high_ms=times * prediction.high_ms, memory=memory,
        )  # fmt: skip

    def in_phase(self, phase: str) -> Deployment:
        """The same model in another phase; in training with the usual options where none are."""
        return dataclasses.replace(self, plan=dataclasses.replace(self.plan, phase=phase))

    def refused(self, strategy: str) -> str:
        """Why a strategy is left out, or nothing."""
        if self.plan.phase == "train" and self.plan.zero == 3 and strategy in ("simple", "dp"):
            return "with --zero 3 every rank gathers all experts, which is strategy fsdp"
        return ""

    def legend(self, predictions: Sequence[Prediction]) -> list[str]:
        """Lines: what time and memory are of."""
        plan = self.plan
        reserve = f"{self.reserve:.0%}" if self.reserve < 1 else numbers.bytes_text(self.reserve)
        words = [f"{plan.phase} of {self.name}, {sum(held_layers(self.model, plan.share))} layers"]
        if plan.phase == "train":
            words.append(f"{plan.optimizer}, master {plan.master}, ZeRO {plan.zero}, recompute "
                         f"{plan.recompute}")  # fmt: skip
        words.append(f"sequences of {plan.context} tokens, {reserve} of a rank's memory reserved")
        lines = [
            f"ms: {self.timed_layers} MoE layers; attention, dense layers, embeddings and what "
            "ZeRO sends are not timed",
            f"memory: {'; '.join(words)}",
        ]
        shown = next((p for p in predictions if p.fits), None)
        if shown:
            parts = [f"{name} {numbers.bytes_text(n)}" for name, n in shown.memory.parts.items()]
            lines.append(f"memory of the first row that fits: {', '.join(parts)}")
        return lines


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


def phase_of(options: argparse.Namespace) -> str:
    """--phase, else by --mode: train, or prefill. Raises InputError where the two disagree."""
    phase: str = options.phase or ("train" if options.mode == "train" else "prefill")
    _one_of("phase", phase, PHASES)
    if options.mode and options.mode != MODES[phase]:
        raise InputError(
            f"--mode {options.mode}: --phase {phase} is mode {MODES[phase]}; leave one of them out"
        )
    return phase


def deployment(options: argparse.Namespace) -> Deployment:
    """The whole model of --model, run as the options say.

    Raises InputError for options that do not fit together.
    """
    model, phase = load(options.model), phase_of(options)
    for option in ("scale", "tokens"):
        value = getattr(options, option)
        if value not in (0, 1, "", "sharded"):
            raise InputError(
                f"--{option} {value}: not of a whole model, which is at full size and has sharded "
                "tokens; leave it out, or add --one-layer"
            )
    of_training = {name: getattr(options, name) for name in OF_TRAINING}
    given = {name: value for name, value in of_training.items() if value is not None}
    for name, value in given.items():
        _one_of(name, value, OF_TRAINING[name])
    if given and phase != "train":
        name, value = next(iter(given.items()))
        raise InputError(f"--{name} {value}: only of training; add --phase train, or leave it out")
    if not 0 <= options.layers <= model.layers:
        raise InputError(
            f"--layers {options.layers}: allowed are 1 to {model.layers}, and 0 for all of them"
        )
    if options.context < 1:
        raise InputError(f"--context {options.context}: allowed are numbers from 1")
    plan = MemoryPlan(phase, context=options.context, share=Share(options.layers),
                      fused=options.software == "fused", **given)  # fmt: skip
    return Deployment(options.model, model, plan, _reserve(options.reserve))


def _one_of(option: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        words = ", ".join(map(str, allowed))
        raise InputError(f"--{option} {value}: allowed are {words}; choose one of them")


def _reserve(text: str) -> float:
    """A share below 1, or bytes: "0.1", "8GB", "6GiB"."""
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(match[2].upper()) if match else None
    try:
        value = float(match[1]) * (unit or 0.0) if match else -1.0
    except ValueError:
        value = -1.0
    if unit is None or value < 0 or (unit == 1.0 and 1 <= value < UNITS["MB"]):
        raise InputError(
            f"--reserve {text}: allowed are a share of a rank's memory below 1, such as 0.1, or "
            "an amount such as 8GB or 6GiB"
        )
    return value
