"""How far right layers are from the oracle: random cells, each checked as a run checks them.

    python -m benchmarks.verify.clean_errors [--cells 2000] [--seed 0]

Draws cells over strategies, dispatchers, tokens, modes, dtypes, routers, workloads, kernels, ways
to spread experts, activations, sizes and cold caches, a quarter of them each on 1, 2, 3 and 4 gloo
ranks. Every cell is proven, stepped and compared a few times, and proven again on other tokens.
Prints, by dtype, the largest errors and the largest share of the cell's own limit that was used;
every cell that is called wrong; exit code 1 if there is one. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moe import spec
from moe.build import build, supports
from moe.parallel.comm import Comm
from moe.spec import (
    Cell,
    LayerSpec,
    RankLayout,
    RouterSpec,
    StrategySpec,
    Unsupported,
    WorkloadSpec,
)
from moe.step import Step
from moe.strategies import names, rules_of
from moe.verify.faults import CheckResult
from moe.verify.verifier import Verifier
from moe.workload import batches

RANKS = (1, 2, 3, 4)
LIMIT_S = 3600
ROUTERS: list[dict[str, Any]] = [
    {}, {}, {"order": "after"}, {"normalize": False, "scale": 1.5},
    {"score": "sigmoid", "scale": 2.5}, {"score": "sigmoid", "groups": 4, "group_topk": 2},
    {"score": "sigmoid", "groups": 2, "group_topk": 1, "selection_bias": "balanced"},
    {"selection_bias": "balanced"}, {"capacity_factor": 0.7},
    {"capacity_factor": 1.25, "drop": "first_choices", "scope": "global"},
    {"capacity_factor": 0.8, "drop": "probability"}, {"kind": "expert_choice", "normalize": False},
    {"kind": "expert_choice", "scope": "global"}, {"aux_loss": 0.5},
    {"aux_loss": 1.0, "scope": "global", "score": "sigmoid"},
]  # fmt: skip
PARAMETERS = {"zipf": (0.5, 1.2), "k_hot": (1.0, 3.0), "hot_rank": (0.5, 0.7), "imbalance": (1.2,)}
SPREADS: list[dict[str, Any]] = [
    {}, {}, {}, {"placement": "round_robin"}, {"overlap": 2}, {"comm_dtype": "bfloat16"},
    {"comm_dtype": "float16"}, {"hot_replicas": -1},
]  # fmt: skip


def drawn(generator: random.Random, ranks: int) -> Cell:
    """A random cell; may be one that is refused."""
    pick = generator.choice
    experts = pick((4, 8, 12, 16))
    topk = generator.randint(1, min(4, experts))
    layer = LayerSpec(
        pick((8, 16, 64, 200)), pick((16, 48, 192)), pick((8, 32, 80)), experts, topk, topk,
        pick(spec.ACTIVATIONS), pick(spec.BIASES), pick((0, 0, 1)), pick(spec.DTYPES),
        generator.randrange(1000), RouterSpec(**pick(ROUTERS)),
    )  # fmt: skip
    name, spread = pick(names()), dict(pick(SPREADS))
    if "hot_replicas" in spread:
        spread["hot_replicas"] = ranks
    usual = tuple(name for name in spec.DISPATCHERS if name not in spec.EXPERIMENTAL)
    dispatcher = pick(usual) if rules_of(name).dispatchers else "local"
    kind = pick(("learned", *PARAMETERS, "balanced", "learned"))
    work = WorkloadSpec(
        pick((1, 3, 8, 29, 64, 400, 1024)), pick(spec.TOKENS), pick(spec.MODES), kind,
        pick(PARAMETERS.get(kind, (0.0,))), seed=generator.randrange(1000),
        cache=pick(("warm", "warm", "warm", "cold")),
    )  # fmt: skip
    strategy = StrategySpec(
        name, dispatcher, kernel=pick(("loop", "bmm", "dense", "grouped")), **spread
    )
    return Cell(layer, strategy, work, RankLayout(world_size=ranks))


def accepted(generator: random.Random, ranks: int) -> Cell:
    while True:
        cell = drawn(generator, ranks)
        if cell.strategy.name == "serial" and ranks > 1:
            continue  # runs on one rank only
        try:
            supports(cell)
            return cell
        except Unsupported:
            continue


def check(cell: Cell, comm: Comm, seed: int) -> list[dict[str, Any]]:
    """What the two checks and the comparisons between found, as dicts."""
    x_TD = batches.inputs(cell, comm.rank, comm.device)
    layer = build(cell, comm)
    steps = [Step(cell, layer, x_TD)]
    if cell.workload.cache == "cold":
        copied = x_TD.detach().clone().requires_grad_(x_TD.requires_grad)
        steps.append(Step(cell, layer.clone(), copied))
    verifier = Verifier(cell, comm)
    results: list[CheckResult] = [verifier.prove(steps, seed)]
    changes = []
    for number in range(3):
        step = steps[number % len(steps)]
        step()
        changes.append(verifier.compare(step))
    rebuilt = build(cell, comm)
    rebuilt.use(layer.experts.kernel)
    again = Step(cell, rebuilt, batches.inputs(cell, comm.rank, comm.device))
    again()
    changes.append(verifier.compare(again))
    results.append(verifier.prove_again(steps, seed + 1))
    table = torch.tensor([float(change is not None) for change in changes])
    changed = comm.world.combine_(table, "max").tolist()
    rows = [one.to_dict() for one in results]
    if any(changed):
        texts = "; ".join(map(str, filter(None, changes)))
        rows.append({"ok": False, "detail": f"changed later: {changed} {texts}"})
    return rows


def on_ranks(cells: int, seed: int, path: str) -> None:
    """One rank of torchrun's; rank 0 writes the lines."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    comm = Comm(torch.device("cpu"), ranks, rank)
    generator = random.Random(f"{seed}:{ranks}")
    with Path(path).open("a", encoding="utf-8") as file:
        for number in range(cells):
            cell = accepted(generator, ranks)
            for row in check(cell, comm, number):
                if rank == 0:
                    which = {"cell": repr(cell), "dtype": cell.layer.dtype,
                             "wire": cell.strategy.comm_dtype}  # fmt: skip
                    file.write(json.dumps({**which, **row}) + "\n")
    dist.destroy_process_group()


