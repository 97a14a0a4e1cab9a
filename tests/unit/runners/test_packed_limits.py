"""Bounds on measured numbers that came in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from runners.packed import limits
from runners.packed.packed_file import read_packed
from runners.records import flat_row
from runners.records.sealed import RecordError
from tests.support import analysis_factory as factory
from tests.support.docs import ROOT
from tests.support.whole_record import whole

RATE, COST, SLOTS, SIZE = (" 1 to 1e+18", " 0 to 1e+09", " 0 to 1e+15", " 0 to 1e+18")
SIGNED = " -1e+15 to 1e+18"
OF_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"calibration": {"read_bytes_per_s": 0}},
     f"calibration.read_bytes_per_s=0: allowed are{RATE}"),
    ({"calibration": {"read_warm_bytes_per_s": {"16384": -0.0}}},
     f"calibration.read_warm_bytes_per_s.16384=-0.0: allowed are{RATE}"),
    ({"calibration": {"shared": {"matmul_flops_per_s": {"float32": 5e-324}}}},
     f"calibration.shared.matmul_flops_per_s.float32=5e-324: allowed are{RATE}"),
    ({"calibration": {"matmul_flops_per_s": {"float32": {"peak": 1e308}}}},
     f"calibration.matmul_flops_per_s.float32.peak=1e+308: allowed are{RATE}"),
    ({"calibration": {"collectives": {"barrier": {"alpha_s": -1}}}},
     f"calibration.collectives.barrier.alpha_s=-1: allowed are{COST}"),
    ({"calibration": {"collectives": {"barrier": {"beta_s_per_byte": -1e308}}}},
     f"calibration.collectives.barrier.beta_s_per_byte=-1e+308: allowed are{COST}"),
    ({"calibration": {"collectives": {"barrier": {"error": 1e10}}}},
     f"calibration.collectives.barrier.error=10000000000.0: allowed are{COST}"),
    ({"calibration": {"wait_s": 2e9}}, f"calibration.wait_s=2000000000.0: allowed are{COST}"),
    ({"calibration": {"collectives": {"barrier": {"points": [[0, -1e-3, 1e-3]]}}}},
     f"calibration.collectives.barrier.points[0][1]=-0.001: allowed are{SIZE}"),
    ({"skew": {"rank_slots": [8, 1e308]}}, f"skew.rank_slots[1]=1e+308: allowed are{SLOTS}"),
    ({"phases": {"total_ns": [-1e16]}}, f"phases.total_ns[0]=-1e+16: allowed are{SIGNED}"),
    ({"traffic": [[{"sent_bytes": -8}]]}, f"traffic[0][0].sent_bytes=-8: allowed are{SIZE}"),
    ({"memory": [{"peak_bytes": 2**62}]},
     f"memory[0].peak_bytes=4611686018427387904: allowed are{SIZE}"),
]  # fmt: skip
OF_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"rank_slots": [-1e308]}, f"rank_slots[0]=-1e+308: allowed are{SLOTS}"),
    ({"phase_ms": {"experts": 1e308}}, f"phase_ms.experts=1e+308: allowed are{SIGNED}"),
    ({"sent_bytes_by_collective": {"all_reduce": -1}},
     f"sent_bytes_by_collective.all_reduce=-1: allowed are{SIZE}"),
    ({"peak_bytes_max": -1}, f"peak_bytes_max=-1: allowed are{SIZE}"),
    ({"calibration": {"\x1b[2J": 10**400}}, "calibration.\\x1b[2J=1000000000"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), [*OF_RECORDS, *OF_ROWS])
def test_what_nobody_can_have_measured_is_named(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(RecordError) as error:
        limits.check_numbers(values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "values",
    [
        {"calibration": {"read_bytes_per_s": 1, "matmul_flops_per_s": {"float32": {"peak": 1e18}}}},
        {"calibration": {"launch_s": 0.0, "exchanged": {"all_reduce": 0}, "shared": {}}},
        {"phases": {"total_ns": [-5]}, "skew": {"rank_slots": [0, 1e15]}, "memory": [None]},
        {"num_samples": -1, "environment": {"cores": -1}},  # of no such part
    ],
)
def test_ends_of_bounds_and_other_parts_pass(values: Mapping[str, Any]) -> None:
    limits.check_numbers(values)


def test_records_and_rows_that_were_measured_pass() -> None:
    limits.check_numbers(whole())
    for path in sorted((ROOT / "docs" / "results" / "packed").glob("*.moebench")):
        for one in read_packed(path).records:
            limits.check_numbers(flat_row.row(one))
    for one in factory.rich_records():
        limits.check(one)
        limits.check_numbers(flat_row.row(one))


def test_what_is_nested_too_deeply_to_recurse() -> None:
    nested: dict[str, Any] = {"a": -1}
    for _ in range(5_000):
        nested = {"a": nested}
    with pytest.raises(RecordError, match=r"^calibration\.a\.a.*=-1: "):
        limits.check_numbers({"calibration": nested})
