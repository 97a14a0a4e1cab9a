"""runners.worker in which a cell's steps run out of a GPU's memory at the stage that is its label
(on rank 1 alone with "rank1"), or compute something else when they are checked again ("wrong"), and
kernel bmm always does. With STAGED in the environment messages count as staged through the host."""

from __future__ import annotations

import os
import sys
import weakref
from typing import Any

import torch
from torch import Tensor

from moe.layer.experts import Experts
from moe.spec import RankLayout
from moe.step import Step
from runners.rank import worker

STAGED = "TEST_MESSAGES_ARE_STAGED"
TEXT = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 3.10 GiB is free."
)
prepare = worker.prepare
rows, step, made = Experts.rows, Step.__call__, Step.__init__


def scarce_rows(self: Experts, x_SD: Tensor, counts: list[int]) -> Tensor:
    if self.kernel == "bmm":
        raise torch.OutOfMemoryError(TEXT)
    return rows(self, x_SD, counts)


class MemoryWorker(worker.Worker):
    """Also sees to it that nothing of a failed cell is left when another is entered."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.labels = dict(zip(self.plan.cells, self.plan.labels, strict=True))
        self.stage = ""
        self.steps: list[tuple[str, weakref.ref[Step]]] = []
        Step.__call__ = self.scarce_step  # type: ignore[method-assign, assignment]
        Step.__init__ = self.counted_step  # type: ignore[method-assign, assignment]

    def enter_stage(self, cell: int, stage: str) -> None:
        super().enter_stage(cell, stage)
        self.stage = stage
        failed = {self.plan.labels[index] for index in self.cells.failed - {cell}}
        left = [label for label, one in self.steps if one() is not None and label in failed]
        assert not left, left

    @property
    def counted_step(self) -> Any:
        def init(one: Step, cell: Any, *arguments: Any) -> None:
            made(one, cell, *arguments)
            self.steps.append((self.labels.get(cell, ""), weakref.ref(one)))

        return init

    @property
    def scarce_step(self) -> Any:
        def call(one: Step) -> None:
            label = self.labels.get(one.layer.cell, "")
            here = self.place.rank == 1 if label == "rank1" else label == self.stage
            if here:
                raise torch.OutOfMemoryError(TEXT)
            step(one)
            if label == "wrong" and self.stage == "check" and one.output is not None:
                with torch.inference_mode():
                    one.output.mul_(1.01)

        return call


def main(arguments: list[str]) -> int:
    worker.Worker = MemoryWorker  # type: ignore[misc]
    Experts.rows = scarce_rows  # type: ignore[method-assign]
    if os.environ.get(STAGED):
        RankLayout.staged = True  # type: ignore[assignment, method-assign]
    return worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
