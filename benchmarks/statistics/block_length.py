"""Does the time of a step depend on how it is sampled? By four lengths of block, and alone.

    python -m benchmarks.statistics.block_length                       # all settings, about 20
    minutes python -m benchmarks.statistics.block_length gloo2 mixtral --rounds 40
    python -m benchmarks.statistics.block_length --from outputs/block_length-gloo2     # an earlier
    sweep

In one launch a setting's cells are measured in the same random rounds under five labels:
`measure.block_ms` of 10, 30, 100 and 300, and "alone", which is 30 with a block of the same cell
run unrecorded before each of its blocks, as if no other cell were there. Ratios are medians over
the rounds that both were in, with a 95% order-statistic interval. A ratio agrees when it is within
2% of 1, or within 5% where its interval reaches further than 2% to a side. The last line is the
geometric mean over all cells, with a t-interval. "block mean" is the
ratio of 10 to 300 by the mean of the long block, its start included.
"""

from __future__ import annotations

import argparse
import math
import statistics
from functools import partial
from pathlib import Path

from hydra import compose, initialize_config_dir

from analysis.stats.verdict import logs, paired_interval
from benchmarks.statistics.block_length_worker import ALONE
from runners.config.resolution import Composed, plain
from runners.config.validate import validate
from runners.host.machine import this_machine
from runners.launch.local import start
from runners.records import record
from runners.records.record import Record
from runners.records.stats import (
    Interval,
    makespans_ms,
    median_interval,
    round_medians_ms,
    round_ratios,
)
from runners.records.stats import flags as flags_of
from runners.sweep.progress import Progress
from runners.sweep.settings import settings_of
from runners.sweep.sweep import Sweep

ROOT = Path(__file__).resolve().parents[2]

LENGTHS_MS = (10, 30, 100, 300)
LABELS = (*(f"block{ms}" for ms in LENGTHS_MS), ALONE)
EP = ["strategy=ep", "strategy.dispatcher=alltoall"]
THREE = (["strategy=simple"], ["strategy=tp"], EP)
README = [[*strategy, f"topk={k}"] for k in (2, 4, 8) for strategy in THREE]
MIXTRAL = [
    ["model=mixtral_8x7b", "model.scale=8", "world_size=2", *strategy, f"batch_size={b}"]
    for b in (16, 128, 512)
    for strategy in THREE
]
SETTINGS = {
    "mpi8": [[*cell, "world_size=8", "backend=mpi"] for cell in README],
    "gloo2": [[*cell, "world_size=2"] for cell in README],
    "mpi2": [[*cell, "world_size=2", "backend=mpi"] for cell in README],
    "one": [[*cell, "world_size=1"] for cell in README],
    "mixtral": MIXTRAL,
}
ON_GPU = {
    "gpu": [
        ["model=mixtral_8x7b", "model.scale=4", "dtype=bfloat16", "world_size=1", "backend=nccl",
         *strategy, f"batch_size={b}"]
        for b in (16, 512, 8192)
        for strategy in (["strategy=simple"], EP)
    ],
    "gpu_small": [[*cell, "world_size=1", "backend=nccl"] for cell in README],
}  # fmt: skip
HOW = ["measure.precision=0", "measure.wall_limit_s=1000", "measure.anchors=0", "measure.phases=0",
       "measure.calibrate=false", "measure.wave_cells=64", "tracker=none"]  # fmt: skip
CLOSE, NEAR = 0.02, 0.05


def measure(setting: str, rounds: int) -> Path:
    """The setting's cells under every label, in one launch; the sweep's folder."""
    how = [*HOW, f"measure.samples={rounds}", f"measure.samples_max={rounds}"]
    words = [
        [*cell, *how, f"label={label}"] for cell in (SETTINGS | ON_GPU)[setting] for label in LABELS
    ]
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        configs = [Composed(plain(compose("config", w)), w) for w in words]
    folder = ROOT / "outputs" / f"block_length-{setting}"
    number = 0
    while folder.exists():
        number += 1
        folder = folder.with_name(f"block_length-{setting}-{number}")
    jobs, errors = validate(configs, this_machine())
    if errors:
        raise SystemExit(f"{setting}: {next(iter(errors.values()))}")
    settings = settings_of(
        configs[0].config, folder, f"python -m benchmarks.statistics.block_length {setting}"
    )
    begin = partial(start, worker="benchmarks.statistics.block_length_worker")
    result = Sweep(list(jobs.values()), settings, Progress(), begin).run()
    if result.exit_code:
        raise SystemExit(result.exit_code)
    return folder


