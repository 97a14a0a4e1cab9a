"""Records of launches whose launcher died: the ranks' own lines are on disk. Torch-free."""

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
    """What was sampled and has no record yet; `jobs` by cell id tell where a cell came from. A
    launch whose plan is damaged is named to `warn`, and its lines are left where they are."""
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
    """The same of one launch."""
    plan.launch_dir = str(path.parent.resolve())  # the folder may have been moved
    asked = [
        Job(cell, plan.measure, label=label)
        for cell, label in zip(plan.cells, plan.labels, strict=True)
    ]
    jobs = [known.get(job.cell_id, job) for job in asked]
    lines = Assembler(plan, jobs, sweep_dir.name)
    lines.update()
    for number, wave in enumerate(plan.waves):
        for index in wave:
            found = lines.record(index, number, plan.calibration)
            if not found.samples.round and found.outcome != "wrong":
                continue
            if not record_path(sweep_dir, found).exists():
                found.environment["git"] = plan.git
                yield found
