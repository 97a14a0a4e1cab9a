"""The GPU path on one GPU in a few minutes; needs torch alone, works on a CPU in a tiny form.

    python -m benchmarks.gpu.first_look OUT [SECONDS]
    python -m benchmarks.gpu.first_look table FILE      # what such a run has found, as Markdown

Parts, each within its share of SECONDS (default 240), each line flushed to OUT/first_look.jsonl:

  facts   the card, versions, a copy, a matrix product, what one launch and one host wait cost
  gate    strategies x kernels x dtypes x modes at one rank: the correctness check before, between
          and after some steps, and how often a step waits for the host
  speed   simple (each kernel) beside two grouped products as anyone would write them, for the
          layers of Mixtral, Qwen3 and DeepSeek-V3
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, silu

from moe import build
from moe.parallel.comm import Comm
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, Unsupported, WorkloadSpec
from moe.step import Step
from moe.verify.verifier import Verifier
from moe.workload import batches

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
SHAPES = {  # D, H, E, k
    "mixtral_8x7b": (4096, 14336, 8, 2),
    "qwen3_30b_a3b": (2048, 768, 128, 8),
    "deepseek_v3": (7168, 2048, 256, 8),
}
TINY = {"tiny": (64, 128, 8, 2)}
GATED = (256, 512) if CUDA else (32, 64)  # D, H of the layers that are checked
BATCHES = (1, 128, 1024, 16384)
STRATEGIES = [StrategySpec(name) for name in ("simple", "dp", "tp", "fsdp")]
STRATEGIES += [StrategySpec("ep", dispatcher) for dispatcher in ("alltoall", "allgather", "dedup")]
KERNELS = ("grouped", "loop", "bmm", "dense")
GATE_SHARE, SPEED_SHARE = 0.5, 0.95
DENSE_LIMIT = 200_000  # rows that kernel dense may make


class Log:
    """Lines of JSON, and how much of the time is used."""

    def __init__(self, folder: Path, limit_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.limit_s, self.began = folder / "first_look.jsonl", limit_s, time.monotonic()

    def used(self) -> float:
        return (time.monotonic() - self.began) / self.limit_s

    def say(self, part: str, **row: Any) -> None:
        line = json.dumps({"part": part, "at_s": round(time.monotonic() - self.began, 1), **row})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def sync() -> None:
    if CUDA:
        torch.cuda.synchronize()


def block_ms(step: Callable[[], object], steps: int) -> float:
    sync()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    sync()
    return (time.perf_counter() - start) / steps * 1e3


def median_ms(step: Callable[[], object], seconds: float = 0.4) -> float:
    """Median over blocks of 20 ms and more, after three steps of warm-up."""
    block_ms(step, 3)
    steps = max(1, int(20 / max(block_ms(step, 1), 1e-3)))
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 5:
        found.append(block_ms(step, steps))
    return sorted(found)[len(found) // 2]


def waits(step: Callable[[], object]) -> int | None:
    """Host waits of one step, as torch's sync debug mode warns of them."""
    if not CUDA:
        return None
    block_ms(step, 1)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


def facts() -> dict[str, Any]:
    row: dict[str, Any] = {"torch": torch.__version__, "device": str(DEVICE)}
    if not CUDA:
        return row
    row |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    source = torch.empty(2**32, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    row["copy_TB_s"] = 2 * source.numel() / median_ms(lambda: target.copy_(source)) / 1e9
    square = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    row["bf16_TFLOP_s"] = 2 * 8192**3 / median_ms(lambda: square @ square) / 1e9
    one = torch.zeros(1, device=DEVICE)
    row["launch_us"] = 1e3 * median_ms(lambda: one.add_(1))
    row["wait_us"] = 1e3 * median_ms(lambda: one.add_(1).item())
    return row


def cell_of(strategy: StrategySpec, layer: LayerSpec, mode: str, batch: int) -> Cell:
    work = WorkloadSpec(batch_size=batch, tokens="sharded", mode=mode)
    return Cell(layer, strategy, work, RankLayout(1, "nccl" if CUDA else "gloo", DEVICE.type, 1))


def layer_of(dim: int, hidden: int, experts: int, topk: int, dtype: str) -> LayerSpec:
    return LayerSpec(
        dim=dim, hidden=hidden, dim_out=dim, num_experts=experts, topk=topk, topk_requested=topk,
        activation="silu_gated", bias="none", dtype=dtype,
    )  # fmt: skip


def gates(log: Log) -> None:
    for dtype in ("bfloat16", "float32", "float16"):
        layer = layer_of(*GATED, 8, 2, dtype)
        for mode in ("forward", "train"):
            for strategy in STRATEGIES:
                for kernel in KERNELS:
                    if log.used() > GATE_SHARE:
                        return log.say("gate", cut=True)
                    chosen = dataclasses.replace(strategy, kernel=kernel)
                    row = _gate(cell_of(chosen, layer, mode, 63))
                    log.say("gate", **row, strategy=strategy.name, kernel=kernel, dtype=dtype,
                            dispatcher=strategy.dispatcher, mode=mode)  # fmt: skip
    return None


def _gate(cell: Cell) -> dict[str, Any]:
    try:
        build.supports(cell)
        comm = Comm(DEVICE, 1, 0)
        x_TD = batches.inputs(cell, 0, DEVICE)
        built = build.build(cell, comm)
        step = Step(cell, built, x_TD)
        return {**checked(cell, step, comm), "waits": waits(step)}
    except Unsupported as why:
        return {"refused": str(why)}
    except Exception as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:400]}


