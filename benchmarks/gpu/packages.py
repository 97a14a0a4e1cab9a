"""Python packages that a bare GPU machine lacks, from the wheels of `make gpu-wheels`."""

from __future__ import annotations

import os
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.rows import Part
from runners.host import project_paths

FOLDER = "packages"  # in DIR: unpacked wheels
WHEELS = project_paths.CODE / ".cache" / "gpu-wheels"  # as in the Makefile
HYDRA = ("hydra", "omegaconf", "antlr4")  # what runners/bench.py needs
KERNELS = ("liger_kernel", "moe_ops")  # expert kernels, without which their rows are refused


def provide(folder: Path) -> None:
    """Unpacks the wheels of what is missing into DIR, for this process and for those of
    `variables`. Unpacked, because Hydra does not find its own config in a zip file."""
    missing = {name for name in (*HYDRA, *KERNELS) if not find_spec(name)}
    packages = folder / FOLDER
    for wheel in sorted(WHEELS.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            if missing & {name.split("/")[0] for name in archive.namelist()}:
                archive.extractall(packages)
    if packages.is_dir():
        sys.path.append(str(packages))


def variables(part: Part) -> dict[str, str] | None:
    """With which a sweep's process finds its modules; None, and a row, where it would not."""
    known = project_paths.module_variables(os.environ)
    packages = part.folder / FOLDER
    lacking = [name for name in HYDRA if not find_spec(name) and not (packages / name).is_dir()]
    if lacking:
        part.add(ok=False, error=f"{', '.join(lacking)}: not installed, and not in {WHEELS}; run "
                 "`make gpu-wheels` where there is a network and bring that folder")  # fmt: skip
        return None
    if packages.is_dir():
        known["PYTHONPATH"] = os.pathsep.join([known["PYTHONPATH"], str(packages)])
    return known
