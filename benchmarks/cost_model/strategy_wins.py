"""Where each strategy wins: the cell in which it is faster than most of its rivals.

    python -m benchmarks.cost_model.strategy_wins                  # measures, prints the table
    python -m benchmarks.cost_model.strategy_wins --launches 5     # verdicts over whole launches
    python -m benchmarks.cost_model.strategy_wins --from FOLDER    # the table of earlier sweeps

Every place is a sweep of its own in which all ways to spread the layer are measured in interleaved
rounds. A rival is beaten where the analysis says "faster"; all comparisons are corrected together.
The table is a figure of docs/results/strategies.md (`benchmarks/docs/results.py`).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_dir

import analysis
from analysis.numbers import with_interval
from analysis.stats import pairing, verdict
from analysis.stats.summarize import summarize
from analysis.text import flag_legend
from runners.config.resolution import Composed, plain
from runners.sweep.entry import run_composed

ROOT = Path(__file__).resolve().parents[2]

FIXED = ["model.dim=128", "model.hidden=256", "model.dim_out=128", "num_experts=8", "tracker=none",
         "report=false", "measure.phases=0", "measure.calibrate=false"]  # fmt: skip

ALLTOALL = "strategy.dispatcher=alltoall"
WAYS: dict[str, list[str]] = {  # label -> overrides
    "serial": ["strategy=serial"],
    "simple": ["strategy=simple"],
    "dp": ["strategy=dp"],
    "tp": ["strategy=tp"],
    "ep-local": ["strategy=ep", "strategy.dispatcher=local"],
    "ep-alltoall": ["strategy=ep", ALLTOALL],
    "ep-allgather": ["strategy=ep", "strategy.dispatcher=allgather"],
    "ep-dedup": ["strategy=ep", "strategy.dispatcher=dedup"],
    "ep-overlap": ["strategy=ep", "strategy.overlap=2"],
    "ep-round_robin": ["strategy=ep", ALLTOALL, "strategy.placement=round_robin"],
    "ep-replicas": ["strategy=ep", ALLTOALL, "strategy.hot_replicas=${world_size}"],
    "fsdp": ["strategy=fsdp"],
}
MORE_RANKS: dict[str, list[str]] = {  # the same as others on two ranks
    "ep_tp-local": ["strategy=ep_tp", "strategy.dispatcher=local"],
    "ep_tp-alltoall": ["strategy=ep_tp", ALLTOALL],
    "ep_tp-dedup": ["strategy=ep_tp", "strategy.dispatcher=dedup"],
    "dp_ep-local": ["strategy=dp_ep", "strategy.dispatcher=local"],
    "dp_ep-alltoall": ["strategy=dp_ep", ALLTOALL],
    "dp_ep-dedup": ["strategy=dp_ep", "strategy.dispatcher=dedup"],
}
ONE_KIND = {  # of tokens, where the other is refused
    "serial": "replicated",
    "ep-local": "replicated",
    "ep-allgather": "sharded",
    "ep_tp-local": "replicated",
    "dp_ep-local": "replicated",
}
WORK: list[list[str]] = [
    ["batch_size=8", "topk=2"],
    ["batch_size=512", "topk=2"],
    ["batch_size=512", "topk=6"],
    ["batch_size=512", "topk=1", "workload=k_hot", "workload.parameter=2"],
    ["batch_size=512", "topk=2", "mode=train"],
    ["batch_size=4096", "topk=2", "num_experts=4", "model.hidden=64"],
]
TINY: list[list[str]] = [["batch_size=16", "topk=2"], ["batch_size=16", "topk=2", "mode=train"]]


@dataclass(frozen=True)
class Row:
    """A strategy at the place that suits it best."""

    way: str
    cell: str
    duration: str
    beaten: list[str]
    rivals: int
    flags: list[str]

    def text(self) -> list[str]:
        names = ", ".join(self.beaten) or "none"
        return [
            shown(self.way),
            self.cell,
            self.duration,
            f"{names} ({len(self.beaten)}/{self.rivals})",
        ]


def shown(label: str) -> str:
    return label.replace("-", " ")


def ways(ranks: int, tokens: str) -> dict[str, list[str]]:
    found = WAYS | (MORE_RANKS if ranks > 2 else {})
    return {name: words for name, words in found.items() if ONE_KIND.get(name, tokens) == tokens}


def places(ranks: Sequence[int], tiny: bool) -> list[list[str]]:
    return [
        [f"world_size={size}", f"tokens={tokens}", *work]
        for size, tokens, work in itertools.product(
            ranks, ("replicated", "sharded"), TINY if tiny else WORK
        )
    ]


def measure(found: Sequence[list[str]], how: Sequence[str]) -> list[Path]:
    """A sweep for every place, into folders of their own; raises ConfigError for bad input."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folders = []
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        for number, place in enumerate(found):
            size, tokens = (word.partition("=")[2] for word in place[:2])
            asked = []
            for label, overrides in ways(int(size), tokens).items():
                words = [*FIXED, *place, *overrides, *how, f"label={label}"]
                asked.append(Composed(plain(compose("config", words)), words))
            folder = ROOT / "outputs" / f"{stamp}_strategy-wins-{number}"
            print(f"{' '.join(place)} -> {folder.name}", file=sys.stderr, flush=True)
            run_composed(asked, folder, "python -m benchmarks.cost_model.strategy_wins")
            folders.append(folder)
    return folders


