"""Does `explain` find what was planted? 20 pairs of cells on two ranks, one of each with a change.

    python -m benchmarks.cost_model.planted                    # all of them, about 4 minutes
    python -m benchmarks.cost_model.planted expert host        # some kinds
    python -m benchmarks.cost_model.planted --markdown --rounds 20 --passes 25
    python -m benchmarks.cost_model.planted --from outputs/planted-expert      # an earlier sweep

    expert   an expert of rank 1 is busy for so many ms longer      the size is that time
    bytes    all rows are sent twice, in both exchanges             the bytes at the rate of an
                                                                    emulated link (100 Mbit/s)
    skew     rank 0 gets so many times the mean of the slots        the experts' time by itself,
                                                                    minus that with even slots
    host     every rank sleeps so many ms outside of the phases     the size is that time

On one machine's own links a second sending costs in a loop of steps up to twice what it costs in
passes, in which the ranks wait for each other first, so that its size is not known. A case is right
where the planted part is the largest and `explain` gives 80% to 120% of its size.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra import compose, initialize_config_dir

import analysis
import runners.bench  # noqa: F401 registers what conf/ uses
from analysis import numbers
from analysis.predict.explain_command import Asked, answer
from analysis.stats import parts
from analysis.text import render
from analysis.text.explain import name as name_of
from benchmarks.cost_model.planted_worker import BYTES, EXPERT, HOST, SKEW, timed_file
from benchmarks.emulate import __main__ as emulate
from runners.config.resolution import Composed, plain
from runners.config.validate import validate
from runners.host.machine import this_machine
from runners.launch.local import start
from runners.records.emulation import Emulation
from runners.sweep.progress import Progress
from runners.sweep.settings import settings_of
from runners.sweep.sweep import Sweep

ROOT = Path(__file__).resolve().parents[2]
PLAIN = "plain"
CELL = [
    "world_size=2", "strategy=ep", "strategy.dispatcher=alltoall", "strategy.kernel=loop",
    "tokens=sharded", "num_experts=8", "topk=2", "model.dim=256", "model.dim_out=256",
]  # fmt: skip
HOW = ["measure.precision=0", "measure.wall_limit_s=1000", "measure.anchors=0",
       "measure.wave_cells=64", "tracker=none"]  # fmt: skip
EVEN = ["workload.kind=imbalance", "workload.parameter=1", "batch_size=1024", "model.hidden=512"]
WIDE = ["workload.kind=imbalance", "batch_size=1024", "model.hidden=1536"]
SENT = ["workload.kind=imbalance", "workload.parameter=1", "model.hidden=128"]
LINKS = Emulation(dilation=1, ranks_per_node=2, intra_mbit_s=100, inter_mbit_s=100)
SIZES_MS = (3, 5, 8, 16, 32)
TOKENS = (512, 768, 1024, 1536, 2048)
# A rank has half the tokens, two rows of each, and sends half of these: in two exchanges again.
BYTES_A_TOKEN = 2 * 256 * 4 / 2
SKEWS = (1.4, 1.5, 1.6, 1.75, 1.9)
EXPECTED = {EXPERT: parts.RATE, BYTES: parts.BYTES, SKEW: parts.SKEW, HOST: parts.HOST}
LOW, HIGH = 0.8, 1.2
HEADER = ("planted", "how much", "ms", "explain: largest part", "ms", "interval", "of planted",
          "step ms", "right")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A planted cell and its plain one, by their labels, and in words how much was planted."""

    kind: str
    words: str
    label: str
    plain: str


def cases(kind: str) -> list[Case]:
    if kind == BYTES:
        return [
            Case(kind, f"rows of {n} tokens", f"{kind}-{n}", f"{PLAIN}{n}") for n in TOKENS
        ]  # fmt: skip
    if kind == SKEW:
        return [
            Case(kind, f"{v:g} times the mean", f"{kind}-{round(100 * v)}", f"{kind}-100")
            for v in SKEWS
        ]
    return [Case(kind, f"{ms} ms", f"{kind}-{ms}", PLAIN) for ms in SIZES_MS]


def cells(kind: str) -> dict[str, list[str]]:
    """The overrides of every cell of a sweep by label."""
    if kind == BYTES:
        return {
            label: [*SENT, f"batch_size={n}"]
            for n in TOKENS
            for label in (f"{PLAIN}{n}", f"{kind}-{n}")
        }
    if kind == SKEW:
        return {
            f"{kind}-{round(100 * v)}": [*WIDE, f"workload.parameter={v}"] for v in (1.0, *SKEWS)
        }
    return dict.fromkeys((PLAIN, *(case.label for case in cases(kind))), EVEN)


