"""What a change costs a whole sweep: this tree's code and another commit's, run in turn.

    python -m benchmarks.overhead.check_cost COMMIT [--sweep readme|mixtral] [--times 3]

`readme` is the README's sweep, `mixtral` the layer of Mixtral at full size with 2,048 tokens on two
ranks, with few samples (see the code). Prints the wall time of each, as bench.py prints it, and the
ratio of the medians. Needs git, and for `mixtral` 16 GiB of memory and half an hour a turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALWAYS = ["tracker=none", "report=false", "measure.calibrate=false", "name=cost"]
SWEEPS = {
    "readme": ["strategy=simple,tp,ep", "topk=2,4,8"],
    "mixtral": [
        "strategy=tp,ep", "model=mixtral_8x7b", "model.scale=1", "model.bias=none",
        "batch_size=2048", "world_size=2", "strategy.kernel=loop", "measure.samples=3",
        "measure.samples_max=3", "measure.block=1", "measure.anchors=0", "measure.phases=1",
        "measure.cell_limit_s=1200",
    ],
}  # fmt: skip
LIMIT_S = 7200


def wall_s(tree: Path, overrides: list[str]) -> float:
    command = [sys.executable, "runners/bench.py", "-m", *overrides, *ALWAYS]
    done = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise SystemExit(f"{tree}: exit code {done.returncode}")
    return float(json.loads(done.stdout.splitlines()[-1])["wall_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit", help="the code to compare with")
    parser.add_argument("--sweep", choices=sorted(SWEEPS), default="readme")
    parser.add_argument("--times", type=int, default=3, help="of each, in turn")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder)
        packed = subprocess.run(
            ["git", "archive", asked.commit], cwd=ROOT, check=True, stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "x", "-C", folder], input=packed.stdout, check=True)
        walls: dict[str, list[float]] = {asked.commit: [], "here": []}
        for number in range(2 * asked.times):
            first = number % 4 in (0, 3)  # each of the two as often before as after the other
            name, tree = (asked.commit, other) if first else ("here", ROOT)
            walls[name].append(wall_s(tree, SWEEPS[asked.sweep]))
            print(f"{name}: {walls[name][-1]:.1f} s", flush=True)
    before, after = (statistics.median(found) for found in walls.values())
    print(f"{asked.sweep}: {before:.1f} s with {asked.commit}, {after:.1f} s here: "
          f"{after / before - 1:+.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
