"""Copies of the project, for worked examples of the docs that add to it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.docs import console

ROOT = console.ROOT
FOLDERS = ("moe", "runners", "analysis", "conf", "docs")


def copy_project(folder: Path) -> Path:
    """The project's code, configs and docs as they are here, in a folder of their own."""
    return console.copy_project(folder, FOLDERS, ())


def changed_files(copy: Path) -> set[str]:
    """Files of the copy that are not as in the project, new ones included."""
    ignored = re.compile(r"(^|/)(__pycache__|outputs|\.cache)(/|$)")
    names = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    return {
        name for name in names
        if not ignored.search(name)
        and not ((ROOT / name).is_file()
                 and (ROOT / name).read_bytes() == (copy / name).read_bytes())
    }  # fmt: skip


def run_in(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python WORDS...` in the copy, with its modules."""
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=copy, env=env, capture_output=True, text=True, timeout=240
    )