def ratio(values: list[float]) -> tuple[float, Interval]:
    """The median of the rounds' ratios, with its interval."""
    found = median_interval(values)
    if found is None:
        raise SystemExit("too few rounds for an interval; allowed are 6 or more (--rounds)")
    return statistics.median(values), found


def agreement(found: tuple[float, Interval]) -> str:
    """ "2%", "5%" where the interval is wide and that is all that can be asked, or "no"."""
    value, interval = found
    if abs(value - 1) <= CLOSE:
        return "2%"
    wide = max(interval.high - value, value - interval.low) > CLOSE
    return "5%" if wide and abs(value - 1) <= NEAR else "no"


def text(found: tuple[float, Interval]) -> str:
    value, interval = found
    return f"{value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def overall(ratios: list[float]) -> str:
    """Geometric mean over the cells, with Student's t interval of the logarithms."""
    found = paired_interval(logs(ratios), 0.95)
    assert found is not None
    center, low, high = (math.exp(v) for v in (found.center, found.low, found.high))
    return f"{center:.3f} [{low:.3f}, {high:.3f}]"


def report(folder: Path) -> list[str]:
    """The table's lines, one per cell, and the count of agreements."""
    cells: dict[str, dict[str, Record]] = {}
    for path in record.paths(folder):
        one = record.read(path)
        cells.setdefault(one.key, {})[one.label] = one
    names = [*(f"{ms} / 300" for ms in LENGTHS_MS[:-1]), "alone / 30", "block mean 10 / 300"]
    lines = [f"| {folder.name.removeprefix('block_length-')} | ms at 300 | "
             + " | ".join(names) + " | agrees within | flags |"]  # fmt: skip
    lines.append("|" + "---|" * (len(names) + 4))
    counts: dict[str, int] = {}
    columns: list[list[float]] = []
    for labels in cells.values():
        taken = {label: one.samples for label, one in labels.items()}
        longest = round_medians_ms(taken["block300"])
        pairs = [(f"block{ms}", "block300") for ms in LENGTHS_MS[:-1]] + [(ALONE, "block30")]
        ratios = [ratio(round_ratios(taken[a], taken[b])) for a, b in pairs]
        words = [agreement(one) for one in ratios]
        worst = max(words, key=("2%", "5%", "no").index)
        counts[worst] = counts.get(worst, 0) + 1
        means = [makespans_ms(taken[name], ("long",)) for name in ("block10", "block300")]
        cell = next(iter(labels.values())).cell
        what = f"{cell.strategy.name} k={cell.layer.topk} batch={cell.workload.batch_size}"
        flagged = sorted({f for one in labels.values() for f in flags_of(one)} & {"start_grows"})
        ratios.append(ratio([a / b for a, b in zip(*means, strict=True)]))
        columns.append([value for value, _ in ratios])
        middle = f"{statistics.median(longest.values()):.3g}"
        row = [what, middle, *map(text, ratios), worst, ", ".join(flagged)]
        lines.append("| " + " | ".join(row) + " |")
    means = [overall([row[n] for row in columns]) for n in range(len(names))]
    lines.append("| " + " | ".join(["all cells", "", *means, "", ""]) + " |")
    told = ", ".join(f"{word}: {counts[word]}" for word in ("2%", "5%", "no") if word in counts)
    return [*lines, "", f"{folder.name}: {len(longest)} rounds; cells that agree within {told}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*SETTINGS, *ON_GPU]
    parser.add_argument(
        "settings", nargs="*", help=f"of {', '.join(known)}; none: those without a GPU"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--from", dest="folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    if unknown := set(arguments.settings) - set(known):
        parser.error(f"{unknown.pop()}: allowed are {', '.join(known)}")
    for folder in arguments.folders or ():
        print("\n".join(report(folder)) + "\n")
    for setting in () if arguments.folders else arguments.settings or SETTINGS:
        print("\n".join(report(measure(setting, arguments.rounds))) + "\n", flush=True)


if __name__ == "__main__":
    main()
