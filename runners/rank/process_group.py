"""The process group of a launch: rendezvous, membership check, barrier and clock."""

from __future__ import annotations

import datetime
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from moe import phases
from moe.spec import RankLayout
from runners.rank.gpu import GpuClock

TOKEN = "MOE_LAUNCH_TOKEN"  # drawn for each launch; never in a record or log
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # old name


@dataclass(frozen=True)
class RankPlace:
    """This rank's place, from the variables that torchrun, srun wrappers and mpiexec set."""

    rank: int
    world_size: int
    local_rank: int
    local_ranks: int
    node: int = 0

    @staticmethod
    def from_environment() -> RankPlace:
        world_size = int(os.environ["WORLD_SIZE"])
        return RankPlace(
            rank=int(os.environ["RANK"]),
            world_size=world_size,
            local_rank=int(os.environ["LOCAL_RANK"]),
            local_ranks=int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
            node=int(os.environ.get("GROUP_RANK", 0)),
        )


class TorchRanks:
    """`runners.rank.engine.Ranks` over torch.distributed. Control traffic is the host's alone; at a
    barrier the ranks meet on their GPUs too."""

    def __init__(self, place: RankPlace, placement: RankLayout, limit_s: float) -> None:
        self.place = place
        self.rank = place.rank
        self.device = torch.device("cpu")
        self._on_gloo = placement.backend != "mpi"  # nccl too: its control group is gloo
        timeout = datetime.timedelta(seconds=limit_s)
        self._control: dist.ProcessGroup | None = None
        self._host_meeting = torch.zeros(1)  # what ranks add up to meet
        self._gpu_meeting: torch.Tensor | None = None  # with NCCL
        bound: torch.device | None = None  # for NCCL, which connects ranks at once if it knows it
        if placement.device == "cuda":
            index = device_index(place.local_rank, torch.cuda.device_count())
            self.device = torch.device("cuda", index)
            torch.cuda.set_device(self.device)
            if placement.backend == "nccl" and place.world_size > 1:
                bound = self.device
        if placement.backend == "mpi":
            from runners.mpi.backend import init_mpi

            init_mpi()
            return
        dist.init_process_group(placement.backend, timeout=timeout, device_id=bound)
        if placement.backend == "nccl":
            self._control = dist.new_group(backend="gloo", timeout=timeout)
            if place.world_size > 1:
                self._gpu_meeting = torch.zeros(1, device=self.device)
        self._check_members(os.environ.get(TOKEN, ""))

    def _check_members(self, token: str) -> None:
        """Raises RuntimeError when some rank does not know the launch's token, that is, was not
        started by this launcher."""
        marks = [_mark(token, rank) for rank in range(self.place.world_size)]
        received = self.gather([_mark(token, self.rank)])
        strangers = [rank for rank, mark in enumerate(marks) if received[rank] != [mark]]
        if strangers:
            raise RuntimeError(f"rank {strangers[0]} is not of this launch: it lacks its token")

    def barrier(self) -> None:
        """Ranks leave a barrier of their hosts tens of microseconds apart. With NCCL they then meet
        on their GPUs, which end a collective within microseconds of each other. This returns when
        it has ended, so that nothing of it is in a sample."""
        if self.place.world_size == 1:
            return
        if self._gpu_meeting is None:
            dist.barrier(self._control)
            return
        dist.all_reduce(self._host_meeting, group=self._control)  # dist.barrier would use the GPU
        dist.all_reduce(self._gpu_meeting)
        torch.cuda.synchronize(self.device)

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def phase_clock(self) -> phases.Clock:
        """The clock of a step's phases."""
        return GpuClock(self.device) if self.device.type == "cuda" else phases.HostClock()

    def broadcast(self, value: int) -> int:
        if self.place.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.int64)
        dist.broadcast(tensor, 0, group=self._control)
        return int(tensor.item())

    def gather(self, values: Sequence[int]) -> list[list[int]]:
        if self.place.world_size == 1:
            return [list(values)]
        local = torch.tensor(list(values), dtype=torch.int64)
        output = torch.empty(self.place.world_size * len(local), dtype=torch.int64)
        if self._on_gloo:  # an exchange: its all-gather is a ring (moe.parallel.algorithms)
            dist.all_to_all_single(output, local.repeat(self.place.world_size), group=self._control)
        else:
            all_gather(output, local, group=self._control)
        rows: list[list[int]] = output.view(self.place.world_size, -1).tolist()
        return rows

    def close(self) -> None:
        dist.destroy_process_group()


def device_index(local_rank: int, visible: int) -> int:
    """The CUDA device of a rank: ranks of a host take the visible devices in turn. Launchers that
    show each rank its own device alone leave it the first. Raises RuntimeError without any."""
    if not visible:
        raise RuntimeError(
            f"local rank {local_rank} sees no CUDA device; check the driver and "
            "CUDA_VISIBLE_DEVICES, or set device=cpu"
        )
    return local_rank % visible


def _mark(token: str, rank: int) -> int:
    """63 bits, different for every rank, that only a process with the token can compute."""
    digest = hashlib.sha256(f"{token}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
