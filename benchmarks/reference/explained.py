"""The reference's table measured again, in its style of code and in ours, with what explains it.

    python -m benchmarks.reference.explained [--tiny]

All from records of this project's own sweeps: `peer_reference` is the reference's style behind the
gate. `--tiny` shows that the command works (2 ranks, few samples). The tables are those of
docs/results/reference.md; `python -m benchmarks.docs.results --measure reference` replaces them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.speed.store import ROOT, markdown
from moe.spec import Cell
from runners.mpi.start import unavailable_reason
from runners.records import record
from runners.records.stats import median_interval, round_medians_ms, round_ratios

OURS, SEED = "simple,tp,ep", "peer_reference,peer_reference_tp,peer_reference_ep"
Records = list[record.Record]


def sweep(args: argparse.Namespace, strategies: str, *overrides: str) -> Records:
    """Records of one sweep."""
    how = ["measure=quick"] if args.tiny else ["measure.samples=15", "measure.calibrate=false"]
    command = [
        sys.executable, "runners/bench.py", "-m", *overrides, *how, f"backend={args.backend}",
        f"strategy={strategies}", "strategy.dispatcher=local,alltoall",
        "name=seed_explained", "tracker=none", "report=false", "on_invalid=skip",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if not done.stdout.strip():
        raise SystemExit(f"nothing was measured: {' '.join(command)}")
    folder = ROOT / json.loads(done.stdout.splitlines()[-1])["sweep_dir"]
    found = [record.read(path) for path in record.paths(folder)]
    bad = [f"{r.cell_id} {r.outcome}" for r in found if r.outcome != "measured"]
    if bad:
        raise SystemExit(f"not measured: {', '.join(bad)}; see {folder}")
    return found


def form(cell: Cell) -> str:
    """simple, tp or ep, of either style; alltoall where tokens are sent, as only ours does."""
    if cell.strategy.dispatcher != "local":
        return cell.strategy.dispatcher
    return cell.strategy.variant or cell.strategy.name


def median_ms(found: record.Record) -> float:
    values = sorted(round_medians_ms(found.samples).values())
    return values[len(values) // 2]


def points(records: Iterable[record.Record]) -> dict[tuple[Any, ...], dict[tuple[str, bool], Any]]:
    """(axis values) -> {(form, whether in the reference's style): record}."""
    found: dict[tuple[Any, ...], dict[tuple[str, bool], Any]] = {}
    for one in records:
        layer, place = one.cell.layer, one.cell.placement
        point = (place.world_size, layer.num_experts, layer.topk_requested, layer.topk,
                 one.cell.workload.batch_size)  # fmt: skip
        found.setdefault(point, {})[form(one.cell), bool(one.cell.strategy.variant)] = one
    return dict(sorted(found.items()))


def cell_text(held: dict[tuple[str, bool], Any], kind: tuple[str, bool]) -> str:
    return f"{median_ms(held[kind]):.3f}" if kind in held else "-"


def table(records: Records) -> str:
    """ms of both styles, the reference's fastest named."""
    head = ("ranks", "experts", "top-k", "batch", "reference's simple", "reference's tp",
            "reference's ep", "its fastest", "our simple", "our tp", "our ep",
            "ep, alltoall")  # fmt: skip
    kinds = [(name, seed) for seed in (True, False) for name in ("simple", "tp", "ep")]
    kinds.append(("alltoall", False))
    lines = []
    for (ranks, experts, asked, topk, batch), held in points(records).items():
        texts = [cell_text(held, kind) for kind in kinds]
        theirs = {kind[0]: median_ms(held[kind]) for kind in kinds[:3] if kind in held}
        fastest = min(theirs, key=lambda name: theirs[name]) if theirs else "-"
        k = str(asked) if asked == topk else f"{asked} (ran {topk})"
        lines.append((ranks, experts, k, batch, *texts[:3], fastest, *texts[3:]))
    return markdown(head, lines)


def calls(records: Records) -> str:
    """Expert calls of the busiest rank, and what one costs: the interpreter's share."""
    head = ("ranks", "top-k", "batch", "calls simple", "us a call", "calls ep", "their price ms",
            "ep ms", "rest of ep: messages and waiting ms")  # fmt: skip
    lines = []
    for (ranks, _, _, topk, batch), held in points(records).items():
        simple, ep = held.get(("simple", True)), held.get(("ep", True))
        if simple is None or ep is None:
            continue
        made = batch * topk
        each_ms = median_ms(simple) / made
        busiest = max((ep.skew or {})["rank_slots"])
        price = busiest * each_ms
        lines.append((ranks, topk, batch, made, f"{1e3 * each_ms:.1f}", busiest, f"{price:.3f}",
                      f"{median_ms(ep):.3f}", f"{median_ms(ep) - price:.3f}"))  # fmt: skip
    return markdown(head, lines)


def split(records: Records) -> str:
    """tp on the whole batch everywhere, and on shares of it."""
    head = ("ranks", "batch", "tp replicated ms", "tp sharded ms", "replicated / sharded", "95%")
    lines = []
    for batch in sorted({r.cell.workload.batch_size for r in records}):
        held = {r.cell.workload.tokens: r for r in records if r.cell.workload.batch_size == batch}
        whole, shares = held["replicated"], held["sharded"]
        ratios = sorted(round_ratios(whole.samples, shares.samples))
        found = median_interval(ratios)
        lines.append((whole.cell.placement.world_size, batch, f"{median_ms(whole):.3f}",
                      f"{median_ms(shares):.3f}", f"{ratios[len(ratios) // 2]:.2f}",
                      f"{found.low:.2f}-{found.high:.2f}" if found else "-"))  # fmt: skip
    return markdown(head, lines)


def sections(args: argparse.Namespace) -> Iterator[str]:
    ranks = 2 if args.tiny else args.ranks
    batches, topks, worlds = ("8,16,32", "2,4,8", "2,4,8") if not args.tiny else ("8", "2", "2")
    own = f"num_experts={ranks}", f"world_size={ranks}"
    clamp = "topk_overflow=clamp"
    axes = [
        ("top-k", (f"topk={topks}", *own, clamp)),
        ("batch", (f"topk={4 if not args.tiny else 2}", f"batch_size={batches}", *own)),
        ("ranks", ("topk=4", f"world_size={worlds}", "num_experts=${world_size}", clamp)),
    ]
    measured = [(name, sweep(args, f"{OURS},{SEED}", *words)) for name, words in axes]
    yield f"`backend={args.backend}`, medians of makespans in ms, D=32, H=128, O=64, float32."
    for name, records in measured:
        yield f"### By {name}\n\n{table(records)}"
    everything = [one for _, records in measured for one in records]
    yield f"### Expert calls in the interpreter\n\n{calls(everything)}"
    batch = "batch_size=8,32,1024" if not args.tiny else "batch_size=8,32"
    halves = sweep(args, "tp", f"world_size={ranks}", "tokens=replicated,sharded", batch)
    yield f"### The batch split\n\n{split(halves)}"
    size = "model.dim=512", "model.hidden=1792", "model.dim_out=512"
    many = "batch_size=8,128" if not args.tiny else "batch_size=8"
    real = sweep(args, f"{OURS},{SEED}", *size, many, "topk=2", "world_size=2", "num_experts=2")
    yield f"### At D=O=512, H=1792\n\n{table(real)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few quick cells, to try it")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--backend", default="gloo" if unavailable_reason() else "mpi")
    args = parser.parse_args()
    print("\n\n".join(sections(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
