"""Which CUDA device a rank takes, and what its process group is told of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from moe import phases
from moe.spec import RankLayout
from runners.rank import process_group
from runners.rank.gpu import GpuClock
from runners.rank.process_group import RankPlace, TorchRanks, device_index
from tests.support.fake_cuda import DEVICE, FakeCuda


@pytest.mark.parametrize(
    ("local_rank", "visible", "index"), [(0, 1, 0), (3, 8, 3), (3, 1, 0), (5, 4, 1), (7, 2, 1)]
)
def test_ranks_take_the_visible_devices_in_turn(local_rank: int, visible: int, index: int) -> None:
    assert device_index(local_rank, visible) == index


def test_a_rank_without_a_device_says_so() -> None:
    with pytest.raises(RuntimeError, match="local rank 2 sees no CUDA device; check the driver"):
        device_index(2, 0)


@pytest.mark.parametrize(
    ("backend", "size", "bound", "groups"),
    [
        ("nccl", 4, torch.device("cuda", 1), ["gloo"]),
        ("nccl", 1, None, ["gloo"]),  # sends nothing, and connects to nobody
        ("gloo", 4, None, []),
    ],
)
def test_nccl_is_told_the_ranks_device_and_gloo_is_not(
    backend: str,
    size: int,
    bound: torch.device | None,
    groups: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[str, Any] = {}
    made: list[str] = []
    with FakeCuda() as gpu:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: told.update(set=device))
        monkeypatch.setattr(
            dist, "init_process_group", lambda name, **how: told.update(how, backend=name)
        )
        monkeypatch.setattr(dist, "new_group", lambda **how: made.append(how["backend"]))
        monkeypatch.setattr(process_group.TorchRanks, "_check_members", lambda self, token: None)
        place = RankPlace(rank=size - 1, world_size=size, local_rank=size - 1, local_ranks=size)
        ranks = TorchRanks(place, RankLayout(size, backend, "cuda"), 60.0)
        assert ranks.device == told["set"] == torch.device("cuda", 1 if size > 1 else 0)
        assert (told["backend"], told["device_id"], made) == (backend, bound, groups)
        met: list[str] = []
        monkeypatch.setattr(dist, "barrier", lambda group=None: met.append("hosts"))
        monkeypatch.setattr(
            dist, "all_reduce",
            lambda x, group=None: met.append("GPUs" if x.is_cuda else "hosts"),
        )  # fmt: skip
        ranks.barrier()
        assert met == ([] if size == 1 else ["hosts", "GPUs"] if backend == "nccl" else ["hosts"])
        ended = [kind for kind, _ in gpu.waits if kind == "synchronize"]
        assert len(ended) == (met[-1:] == ["GPUs"])  # before a block's time begins


def test_phases_on_a_gpu_are_marked_without_waiting() -> None:
    with FakeCuda() as gpu, gpu.watching():
        x = torch.ones(4, device=DEVICE)
        with phases.recording(GpuClock(DEVICE)) as times:
            with phases.phase("router"):
                x = x + 1  # a kernel takes a microsecond here
                with phases.phase("experts"):
                    x = x + 1
                    x = x + 1
            x = x + 1
            assert gpu.waits == [] and times == {}
        assert times == {"other": 1000, "router": 1000, "experts": 2000}
        assert [kind for kind, _ in gpu.waits] == ["synchronize"]