def measure(kind: str, rounds: int, passes: int) -> Path:
    """The kind's cells in one launch; the sweep's folder."""
    how = [*CELL, *HOW, f"measure.samples={rounds}", f"measure.samples_max={rounds}",
           f"measure.phases={passes}"]  # fmt: skip
    words = [[*how, *cell, f"label={label}"] for label, cell in cells(kind).items()]
    folder, number = ROOT / "outputs" / f"planted-{kind}", 0
    while folder.exists():
        number += 1
        folder = folder.with_name(f"planted-{kind}-{number}")
    if kind == BYTES:
        return _measure_emulated(words, folder)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        configs = [Composed(plain(compose("config", w)), w) for w in words]
    jobs, errors = validate(configs, this_machine())
    if errors:
        raise SystemExit(f"{kind}: {next(iter(errors.values()))}")
    command = f"python -m benchmarks.cost_model.planted {kind}"
    settings = settings_of(configs[0].config, folder, command)
    begin = partial(start, worker="benchmarks.cost_model.planted_worker")
    result = Sweep(list(jobs.values()), settings, Progress(), begin).run()
    if result.exit_code:
        raise SystemExit(result.exit_code)
    return folder


def _measure_emulated(words: list[list[str]], folder: Path) -> Path:
    """The cells on links of a known rate."""
    configs = [one for cell in words for one in emulate.composed(cell)]
    agent = "benchmarks.cost_model.planted_agent"
    result = emulate.run(configs, LINKS, folder, "planted bytes", agent=agent)
    if result.exit_code:
        raise SystemExit(result.exit_code)
    return folder


def planted_ms(folder: Path, case: Case) -> float:
    """The true size, from what was asked for or from what the ranks timed by itself."""
    if case.kind in (EXPERT, HOST):
        return float(case.label.partition("-")[2])
    if case.kind == BYTES:
        sent = float(case.label.partition("-")[2]) * BYTES_A_TOKEN
        return 1e3 * sent * LINKS.overhead * 8 / (LINKS.intra_mbit_s * 1e6)
    launch = next(path for path in sorted((folder / "launches").iterdir()) if path.is_dir())
    timed = float(json.loads(timed_file(launch, case.label).read_text("utf-8")))
    return timed - float(json.loads(timed_file(launch, case.plain).read_text("utf-8")))


def judged(folder: Path, case: Case) -> tuple[list[str], bool]:
    """The case's row, and whether it is right."""
    frame = analysis.load([folder])
    asked = Asked([frame], [folder.name], f"label={case.label}", f"label={case.plain}")
    explanation, size = answer(asked), planted_ms(folder, case)
    largest = explanation.largest
    part = largest.ms or 0.0
    right = largest.key.startswith(EXPECTED[case.kind]) and LOW <= part / size <= HIGH
    text = numbers.short(part)
    interval = f"{numbers.like(largest.low, text)} to {numbers.like(largest.high, text)}"
    steps = " against ".join(numbers.short(ms) for ms in explanation.medians_ms)
    return [
        case.kind, case.words, numbers.short(size), name_of(largest.key), text, interval,
        f"{part / size:.0%}", steps, "yes" if right else "no",
    ], right  # fmt: skip


def kind_of(folder: Path) -> str:
    return folder.name.split("-")[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(EXPECTED)}; none: all")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--passes", type=int, default=25, help="passes that time phases")
    parser.add_argument("--from", dest="folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(EXPECTED):
        parser.error(f"{unknown.pop()}: allowed are {', '.join(EXPECTED)}")
    folders = options.folders or [
        measure(kind, options.rounds, options.passes) for kind in options.kinds or EXPECTED
    ]
    judgements = [judged(folder, case) for folder in folders for case in cases(kind_of(folder))]
    rows, right = [row for row, _ in judgements], sum(ok for _, ok in judgements)
    print(render.simple(HEADER, rows, "markdown" if options.markdown else "text"))
    print(f"\n{right} of {len(rows)} cases are right: the planted part is the largest, "
          f"and {LOW:.0%} to {HIGH:.0%} of its size")  # fmt: skip
    return 0 if right >= 0.9 * len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
