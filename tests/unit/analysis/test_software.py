"""Software profiles: closed forms by hand, and what a cluster's file may say of them."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import yaml

from analysis import cli
from analysis.errors import InputError
from analysis.predict import features, hardware, model, network, problem, roofline, software
from analysis.predict.hardware import HardwareModel, Link
from analysis.predict.software import KernelModel, SoftwareProfile
from moe.cost import Call
from moe.parallel.traffic import GroupShape
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec

PROFILE = SoftwareProfile(
    "test", {"grouped": KernelModel(0.5, 0.25, depth=16, activation=2.0)}, 0.8, 1e-5, 1e-6, 3e-5,
    {"every": {"router": 2, "experts": 3}, "alltoall": {"permute": 4, "experts": 1}},
    {"alltoall": 1}, fused_permutes=False,
)  # fmt: skip
MACHINE = HardwareModel(
    "test", 4, 1e12, {"float32": 1e12, "bfloat16": 2e12}, 1e11, Link(1e10, 1e-6), Link(1e9, 1e-5),
    profile=PROFILE,
)  # fmt: skip


def cell(dispatcher: str = "alltoall", ranks: int = 2, **strategy: str | int) -> Cell:
    """2 bytes a number, 8 experts of 32 x 64, 128 tokens a rank, top-2: 256 slots a rank."""
    layer = LayerSpec(32, 64, 32, 8, 2, 2, "relu", "none", 0, "bfloat16")
    work = WorkloadSpec(batch_size=128 * ranks, tokens="sharded", kind="balanced")
    form = StrategySpec("ep", dispatcher, **strategy)  # type: ignore[arg-type]
    return Cell(layer, form, work, RankLayout(ranks, "nccl", "cuda"))


def terms(made: Cell) -> dict[tuple[str, str], float]:
    return features.terms(features.busiest(made, kernel="grouped"), MACHINE)


def test_a_short_or_padded_product_is_slower() -> None:
    kernel = KernelModel(0.5, 1.0, depth=100, tile=128)
    assert kernel.slowdown(inner=400, rows=256) == pytest.approx((1 + 100 / 400) * (1 + 64 / 256))
    assert kernel.slowdown(inner=400, rows=0) == pytest.approx(1.25)


def test_products_take_flops_or_bytes_at_their_kernels_shares() -> None:
    made = terms(cell())
    flops = 2 * 256 * 64 * 32 * (1 + 16 / 32) + 2 * 256 * 64 * 32 * (1 + 16 / 64)
    assert made["experts", "matrix"] == pytest.approx(flops / (2e12 * 0.5))
    weights, rows = 2 * 4 * (32 * 64 + 64 * 32), 2 * 256 * (32 + 64 + 64 + 32)
    assert made["experts", "read"] == pytest.approx((weights + rows) / (1e11 * 0.25), rel=1e-3)
    assert made["experts", "move"] == pytest.approx(2 * 256 * 2.0 * (64 + 64) / 1e11)


def test_permutes_that_are_not_fused_copy_rows_on_both_sides() -> None:
    # 256 slots written by destination and read, 256 received ones by expert; back: the sums
    # read 256 and write 128 tokens, and the received ones are put back first
    made = terms(cell())
    assert made["permute", "move"] == pytest.approx(2 * 32 * (2 * 256 + 2 * 256) / 1e11)
    assert made["unpermute", "move"] == pytest.approx(2 * 32 * (128 + 256 + 2 * 256) / 1e11)


def test_operations_and_waits_are_the_dispatchers() -> None:
    made = terms(cell())
    started = {phase: value for (phase, term), value in made.items() if term == "operations"}
    assert started == {"router": 2, "permute": 4, "experts": 4}
    assert made["dispatch", "waits"] == 1
    assert terms(cell(overlap=4))["experts", "operations"] == 4 * 4
    gathered = terms(cell("allgather"))
    assert ("dispatch", "waits") not in gathered
    assert gathered["experts", "operations"] == 3
    captured = terms(cell(graph="on"))
    assert not {"operations", "waits"} & {term for _, term in captured}
    assert captured["experts", "kernels"] == 4


def test_a_wait_empties_the_queue_of_launches() -> None:
    """Seconds: the device has 1 before the exchange and 9 after it, the host starts 3 and 6."""
    parts = {("router", "move"): 1.0, ("router", "operations"): 3.0, ("dispatch", "wire"): 4.0,
             ("experts", "matrix"): 5.0, ("experts", "read"): 2.0,
             ("experts", "operations"): 6.0}  # fmt: skip
    device = {"router": 1.0, "dispatch": 4.0, "experts": 5.0}
    assert roofline.phases_s(parts) == device  # 9 started within 10
    waited = roofline.phases_s({**parts, ("dispatch", "waits"): 0.5})
    assert waited == {**device, "launches": 2.0, "host_waits": 0.5}


def test_a_step_that_waits_takes_longer_by_the_wait_and_what_it_exposes() -> None:
    made = cell()
    never = dataclasses.replace(PROFILE, waits={})
    times = [
        model.time_s(made, machine, model.of_machine(machine))
        for machine in (MACHINE, dataclasses.replace(MACHINE, profile=never))
    ]
    assert times[0][0]["host_waits"] == pytest.approx(3e-5)
    assert times[0][1] >= times[1][1] + 3e-5


def test_chunks_cost_starts_of_their_own() -> None:
    # 9 MB at 1 GB/s: 9 ms; alpha 1 ms; ramp 2: 2 sqrt(1 ms x 9 ms) = 6 ms
    machine = dataclasses.replace(MACHINE, ranks_per_node=1, inter=Link(1e9, 1e-3, 0.0, 2.0))
    call = Call("all_to_all", GroupShape("world", 2, 1), "dispatch", 9e6, 9e6)
    assert network.call_times(call, machine).total_s == pytest.approx(16e-3)


def test_a_summing_switch_takes_the_whole_once() -> None:
    # 4 ranks of a node, X = 8 MB: a ring sends 2 x 3/4 X = 12 MB
    call = Call("all_reduce", GroupShape("world", 4, 1), "combine", 12e6, 12e6)
    assert network.call_times(call, MACHINE).wire_s == pytest.approx(12e6 / 1e10)
    summing = dataclasses.replace(MACHINE, switch_reduces=True)
    assert network.call_times(call, summing).wire_s == pytest.approx(8e6 / 1e10)
    gathered = dataclasses.replace(call, collective="all_gather")
    assert network.call_times(gathered, summing).wire_s == pytest.approx(12e6 / 1e10)


@pytest.mark.parametrize("name", software.names())
def test_every_profile_loads_and_its_parts_are_known(name: str) -> None:
    found = software.load(name)
    assert found.name == name
    assert set(found.operations) <= {software.EVERY, "local", "allgather", "alltoall", "dedup"}
    for counts in found.operations.values():
        assert set(counts) <= {*roofline.STARTED, "backward"}
    for kernel in found.kernels.values():
        assert 0 < kernel.matrix <= 1 and 0 < kernel.read <= 1


def test_a_clusters_file_with_the_keys_of_before_replaces_the_profiles(tmp_path: Path) -> None:
    config = yaml.safe_load((hardware.FOLDER / "ethernet.yaml").read_text())
    old = {"matrix_efficiency": 0.5, "read_efficiency": 0.6, "operation_s": 7e-6}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**config, **old}))
    profile = hardware.with_profile(hardware.load(str(path)), "ours").profile
    assert profile is not None
    assert (profile.move_efficiency, profile.operation_s) == (0.6, 7e-6)
    assert {(k.matrix, k.read, k.depth, k.tile) for k in profile.kernels.values()} == {
        (0.5, 0.6, 0.0, 0)
    }
    path.write_text(yaml.safe_dump({**config, "profile": "ours"}))
    with pytest.raises(InputError, match="profile: no such key"):
        hardware.load(str(path))


def test_a_profile_goes_with_the_links_it_has() -> None:
    assert hardware.with_profile(hardware.load("h100")).profile == software.load("ours")
    assert hardware.with_profile(hardware.load("h800_deepep")).profile == software.load("fused")
    with pytest.raises(InputError, match="--software ours: links of cluster h800_deepep"):
        hardware.with_profile(hardware.load("h800_deepep"), "ours")
    with pytest.raises(InputError, match="--software theirs: allowed are fused, ours"):
        hardware.with_profile(hardware.load("h100"), "theirs")


@pytest.mark.parametrize("verb", ["predict", "advise"])
def test_every_row_says_its_profile(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [verb, "--cluster", "h100", "--model", "mixtral_8x7b", "--world-size", "8",
             "--strategy", "ep", "--format", "csv"]  # fmt: skip
    for chosen, more in (("ours", []), ("fused", ["--software", "fused"])):
        assert cli.main([*words, *more]) == 0
        lines = list(csv.reader(capsys.readouterr().out.splitlines()))
        header = next(line for line in lines if "software" in line)
        rows = [line for line in lines if len(line) == len(header) and line != header]
        assert rows
        assert {row[header.index("software")] for row in rows} == {chosen}


def test_here_has_no_profile() -> None:
    options = cli.parser().parse_args(["predict", "--software", "ours"])
    with pytest.raises(InputError, match="--software ours: not with --cluster here"):
        problem.make(options, [])
