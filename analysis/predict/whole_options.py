"""The options of predict and advise that describe a whole model: checked, as a `Deployment`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from analysis.errors import InputError
from analysis.predict import whole
from analysis.predict.whole import MODES, TRAIN, Deployment, Reserve
from moe import spec
from moe.cost.whole_memory import (
    MASTERS,
    OPTIMIZERS,
    PHASES,
    RECOMPUTES,
    ZERO_STAGES,
    MemoryPlan,
)
from moe.cost.whole_model import Share

UNITS = {"GB": 1e9, "GIB": float(1 << 30), "MB": 1e6, "MIB": float(1 << 20)}
OF_TRAINING = {
    "optimizer": OPTIMIZERS, "master": MASTERS, "zero": ZERO_STAGES, "recompute": RECOMPUTES,
}  # fmt: skip
OF_A_WHOLE_MODEL = (*OF_TRAINING, "layers", "context", "reserve")


def of_one_layer(options: argparse.Namespace, remedy: str) -> None:
    """Raises InputError for an option that only a whole model has."""
    for name in ("phase", *OF_A_WHOLE_MODEL):
        value = getattr(options, name)
        if value not in (None, ""):
            raise InputError(f"--{name} {value}: not of one layer; {remedy}, or leave it out")


def phase_of(options: argparse.Namespace) -> str:
    """--phase, else by --mode: train, or prefill. Raises InputError where the two disagree."""
    if options.mode:
        one_of("mode", options.mode, spec.MODES)
    phase: str = options.phase or ("train" if options.mode == "train" else "prefill")
    one_of("phase", phase, PHASES)
    if options.mode and options.mode != MODES[phase]:
        raise InputError(
            f"--mode {options.mode}: --phase {phase} is mode {MODES[phase]}; leave one of them out"
        )
    return phase


def deployment(options: argparse.Namespace, software: str) -> Deployment:
    """The whole model of --model, run as the options say by a software profile.

    Raises InputError for options that do not fit together.
    """
    model, phase = whole.load(options.model), phase_of(options)
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
        one_of(name, value, OF_TRAINING[name])
    if given and phase != TRAIN:
        name, value = next(iter(given.items()))
        raise InputError(f"--{name} {value}: only of training; add --phase train, or leave it out")
    layers = options.layers
    if layers is not None and not 1 <= layers <= model.layers:
        raise InputError(
            f"--layers {layers}: allowed are 1 to {model.layers}; leave it out for all of them"
        )
    if options.context is not None:
        if options.context < 1:
            raise InputError(
                f"--context {options.context}: allowed are numbers from 1; leave it out for "
                f"{MemoryPlan.context}"
            )
        given["context"] = options.context
    plan = MemoryPlan(phase, share=Share(layers or 0), fused=software == "fused", **given)
    return Deployment(options.model, model, plan, reserve(options.reserve))


def one_of(option: str, value: object, allowed: Sequence[object]) -> None:
    """Raises InputError for another value."""
    if value not in allowed:
        words = ", ".join(map(str, allowed))
        raise InputError(f"--{option} {value}: allowed are {words}; choose one of them")


def reserve(text: str | None) -> Reserve:
    """A share below 1, or an amount: "0.1", "8GB", "6GiB". Raises InputError for other text."""
    if text is None:
        return Reserve()
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)", text.strip())
    value, unit = (float(match[1]), match[2].upper()) if match else (-1.0, "")
    if match and unit in UNITS:
        return Reserve(0.0, value * UNITS[unit])
    if match and not unit and value < 1:
        return Reserve(value)
    raise InputError(
        f"--reserve {text}: allowed are a share of a rank's memory below 1, such as 0.1, or an "
        "amount such as 8GB or 6GiB; choose one of them"
    )
