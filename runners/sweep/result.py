"""The result of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from runners.records.record import GOOD, OUTCOMES

NO_FIRST_HOST = 3  # exit code of a host for which node 0 did not come


@dataclass
class SweepResult:
    """`outcomes` has the worst outcome of every cell id over its launches."""

    sweep_dir: Path
    outcomes: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # cell, message, log
    warnings: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    timed_s: float = 0.0
    tracked: int = 0
    skipped: int = 0  # impossible cells (on_invalid=skip); they have no record
    sync_command: str = ""
    interrupted: bool = False
    joined: bool = False  # this host only lent its ranks to another's sweep
    broken: bool = False  # files could not be read or written

    def counts(self) -> dict[str, int]:
        """Cells by outcome."""
        outcomes = list(self.outcomes.values())
        return {outcome: outcomes.count(outcome) for outcome in OUTCOMES}

    @property
    def exit_code(self) -> int:
        if self.joined:
            return 0 if "failed" not in self.outcomes.values() else NO_FIRST_HOST
        good = all(outcome in GOOD for outcome in self.outcomes.values())
        return 130 if self.interrupted else 0 if good and not self.broken else 1


def worst(known: str | None, new: str) -> str:
    """Of several attempts at a cell: a bad outcome stays, anything replaces interrupted."""
    if known in (None, "interrupted"):
        return new
    return known if known not in GOOD else new if new != "interrupted" else known
