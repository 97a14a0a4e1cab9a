"""How long a sweep of many cells takes to pack, and how large the file is.

    python -m benchmarks.overhead.packing [--cells 1000] [--source NAME.moebench]

The cells are those of the source with larger and larger batches, every time in them moved by up to
100 us, so that no two samples are equal. They are on 8 ranks, which have more samples to write than
fewer. The sweep's pictures are drawn first, as a sweep ends with them; only `pack` is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis import cli
from runners.packed.packed_file import read_packed
from runners.records import record
from runners.records.record import Record, Samples, cell_key

SWEEP = "2026-01-01_00-00-00_sweep"  # named as by default
SOURCE = "docs/results/packed/readme.moebench"
WAVE = 32  # cells of a wave, which have the environment of that wave
JITTER_NS = 100_000
TIMES = 3


def many(sources: Sequence[Record], cells: int) -> Iterator[Record]:
    """As many records as asked for, each of another cell."""
    rng = random.Random(0)
    for number, (factor, one) in enumerate(itertools.product(range(1, cells + 1), sources)):
        if number == cells:
            return
        batch = one.cell.workload.batch_size * factor
        cell = dataclasses.replace(
            one.cell, workload=dataclasses.replace(one.cell.workload, batch_size=batch)
        )
        wave = number // WAVE
        environment = {**one.environment, "memory_available_bytes": 2**34 + wave}
        yield dataclasses.replace(
            one, cell=cell, key=cell_key(cell), sweep=SWEEP, wave=wave, environment=environment,
            samples=_moved(one.samples, rng), anchors=_columns(one.anchors, wave),
            floor={**(one.floor or {}), "round": [wave] * len((one.floor or {})["round"])},
        )  # fmt: skip


def _columns(anchors: dict[str, object] | None, wave: int) -> dict[str, object]:
    """Anchors of their own for every wave."""
    first = dict((anchors or {}).get("first") or {})  # type: ignore[call-overload]
    return {**(anchors or {}), "first": {**first, "round": [wave] * len(first["round"])}}


def _moved(samples: Samples, rng: random.Random) -> Samples:
    moved = [[rng.randrange(JITTER_NS) for _ in row] for row in samples.start_ns]
    starts, ends = (
        [
            [time_ns + by for time_ns, by in zip(*pair, strict=True)]
            for pair in zip(rows, moved, strict=True)
        ]
        for rows in (samples.start_ns, samples.end_ns)
    )
    longer = [[time_ns + rng.randrange(JITTER_NS // 10) for time_ns in row] for row in ends]
    return dataclasses.replace(samples, start_ns=starts, end_ns=longer)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead.packing")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--source", default=SOURCE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        sweep, file = Path(folder) / SWEEP, Path(folder) / "many.moebench"
        for one in many(read_packed(options.source).records, options.cells):
            record.write(sweep, one)
        _quietly(["plot", str(sweep), "-o", str(sweep / "plots")])
        seconds = [_quietly(["pack", str(sweep), "-o", str(file)]) for _ in range(TIMES)]
        pictures = len(read_packed(file).pictures)
        size = file.stat().st_size
    print("| cells | pictures | MB | seconds to pack, median of 3 (range) |")
    print("|---|---|---|---|")
    spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
    print(f"| {options.cells} | {pictures} | {size / 1e6:.1f} | "
          f"{statistics.median(seconds):.1f} ({spread}) |")  # fmt: skip


def _quietly(words: list[str]) -> float:
    """Seconds that a verb took, without what it prints; raises where it fails."""
    start = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        if code := cli.main(words):
            raise RuntimeError(f"analysis {' '.join(words)}: exit code {code}")
    return time.monotonic() - start


if __name__ == "__main__":
    main()
