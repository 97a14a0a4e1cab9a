"""The links of an emulated cluster, as lines for ip and tc."""

from __future__ import annotations

import pytest

from benchmarks.emulate import __main__ as command
from benchmarks.emulate import grid, launch, network
from runners.errors import ConfigError
from runners.records.emulation import Emulation

CLUSTER = Emulation(dilation=50, ranks_per_node=2, intra_mbit_s=100, inter_mbit_s=20)


def test_addresses_name_node_and_local_rank() -> None:
    assert [network.address(rank, 2) for rank in range(4)] == [
        "10.77.0.1", "10.77.0.2", "10.77.1.1", "10.77.1.2",
    ]  # fmt: skip


def test_every_direction_has_a_class_for_the_node_and_one_for_others() -> None:
    lines = [line for line in network._classes("eth0", CLUSTER) if "class add" in line]
    assert [line.split("rate ")[1].split(" ceil")[0] for line in lines] == [
        "20gbit", "100mbit", "20mbit",
    ]  # fmt: skip


def test_a_sender_has_a_leaf_for_each_peer_below_the_class_of_its_link() -> None:
    lines = list(network._sending(1, 6, CLUSTER))
    leaves = [line.split()[4:8] for line in lines if "class add" in line]
    assert [leaf[1] for leaf in leaves] == ["1:1", "1:2", "1:2", "1:2", "1:2"]  # rank 0 is near
    assert [leaf[3] for leaf in leaves] == ["1:100", "1:102", "1:103", "1:104", "1:105"]
    near, far = (next(line for line in lines if leaf in line) for leaf in ("1:100", "1:102"))
    assert "rate 5000000bit ceil 100mbit" in near  # a twentieth of the only peer's share
    assert "rate 250000bit ceil 20mbit" in far  # 20 Mbit/s over 4 peers over 20
    targets = [line.split("dst ")[1].split(" ")[0] for line in lines if "ip dst" in line]
    assert targets == ["10.77.0.1/32", "10.77.1.1/32", "10.77.1.2/32", "10.77.2.1/32",
                       "10.77.2.2/32"]  # fmt: skip


def test_a_receiver_tells_its_own_node_first() -> None:
    filters = [line for line in network._receiving("port3", 3, CLUSTER) if "filter" in line]
    assert [line.split("src ")[1] for line in filters] == [
        "10.77.1.0/24 flowid 1:1", "10.77.0.0/16 flowid 1:2",
    ]  # fmt: skip


def test_overhead_is_frame_over_data() -> None:
    assert Emulation(mtu=1500).overhead == pytest.approx(1514 / 1448)
    assert Emulation(mtu=9000).overhead == pytest.approx(9014 / 8948)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dilation", 0.5), ("ranks_per_node", 0), ("intra_mbit_s", 0.0), ("inter_mbit_s", -1.0),
     ("mtu", 1400), ("mtu", 9001), ("dilation", float("nan"))],
)  # fmt: skip
def test_impossible_clusters_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}: allowed"):
        Emulation(**{name: value})


def test_lists_of_overrides_are_multiplied_and_usual_settings_can_be_replaced() -> None:
    configs = command.composed(
        ["strategy=tp,ep", "topk=2,4", "world_size=4", "measure.samples=9", "measure.samples_max=9"]
    )
    settings = [(c.config["strategy"]["name"], c.config["topk"]) for c in configs]
    assert settings == [("tp", 2), ("tp", 4), ("ep", 2), ("ep", 4)]
    assert {c.config["measure"]["samples"] for c in configs} == {9}
    assert {c.config["measure"]["block"] for c in configs} == {1}


def test_no_cells_and_no_tools_are_errors_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--dilation", "0", "world_size=2"]) == 2
    assert "--dilation 0: allowed are finite numbers from 1; choose one" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="unshare is missing; install util-linux"):
        launch.check()


def test_what_an_emulation_decides_cannot_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["world_size=2", "threads=2"]) == 2
    assert "threads=2: allowed is threads=1 on an emulated cluster" in capsys.readouterr().err
    assert command.main(["world_size=2", "strategy=nope"]) == 2
    assert "error: " in capsys.readouterr().err


def test_the_grid_has_groups_of_a_node_and_of_half_the_ranks() -> None:
    assert grid.strategies(1) == [["strategy=simple"]]
    assert len(grid.strategies(2)) == 2
    assert grid.strategies(4)[-1][-1] == "strategy.ep=2"
    assert grid.strategies(16)[-1][-1] == "strategy.ep=2,8"
