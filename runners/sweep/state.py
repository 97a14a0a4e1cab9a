"""State of a sweep's cells: launches left, outcomes, and what launches chose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runners.host import environment, project_paths
from runners.plan import Job, engine_and_ranks, kernel_key, unique
from runners.records import sweep_folder
from runners.records.record import Record
from runners.records.sweep_folder import Past
from runners.sweep import resume
from runners.sweep.result import SweepResult, worst
from runners.sweep.settings import Settings


class SweepState:
    """Shared by a sweep that measures and one that watches jobs of a cluster."""

    def __init__(
        self, jobs: list[Job], settings: Settings, nodes: Sequence[dict[str, Any]] = ()
    ) -> None:
        """`nodes` are facts of the machines that may measure; by default of this one."""
        self.jobs, self.sweep_dir = unique(jobs), settings.sweep_dir
        self.result = SweepResult(self.sweep_dir)
        self.left = {job.cell_id: job.measure.launches for job in self.jobs}
        self.kernels: dict[str, str] = {}  # by kernel_key, as the first launch chose
        self.exchanged: dict[tuple[str, int], dict[str, int]] = {}  # as the first launch chose
        self.git = environment.git_state(project_paths.CLONE)
        nodes = nodes or [environment.capture()]
        self.facts = nodes[0]
        self.versions = frozenset(
            sweep_folder.version_of({**facts, "git": self.git}) for facts in nodes
        )

    def read_past(self) -> Past:
        past = sweep_folder.read_past(self.sweep_dir)
        self.result.warnings += [f"set aside: {error}" for error in past.damaged]
        return past

    def resume(self, past: Past, mode: str) -> str:
        """Takes over the results of earlier launches; returns one line about it. Cells that are
        measured again start without an outcome."""
        self.left = resume.launches_left(self.jobs, past, self.versions, mode)
        for attempts in past.records.values():
            for one in attempts:
                if mode == "missing" or not self.left.get(one.cell_id):
                    self.add(one)
        return resume.summary_line(self.jobs, past, self.versions)

    def add(self, one: Record) -> None:
        """Adds a record: kernel and algorithms for later launches, the outcome for the result."""
        if one.kernel:
            self.kernels.setdefault(kernel_key(one.cell), one.kernel["name"])
        if one.exchanged:
            self.exchanged.setdefault(engine_and_ranks(one.cell), one.exchanged)
        if one.cell_id in self.left:
            known = self.result.outcomes.get(one.cell_id)
            self.result.outcomes[one.cell_id] = worst(known, one.outcome)

    def close(self) -> None:
        """Marks cells without an attempt as interrupted."""
        for job in self.jobs:
            self.result.outcomes.setdefault(job.cell_id, "interrupted")
