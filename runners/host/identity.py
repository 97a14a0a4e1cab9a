"""What names a person, a machine or an account: texts that nothing handed on may contain.

Stdlib only.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from runners.host.inherited import SECRET

# Keys of W&B and of a proxy's account; what messages of W&B may quote.
KEYS = r"wandb_v\d+_\w+|(?:local-)?\b[0-9a-f]{40}\b|(?<=//)[^/\s@]+:[^/\s@]+(?=@)"
# Keys of other services by their beginnings, and any long run of letters mixed with digits.
FURTHER_KEYS = (
    r"(?<![A-Za-z0-9])(?:(?:hf|gh[opsur])_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|xox[abp]-[\w-]{10,}|sk-[\w-]{16,}|[prs]k_(?:live|test)_\w+|(?:AKIA|ASIA)[0-9A-Z]{12,}"
    r"|AIza[\w-]{30,}|eyJ[\w-]{16,})"
    r"|(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{24,}"
)
LEAST = 3  # letters of a part of a host's name that names it
LEAST_SECRET = 4  # characters of a secret; a shorter text is too common to be taken out everywhere
_COMMON = """
root user users home admin ubuntu debian localhost localdomain local host node worker rank
master login compute gpu cpu linux docker container server cluster machine runner bench moe test
data model amd intel nvidia epyc xeon arm none auto simple lan com org net edu gov
true false online offline enabled disabled
"""
# Names that say nothing of who has them, words of hardware, and values of W&B's switches.
COMMON = frozenset(_COMMON.split())


def names_here() -> frozenset[str]:
    """The login's name, the host's name and its parts, the name of the home folder, and the values
    of variables that hold secrets (LEAST_SECRET characters or more), of this process; without what
    COMMON has, and numbers."""
    names: set[str] = set()
    with suppress(OSError, KeyError, ImportError):
        names.add(getpass.getuser())
    with suppress(RuntimeError):
        names.add(Path.home().name)
    host = platform.node()
    names |= {host, *(part for part in host.split(".") if len(part) >= LEAST)}
    names |= {
        value
        for name, value in os.environ.items()
        if SECRET.search(name) and len(value) >= LEAST_SECRET
    }
    return frozenset(
        name
        for name in names
        if len(name) > 1 and not name.isdigit() and name.lower() not in COMMON
    )


def whole_words(names: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern of these names as whole words in any case; None for no name."""
    texts = sorted(map(re.escape, filter(None, names)), key=len, reverse=True)
    if not texts:
        return None
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(texts)})(?![A-Za-z0-9])", re.IGNORECASE)
