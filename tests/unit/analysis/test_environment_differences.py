"""What differs between two environments, and in which order it is said."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from analysis.packing import environment_differences as differences
from tests.support import analysis_factory as factory

H100 = {"name": "NVIDIA H100", "memory_total": "81559", "driver_version": "550.54",
        "clocks_max_sm": "1980", "power_limit": "700.00"}  # fmt: skip
H200 = {"name": "NVIDIA H200", "memory_total": "143771", "driver_version": "570.86",
        "clocks_max_sm": "1981", "power_limit": "600.00"}  # fmt: skip
READINGS = {"gpu": 0, "readings": 100, "sm_mhz": [1900.0, 1980.0, 1980.0], "power_limit_w": 700.0,
            "reasons": 0, "harmful": 0}  # fmt: skip
THERE: dict[str, Any] = {
    "host": "aaaaaaaaaaaa",
    "cpu_model": "Imaginary 9000",
    "cores": 64,
    "cpu_quota": None,
    "numa_nodes": 2,
    "llc_bytes": 1 << 25,
    "memory_total_bytes": 512 << 30,
    "governor": "performance",
    "before": {"clock_mhz": 3000.0, "load_1m": 0.25},
    "gpus": [H100] * 8,
    "after": [{"gpus": [READINGS]}],
    "system": "Linux 6.1.0-custom x86_64",
    "versions": {"python": "3.11.9", "torch": "2.13.0", "project": "0.1.0", "mpi4py": "4.1.2",
                 "triton": "3.9.0", "transformers": None, "cuda": "13.0", "nccl": "2.29.7"},
    "threads": {"torch": 1, "omp": 1, "mkl": None},
    "pinned": [[0], [1]],
    "network": "own",
    "git": {"sha": "a" * 40, "dirty": None},
    "variables": {"NCCL_ALGO": "Ring", "OMP_NUM_THREADS": "1"},
}  # fmt: skip
HERE: dict[str, Any] = {
    "host": "bbbbbbbbbbbb",
    "cpu_model": "Imaginary 8000",
    "cores": 32,
    "cpu_quota": 8.0,
    "numa_nodes": 1,
    "llc_bytes": 1 << 24,
    "memory_total_bytes": 256 << 30,
    "governor": "powersave",
    "before": {"clock_mhz": 2000.0, "load_1m": 3.5},
    "gpus": [H200],
    "after": [{"gpus": [{**READINGS, "sm_mhz": [1000.0, 1200.0, 1980.0], "power_limit_w": 600.0,
                         "reasons": 0x4, "harmful": 50}]}],
    "system": "Linux 6.2.0 x86_64",
    "versions": {"python": "3.12.1", "torch": "2.12.0", "project": "0.2.0", "mpi4py": None,
                 "triton": "3.8.0", "transformers": "5.0.0", "cuda": "12.9", "nccl": "2.27.3"},
    "threads": {"torch": 2, "omp": 2, "mkl": 2},
    "pinned": [None, None],
    "network": "loopback",
    "git": {"sha": "b" * 40, "dirty": "cccccccccccc"},
    "variables": {"OMP_NUM_THREADS": "2"},
}  # fmt: skip
ALL = [
    "GPU: 8 x NVIDIA H100 there against 1 x NVIDIA H200 here",
    "GPU memory: 81559 MiB there against 143771 MiB here",
    "processor: Imaginary 9000 there against Imaginary 8000 here",
    "cores: 64 there against 32 here",
    "quota of cores: no limit there against 8.0 here",
    "NUMA nodes: 2 there against 1 here",
    "last-level cache: 32.0 MiB there against 16.0 MiB here",
    "memory: 512 GiB there against 256 GiB here",
    "governor of the clock: performance there against powersave here",
    "clock of a core: 3000 MHz there against 2000 MHz here",
    "load before the launch: 0.25 processes there against 3.5 processes here",
    "highest clock of the GPU: 1980 MHz there against 1981 MHz here",
    "clock of the GPU: 1980 MHz there against 1200 MHz here",
    "power limit of the GPU: 700 W there against 600 W here",
    "throttling of the GPU: none there against software power cap here",
    "driver: 550.54 there against 570.86 here",
    "CUDA: 13.0 there against 12.9 here",
    "NCCL: 2.29.7 there against 2.27.3 here",
    "torch: 2.13.0 there against 2.12.0 here",
    "Python: 3.11.9 there against 3.12.1 here",
    "mpi4py: 4.1.2 there against not recorded here",
    "triton: 3.9.0 there against 3.8.0 here",
    "transformers: not recorded there against 5.0.0 here",
    "system: Linux 6.1.0 x86_64 there against Linux 6.2.0 x86_64 here",
    "threads: torch 1, omp 1 there against torch 2, omp 2, mkl 2 here",
    "pinned to cores: every rank there against no rank here",
    "network: own there against loopback here",
    "variable NCCL_ALGO: Ring there against not set here",
    "variable OMP_NUM_THREADS: 1 there against 2 here",
    "kernel of ep 0f: bmm there against loop here",
    "commit: aaaaaaaaaa there against bbbbbbbbbb here",
    "code: as committed there against changes cccccccccccc here",
    "version of the project: 0.1.0 there against 0.2.0 here",
]
OF_RANKS = ("clock of the GPU", "throttling", "threads", "pinned", "network", "kernel",
            "variable OMP_NUM_THREADS")  # fmt: skip


def frame(folder: Path, environment: dict[str, Any], **fields: Any) -> pd.DataFrame:
    made = factory.measured(factory.cell("ep"), environment=environment, **fields)
    return analysis.load(factory.write_all(folder, [made]))


def lines(texts: list[differences.Difference]) -> list[str]:
    return [one.line() for one in texts]


def test_all_that_differs_is_said_in_the_order_in_which_it_could_explain(tmp_path: Path) -> None:
    there = frame(tmp_path / "there", THERE)
    here = frame(tmp_path / "here", HERE, kernel={"name": "loop"})
    cell_id = there["cell_id"].iloc[0]
    assert lines(differences.of_sweeps(there, here)) == [
        line.replace("ep 0f", f"ep {cell_id}") for line in ALL
    ]


def test_before_ranks_run_only_what_the_machine_tells_is_said() -> None:
    rows = [{"environment": THERE, "backend": "nccl", "kernel_ran": "bmm"}]
    expected = [line for line in ALL if not line.startswith(OF_RANKS)]
    assert lines(differences.of_environments(rows, HERE)) == expected


def test_the_same_environment_has_no_difference(tmp_path: Path) -> None:
    both = [frame(tmp_path / name, THERE) for name in ("a", "b")]
    assert differences.of_sweeps(*both) == []
    assert differences.of_environments([{"environment": THERE}], THERE) == []


@pytest.mark.parametrize(
    ("clock", "load", "expected"),
    [(3050.0, 0.7, []), (3100.0, 0.7, ["clock of a core"]), (3050.0, 0.8, ["load before"])],
)
def test_clocks_and_loads_that_are_nearly_the_same_are_no_difference(
    clock: float, load: float, expected: list[str]
) -> None:
    here = copy.deepcopy(THERE) | {"before": {"clock_mhz": clock, "load_1m": load}}
    texts = lines(differences.of_environments([{"environment": THERE}], here))
    assert [line[: len(start)] for line, start in zip(texts, expected, strict=True)] == expected


def test_where_a_side_has_no_card_it_is_said_once() -> None:
    here = {**THERE, "gpus": [], "versions": {**THERE["versions"], "cuda": None, "nccl": None}}
    texts = lines(differences.of_environments([{"environment": THERE}], here))
    assert texts == ["GPU: 8 x NVIDIA H100 there against none here"]


@pytest.mark.parametrize("gpus", [[], None])
def test_records_without_gpus_have_none_of_their_facts(tmp_path: Path, gpus: Any) -> None:
    bare = {**THERE, "gpus": gpus, "after": [{}], "variables": {},
            "versions": {**THERE["versions"], "cuda": None, "nccl": None}}  # fmt: skip
    sides = [frame(tmp_path / "a", {**THERE, "variables": {}}), frame(tmp_path / "b", bare)]
    (texts,) = lines(differences.of_sweeps(*sides))
    assert texts.startswith("GPU: 8 x NVIDIA H100 there against no")


def test_several_machines_of_a_side_are_all_named() -> None:
    other = {**THERE, "cpu_model": "Imaginary 7000"}
    rows = [{"environment": one} for one in (THERE, other, THERE)]
    (texts,) = differences.of_environments(rows, THERE)
    assert texts.there == "Imaginary 9000 / Imaginary 7000"


def test_what_neither_side_recorded_is_no_difference() -> None:
    assert differences.of_environments([{"environment": {}}], {"governor": None}) == []


def test_many_kernels_are_counted(tmp_path: Path) -> None:
    sides = []
    for name, kernel in (("there", "bmm"), ("here", "loop")):
        records = [
            factory.measured(factory.cell("ep", topk=k), kernel={"name": kernel})
            for k in (1, 2, 3, 4, 5)
        ]
        sides.append(analysis.load(factory.write_all(tmp_path / name, records)))
    texts = lines(differences.kernels(*sides))
    assert len(texts) == 4
    assert texts[-1] == "kernel of 2 more cells: bmm there against loop here"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "one machine, with the same commit"),
        ({"host": "bbbbbbbbbbbb"}, "different machines, with the same commit"),
        ({"git": {"sha": "b" * 40, "dirty": None}}, "one machine, with different code"),
        ({"git": {"sha": "a" * 40, "dirty": "c" * 12}}, "one machine, with different code"),
        ({"host": None}, "machines that their records do not tell apart, with the same commit"),
        ({"git": None}, "one machine, with code that is not recorded"),
    ],
)
def test_one_line_says_whether_machine_and_code_are_the_same(
    changed: dict[str, Any], expected: str
) -> None:
    sides = [{"environment": THERE}], [{"environment": {**THERE, **changed}}]
    assert differences.relation(*sides) == f"There and here are {expected}."
