"""tests.dist.gpu_worker with a stand-in of torch's symmetric memory."""

from __future__ import annotations

import sys

from tests.dist import gpu_worker
from tests.dist.symm_mem_ranks import gather, index
from tests.support.fake_symm_mem import FakeSymmMem

prepare = gpu_worker.prepare


def main(arguments: list[str]) -> int:
    with FakeSymmMem(gather, index):
        return gpu_worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
