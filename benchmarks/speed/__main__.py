"""Measures the project's own speed: python -m benchmarks.speed seed|peers|limits|table

    seed     seed sizes, MPI, 8 ranks, against the seed's style of code
    peers    simple against transformers' Mixtral block at its best
    limits   fractions of the memory bandwidth and of the matrix rate
    table    what was measured, as Markdown

Results are kept in outputs/speed; `peers` takes up where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    parser.add_argument("what", choices=("seed", "peers", "limits", "table"))
    parser.add_argument("--rounds", type=int, default=20, help="seed: rounds of 5 samples")
    parser.add_argument("--limit-s", type=float, default=1e9, help="start no cell after so long")
    args = parser.parse_args()
    from benchmarks.speed import limits, peers, seed

    tables = {"seed": seed.table, "peers": peers.table, "limits": limits.table}
    if args.what == "table":
        for name, table in tables.items():
            print(f"## {name}\n\n{table()}\n")
        return 0
    {"seed": seed.run, "peers": peers.run, "limits": limits.run}[args.what](args)
    print(tables[args.what]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