def start(ranks: int, cells: int, seed: int, path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
        f"--nproc-per-node={ranks}", "--max-restarts=0", "-m", "benchmarks.verify.clean_errors",
        "--cells", str(cells), "--seed", str(seed), "--rank-of", str(path),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run(command, check=True, timeout=LIMIT_S, env=env)


def table(rows: list[dict[str, Any]]) -> str:
    """By dtype: the largest of each error, and of each error over its cell's limit."""
    columns = {"row": ("error", "tolerance"), "RMS": ("rms", "rms_limit"),
               "gradient": ("gradient_error", "gradient_limit")}  # fmt: skip
    lines = ["| dtype | checks | wrong | " + " | ".join(
        f"largest {name} error | share of its limit" for name in columns) + " |"]  # fmt: skip
    lines.append("|" + "---|" * (3 + 2 * len(columns)))
    for dtype in spec.DTYPES:
        mine = [row for row in rows if row["dtype"] == dtype and not row["wire"]]
        texts = [dtype, str(len(mine)), str(sum(not row["ok"] for row in mine))]
        for error, limit in columns.values():
            known = [(r[error], r[limit]) for r in mine if r.get(error) is not None]
            texts.append(f"{max((e for e, _ in known), default=0.0):.1e}")
            texts.append(f"{max((e / most for e, most in known), default=0.0):.2f}")
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=2000, help="on 1, 2, 3 and 4 ranks together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank_of:
        on_ranks(asked.cells, asked.seed, asked.rank_of)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checks.jsonl"
        for ranks in RANKS:
            start(ranks, -(-asked.cells // len(RANKS)), asked.seed, path)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    print(table(rows))
    wired = [row for row in rows if row["wire"]]
    used = max(row["error"] / row["tolerance"] for row in wired if row.get("error") is not None)
    print(f"\nwith comm_dtype: {len(wired)} checks, {sum(not row['ok'] for row in wired)} wrong, "
          f"at most {used:.2f} of the limit")  # fmt: skip
    wrong = [row for row in rows if not row["ok"]]
    for row in wrong:
        print("wrong: " + "; ".join(f"{name} {value}" for name, value in row.items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
