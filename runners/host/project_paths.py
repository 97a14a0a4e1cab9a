"""Locations of the project's files and of results. Stdlib only.

In a clone moe, runners, analysis and conf are side by side. In a wheel conf is inside runners/,
as a top-level package of that name could collide with others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

_PACKAGE = Path(str(resources.files("runners"))).resolve()
CODE = _PACKAGE.parent  # holds moe, runners and analysis
INSTALLED = (_PACKAGE / "conf").is_dir()
CLONE = None if INSTALLED else CODE  # the git repository
CONF = _PACKAGE / "conf" if INSTALLED else CODE / "conf"
OUTPUTS = Path("outputs")  # in the current folder
LATEST = "latest"  # in outputs/: a link to the newest sweep
BENCH = "moe-bench" if INSTALLED else "python runners/bench.py"  # the command of a user


def module_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables with which `python -m` finds our modules, and not those of the current folder.

    An installed package needs no PYTHONPATH: site-packages ahead of the standard library would let
    old backports (argparse, say) replace its modules.
    """
    safe = {"PYTHONSAFEPATH": "1"}
    if INSTALLED:
        return safe
    path = os.pathsep.join(filter(None, [str(CODE), variables.get("PYTHONPATH")]))
    return {**safe, "PYTHONPATH": path}
