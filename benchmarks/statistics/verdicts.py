"""Do verdicts survive being measured again? A/A and A/B on real launches of this machine.

    python -m benchmarks.statistics.verdicts [--launches 40] [--draws 200]      # measures, then
    judges python -m benchmarks.statistics.verdicts --from outputs/a outputs/b         # judges
    earlier sweeps

One cell (simple, 1 rank, Mixtral's shape at scale 8, 64 tokens) under three labels in every
launch: a and b are the same, slow has 5% of busy work planted in its step. Each comparison draws
five launches, as a user would have measured, and asks the analysis for its verdict.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from hydra import compose, initialize_config_dir

import analysis
from analysis.stats.pairing import Series
from analysis.stats.pairing import compare as compare_series
from analysis.stats.verdict import MIN_LAUNCHES, NOISE_THRESHOLD
from runners.config.resolution import Composed, plain
from runners.sweep.entry import run_composed

ROOT = Path(__file__).resolve().parents[2]

CELL = ["model=mixtral_8x7b", "strategy=simple", "world_size=1", "batch_size=64", "threads=1"]
PLANTED = 0.05


def measure(launches: int) -> Path:
    """The sweep: three labels, interleaved, in every launch."""
    how = [
        "measure=launches",
        f"measure.launches={launches}",
        "measure.calibrate=false",
        "measure.phases=0",
        "tracker=none",
        "name=verdicts",
    ]
    labels = [["label=a"], ["label=b"], ["label=slow", f"strategy.slowdown={PLANTED}"]]
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        asked = [
            Composed(plain(compose("config", [*CELL, *how, *label])), label)
            for n, label in enumerate(labels)
        ]
    folder = ROOT / "outputs" / f"verdicts-{launches}"
    number = 0
    while folder.exists():
        number += 1
        folder = folder.with_name(f"verdicts-{launches}-{number}")
    run_composed(asked, folder, "python -m benchmarks.statistics.verdicts")
    return folder


def judge(folders: list[Path], draws: int, seed: int = 0) -> dict[str, object]:
    """Verdicts over `draws` draws of MIN_LAUNCHES launches each."""
    frame = analysis.load(folders)
    frame = frame[frame["outcome"] == "measured"]
    frame["unit"] = list(zip(frame["sweep"], frame["launch"], strict=True))
    launches = sorted(set(frame["unit"]))
    generator = random.Random(seed)
    aa, ab = Counter[str](), Counter[str]()
    for _ in range(draws):
        drawn = frame[frame["unit"].isin(generator.sample(launches, MIN_LAUNCHES))]
        series = {label: Series(drawn[drawn["label"] == label]) for label in ("a", "b", "slow")}
        aa[word(series["a"], series["b"])] += 1
        ab[word(series["slow"], series["a"])] += 1
    return {
        "launches": len(launches),
        "draws": draws,
        "noise_threshold": NOISE_THRESHOLD,
        "aa": dict(aa),
        "aa_faster_or_slower": (aa["faster"] + aa["slower"]) / draws,
        "ab": dict(ab),
        "ab_found": ab["slower"] / draws,
        "planted": PLANTED,
    }


def word(a: Series, b: Series) -> str:
    verdict = compare_series(a, b)
    return verdict.word if verdict else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=40)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--from", dest="folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    folders = arguments.folders or [measure(arguments.launches)]
    print(json.dumps(judge(folders, arguments.draws)))


if __name__ == "__main__":
    main()
