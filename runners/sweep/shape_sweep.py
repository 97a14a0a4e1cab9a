"""The part of a sweep over the cells of one shape, while other parts write into the same folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from runners.plan import Job, load
from runners.records.record import Record
from runners.records.sealed import RecordError
from runners.sweep import recover
from runners.sweep.sweep import Sweep

TRACK_LOCK = ".track.lock"


class ShapeSweep(Sweep):
    """A sweep over some of a folder's cells, concurrent with others."""

    def next_launch(self) -> int:
        """Takes an unused number, by creating its folder."""
        while True:
            number = super().next_launch()
            try:
                (self.settings.sweep_dir / "launches" / str(number)).mkdir(parents=True)
                return number
            except FileExistsError:
                continue

    def write_plan(self) -> None:
        """Written by the process that has all of the folder's cells."""

    def recovered(self, jobs: Mapping[str, Job]) -> Iterator[Record]:
        """Only of this shape's launches: others may be running."""
        sweep_dir = self.settings.sweep_dir
        for path in sorted(sweep_dir.glob("launches/*/launch.json")):
            try:
                plan = load(path)
            except (OSError, RecordError) as error:
                self.result.warnings.append(f"set aside: {error}")
                continue
            if plan.placement in {job.cell.placement for job in self.state.jobs}:
                yield from recover.of_launch(sweep_dir, path, plan, jobs)

    def track(self, records: list[Record]) -> None:
        """One tracker at a time writes to a folder."""
        own = [one for one in records if one.cell_id in self.state.left]
        with file_lock(self.settings.sweep_dir / TRACK_LOCK, fcntl.LOCK_EX):
            super().track(own)

    def interrupt(self) -> None:
        """Ends the sweep after the round that is being measured."""
        self.result.interrupted = True


@contextmanager
def file_lock(path: Path, kind: int) -> Iterator[None]:
    """Waits for the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, kind)
        yield
