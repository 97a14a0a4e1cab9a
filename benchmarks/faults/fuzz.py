"""Bad input: override lists through the bench's own path, and damaged files through the readers.

    python -m benchmarks.faults.fuzz [--overrides 5000] [--files 1000] [--seed N]

Prints a row per kind of input, and on stderr what was found. Exit code 1 if anything was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.support import bad_input, damage

HUNG_S = 60.0  # more than any list of overrides takes on a busy machine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--overrides", type=int, default=5000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    options = parser.parse_args()
    print("| input | tried | refused or set aside, or run | traceback, hang, process or trust |")
    print("|---|---:|---:|---:|")
    found = row("override lists", options.overrides, overrides(options.overrides, options.seed))
    for name in damage.NAMES if options.files else ():
        seed = str(options.seed)
        found += row(f"damaged: {name}", options.files, damage.fuzz(name, options.files, seed))
    return int(found > 0)


def row(name: str, tried: int, found: list[str]) -> int:
    print(f"| {name} | {tried} | {tried - len(found)} | {len(found)} |", flush=True)
    for text in sorted(set(found))[:20]:
        print(f"{name}: {ascii(text)[:1000]}", file=sys.stderr, flush=True)
    return len(found)


def overrides(times: int, number: int) -> list[str]:
    found: list[str] = []
    if not times:
        return found
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:

        @seed(number)
        @settings(
            max_examples=times, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(bad_input.override_lists())
        def run(words: list[str]) -> None:
            found.extend(_one(words, Path(folder)))

        run()
    return found


def _one(words: list[str], folder: Path) -> list[str]:
    began = time.monotonic()
    try:
        text = bad_input.complaint(words, bad_input.ask(words, folder))
    except (Exception, bad_input.Started) as error:
        text = f"{words!r}: {type(error).__name__}: {error}"
    took_s = time.monotonic() - began
    return [text or f"{words!r}: {took_s:.0f} s"] if text or took_s > HUNG_S else []


if __name__ == "__main__":
    sys.exit(main())
