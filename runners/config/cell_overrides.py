"""From a recorded cell to the overrides that give it again: the inverse of runners/config/cell.py.

What a record holds may come from anybody, so a value becomes part of an override only where it is a
number, true, false, null, a list of whole numbers, or a plain word: nothing that Hydra would take
for a sweep or an interpolation.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from moe.knob import Knob, knobs
from moe.spec import Cell, Unsupported
from runners.config.cell import job_of
from runners.config.schema import defaults, section_of
from runners.errors import ConfigError
from runners.host.machine import NodeResources
from runners.host.project_paths import CONF
from runners.packed.command import configs
from runners.plan import Measure
from runners.records.record import cell_key, cell_to_dict

MODEL = "model"  # the group, whose choice is a file of conf/model
SCALED = ("dim", "hidden", "dim_out")
# Written for every cell, whatever the defaults are: they depend on the machine, or name the cell.
ALWAYS = ("strategy.name", "strategy.dispatcher", "model.scale", "num_experts", "topk",
          "batch_size", "world_size", "backend", "device", "threads",
          "hosts.ranks_per_node")  # fmt: skip
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
TEXT = re.compile(r"[A-Za-z0-9_.+-]*")
OTHER_KINDS = ("null", "true", "false", "nan", "inf")  # words that Hydra takes for something else
UNUSABLE = (ArithmeticError, AttributeError, LookupError, TypeError)  # raised by values of any type
UNNAMED = "unnamed"  # the model of a record that names none


@dataclass(frozen=True)
class Recorded:
    """A cell as a record has it, with what else decides how it is measured. `measure` has fields
    of Measure; `scale` divided the model's sizes."""

    cell: Cell
    measure: Mapping[str, Any]
    label: str = ""
    model: str = ""
    scale: int = 1

    @property
    def cell_id(self) -> str:
        key = cell_key(self.cell)
        return f"{key}.{self.label}" if self.label else key


def overrides_of(recorded: Recorded) -> dict[str, str]:
    """The override of every knob, by its path: `{"topk": "topk=2", ...}`.

    Those that the defaults, or the file of the model, give already are left out. Raises ConfigError
    for a value that no knob can have, and for a cell that no overrides give.
    """
    values = knob_values(recorded)
    model = _model(values)
    known = _base(model)
    given = {
        path: f"{path}={word(path, value)}"
        for path, value in values.items()
        if path != MODEL and (path in ALWAYS or value != _at(known, path))
    }
    _check(recorded, _config(values))
    return {MODEL: f"{MODEL}={model}"} | given


def config_of(recorded: Recorded) -> dict[str, Any]:
    """The resolved config that the overrides give, made without Hydra; raises as `overrides_of`."""
    return _config(knob_values(recorded))


def _model(values: Mapping[str, Any]) -> str:
    """The file of conf/model that the values of knobs are beside."""
    return str(values.get(MODEL, "reference"))


def _config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config with these values of knobs; raises ConfigError for one that no knob has."""
    config = copy.deepcopy(_base(_model(values)))
    for path, value in values.items():
        if path == MODEL:
            continue
        word(path, value)
        section, _, name = path.rpartition(".")
        section_of(config, section)[name] = value
    return config


def knob_values(recorded: Recorded) -> dict[str, Any]:
    """What is written in the config for every knob of the cell, by its path; `model` is the choice
    of a file in conf/model, where there is one of that name. Raises ConfigError for what cannot be
    a cell."""
    try:
        return _knob_values(recorded)
    except UNUSABLE as error:
        raise ConfigError(
            f"{recorded.cell_id}: its values are not those of a cell ({error}); leave the cell out"
        ) from error


def _knob_values(recorded: Recorded) -> dict[str, Any]:
    cell, scale = recorded.cell, _scale(recorded.scale)
    values: dict[str, Any] = {}
    for part in (cell.layer, cell.layer.router, cell.strategy, cell.workload, cell.placement):
        values |= _written(part)
    values |= _measure(recorded.measure) | {"measure.cache": cell.workload.cache}
    values |= {f"model.{name}": _times(getattr(cell.layer, name), scale) for name in SCALED}
    del values["model.num_experts"], values["model.topk"]
    topk, experts = cell.layer.topk_requested, cell.layer.num_experts
    clamped = topk != cell.layer.topk
    values |= {
        "model.scale": scale,
        "num_experts": experts,
        "topk": topk,
        "topk_overflow": "clamp" if clamped else "error",
        "seed": cell.workload.seed,
        "label": recorded.label,
        "hosts.ranks_per_node": cell.placement.ranks_per_node,
        "workload.trace_sha256": cell.workload.trace_sha256 or None,
    }
    if cell.strategy.placement == "explicit":
        values["strategy.placement"] = list(cell.strategy.expert_order)
    if recorded.model in configs(MODEL):
        return {MODEL: recorded.model} | values
    return values | {"model.name": recorded.model or UNNAMED}


def _written(part: Any) -> dict[str, Any]:
    """Of every knob among the fields of a dataclass: how its value is written in the config."""
    return {
        known.path(field.name): _word_of(known, getattr(part, field.name))
        for field, known in knobs(type(part))
        if known.at is not None
    }


def _word_of(known: Knob, stored: Any) -> Any:
    """The word that stands for a stored value, where the knob has one for it; else the value."""
    words = known.words or {}
    return next((written for written, value in words.items() if value == stored), stored)


def _measure(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an older version that are none any more are left out."""
    return {
        known.path(field.name): _word_of(known, recorded[field.name])
        for field, known in knobs(Measure)
        if field.name in recorded
    }


def _scale(scale: Any) -> int:
    return scale if type(scale) is int and scale >= 1 else 1


def _times(size: Any, scale: int) -> Any:
    return size * scale if type(size) is int else size


@cache
def _base(model: str) -> dict[str, Any]:
    """The config without overrides, but for a choice of conf/model: the defaults with its file."""
    layer = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{model}.yaml"))
    return _merged(defaults(), {"model": layer or {}})


def _merged(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for name, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if nested else value
    return merged


def _at(config: Mapping[str, Any], path: str) -> Any:
    section, _, name = path.rpartition(".")
    return section_of(config, section)[name]


def word(path: str, value: Any) -> str:
    """A value as Hydra reads it back; raises ConfigError for one that no knob has."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if type(value) in (int, float):
        return repr(value)
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, str) and TEXT.fullmatch(value):
        plain = WORD.fullmatch(value) and value.lower() not in OTHER_KINDS
        return value if plain else f"'{value}'"
    raise ConfigError(
        f"{path}={str(value)[:80]!r}: allowed in a record are numbers, plain words and lists of "
        "whole numbers; leave its cell out, or measure it anew"
    )


def _check(recorded: Recorded, config: Mapping[str, Any]) -> None:
    """Raises ConfigError where the config of the overrides gives another cell. One that cannot run
    on any such machine is left to the usual checks, which say why."""
    place = recorded.cell.placement
    try:
        machine = NodeResources(1, place.ranks_per_node, place.nodes)
        cell = job_of(config, machine).cell
    except (ConfigError, Unsupported):
        return
    if cell_key(cell) == cell_key(recorded.cell):
        return
    before, after = _flat(recorded.cell), _flat(cell)
    path = next(name for name in before if repr(before[name]) != repr(after[name]))
    raise ConfigError(
        f"{path}={before[path]!r}: no overrides give it in cell {recorded.cell_id}, which they "
        f"would make {after[path]!r}; leave the cell out"
    )


def _flat(cell: Cell) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, part in cell_to_dict(cell).items()
        for name, value in part.items()
    }
