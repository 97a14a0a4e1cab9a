"""`make seed`: the seed's three axes one after the other, then one report on them together."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ("seed_topk", "seed_batch", "seed_ranks")


def sweep(experiment: str, overrides: list[str]) -> tuple[Path, int]:
    """Runs one experiment; its folder and exit code. Raises SystemExit(2) on bad input."""
    command = [sys.executable, str(ROOT / "runners" / "bench.py"), f"experiment={experiment}"]
    print(f"== {experiment}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [*command, "report=false", *overrides], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return Path(json.loads(done.stdout.splitlines()[-1])["sweep_dir"]).resolve(), done.returncode


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m runners.seed", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="for every axis, such as measure=seed")
    overrides = parser.parse_args(arguments).overrides
    ended = [sweep(experiment, overrides) for experiment in EXPERIMENTS]
    folders = [str(folder) for folder, _ in ended]
    for verb in ("show", "plot", "report"):
        done = subprocess.run([sys.executable, "-m", "analysis", verb, *folders], cwd=ROOT)
        if done.returncode:
            return done.returncode
    return max(code for _, code in ended)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
