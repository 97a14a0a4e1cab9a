"""Where the kernel `liger` can run: everything else is refused by name. Torch-free."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from moe.spec import Cell, Unsupported

KERNEL = "liger"
MODULES = ("triton", "liger_kernel")
PACKAGE, SERIES = "liger-kernel", "0.8."  # its kernels are private: another version may change them
DTYPES = ("bfloat16", "float16")  # in float32 its products round to TF32
INSTALL = "in the clone: pip install -e '.[gpu]'"


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
    return ""


def refuse(cell: Cell) -> None:
    """Raises Unsupported for a cell with this kernel that it cannot compute."""
    layer, another = cell.layer, "set strategy.kernel=auto"
    for name, value, allowed in (
        ("device", cell.placement.device, ("cuda",)),
        ("dtype", layer.dtype, DTYPES),
        ("model.activation", layer.activation, ("silu_gated",)),
        ("model.bias", layer.bias, ("none",)),
    ):
        if value not in allowed:
            raise Unsupported(name, value, f"{'|'.join(allowed)} with strategy.kernel={KERNEL}",
                              f"set {name} to it, or {another}")  # fmt: skip
    if why := missing():
        raise Unsupported("strategy.kernel", KERNEL, f"{KERNEL} with {PACKAGE} {SERIES}* ({why})",
                          f"{INSTALL}; or {another}")  # fmt: skip
