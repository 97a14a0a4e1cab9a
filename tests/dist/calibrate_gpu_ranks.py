"""One rank of test_calibrate_gpu.py: calibrates on a small simulated GPU; rank 0 prints the result
as one line of JSON."""

from __future__ import annotations

import json
import os
import sys
from unittest import mock

import torch
import torch.distributed as dist

from moe.parallel import comm as comm_module
from runners.rank import calibrate, gpu_probe
from tests.support import fake_cuda

MIB = 1 << 20


def main(arguments: list[str]) -> int:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    sizes = {"CHUNK_BYTES": 16 * MIB, "WARM_READ_BYTES": 16 * MIB, "PINNED_BYTES": MIB}
    with (
        mock.patch.multiple(gpu_probe, **sizes),
        mock.patch.multiple(fake_cuda, MEMORY_BYTES=256 * MIB, L2_BYTES=MIB),
        fake_cuda.FakeCuda(),
        fake_cuda.nccl_only(comm_module),
    ):
        limit_s, nodes = float(arguments[0]), int(arguments[1])
        result = calibrate.calibrate_ranks(limit_s, fake_cuda.DEVICE, nodes)
    if int(os.environ["RANK"]) == 0:
        print(json.dumps(result))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
