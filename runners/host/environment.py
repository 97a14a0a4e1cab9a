"""Machine and process facts that are stored with every launch. Stdlib only at import.

Recorded by allow-list: nothing that names a person, a home folder, a host or a secret. Host and
boot are stored as salted short hashes, enough to tell machines apart.

    capture(...)             once per launch, before anything is timed -> Record.environment
    snapshot()               before and after a wave; the difference shows disturbances
    fingerprint(env)         identifies the machine that a calibration belongs to
    pin(...)                 give a local rank its own cores
    reset_peak_memory(...), peak_memory_bytes(...)   peak memory, with the method that was used
    step_memory_bytes(...)   peak tensor memory of one step
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from runners.host.control_groups import cpu_quota
from runners.host.files import number, text
from runners.host.hardware import (
    clock_mhz,
    cpu_model,
    gpu_links,
    gpus,
    launch_affinity,
    llc_bytes,
    memory_bytes,
    parse_cpu_list,
    steal_s,
    temperature_c,
    usable_cores,
)

PROJECT = "moe-bench"
PACKAGES = ("torch", "project", "mpi4py", "triton", "transformers")
GPU_SOFTWARE = ("cuda", "nccl", "triton", "transformers")  # a GPU's speed depends on, beside torch
GIT_LIMIT_S = 5.0
UNTRACKED_LIMIT_BYTES = 1 << 20  # larger untracked files enter the dirty hash by name and size only

VARIABLES = re.compile(
    r"(OMP|KMP|GOMP|MKL|OPENBLAS|DNNL|ONEDNN|MPIR_CVAR)_\w+|ATEN_CPU_CAPABILITY|PYTHONHASHSEED"
    r"|(GLOO|NCCL)_SOCKET_IFNAME|NCCL_(ALGO|PROTO|DEBUG|NTHREADS|(IB|P2P|SHM)_DISABLE)"
    r"|NCCL_(MIN|MAX)_NCHANNELS|CUDA_(LAUNCH_BLOCKING|DEVICE_MAX_CONNECTIONS)|MALLOC_ARENA_MAX"
    r"|CUBLAS_WORKSPACE_CONFIG|NVIDIA_TF32_OVERRIDE|MPICH_ASYNC_PROGRESS"
    r"|(PYTORCH|TORCH_NCCL|UCX|FI)_\w+"
)
# How peak memory was read (`peak_memory_bytes`): the kernel's high-water mark, or an allocator.
PEAK_METHODS = ("VmHWM since reset", "VmHWM since process start", "ru_maxrss since process start",
                "torch.cuda allocator")  # fmt: skip
HARMLESS_VALUE = re.compile(r"[\w .,:{}()=+*^-]{0,80}")  # no slash: never a path


def capture(
    device: str = "cpu",
    local_ranks: int | None = None,
    git: dict[str, Any] | None = None,
    root: Path | None = None,
) -> dict[str, Any]:
    """Facts that hold for a whole launch on this host, JSON-ready; unknown ones are None.

    `git` is the result of `git_state` in the parent; without it `git_state(root)` is called.
    """
    memory = memory_bytes()
    return {
        "versions": versions(device),
        "git": git if git is not None else git_state(root),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "host": short_hash(text("/etc/machine-id"), platform.node()),
        "boot": short_hash(text("/proc/sys/kernel/random/boot_id")),
        "cpu_model": cpu_model(),
        "cores": usable_cores(),
        "cpu_quota": cpu_quota(),
        "affinity": _affinity(),
        "governor": text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "numa_nodes": max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))),
        "llc_bytes": llc_bytes(),
        "memory_total_bytes": memory.get("MemTotal"),
        "memory_available_bytes": memory.get("MemAvailable"),
        "local_ranks": local_ranks,
        "threads": threads(),
        "variables": variables(os.environ),
        "device": device,
        "gpus": gpus() if device.startswith("cuda") else [],
        "gpu_links": gpu_links() if device.startswith("cuda") else [],
        "before": snapshot(),
    }


def snapshot() -> dict[str, Any]:
    """State and counters of host and process now; counters are totals, to be subtracted."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    load = text("/proc/loadavg")
    return {
        "monotonic_ns": time.monotonic_ns(),
        "load_1m": os.getloadavg()[0],
        "runnable": int(load.split()[3].split("/")[0]) if load else None,
        "voluntary_switches": usage.ru_nvcsw,
        "involuntary_switches": usage.ru_nivcsw,
        "major_faults": usage.ru_majflt,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "steal_s": steal_s(),
        "clock_mhz": clock_mhz(),
        "temperature_c": temperature_c(),
    }


