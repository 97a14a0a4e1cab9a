"""What part of a sweep of small cells is spent measuring, and where the rest goes.

    python -m benchmarks.overhead.share measure      # 256 cells on 2 ranks, about 6 minutes; then
    reports python -m benchmarks.overhead.share report outputs/SWEEP

Stages are those that rank 0 enters, in its own log; a sweep's wall time is the launcher's, from the
end of Hydra's composition.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from runners.records.rank_log import RankReader

ROOT = Path(__file__).resolve().parents[2]
SWEEP = [
    "strategy=tp,ep", "batch_size=16,32,64,128", "topk=1,2,4,8", "num_experts=8,16",
    "model.dim=32,64", "model.hidden=128,256", "world_size=2", "tokens=sharded", "name=share",
    "tracker=none", "report=false",
]  # fmt: skip
MEASURING = ("floor", "warm-up", "phases", "round")
LIMIT_S = 3600


def measure() -> dict[str, float]:
    """The last line that bench.py prints."""
    command = [sys.executable, str(ROOT / "runners" / "bench.py"), "-m", *SWEEP]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise SystemExit(done.returncode)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def stages(sweep_dir: Path) -> Counter[str]:
    """Seconds that rank 0 spent in each stage, over all launches."""
    total: Counter[str] = Counter()
    for path in sorted(sweep_dir.glob("launches/*/samples/rank0.jsonl")):
        entered = [e for e in RankReader(path).new_lines() if e["event"] == "enter"]
        for now, then in itertools.pairwise(entered):
            total[now["stage"]] += (then["clock_ns"] - now["clock_ns"]) / 1e9
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["measure", "report"])
    parser.add_argument("sweep_dir", nargs="?", type=Path, default=ROOT / "outputs" / "latest")
    args = parser.parse_args()
    result = measure() if args.what == "measure" else {}
    total = stages(Path(str(result.get("sweep_dir", args.sweep_dir))))
    wall_s = result.get("wall_s", sum(total.values()))
    print(f"{wall_s:.0f} s after composition" if result else f"{wall_s:.0f} s in the ranks")
    for name, seconds in total.most_common():
        print(f"  {name:12} {seconds:7.1f} s  {seconds / wall_s:4.0%}")
    measuring = sum(total[name] for name in MEASURING)
    print(f"  measuring ({', '.join(MEASURING)}): {measuring / wall_s:.0%} (goal: 80%)")
    if result:
        print(f"  inside samples that are kept: {result['timed_s'] / wall_s:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
