"""`make reference`: the reference's three axes one after the other, then one report on them
together.

Tables, plots and the page go to outputs/<date>_<time>_seed/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runners.host import project_paths

EXPERIMENTS = ("reference_topk", "reference_batch", "reference_ranks")


def sweep(experiment: str, overrides: list[str]) -> tuple[Path, int]:
    """Runs one experiment; its folder and exit code. Raises SystemExit(2) on bad input."""
    command = [sys.executable, "-m", "runners.bench", f"experiment={experiment}"]
    print(f"== {experiment}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [*command, "report=false", *overrides],
        env={**os.environ, **project_paths.module_variables(os.environ)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return Path(json.loads(done.stdout.splitlines()[-1])["sweep_dir"]).resolve(), done.returncode


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reference.sweep", description=__doc__
    )
    parser.add_argument("overrides", nargs="*", help="for every axis, such as measure=reference")
    overrides = parser.parse_args(arguments).overrides
    started = datetime.datetime.now()
    ended = [sweep(experiment, overrides) for experiment in EXPERIMENTS]
    sweeps = [path for path, _ in ended]
    worst = together(sweeps, sweeps[0].parent / f"{started:%Y-%m-%d_%H-%M-%S}_seed")
    return max(worst, *(code for _, code in ended))


def together(sweeps: Sequence[Path], folder: Path) -> int:
    """Tables, plots and the page on all sweeps at once, below `folder`; the worst exit code."""
    here, worst = Path.cwd(), 0
    names = [str(path.relative_to(here)) if here in path.parents else str(path) for path in sweeps]
    env = {**os.environ, **project_paths.module_variables(os.environ)}
    for verb, options in (
        ("show", []),
        ("show", ["--format", "markdown", "-o", str(folder / "tables" / "tables.md")]),
        ("show", ["--format", "csv", "-o", str(folder / "tables" / "tables.csv")]),
        ("plot", ["-o", str(folder / "plots")]),
        ("report", ["-o", str(folder / "report.html")]),
    ):
        command = [sys.executable, "-m", "analysis", verb, *names, *options]
        worst = max(worst, subprocess.run(command, env=env).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
