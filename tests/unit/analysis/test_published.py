"""The published anchors: what the project promises of them, and how tables are fitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.predict import network
from benchmarks.cost_model import anchors, ours_gpu, published


def test_medians_hold_and_every_row_is_shown() -> None:
    groups = published.groups()
    assert published.median_error(groups["known"]) <= 0.10
    assert published.median_error(groups["left out"]) <= 0.20
    rows = [row for some in groups.values() for row in some]
    text = list(published.lines(groups, markdown=True))
    assert len({row.name for row in rows}) == len(rows)
    assert all(any(f"| {row.name} |" in line for line in text) for row in rows)
    assert {row.software for row in groups["known"]} == {"fused"}


def test_two_rows_of_a_table_are_met_exactly() -> None:
    """Of 16 ranks in two nodes, X / 8 passes every port: with alpha 1 ms and ramp 2 the 16 ms of
    a message are 1 + 9 + 2 sqrt(9) ms."""
    made = published.two_nodes((8, 1e-3), (8 << 20, 16e-3))
    times = network.call_times(published.all_reduce(8 << 20), made)
    assert times.wire_s == pytest.approx(9e-3)
    assert times.total_s == pytest.approx(16e-3)
    assert made.inter.bytes_per_s == pytest.approx((1 << 20) / 9e-3)


def test_fitted_sizes_are_not_among_those_left_out() -> None:
    names = {row.name for row in published.collectives()}
    for table, times in anchors.ALL_REDUCE.items():
        shown = {size for size in times if f"all-reduce {table}, {size >> 20} MiB" in names}
        assert shown == set(times) - {min(times), max(times)}


def test_rows_of_a_gpu_are_set_or_checked() -> None:
    found = list(ours_gpu.rows(ours_gpu.newest()))
    used = [row for row in found if row.use == "set"]
    assert len(used) == len(ours_gpu.SET)
    assert max(abs(row.error) for row in used) < 0.10
    large = [row for row in found if row.use == "checked" and row.tokens >= 16384]
    assert large and max(abs(row.error) for row in large) < 0.15


def test_a_card_has_a_cluster_and_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert ours_gpu.cluster_of("NVIDIA H200").name == "h200"
    with pytest.raises(FileNotFoundError, match="no summary"):
        ours_gpu.newest(tmp_path)
