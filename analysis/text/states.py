"""What a sweep folder still lacks: cells without an attempt, or of other code or machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runners.host import project_paths
from runners.records import sweep_folder

HINTS = {
    "missing": "resume={folder} measures it",
    "stale": "measured by other code, versions or machine; resume_mode=stale measures it anew",
}


def lines(sources: Sequence[str | Path]) -> list[tuple[str, str]]:
    """(state, line) of every planned cell that is missing or stale, with where to look."""
    folders = [f for s in sources for f in (Path(s), *sorted(Path(s).glob("*/")))]
    planned = [folder for folder in folders if (folder / sweep_folder.PLAN).is_file()]
    if not planned:
        return []
    here, found = sweep_folder.version_here(project_paths.CLONE), []
    for folder in planned:
        try:
            cells = sweep_folder.cells(folder, here)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            found.append(("damaged", f"damaged: {error}; set aside"))
            continue
        for cell in cells:
            if cell.state in HINTS:
                hint = HINTS[cell.state].format(folder=folder)
                log = f"; log {cell.log}" if cell.log else ""
                where = f"{folder.name} {cell.strategy} {cell.cell_id}"
                found.append((cell.state, f"{cell.state}: {where}: {hint}{log}"))
    return found
