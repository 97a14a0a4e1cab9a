"""Where the kernel `liger` can run: everything else is refused by name. Torch-free."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from moe.spec import Cell, LayerSpec, Unsupported

KERNEL = "liger"
MODULES = ("triton", "liger_kernel")
PACKAGE, SERIES = "liger-kernel", "0.8."  # its kernels are private: another version may change them
COMPILERS = ("gcc", "clang")
ANOTHER = "set strategy.kernel=auto"
INSTALL = "in the clone: pip install -e '.[gpu]'"


def no_compiler() -> str:
    """Triton compiles its launchers for the host, when a kernel is first run; empty if it can."""
    if os.environ.get("CC") or any(map(shutil.which, COMPILERS)):
        return ""
    return f"there is no C compiler for triton: {', '.join(COMPILERS)}, or CC"


def missing() -> str:
    """Why the package cannot be used here, in words; empty if it can."""
    for name in MODULES:
        if find_spec(name) is None:
            return f"{name} is not installed"
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        return f"{PACKAGE} is not installed as a package"
    if not installed.startswith(SERIES):
        return f"{PACKAGE} {installed} is installed, not {SERIES}*"
    return no_compiler()


def takes(layer: LayerSpec) -> bool:
    """Whether tiles of rows, and their backward pass, compute what the layer does."""
    return layer.activation == "silu_gated" and layer.bias == "none"


def fits(layer: LayerSpec) -> bool:
    """Whether the kernel computes the layer on a GPU, here and now."""
    return takes(layer) and not missing()


def refuse_fields(cell: Cell, kernel: str) -> None:
    """Raises Unsupported for what tiles of rows and their backward pass cannot compute, whatever is
    installed."""
    layer = cell.layer
    for name, value, allowed in (
        ("device", cell.placement.device, ("cuda",)),
        ("model.activation", layer.activation, ("silu_gated",)),
        ("model.bias", layer.bias, ("none",)),
    ):
        if value not in allowed:
            raise Unsupported(name, value, f"{'|'.join(allowed)} with strategy.kernel={kernel}",
                              f"set {name} to it, or {ANOTHER}")  # fmt: skip


def refuse(cell: Cell) -> None:
    """Raises Unsupported for a cell with this kernel that it cannot compute."""
    refuse_fields(cell, KERNEL)
    if why := missing():
        raise Unsupported("strategy.kernel", KERNEL, f"{KERNEL} with {PACKAGE} {SERIES}* ({why})",
                          f"{INSTALL}; or {ANOTHER}")  # fmt: skip