def checked(cell: Cell, step: Step, comm: Comm) -> dict[str, Any]:
    """As in a run: before timing, after some steps, on other tokens; errors as shares of limits."""
    verifier = Verifier(cell, comm)
    results = [verifier.prove([step], 0)]
    changes = []
    for _ in range(3):
        step()
        changes.append(verifier.compare(step))
    results.append(verifier.prove_again([step], 1))
    row: dict[str, Any] = {
        "ok": all(one.ok for one in results) and not any(changes),
        "row_share": max(one.error / one.tolerance for one in results),
        "rms_share": max(one.rms / one.rms_limit for one in results),
    }
    if results[0].gradient_error is not None:
        row["gradient_share"] = max(
            (one.gradient_error or 0.0) / (one.gradient_limit or 1.0) for one in results
        )
    if not row["ok"]:
        row["why"] = [one.detail for one in results] + [str(change) for change in changes]
    return row


def speed(log: Log) -> None:
    for model, (dim, hidden, experts, topk) in (SHAPES if CUDA else TINY).items():
        layer = layer_of(dim, hidden, experts, topk, "bfloat16")
        built: Any = None
        for batch in BATCHES if CUDA else (8,):
            if log.used() > SPEED_SHARE:
                return log.say("speed", cut=True, model=model, batch=batch)
            cell = cell_of(StrategySpec("simple"), layer, "forward", batch)
            row: dict[str, Any] = {}
            try:
                if built is None:  # its weights are the same for every batch
                    start = time.perf_counter()
                    built = build.build(cell, Comm(DEVICE, 1, 0))
                    sync()
                    row["build_s"] = round(time.perf_counter() - start, 1)
                row |= _speed(cell, built)
            except Exception as error:
                row = {"error": f"{type(error).__name__}: {error}"[:400]}
            log.say("speed", model=model, batch=batch, **row)
        built = None
        if CUDA:
            torch.cuda.empty_cache()
    return None


def _speed(cell: Cell, built: Any) -> dict[str, Any]:
    x_TD = batches.inputs(cell, 0, DEVICE)
    layer, batch = cell.layer, cell.workload.batch_size
    few = batch * layer.num_experts < DENSE_LIMIT
    row: dict[str, Any] = {}
    with torch.inference_mode():
        built.use("grouped")
        row["plain_grouped_experts_ms"] = median_ms(plain_grouped(built, x_TD, layer))
        for kernel in ("grouped", "loop", "dense") if few else ("grouped", "loop"):
            built.use(kernel)
            step = Step(cell, built, x_TD)
            row[f"{kernel}_ms"] = median_ms(step)
            row[f"{kernel}_waits"] = waits(step)
    return row


def plain_grouped(built: Any, x_TD: Tensor, layer: LayerSpec) -> Callable[[], Tensor]:
    """What anyone would write: rows sorted beforehand, two grouped products, a weighted sum."""
    routing = built.router(x_TD)
    chosen_S = routing.indices_TK.reshape(-1)
    order_S = torch.argsort(chosen_S, stable=True)
    token_S = order_S // layer.topk
    numbers_E = torch.arange(layer.num_experts, device=DEVICE)
    ends_E = torch.searchsorted(chosen_S[order_S], numbers_E, right=True).to(torch.int32)
    gates_S = routing.gates_TK.reshape(-1)[order_S].to(x_TD.dtype)
    fc1, fc2 = built.experts.fc1, built.experts.fc2

    def step() -> Tensor:
        both_SH = grouped_mm(x_TD[token_S], fc1.transpose(1, 2), offs=ends_E)
        gate_SH, up_SH = both_SH.chunk(2, -1)
        y_SD = grouped_mm(silu(gate_SH) * up_SH, fc2.transpose(1, 2), offs=ends_E)
        return torch.zeros_like(x_TD).index_add_(0, token_S, y_SD * gates_S[:, None])

    return step


def table(path: Path) -> str:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    gated = [row for row in rows if row["part"] == "gate" and "ok" in row]
    by_kernel: dict[str, set[int]] = {}
    for row in gated:
        if row["mode"] == "forward" and row.get("waits") is not None:
            by_kernel.setdefault(row["kernel"], set()).add(row["waits"])
    waited = "; ".join(f"{k} {min(v)} to {max(v)}" for k, v in by_kernel.items())
    names = ("plain_grouped_experts", "grouped", "loop", "dense")
    lines = [
        ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[0].items()
                  if k not in ("part", "at_s")),
        f"gate: {sum(row['ok'] for row in gated)} of {len(gated)} agree; "
        f"host waits of a forward step: {waited or 'not known on a CPU'}",
        *_shares(gated),
        "",
        "| layer | tokens | " + " | ".join(f"{name} ms" for name in names) + " |",
        "|" + "---|" * (len(names) + 2),
    ]  # fmt: skip
    for row in rows:
        if row["part"] == "speed" and "grouped_ms" in row:
            figures = [f"{row[f'{n}_ms']:.3f}" if f"{n}_ms" in row else "-" for n in names]
            lines.append(f"| {row['model']} | {row['batch']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _shares(gated: list[dict[str, Any]]) -> list[str]:
    """The largest errors by dtype, where the file has them."""
    lines = []
    for dtype in dict.fromkeys(row["dtype"] for row in gated):
        most = [
            f"{name} {max(known):.2f}"
            for name in ("row", "rms", "gradient")
            if (known := [row[f"{name}_share"] for row in gated
                          if row["dtype"] == dtype and f"{name}_share" in row])
        ]  # fmt: skip
        if most:
            lines.append(f"{dtype}: largest share of a limit: {', '.join(most)}")
    return lines


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    if sys.argv[1] == "table" and len(sys.argv) == 3:
        print(table(Path(sys.argv[2])))
        return
    log = Log(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 240.0)
    log.say("facts", **facts())
    gates(log)
    speed(log)
    log.say("end")


if __name__ == "__main__":
    main()
