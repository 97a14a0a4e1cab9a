"""Recorded routings: what is taken from a file, what is refused, and the way to the ranks."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import runners.records.routing_trace
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from runners.config.cell import job_of
from runners.errors import ConfigError
from runners.host.machine import NodeResources
from runners.launch.local import LaunchProcess
from runners.plan import Job, LaunchPlan, Measure, load, save
from runners.rank.cells import CellRunner
from runners.records.rank_log import RankLog
from runners.records.record import cell_key
from runners.records.routing_trace import TraceError, read_trace, thaw
from runners.records.sealed import CHECKSUM, sealed
from runners.sweep import launch
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep
from runners.sweep.titles import title
from tests.unit.runners.test_cell import BASE

ROWS = np.array([[3, 0], [1, 2], [2, 3]])


def written(path: Path, array: Any) -> str:
    np.savez(path, indices=array)
    return str(path)


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def config(path: object, **changes: object) -> dict[str, Any]:
    found = copy.deepcopy(BASE)
    found["workload"].update(kind="trace", trace=path)
    return found | {"num_experts": 4, "batch_size": 3} | changes


# Good files.


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.dtype(">i8"), np.uint64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_good_file_is_the_same_trace_in_whatever_form(
    tmp_path: Path, dtype: Any, order: Any
) -> None:
    array = np.asarray(ROWS.astype(dtype), order=order)
    expected = struct.pack("<6i", 3, 0, 1, 2, 2, 3)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", other=np.zeros(3), indices=array)
    for name in ("a.npy", "a.npz"):
        found = read_trace(str(tmp_path / name), 2, 4)
        assert (found.rows, found.count) == (expected, 3)
        assert found.sha256 == hashlib.sha256(expected).hexdigest()


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npz", ROWS)
    first = read_trace(path, 2, 4)
    assert read_trace(path, 2, 4) is first  # as many cells of a sweep do
    (tmp_path / "a.npz").unlink()
    written(tmp_path / "a.npz", ROWS[:2])
    assert read_trace(path, 2, 4).count == 2


# Refusals.


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[0, 1, 2]]), "its rows have 3 ids, allowed is topk=2"),
        (np.array([[0, 1], [2, 4]]), "its ids go from 0 to 4, allowed are 0 to num_experts-1=3"),
        (np.array([[0, -1]]), "its ids go from -1 to 0"),
        (np.array([[2**63, 0]], dtype=np.uint64), "from 0 to 9223372036854775808"),
        (np.array([[0, 1], [3, 3]]), "row 1 is [3, 3], allowed are distinct ids"),
        (np.array([[0.0, 1.0]]), "its dtype is float64, allowed are integers"),
        (np.array([[True, False]]), "its dtype is bool"),
        (np.array([["0", "1"]]), "its dtype is <U1"),
        (np.array([[0, 1]], dtype=object), "its dtype is object"),
        (np.array([0, 1]), "its shape is [2]"),
        (np.zeros((0, 2), dtype=int), "its shape is [0, 2]"),
        (np.zeros((2, 2, 2), dtype=int), "its shape is [2, 2, 2]"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, array: Any, words: str) -> None:
    path = written(tmp_path / "a.npz", array)
    with pytest.raises(TraceError) as caught:
        read_trace(path, 2, 4)
    assert words in str(caught.value)


HEADER = "{'descr': '<i4', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read"),
        (b"hello, world", "cannot be read"),
        (b"PK\x03\x04 and then nothing", "not a zip file"),
        (npy(HEADER % "(3, 2)", b"\0" * 23), "declares 24 bytes of ids, it has 23"),
        (npy(HEADER % "(3, 2)", b"\0" * 25), "declares 24 bytes of ids, it has 25"),
        (npy(HEADER % "(4611686018427387904, 2)", b"\0" * 24), "bytes of ids, it has 24"),
        (npy(HEADER % "(-3, -2)", b"\0" * 24), "its shape is [-3, -2]"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 2), }"), "dtype is object"),
        (npy("{'descr': '<i4', 'shape': (1, 2), }"), "cannot be read"),
        (npy("__import__('os').abort()"), "cannot be read"),
        (npy("(" * 3000), "cannot be read"),
        (npy(HEADER % "(1, 2)", version=b"\x03\x00"), "its npy version is (3, 0)"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_in_one_line(
    tmp_path: Path, data: bytes, words: str
) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(TraceError) as caught:
        read_trace(str(tmp_path / "a"), 2, 4)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.data())
def test_any_damage_is_refused_or_leaves_the_ids_as_they_were(data: st.DataObject) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, indices=ROWS)
    good = stream.getvalue()
    cut = data.draw(st.integers(0, len(good)))
    flipped = bytearray(good)
    flipped[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    for damaged in (good[:cut], bytes(flipped)):
        try:
            member = runners.records.routing_trace._parsed(damaged)
        except TraceError:
            continue
        assert member.tolist() == ROWS.tolist()


def test_a_bomb_is_refused_by_what_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("indices.npy", npy(HEADER % "(1000000, 2)", b"\0" * 8_000_000))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(runners.records.routing_trace, "LIMIT_BYTES", 2**20)
    with pytest.raises(TraceError, match=r"declares 80000\d\d bytes, allowed are 1048576"):
        read_trace(str(path), 2, 4)
    lying = bytearray(path.read_bytes())  # says 1,000 bytes in both of its headers
    for name, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", lying, lying.index(name) + place, 1000)
    path.write_bytes(lying)
    with pytest.raises(TraceError, match="Bad CRC-32"):
        read_trace(str(path), 2, 4)


def test_a_large_file_is_not_even_opened(tmp_path: Path) -> None:
    path = tmp_path / "large.npz"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(TraceError, match=f"it has {2**40} bytes"):
        read_trace(str(path), 2, 4)


# The config.


def test_the_content_is_in_the_key_and_the_path_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = written(tmp_path / "one.npz", ROWS)
    same = written(tmp_path / "same.npz", ROWS.astype(np.int16))
    other = written(tmp_path / "other.npz", ROWS[::-1])
    keys = [cell_key(job_of(config(path), NodeResources(2)).cell) for path in (one, same, other)]
    assert keys[0] == keys[1] != keys[2]
    monkeypatch.chdir(tmp_path)  # paths are relative to where the user is
    assert cell_key(job_of(config("one.npz"), NodeResources(2)).cell) == keys[0]


def test_rows_that_repeat_are_said(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npz", ROWS)
    assert job_of(config(path), NodeResources(2)).notes == ()
    made = job_of(config(path, batch_size=7), NodeResources(2))
    assert made.notes == ("the trace has 3 rows for 7 tokens: they repeat",)


@pytest.mark.parametrize("path", [None, "", 7, "nowhere.npz", ".", "nul\0.npz"])
def test_a_file_that_is_not_there_is_one_line(path: object) -> None:
    with pytest.raises(ConfigError, match=r"workload\.trace=.*") as caught:
        job_of(config(path), NodeResources(2))
    assert "\n" not in str(caught.value)
    assert str(path).split("\0")[0] in str(caught.value)


def test_a_trace_that_nothing_would_read_is_refused() -> None:
    found = config("a.npz")
    found["workload"]["kind"] = "zipf"
    with pytest.raises(ConfigError, match=r"workload\.trace='a\.npz'.*set workload=trace"):
        job_of(found, NodeResources(2))


def test_titles_say_the_workload_with_its_parameter() -> None:
    work = WorkloadSpec(kind="zipf", parameter=1.25)
    assert "zipf(1.25)" in title(Cell(workload=work)).split()
    assert title(Cell(workload=WorkloadSpec(kind="balanced"))).endswith(" forced balance")
    assert "learned" not in title(Cell())


# The way to the ranks.


def job(tmp_path: Path) -> Job:
    trace = read_trace(written(tmp_path / "a.npz", ROWS), 2, 4)
    work = WorkloadSpec(batch_size=5, kind="trace", trace_sha256=trace.sha256)
    layer = LayerSpec(num_experts=4, topk=2, topk_requested=2)
    cell = Cell(layer, StrategySpec("simple"), work, RankLayout(world_size=1))
    return Job(cell, Measure(samples=1, samples_max=1, calibrate=False), trace=trace)


class Stop(Exception):
    """Instead of ranks."""


def launched(tmp_path: Path, jobs: list[Job]) -> LaunchPlan:
    """The plan that ranks would have got, as they would read it."""
    kept = []

    def start(plan: LaunchPlan) -> LaunchProcess:
        kept.append(plan)
        raise Stop

    sweep = Sweep(jobs, Settings(tmp_path / "sweep"), Progress(), start)
    with pytest.raises(Stop):
        launch.Launch(sweep.context(), sweep, jobs).run()
    save(kept[0], tmp_path / "launch.json")
    return load(tmp_path / "launch.json")


def test_ranks_find_the_rows_in_the_launchs_folder(tmp_path: Path) -> None:
    plan = launched(tmp_path, [job(tmp_path)])
    wanted = plan.cells[0].workload.trace_sha256
    assert plan.traces == {wanted: f"trace-{wanted}.i32"}
    comm, log = Comm(torch.device("cpu"), 1, 0), RankLog(tmp_path / "rank.jsonl")
    ready = CellRunner(plan, comm, None, log)  # type: ignore[arg-type]  # no other rank is asked
    found = ready.trace(plan.cells[0])
    assert found is not None and found.dtype == torch.int64
    assert found.tolist() == ROWS.tolist()
    assert ready.trace(Cell()) is None


def test_a_file_that_changed_on_the_way_stops_the_rank(tmp_path: Path) -> None:
    plan = launched(tmp_path, [job(tmp_path)])
    wanted, folder = plan.cells[0].workload.trace_sha256, Path(plan.launch_dir)
    path = folder / plan.traces[wanted]
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ValueError, match="its sha256 is not"):
        thaw(plan.traces, wanted, folder, 2)


def test_plans_of_launches_without_traces_stay_readable(tmp_path: Path) -> None:
    plan = launched(tmp_path, [job(tmp_path)])
    data = json.loads((tmp_path / "launch.json").read_text())
    del data["traces"], data[CHECKSUM]
    (tmp_path / "launch.json").write_text(sealed(data))
    assert load(tmp_path / "launch.json").cells == plan.cells
