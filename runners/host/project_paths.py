"""Where the project's own files are, and where results go. Stdlib only.

In a clone moe, runners, analysis and conf lie side by side. A wheel has conf in runners/: a package
of that name of its own would be anybody's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

_PACKAGE = Path(str(resources.files("runners"))).resolve()
CODE = _PACKAGE.parent  # holds moe, runners and analysis
INSTALLED = (_PACKAGE / "conf").is_dir()
CLONE = None if INSTALLED else CODE  # what git can be asked about
CONF = _PACKAGE / "conf" if INSTALLED else CODE / "conf"
OUTPUTS = Path("outputs")  # in the current folder
LATEST = "latest"  # in outputs/: a link to the newest sweep
BENCH = "moe-bench" if INSTALLED else "python runners/bench.py"  # as a user starts a sweep


def module_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """What `python -m` needs to find our modules, and not those of the current folder.

    An installed package is found as it is: site-packages ahead of the standard library would let
    old packages (argparse, say) take the place of its modules.
    """
    safe = {"PYTHONSAFEPATH": "1"}
    if INSTALLED:
        return safe
    path = os.pathsep.join(filter(None, [str(CODE), variables.get("PYTHONPATH")]))
    return {**safe, "PYTHONPATH": path}
