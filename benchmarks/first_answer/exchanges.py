"""tp and ep on gloo with their messages exchanged as moe.parallel.algorithms says, and all in
rings, in the same rounds of the same launches."""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path

from hydra import compose, initialize_config_dir

from analysis.stats.verdict import compare
from benchmarks.first_answer.ring_worker import RINGS
from benchmarks.speed.store import markdown
from runners.config.resolution import Composed, plain
from runners.config.validate import validate
from runners.host import project_paths
from runners.host.machine import this_machine
from runners.launch.local import start
from runners.records import record
from runners.records.stats import round_medians_ms, round_ratios
from runners.sweep.progress import Progress
from runners.sweep.settings import settings_of
from runners.sweep.sweep import Sweep

BOTH = ("chosen", RINGS)
HOW = ["measure.anchors=0", "measure.phases=0", "tracker=none", "measure.wave_cells=64"]
SMALL = [f"strategy={name} topk={topk}" for name in ("tp", "ep") for topk in (2, 4, 8)]
# Of 256 numbers of 4 bytes a token: messages of 1 and 4 MiB.
LARGE = [f"strategy={name} batch_size={batch} model.dim_out=256 world_size=4"
         for name in ("tp", "ep") for batch in (1024, 4096)]  # fmt: skip


def small(times: int) -> None:
    """The cells of README's sweep that send messages."""
    _table("README's sweep on gloo", SMALL, times)


def large(times: int) -> None:
    _table("messages of 1 and 4 MiB, gloo, 4 ranks", LARGE, times)


def _table(title: str, cells: list[str], launches: int) -> None:
    records = _measured(cells, launches)
    rows = []
    for cell in cells:
        ratios, medians = [], []
        for launch in range(launches):
            chosen, rings = (records[cell, label, launch] for label in BOTH)
            ratios.append(statistics.median(round_ratios(chosen.samples, rings.samples)))
            medians.append(tuple(map(median_ms, (chosen.samples, rings.samples))))
        verdict = compare(
            ratios, [1.0] * launches, paired=True, basis="launches", launches=launches
        )
        assert verdict is not None
        ours, theirs = (statistics.median(side) for side in zip(*medians, strict=True))
        ratio = f"{verdict.ratio:.3f} [{verdict.low:.3f}, {verdict.high:.3f}]"
        rows.append([cell, f"{ours:.2f}", f"{theirs:.2f}", ratio])
    head = (f"{title}, {launches} launches", "ms", "ms in rings", "ratio [95%]")
    print(markdown(head, rows), flush=True)


def _measured(cells: list[str], launches: int) -> dict[tuple[str, str, int], record.Record]:
    """Records by cell, label and launch; raises SystemExit where a cell has no time."""
    how = [*HOW, f"measure.launches={launches}"]
    words = [[*cell.split(), *how, f"label={label}"] for cell in cells for label in BOTH]
    with (
        tempfile.TemporaryDirectory() as folder,
        initialize_config_dir(version_base="1.3", config_dir=str(project_paths.CONF)),
    ):
        configs = [Composed(plain(compose("config", w)), w) for w in words]
        jobs, errors = validate(configs, this_machine())
        if errors:
            raise SystemExit(next(iter(errors.values())))
        sweep_dir = Path(folder) / "exchanges"
        settings = settings_of(configs[0].config, sweep_dir, "python -m benchmarks.first_answer")
        begin = partial(start, worker="benchmarks.first_answer.ring_worker")
        result = Sweep(list(jobs.values()), settings, Progress(), begin).run()
        if result.exit_code:
            raise SystemExit(f"{result.failures or result.counts()}")
        records = [record.read(path) for path in record.paths(sweep_dir)]
    name_of = {job.key: cells[number // 2] for number, job in jobs.items()}
    return {(name_of[one.key], one.label, one.launch): one for one in records}


def median_ms(samples: record.Samples) -> float:
    return statistics.median(round_medians_ms(samples).values())
