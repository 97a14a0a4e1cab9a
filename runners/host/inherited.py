"""Environment variables that child processes inherit. Stdlib only.

Launchers (PET_*, RANK, PMI_*), W&B agents (WANDB_*) and notebook kernels (MPLBACKEND) set variables
that would change what our processes do. Inheritance is therefore an allow-list, not a deny-list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from runners.host import project_paths

# System variables that any program needs, as shell patterns.
SYSTEM = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_*"),
    *("PYTHON*", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_*", "XDG_*"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
# What ranks need besides: devices and network. Thread counts are set by the launch.
RANKS = (
    *SYSTEM,
    *("CUDA_*", "NVIDIA_*", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("NCCL_*", "GLOO_SOCKET_IFNAME"),
)
SLURM = ("SLURM_*",)  # srun and its steps find their allocation by these
# Never passed to ranks, even if asked for: secrets, and what launchers set.
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|WANDB_|NETRC", re.I)
OF_LAUNCHERS = re.compile(
    r"(PET|TORCHELASTIC|MASTER|LOCAL|GROUP|ROLE|MOE|SLURM|PMI\w*|OMPI_COMM)_|RANK|WORLD_SIZE"
)


def withheld(name: str) -> bool:
    """Whether a variable of this name is never passed to ranks."""
    return bool(SECRET.search(name) or OF_LAUNCHERS.match(name))


def inherited_by_ranks(variables: Mapping[str, str], pass_env: Iterable[str]) -> dict[str, str]:
    """Variables that ranks inherit; `pass_env` are the user's own patterns."""
    selected = inherited(variables, (*RANKS, *pass_env))
    return {name: value for name, value in selected.items() if not withheld(name)}


def rank_variables(
    variables: Mapping[str, str], threads: int, pass_env: Iterable[str] = ()
) -> dict[str, str]:
    """Environment of a rank, or of a process that starts ranks."""
    return {
        **inherited_by_ranks(variables, pass_env),
        **project_paths.module_variables(variables),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def inherited(variables: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """The variables whose name matches a pattern."""
    allowed = tuple(patterns)
    return {
        name: value
        for name, value in variables.items()
        if any(fnmatchcase(name, pattern) for pattern in allowed)
    }
