"""Which cells fit: a node's memory for ranks on the CPU, one GPU's for ranks on GPUs."""

from __future__ import annotations

import pytest

from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from runners.config import memory
from runners.errors import ConfigError
from runners.host.machine import NodeResources
from runners.plan import Job, Measure

GIB = 2**30
# 64 experts of 3 x 1024 x 4096 numbers of 2 bytes: 1.5 GiB of weights.
LAYER = LayerSpec(
    1024, 4096, 1024, num_experts=64, topk=2, activation="silu_gated", bias="none", dtype="bfloat16"
)


def job(
    kernel: str = "grouped", ranks: int = 1, backend: str = "nccl", name: str = "simple"
) -> Job:
    work = WorkloadSpec(batch_size=64)
    place = RankLayout(ranks, backend, "cuda")
    return Job(Cell(LAYER, StrategySpec(name, kernel=kernel), work, place), Measure(),
               meta={"scale": 1})  # fmt: skip


def gpus(gib: float, count: int = 1) -> NodeResources:
    return NodeResources(2, count, gpu_memory_bytes=int(gib * GIB))


def test_a_cell_that_a_gpu_cannot_hold_is_refused_whatever_the_host_has() -> None:
    memory.check_memory(job(), gpus(3.0))
    with pytest.raises(ConfigError) as caught:
        memory.check_memory(job(), gpus(2.0))
    text = str(caught.value)
    assert text.startswith("model.scale=1: with simple a rank takes 2.6 GiB of GPU memory")
    assert "allowed is 1.9 GiB of a GPU's 2.0 GiB; raise model.scale, lower num_experts" in text


def test_weights_in_a_second_layout_count_where_kernels_are_chosen() -> None:
    # a second layout of the larger matrix, two thirds of the weights: 1.0 GiB
    memory.check_memory(job("auto"), gpus(4.0))
    with pytest.raises(ConfigError, match=r"a rank takes 3\.5 GiB of GPU memory"):
        memory.check_memory(job("auto"), gpus(3.0))


def test_a_peer_has_kernels_of_its_own() -> None:
    memory.check_memory(job("auto", name="peer_transformers"), gpus(3.0))


def test_nothing_is_refused_where_the_gpus_memory_is_unknown() -> None:
    memory.check_memory(job(), NodeResources(2, cuda_devices=1, memory_bytes=1))
    memory.check_memory(job(), NodeResources(2, cuda_devices=8))


def test_ranks_that_share_a_gpu_need_it_together() -> None:
    four = job(ranks=4, backend="gloo")
    memory.check_memory(four, gpus(3.0, count=4))
    memory.check_memory(four, gpus(6.0, count=2))
    with pytest.raises(ConfigError, match=r"its 2 ranks on a GPU take 5\.\d GiB"):
        memory.check_memory(four, gpus(5.0, count=2))
    with pytest.raises(ConfigError, match=r"its 2 ranks on a GPU take 5\.\d GiB"):
        memory.check_memory(four, gpus(5.0, count=3))  # two of which have one rank
    with pytest.raises(ConfigError, match=r"its 4 ranks on a GPU take 10\.\d GiB"):
        memory.check_memory(four, gpus(6.0, count=1))


def test_cells_on_the_cpu_are_judged_by_the_node() -> None:
    cpu = Job(Cell(LAYER), Measure(), meta={"scale": 1})
    memory.check_memory(cpu, NodeResources(2, 1, memory_bytes=400 * GIB, gpu_memory_bytes=1))
    with pytest.raises(ConfigError, match="weights and activations of simple on 8 ranks take"):
        memory.check_memory(cpu, NodeResources(2, memory_bytes=GIB))


@pytest.mark.parametrize(
    ("cells", "gib", "together"),
    [
        (1, 4.0, True),  # 2.6 of 3.2 GiB
        (2, 4.0, False),  # 1.5 more
        (2, 6.0, True),  # 4.1 of 4.8 GiB
        (5, 10.0, False),  # 8.6 of 8 GiB
        (5, 11.0, True),
    ],
)
def test_a_wave_stays_in_a_gpus_memory_if_it_fits_there(
    cells: int, gib: float, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)  # of the host: no matter
    assert memory.fits_together([job()] * cells, gpus(gib)) is together
    monkeypatch.setattr(memory, "this_machine", lambda: gpus(gib))
    assert memory.fits_together([job()] * cells) is together


def test_a_wave_stays_where_the_gpus_memory_is_unknown() -> None:
    assert memory.fits_together([job()] * 100, NodeResources(2, cuda_devices=1))
