"""A sweep's report, plots and packed file as one W&B run: `python -m runners.track --summary`.

The analysis makes them, in a process of its own. The page is logged as HTML, the plots as images
and the packed file as an artifact. All of them lie in the run's own folder. (W&B's tables would be
artifacts that are staged elsewhere, and lost when a sweep's folder is moved.)
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runners.host import project_paths
from runners.packed.container import SUFFIX
from runners.packed.names import file_name
from runners.track.client import redact
from runners.track.run import ROWS_FIELD, SUMMARY_FIELD, Run
from runners.track.writer import media

LIMIT_S = 600.0


class NoSummary(RuntimeError):
    """The analysis could not make one of a summary's parts; the message says why."""


def summary_id(runs: Sequence[Run]) -> str:
    """The same for the same runs, so that a replay skips an existing summary."""
    identity = json.dumps([runs[0].group, sorted(run.id for run in runs)])
    return f"summary-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def summary_run(sweep: Path, runs: Sequence[Run], scratch: Path) -> Run:
    """A run with one history row that holds everything; files are made below `scratch`."""
    name = runs[0].group
    page = scratch / "report.html"
    _analysis("report", sweep, page)
    _analysis("plot", sweep, scratch / "plots")
    pictures = {f"plots/{path.stem}": path for path in sorted(scratch.glob("plots/*.png"))}
    return Run(
        id=summary_id(runs),
        name=f"summary of {name}",
        group=name,
        job_type="summary",
        tags=("summary",),
        notes=f"report and plots of {len(runs)} runs",
        config={SUMMARY_FIELD: name, "attempts": len(runs)},
        summary={ROWS_FIELD: 1},
        history=[media({"report": page}, pictures)],
        exit_code=0,
    )


def packed_file(sweep: Path, group: str, scratch: Path) -> Path:
    """The sweep packed into a file below `scratch`; raises NoSummary."""
    path = scratch / f"{file_name(group)}{SUFFIX}"
    _analysis("pack", sweep, path)
    return path


def _analysis(verb: str, sweep: Path, output: Path) -> None:
    command = [sys.executable, "-m", "analysis", verb, str(sweep), "-o", str(output)]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **project_paths.module_variables(os.environ)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NoSummary(f"analysis {verb} took more than {LIMIT_S:g} s") from error
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-1:])
        raise NoSummary(redact(last) or f"analysis {verb}: exit code {done.returncode}")
