"""The cells by which the cost model is judged, measured on an emulated cluster.

    python -m benchmarks.emulate.grid [RANKS ...]     # by default 1, 2, 4, 8, 16 and 32
    python -m benchmarks.cost_model.emulated report   # how well the model predicts them

simple, tp, ep and dp_ep with nodes and halves as groups, k = 2, 4, 8, 128 tokens on each rank.
One folder of outputs/ for each number of ranks; about half an hour in all. Messages have 256 KiB to
1 MiB on each rank, so that those of many ranks are short for each peer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

ALL_RANKS = (1, 2, 4, 8, 16, 32)
TOKENS = 128  # on each rank
LAYER = ("model.dim=256", "model.hidden=512", "model.dim_out=256", "model.num_experts=32")
LIMIT_S = 3600.0
INTERRUPTED = 130


def strategies(ranks: int) -> list[list[str]]:
    """Overrides of the strategies at this number of ranks; expert-parallel groups of dp_ep are a
    node of two ranks, and half of all ranks."""
    if ranks == 1:
        return [["strategy=simple"]]
    groups = sorted({group for group in (2, ranks // 2) if 1 < group < ranks})
    forms = [["strategy=simple,tp"], ["strategy=ep", "strategy.dispatcher=alltoall"]]
    if groups:
        degrees = ",".join(map(str, groups))
        forms.append(["strategy=dp_ep", "strategy.dispatcher=alltoall", f"strategy.ep={degrees}"])
    return forms


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.emulate.grid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ranks", type=int, nargs="*", metavar="RANKS")
    worst = 0
    for ranks in parser.parse_args(arguments).ranks or ALL_RANKS:
        command = [sys.executable, "-m", "benchmarks.emulate", f"--name=grid-{ranks}"]
        for form in strategies(ranks):
            command += ["--cells", " ".join(form)]
        command += [f"world_size={ranks}", f"batch_size={TOKENS * ranks}", "topk=2,4,8"]
        try:
            done = subprocess.run([*command, *LAYER], check=False, timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            print(f"{ranks} ranks: not done within {LIMIT_S:g} s", file=sys.stderr)
            worst = 1
            continue
        worst = max(worst, done.returncode)
        if done.returncode == INTERRUPTED:
            break
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
