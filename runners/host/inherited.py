"""Which variables of the surroundings a process that we start inherits. Stdlib only.

Other programs set variables for processes of their own: a launcher (PET_*, RANK, PMI_*), a W&B
agent (WANDB_*), a notebook's kernel (MPLBACKEND). In ours they would change what is done, so what
is inherited is a list of what is allowed, never of what is forbidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from runners.host import project_paths

# What any program needs of its system: shell patterns of names.
SYSTEM = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_*"),
    *("PYTHON*", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_*", "XDG_*"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
# What ranks need besides: their devices, and how they reach each other. Threads are the launch's.
RANKS = (
    *SYSTEM,
    *("CUDA_*", "NVIDIA_*", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("NCCL_*", "GLOO_SOCKET_IFNAME"),
)
SLURM = ("SLURM_*",)  # srun, and what it starts, know their allocation by these
# What no rank inherits whatever names it: secrets, and what launchers set.
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|WANDB_|NETRC", re.I)
OF_LAUNCHERS = re.compile(
    r"(PET|TORCHELASTIC|MASTER|LOCAL|GROUP|ROLE|MOE|SLURM|PMI\w*|OMPI_COMM)_|RANK|WORLD_SIZE"
)


def withheld(name: str) -> bool:
    """Whether no rank may inherit a variable of this name, whoever asks for it."""
    return bool(SECRET.search(name) or OF_LAUNCHERS.match(name))


def of_ranks(variables: Mapping[str, str], pass_env: Iterable[str]) -> dict[str, str]:
    """What ranks inherit; `pass_env` are the user's own patterns."""
    found = inherited(variables, (*RANKS, *pass_env))
    return {name: value for name, value in found.items() if not withheld(name)}


def made_for_ranks(
    variables: Mapping[str, str], threads: int, pass_env: Iterable[str] = ()
) -> dict[str, str]:
    """The environment of a rank, or of what starts ranks."""
    return {
        **of_ranks(variables, pass_env),
        **project_paths.module_variables(variables),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def inherited(variables: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """Those of the variables whose name matches a pattern."""
    allowed = tuple(patterns)
    return {
        name: value
        for name, value in variables.items()
        if any(fnmatchcase(name, pattern) for pattern in allowed)
    }
