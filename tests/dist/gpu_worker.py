"""runners.worker on a simulated GPU (tests/support/fake_cuda.py), with gloo as NCCL. Beside its log
every rank writes what `read` returns.

The GPU is small, so that a calibration is short and few copies of weights fill its cache; layers of
any size share their weights.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from moe import weights
from moe.layer import weight_store
from moe.parallel import comm
from moe.spec import LayerSpec
from runners.rank import gpu_probe, worker
from tests.support import fake_cuda

MIB = 1 << 20
SMALL_GPU = {"MEMORY_BYTES": 256 * MIB, "L2_BYTES": MIB // 8}
SMALL_PROBE = {"CHUNK_BYTES": 8 * MIB, "WARM_READ_BYTES": 8 * MIB, "PINNED_BYTES": MIB}
prepare = worker.prepare
init_process_group = dist.init_process_group


def read(path: Path) -> dict[str, Any]:
    """Of a rank's file: {"made": how often a first matrix was made, by dtype, experts and columns;
    "on_host": operations of waves on the processor over as many numbers as an expert's first matrix
    has}."""
    made: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return made


class GpuWorker(worker.Worker):
    """Watches what its cells do."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.made: Counter[str] = Counter()
        self.on_host: list[str] = []

    def run(self) -> None:
        stacked = weights.stacked

        def counted(layer: LayerSpec, experts: Any, name: str, columns: Any, *rest: Any) -> Any:
            if name == "w1":
                self.made[f"{layer.dtype} {list(experts)} {list(columns)}"] += 1
            return stacked(layer, experts, name, columns, *rest)

        with mock.patch.object(weights, "stacked", counted):
            super().run()
        path = self.launch_dir / f"gpu-{self.place.rank}.json"
        path.write_text(json.dumps({"made": self.made, "on_host": self.on_host}), "utf-8")

    def _wave(self, number: int, wave: list[int]) -> None:
        matrix = min(one.layer.dim * one.layer.hidden for one in self.plan.cells)
        with fake_cuda.HostOperations(matrix) as host:
            super()._wave(number, wave)
        self.on_host += host.noted


def gloo_as_nccl(backend: str, device_id: torch.device | None = None, **rest: Any) -> None:
    assert backend == "nccl", backend
    init_process_group("gloo", **rest)


def main(arguments: list[str]) -> int:
    with contextlib.ExitStack() as stack:
        for patch in (
            mock.patch.multiple(fake_cuda, **SMALL_GPU),
            mock.patch.multiple(gpu_probe, **SMALL_PROBE),
            mock.patch.object(weight_store, "SHARED_BYTES", 0),
            mock.patch.object(worker, "Worker", GpuWorker),
            mock.patch.object(dist, "init_process_group", gloo_as_nccl),
            mock.patch.object(dist, "get_backend", lambda group=None: "nccl"),
            fake_cuda.nccl_only(comm),
            fake_cuda.FakeCuda(),
        ):
            stack.enter_context(patch)
        return worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
