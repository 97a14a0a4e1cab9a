"""A small sweep among the settings of other programs and on odd machines: the table of
docs/results/reliability.md.

    python -m benchmarks.faults.surroundings [--only TEXT]

Each row is one sweep of two cells on two ranks, with offline W&B runs, tables and plots. A row that
needs root (mounts, control groups) says so where it is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ["-m", "strategy=simple,ep", "topk=2", "world_size=2", "measure=quick", "tracker=wandb"]
LIMIT_S = 400
EXPECTED = "2 of 2 cells measured, 2 runs, tables and plots"


@dataclass(frozen=True)
class Surrounding:
    """`variables` are set (None: unset), `wrapper` is a shell's line that ends by running "$@"."""

    variables: dict[str, str | None] = field(default_factory=dict)
    wrapper: str = ""
    folder: str = "sweeps"
    root: bool = False
    more: Sequence[str] = ()


SURROUNDINGS = {
    "nothing unusual": Surrounding(),
    "Kubeflow: `PET_NNODES=2 PET_NPROC_PER_NODE=4 PET_RDZV_ENDPOINT` ...": Surrounding(
        {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "4", "PET_RDZV_BACKEND": "c10d",
         "PET_RDZV_ENDPOINT": "master:29400", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "master",
         "PET_MASTER_PORT": "29500", "MASTER_ADDR": "master", "MASTER_PORT": "29500",
         "WORLD_SIZE": "8", "RANK": "4"}
    ),
    "`PET_NNODES=1:3`": Surrounding({"PET_NNODES": "1:3"}),
    "`PET_NO_PYTHON=1 PET_STANDALONE=1 PET_MAX_RESTARTS=3`": Surrounding(
        {"PET_NO_PYTHON": "1", "PET_STANDALONE": "1", "PET_MAX_RESTARTS": "3"}
    ),
    "inside torchrun: `RANK LOCAL_RANK WORLD_SIZE MASTER_* TORCHELASTIC_*`": Surrounding(
        {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4",
         "GROUP_RANK": "0", "ROLE_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
         "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True",
         "TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_ERROR_FILE": "/nowhere/e.json",
         "OMP_NUM_THREADS": "1"}
    ),
    "a Slurm job's step: `SLURM_PROCID SLURM_NTASKS PMI_RANK` ...": Surrounding(
        {"SLURM_JOB_ID": "77", "SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "3",
         "SLURM_NNODES": "2", "SLURM_NODELIST": "n[1-2]", "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
         "PMI_RANK": "3", "PMI_SIZE": "8", "PMI_FD": "9", "PMIX_RANK": "3"}
    ),
    "under MPI, `backend=mpi`: `PMI_* OMPI_* I_MPI_* HYDRA_* MPIR_CVAR_*`": Surrounding(
        {"PMI_RANK": "3", "PMI_SIZE": "8", "PMI_FD": "9", "PMI_PORT": "host:1",
         "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "I_MPI_PMI_LIBRARY": "/nowhere",
         "HYDRA_HOST_FILE": "/nowhere", "HYDRA_LAUNCHER": "slurm",
         "MPIR_CVAR_CH4_NETMOD": "nonsense"},
        more=["backend=mpi"],
    ),
    "a W&B agent: `WANDB_SWEEP_ID WANDB_SWEEP_PARAM_PATH WANDB_RUN_ID` ...": Surrounding(
        {"WANDB_SWEEP_ID": "s1", "WANDB_SWEEP_PARAM_PATH": "params.yaml", "WANDB_RUN_ID": "r1",
         "WANDB_RUN_GROUP": "g", "WANDB_RESUME": "must", "WANDB_NAME": "n", "WANDB_TAGS": "a,b"}
    ),
    "W&B: `WANDB_FORK_FROM WANDB_RESUME_FROM WANDB_CONFIG_PATHS WANDB_LAUNCH`": Surrounding(
        {"WANDB_FORK_FROM": "r?_step=3", "WANDB_RESUME_FROM": "r?_step=3", "WANDB_LAUNCH": "true",
         "WANDB_CONFIG_PATHS": "params.yaml", "WANDB_LAUNCH_CONFIG_PATH": "params.yaml"}
    ),
    "W&B: `WANDB_INIT_TIMEOUT=abc`, empty `WANDB_MODE`": Surrounding(
        {"WANDB_INIT_TIMEOUT": "abc", "WANDB_MODE": ""}
    ),
    "a notebook's kernel: `MPLBACKEND=module://matplotlib_inline.backend_inline`": Surrounding(
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "JPY_PARENT_PID": "1"}
    ),
    "`MPLBACKEND=nonsense`": Surrounding({"MPLBACKEND": "nonsense"}),
    "`OMP_PROC_BIND=true OMP_PLACES=cores OMP_NUM_THREADS=64`": Surrounding(
        {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores", "OMP_NUM_THREADS": "64"}
    ),
    "no `HOME`": Surrounding({"HOME": None}),
    "a home that cannot be written": Surrounding({"HOME": "/proc/1"}),
    "a home that is not there": Surrounding({"HOME": "/nowhere/at/all"}),
    "/dev/shm of 64 KiB": Surrounding(
        wrapper='mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', root=True
    ),
    "128 open files (`ulimit -n`)": Surrounding(wrapper='ulimit -n 128; exec "$@"'),
    "POSIX locale, without Python's UTF-8 mode": Surrounding(
        {"LC_ALL": "POSIX", "LANG": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ),
    "a folder named `it's a \"sweep\" über $HOME; x`": Surrounding(
        folder='it\'s a "sweep" über $HOME; x'
    ),
}  # fmt: skip


def attempt(one: Surrounding, folder: Path) -> str:
    """What came of it, in words; the sweep runs below `folder`."""
    if one.root and os.geteuid():
        return "not tried: needs root"
    where = folder / one.folder
    where.mkdir()
    (where / "params.yaml").write_text('strategy: {value: "simple,ep"}\n')
    command = [sys.executable, str(ROOT / "runners" / "bench.py"), *SWEEP, *one.more]
    if one.wrapper:
        space = ["unshare", "--mount"] if one.root else []
        command = [*space, "sh", "-c", one.wrapper, "sh", *command]
    variables = {**os.environ, **one.variables}
    done = subprocess.run(
        command, cwd=where, capture_output=True, text=True, errors="replace", timeout=LIMIT_S,
        env={name: value for name, value in variables.items() if value is not None},
    )  # fmt: skip
    notes = [line for line in done.stderr.splitlines() if line.startswith(("warning", "error"))]
    notes += ["a traceback"] if "Traceback" in done.stderr + done.stdout else []
    try:
        end = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return "; ".join([f"exit code {done.returncode}", *notes])
    sweep = where / end["sweep_dir"]
    drawn = list(sweep.glob("plots/*.png")) and list(sweep.glob("tables/*.md"))
    summary = f"{end['measured']} of 2 cells measured, {end['tracked']} runs"
    summary += f", {'tables and plots' if drawn else 'no tables or plots'}"
    usual = summary == EXPECTED and done.returncode == 0
    return "; ".join(["as usual" if usual else f"exit code {done.returncode}: {summary}", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.surroundings", description=__doc__
    )
    parser.add_argument("--only", default="", help="rows whose name has this text")
    options = parser.parse_args()
    print("| tried | what happens |\n|---|---|")
    for name, one in SURROUNDINGS.items():
        if options.only in name:
            with tempfile.TemporaryDirectory(prefix="surroundings-") as folder:
                print(f"| {name} | {attempt(one, Path(folder))} |", flush=True)


if __name__ == "__main__":
    main()
