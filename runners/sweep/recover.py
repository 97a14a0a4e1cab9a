"""Records from the ranks' own lines, after their launcher has died. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from runners.plan import Job, LaunchPlan, load
from runners.records.record import Record, record_path
from runners.records.sealed import RecordError
from runners.sweep.assemble import Assembler


def recover(
    sweep_dir: Path, jobs: Mapping[str, Job], warn: Callable[[str], None] = lambda text: None
) -> Iterator[Record]:
    """Yields a record for every sampled attempt that has none yet. `jobs`, by cell id, give the
    origin of a cell. A launch with a damaged plan is named to `warn` and left in place."""
    for path in sorted(sweep_dir.glob("launches/*/launch.json")):
        try:
            plan = load(path)
        except (OSError, RecordError) as error:
            warn(f"set aside: {error}")
            continue
        yield from of_launch(sweep_dir, path, plan, jobs)


def of_launch(
    sweep_dir: Path, path: Path, plan: LaunchPlan, known: Mapping[str, Job]
) -> Iterator[Record]:
    """The same for one launch."""
    plan.launch_dir = str(path.parent.resolve())  # the folder may have been moved
    planned = [
        Job(cell, plan.measure, label=label)
        for cell, label in zip(plan.cells, plan.labels, strict=True)
    ]
    jobs = [known.get(job.cell_id, job) for job in planned]
    lines = Assembler(plan, jobs, sweep_dir.name)
    lines.update()
    for number, wave in enumerate(plan.waves):
        for index in wave:
            record = lines.record(index, number, plan.calibration)
            if not record.samples.round and record.outcome == "interrupted":
                continue
            if not record_path(sweep_dir, record).exists():
                record.environment["git"] = plan.git
                yield record
