"""Which variables of the surroundings a process that we start inherits. Stdlib only.

Other programs set variables for processes of their own: a launcher (PET_*, RANK, PMI_*), a W&B
agent (WANDB_*), a notebook's kernel (MPLBACKEND). In ours they would change what is done, so what
is inherited is a list of what is allowed, never of what is forbidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

# What any program needs of its system: shell patterns of names.
SYSTEM = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_*"),
    *("PYTHON*", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_*", "XDG_*"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)


def inherited(variables: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """Those of the variables whose name matches a pattern."""
    allowed = tuple(patterns)
    return {
        name: value
        for name, value in variables.items()
        if any(fnmatchcase(name, pattern) for pattern in allowed)
    }