def judge(folders: Sequence[Path]) -> list[Row]:
    """The best row of every way over all places."""
    frame = analysis.load(list(folders))
    cells = summarize(frame)
    cells = cells[cells["outcome"] == "measured"]
    by_place = [place for _, place in cells.groupby(cells["sweeps"].map(str), sort=False)]
    comparisons = sum(len(place) * (len(place) - 1) // 2 for place in by_place)
    best: dict[str, tuple[tuple[int, float], Row]] = {}
    for place in by_place:
        for _, cell in place.iterrows():
            rank, row = standing(frame, place, cell, comparisons)
            if row.way not in best or rank > best[row.way][0]:
                best[row.way] = rank, row
    order = [*WAYS, *MORE_RANKS]
    return [best[way][1] for way in sorted(best, key=order.index)]


def standing(
    frame: pd.DataFrame, place: pd.DataFrame, cell: pd.Series[Any], comparisons: int
) -> tuple[tuple[int, float], Row]:
    """How good a place is for this cell (rivals beaten, then lead over the fastest other)."""
    own = pairing.series(frame, cell)
    rivals = [rival for _, rival in place.iterrows() if rival["label"] != cell["label"]]
    beaten = []
    for rival in rivals:
        found = pairing.compare(own, pairing.series(frame, rival), comparisons=comparisons)
        if found is not None and found.word == verdict.FASTER:
            beaten.append(shown(str(rival["label"])))
    fastest = min((float(rival["median_ms"]) for rival in rivals), default=0.0)
    duration = with_interval(cell["median_ms"], cell["low_ms"], cell["high_ms"])
    row = Row(
        str(cell["label"]), describe(place, cell), duration + flag_legend.letters(cell["flags"]),
        beaten, len(rivals), list(cell["flags"]),
    )  # fmt: skip
    return (len(beaten), fastest / float(cell["median_ms"])), row


def describe(place: pd.DataFrame, cell: pd.Series[Any]) -> str:
    """The place in words; `serial` has one rank wherever it is."""
    ranks = int(place["world_size"].max())
    words = [
        f"{ranks} ranks",
        str(cell["tokens"]),
        f"batch {cell['batch_size']}",
        f"top-{cell['topk']} of {cell['num_experts']}",
        f"hidden {cell['hidden']}",
    ]
    if cell["workload"] != "learned":
        words.append(str(cell["workload"]))
    return ", ".join([*words, *(["train"] if cell["mode"] == "train" else [])])


def markdown(rows: Sequence[Row]) -> str:
    head = ["strategy", "cell", "ms [interval]", "beaten rivals"]
    lines = [head, ["---"] * len(head), *(row.text() for row in rows)]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    legend = flag_legend.legend(flag for row in rows for flag in row.flags)
    return "\n".join([*table, "", *(f"- {line}" for line in legend)])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.cost_model.strategy_wins",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--launches", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="two small places, few samples")
    parser.add_argument("--from", dest="folders", type=Path, nargs="+")
    args = parser.parse_args()
    how = ["measure=quick"] if args.tiny else []
    how += [f"measure.launches={args.launches}"]
    folders = args.folders or measure(places(args.ranks, args.tiny), how)
    rows = judge(folders)
    print(markdown(rows))
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
