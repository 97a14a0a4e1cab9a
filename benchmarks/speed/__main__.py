"""Measures the project's own speed: python -m benchmarks.speed reference|peers|beside|limits|table

    reference  reference sizes, MPI, 8 ranks, against the reference's style of code
    peers    simple against transformers' Mixtral block at its best
    beside   ours against the best runnable peer, cell by cell, through the harness itself
    limits   fractions of the memory bandwidth and of the matrix rate
    table    what was measured, as Markdown

Results are kept in outputs/speed; `peers` and `beside` take up where they were stopped.
"""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    parser.add_argument("what", choices=("reference", "peers", "beside", "limits", "table"))
    parser.add_argument("--rounds", type=int, default=20, help="seed: rounds of 5 samples")
    parser.add_argument("--limit-s", type=float, default=1e9, help="start no cell after so long")
    parser.add_argument("--dtype", default="float32", help="beside: dtype of the layer")
    parser.add_argument("--tiny", action="store_true", help="beside: a few cells, to try it")
    args = parser.parse_args()
    from benchmarks.reference import speed
    from benchmarks.speed import bandwidth, peer_grid, peers

    tables = {
        "reference": speed.table, "peers": peers.table, "beside": peer_grid.table,
        "limits": bandwidth.table
    }  # fmt: skip
    if args.what == "table":
        for name, table in tables.items():
            print(f"## {name}\n\n{table()}\n")
        return 0
    runs = {
        "reference": speed.run,
        "peers": peers.run,
        "beside": peer_grid.run,
        "limits": bandwidth.run,
    }
    runs[args.what](args)
    print(tables[args.what]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
