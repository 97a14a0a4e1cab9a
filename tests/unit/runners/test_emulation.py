"""The emulated cluster that a record names: its sizes, and values that are none."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from runners.records.emulation import Emulation, EmulationError, of_values

CLUSTER = Emulation(20.0, 2, 90.0, 10.0, mtu=1500)


def test_the_usual_cluster() -> None:
    usual = Emulation()
    assert usual.words == "emulated (dilated x50; nodes of 2 at 100/25 Mbit/s; MTU 9000)"
    assert usual.overhead == pytest.approx(9014 / 8948)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [("dilation", math.inf, "finite numbers from 1"), ("intra_mbit_s", 0, "finite numbers from 1"),
     ("inter_mbit_s", math.nan, "finite numbers from 1"),
     ("dilation", "20", "finite numbers from 1"),
     ("ranks_per_node", 251, "whole numbers from 1 to 250"),
     ("ranks_per_node", 2.5, "whole numbers from 1 to 250"),
     ("ranks_per_node", True, "whole numbers from 1 to 250"),
     ("mtu", 1499, "whole numbers from 1500 to 9000"),
     ("mtu", 9001, "whole numbers from 1500 to 9000")],
)  # fmt: skip
def test_an_error_names_field_value_and_what_is_allowed(
    field: str, value: Any, allowed: str
) -> None:
    with pytest.raises(EmulationError) as refused:
        Emulation(**{field: value})
    error = refused.value
    assert (error.field, error.value, error.allowed) == (field, value, allowed)
    assert str(error) == f"{field}={value}: allowed are {allowed}"


def test_a_record_states_every_field() -> None:
    """Its values are those that were measured, never a default."""
    values = dataclasses.asdict(CLUSTER)
    assert of_values(values) == CLUSTER
    assert of_values({}) is None
    with pytest.raises(ValueError, match=r"emulated\.mtu: missing"):
        of_values({name: value for name, value in values.items() if name != "mtu"})
    with pytest.raises(ValueError, match=r"emulated\.mtu=100: allowed are"):
        of_values({**values, "mtu": 100})
