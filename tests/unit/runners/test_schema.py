"""Knobs: one field makes the config, its check, the help and the documentation."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from moe import spec
from moe.knob import knobs
from runners.config import schema
from runners.errors import ConfigError
from runners.plan import Measure
from tests.unit.runners.test_cell import BASE


def test_the_config_that_hydra_composes_has_every_knob_and_nothing_else() -> None:
    schema.check_shape(BASE)
    for section, entries in schema.sections().items():
        leaves = {name for name, value in schema.section_of(BASE, section).items()
                  if not isinstance(value, dict)}  # fmt: skip
        assert leaves == set(entries), section


@pytest.mark.parametrize("kind", [
    Measure, spec.LayerSpec, spec.RouterSpec, spec.StrategySpec, spec.WorkloadSpec, spec.RankLayout
])  # fmt: skip
def test_every_field_of_a_cell_and_of_its_measuring_is_described(kind: type) -> None:
    described = {field.name for field, known in knobs(kind) if known.about}
    assert described | {"router"} == {*kind.__dataclass_fields__, "router"}  # type: ignore[attr-defined]


def with_value(path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(BASE)
    section, _, name = path.rpartition(".")
    schema.section_of(config, section)[name] = value
    return config


@pytest.mark.parametrize(("path", "value", "message"), [
    ("measure.samples", 0, "measure.samples=0: allowed are whole numbers from 1 to 2147483647; "
     "set measure.samples to one of them"),
    ("measure.precision", -1, "measure.precision=-1: allowed are finite numbers of at least 0.0; "
     "set measure.precision to one of them"),
    ("measure.order", "up", "measure.order='up': allowed are random, product; "
     "set measure.order to one of them"),
    ("model.router.normalize", 7, "model.router.normalize=7: allowed are true, false, null; "
     "set model.router.normalize to one of them"),
    ("measure.calibrate", "yes", "measure.calibrate='yes': allowed are true, false; "
     "set measure.calibrate to one of them"),
])  # fmt: skip
def test_an_error_names_field_value_what_is_allowed_and_what_to_do(
    path: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        schema.value(with_value(path, value), path)
    assert str(refused.value) == message


@pytest.mark.parametrize(("path", "written", "stored"), [
    ("measure.block", "auto", 0), ("measure.block", 3, 3), ("threads", "auto", 0),
    ("strategy.comm_dtype", None, ""), ("strategy.comm_dtype", "bfloat16", "bfloat16"),
    ("hosts.cores", "auto", None), ("hosts.cores", 4, 4), ("measure.wall_limit_s", 2, 2.0),
])  # fmt: skip
def test_words_that_stand_for_a_value(path: str, written: Any, stored: Any) -> None:
    value = schema.value(with_value(path, written), path)
    assert value == stored and type(value) is type(stored)


@pytest.mark.parametrize("path", [
    entry.path for entries in schema.sections().values() for entry in entries.values()
])  # fmt: skip
def test_every_default_is_allowed_and_in_the_help(path: str) -> None:
    schema.value(BASE, path)
    assert f"  {path}=" in schema.help_text()
