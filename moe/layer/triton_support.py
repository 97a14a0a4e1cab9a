"""Where the kernel `triton` can run: everything else is refused by name. Torch-free."""

from __future__ import annotations

from importlib.util import find_spec

from moe.layer import liger_support
from moe.layer.liger_support import ANOTHER, INSTALL
from moe.spec import Cell, LayerSpec, Unsupported

KERNEL = "triton"


def missing(train: bool) -> str:
    """Why it cannot run here, in words; empty if it can. Its backward pass is Liger's."""
    if train:
        return liger_support.missing()
    return liger_support.no_compiler() if find_spec("triton") else "triton is not installed"


def fits(layer: LayerSpec, train: bool) -> bool:
    """Whether the kernel computes the layer on a GPU, here and now."""
    return liger_support.takes(layer) and not missing(train)


def refuse(cell: Cell) -> None:
    """Raises Unsupported for a cell with this kernel that it cannot compute."""
    train = cell.workload.mode == "train"
    liger_support.refuse_fields(cell, KERNEL)
    if why := missing(train):
        packages = f"triton and {liger_support.PACKAGE}" if train else "triton"
        raise Unsupported("strategy.kernel", KERNEL, f"{KERNEL} with {packages} ({why})",
                          f"{INSTALL}; or {ANOTHER}")  # fmt: skip