def with_gpus(environment: dict[str, Any]) -> dict[str, Any]:
    """A captured environment of a launch on the CPU as a launch on the GPUs captures it, for its
    fingerprint."""
    return {**environment, "device": "cuda", "versions": versions("cuda"), "gpus": gpus()}


def fingerprint(environment: dict[str, Any]) -> str:
    """Twelve hex digits over what decides the speed of the hardware and its libraries."""
    names = ("host", "cpu_model", "cores", "cpu_quota", "governor", "numa_nodes", "llc_bytes")
    facts = {name: environment.get(name) for name in names}
    known = environment.get("versions") or {}
    facts["memory_gib"] = round((environment.get("memory_total_bytes") or 0) / 2**30)
    facts["torch"] = known.get("torch")
    facts["gpus"] = [gpu.get("name") for gpu in environment.get("gpus") or []]
    if facts["gpus"]:  # a fingerprint without GPUs is as it always was
        about = ("memory_total", "driver_version")
        facts["of_gpus"] = [[gpu.get(name) for name in about] for gpu in environment["gpus"]]
        facts["of_torch"] = {name: known.get(name) for name in GPU_SOFTWARE}
    return short_hash(json.dumps(facts, sort_keys=True))


def short_hash(*parts: str | None) -> str:
    """Twelve hex digits, salted with the project's name so that they match no other list."""
    joined = "\0".join([PROJECT, *(part or "" for part in parts)])
    return hashlib.sha256(joined.encode()).hexdigest()[:12]


# --- software ---------------------------------------------------------------------------------


def versions(device: str = "cpu") -> dict[str, str | None]:
    """Versions from package metadata, so that torch need not be imported; on a GPU also those of
    CUDA and NCCL, which torch is asked for. None for what is not there."""
    by_name: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            by_name[name] = metadata.version(PROJECT if name == "project" else name)
        except metadata.PackageNotFoundError:
            by_name[name] = None
    return by_name | (_cuda_versions() if device.startswith("cuda") else {})


def _cuda_versions() -> dict[str, str | None]:
    import torch

    try:
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    except (AttributeError, RuntimeError):  # a build without it
        nccl = None
    return {"cuda": torch.version.cuda, "nccl": nccl}


def git_state(root: Path | None, limit_s: float = GIT_LIMIT_S) -> dict[str, Any] | None:
    """{"sha", "dirty"}: dirty is None for a clean tree, else a hash of the changes against sha.

    None where there is no git, no repository, or no answer in time.
    """
    if root is None:
        return None
    try:
        sha = _git(root, limit_s, "rev-parse", "HEAD").decode().strip()
        changes = _git(root, limit_s, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--binary")
        untracked = _git(root, limit_s, "ls-files", "--others", "--exclude-standard", "-z")
    except (OSError, subprocess.SubprocessError):
        return None
    if not changes and not untracked:
        return {"sha": sha, "dirty": None}
    digest = hashlib.sha256(changes)
    for name in sorted(filter(None, untracked.split(b"\0"))):
        digest.update(name + b"\0" + _file_mark(root / os.fsdecode(name)))
    return {"sha": sha, "dirty": digest.hexdigest()[:12]}


def _git(root: Path, limit_s: float, *arguments: str) -> bytes:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=limit_s).stdout


