"""Starting ranks with mpiexec. Torch-free: for the launcher, and for a rank's start."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runners.host.hardware import usable_cores

# Variables of rank, size, local rank and local size, by MPI library.
PLACES = {
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
}
# MPICH polls for messages. With more ranks than cores, a polling rank keeps the rank it waits for
# off the core for whole time slices: 20-30 ms, not 0.1 ms, per collective. So it must yield after
# every poll and avoid the shared-memory collectives, which do not yield.
OVERSUBSCRIBED = {"MPIR_CVAR_POLLS_BEFORE_YIELD": "1", "MPIR_CVAR_DEVICE_COLLECTIVES": "none"}
TORCH_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def export_environment() -> None:
    """Sets RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE from mpiexec's own variables.

    Raises RuntimeError in a process that mpiexec did not start.
    """
    for names in PLACES.values():
        if all(name in os.environ for name in names):
            for torch_name, name in zip(TORCH_NAMES, names, strict=True):
                os.environ[torch_name] = os.environ[name]
            return
    tried = " or ".join(f"{names[0]} ({library})" for library, names in PLACES.items())
    raise RuntimeError(f"{tried} is not set: backend=mpi ranks are started by mpiexec -n RANKS ...")


def unavailable_reason() -> str | None:
    """Why `backend=mpi` cannot run here and what to do; None where it can."""
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed; in the clone: pip install -e '.[mpi]'"
    if _mpiexec() is None:
        return "no mpiexec beside this Python or on PATH; in the clone: pip install -e '.[mpi]'"
    return None


def mpiexec_command(
    ranks: int, arguments: Sequence[str], variables: Mapping[str, str]
) -> list[str]:
    """The command line that starts `arguments` as `ranks` processes on this host.

    Run it with `variables` as its environment and stdin=DEVNULL (mpiexec reads from a terminal
    otherwise). Raises RuntimeError where MPI is not available.
    """
    mpiexec = _mpiexec()
    if mpiexec is None:
        raise RuntimeError(unavailable_reason())
    options = ["-n", str(ranks)]
    if is_open_mpi(mpiexec):
        options += ["--oversubscribe", "--bind-to", "none"]
        options += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    elif ranks > usable_cores():
        for name, value in OVERSUBSCRIBED.items():
            options += ["-genv", name, variables.get(name, value)]
    return [mpiexec, *options, *arguments]


def _mpiexec() -> str | None:
    """Prefers the mpiexec installed beside this Python: it matches the library mpi4py loads."""
    beside = Path(sys.executable).parent
    return shutil.which("mpiexec", path=str(beside)) or shutil.which("mpiexec")


@functools.cache
def is_open_mpi(mpiexec: str) -> bool:
    done = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=30)
    return "open" in done.stdout.lower().split("\n")[0]