def _file_mark(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if path.is_file() and size <= UNTRACKED_LIMIT_BYTES:
            return hashlib.sha256(path.read_bytes()).digest()
        return str(size).encode()
    except OSError:
        return b"unreadable"


def threads() -> dict[str, int | None]:
    """Threads per library; torch's only where torch is already imported."""
    torch = sys.modules.get("torch")
    return {
        "torch": torch.get_num_threads() if torch else None,
        "torch_interop": torch.get_num_interop_threads() if torch else None,
        "omp": number(os.environ.get("OMP_NUM_THREADS")),
        "mkl": number(os.environ.get("MKL_NUM_THREADS")),
    }


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The allow-listed variables that are set; a value that could be a path is withheld."""
    return {
        name: value if HARMLESS_VALUE.fullmatch(value) else "(withheld)"
        for name, value in sorted(environ.items())
        if VARIABLES.fullmatch(name)
    }


# --- cores --------------------------------------------------------------------------------------


def pin(local_rank: int, local_ranks: int, threads: int) -> list[int] | None:
    """Pins this process, and threads started later, to its own cores; returns them, or None.

    Cores are assigned one hardware thread per physical core first, so that ranks share a physical
    core only when there are more threads than physical cores. With more threads than cores, they
    are assigned round-robin if every core gets equally many: unpinned ranks migrate between cores
    over hundreds of ms, longer than a block. Returns None, unpinned, where the threads do not
    divide evenly or the system refuses.
    """
    order = sorted(launch_affinity(), key=_core_order)
    wanted = local_ranks * threads
    uneven = wanted % len(order) or usable_cores() < len(order)
    if (wanted > usable_cores() and uneven) or not hasattr(os, "sched_setaffinity"):
        return None
    first = local_rank * threads
    cores = sorted({order[n % len(order)] for n in range(first, first + threads)})
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return None
    return cores


def _core_order(cpu: int) -> tuple[int, int, int]:
    """Sort key (index among siblings, package, cpu): first hardware threads of all cores first."""
    topology = f"/sys/devices/system/cpu/cpu{cpu}/topology"
    siblings = parse_cpu_list(text(f"{topology}/thread_siblings_list") or str(cpu))
    place = siblings.index(cpu) if cpu in siblings else 0
    return place, number(text(f"{topology}/physical_package_id")) or 0, cpu


def _affinity() -> list[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


# --- peak memory ------------------------------------------------------------------------------

_reset_worked = False  # whether the kernel let us reset the high-water mark


def reset_peak_memory(device: str = "cpu") -> bool:
    """Resets the peak; False where not permitted (it then counts from process start)."""
    global _reset_worked
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _reset_worked = True
    except OSError:
        _reset_worked = False
    return _reset_worked


def step_memory_bytes(step: Callable[[], None], device: str = "cpu") -> int:
    """Peak bytes of tensors alive in a step, beyond those alive before it, by torch's allocator.
    Unlike resident memory it does not depend on earlier work. What libraries allocate themselves
    (oneDNN, MPI) is not counted."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - int(before)
    with torch.autograd.profiler.profile(use_kineto=True, profile_memory=True) as profiler:
        step()
    assert profiler.kineto_results is not None
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes, initial=0))


def peak_memory_bytes(device: str = "cpu") -> dict[str, Any]:
    """{"peak_bytes", "current_bytes", "method"} of this rank.

    On CPU the resident memory of the whole process, libraries included (the kernel's count may lag
    by some hundred KiB); on CUDA what torch's allocator handed out.
    """
    if device.startswith("cuda"):
        import torch

        peak, now = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        return {"peak_bytes": peak, "current_bytes": now, "method": PEAK_METHODS[3]}
    status = dict(
        line.split(":", 1) for line in (text("/proc/self/status") or "").splitlines() if ":" in line
    )
    if "VmHWM" in status:
        method = PEAK_METHODS[0 if _reset_worked else 1]
        peak, now = (int(status[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))
        return {"peak_bytes": peak, "current_bytes": now, "method": method}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_bytes": peak, "current_bytes": None, "method": PEAK_METHODS[2]}
