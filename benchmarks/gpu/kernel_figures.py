"""What the part `kernels` shows: its figures in a summary, its points on the page. Stdlib only."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]
OURS, PEER, TRANSFORMERS = "simple", "peer_", "peer_transformers"
QWEN, MIXTRAL = "qwen3_30b_a3b", "mixtral_8x7b"
KEPT = ("sweep", "model", "batch", "mode", "graph", "strategy", "ms", "TFLOP_s", "read_MB")
SETTING = KEPT[:5]
LEAST_TFLOP_S, MANY = 320.0, 32_768
MOST_ONE_TOKEN_MS, MOST_OVER_BYTES = 0.060, 1.3
LEAST_RATIO, LEAST_MEAN = 0.97, 1.15


def figures(rows: Iterable[Row]) -> list[Row]:
    """The cells that were timed."""
    return [{name: row[name] for name in KEPT if name in row} for row in rows if row.get("ms")]


def best(rows: Sequence[Row], prefix: str) -> Row | None:
    """The fastest whose strategy begins so."""
    candidates = [row for row in rows if row["strategy"].startswith(prefix)]
    return min(candidates, key=lambda row: row["ms"], default=None)


def ratios(kernels: Sequence[Row], prefix: str) -> list[float]:
    """The time of the fastest peer that begins so over that of our fastest kernel, for each setting
    in which both were timed in the same sweep."""
    settings: dict[tuple[Any, ...], list[Row]] = {}
    for row in kernels:
        settings.setdefault(tuple(row.get(name) for name in SETTING), []).append(row)
    pairs = [(best(rows, OURS), best(rows, prefix)) for rows in settings.values()]
    return [theirs["ms"] / ours["ms"] for ours, theirs in pairs if ours and theirs]


def triton_rate(kernels: Sequence[Row]) -> float:
    """TFLOP/s of the faster of `liger` and `triton` at Qwen3's layer, forward, many tokens; 0 if
    neither was timed."""
    rates = [
        row["TFLOP_s"] for row in kernels
        if (row["model"], row["batch"], row["mode"]) == (QWEN, MANY, "forward")
        and row["strategy"] in (f"{OURS} liger", f"{OURS} triton")
    ]  # fmt: skip
    return max(rates, default=0.0)


def one_token(kernels: Sequence[Row], model: str) -> Row | None:
    """The fastest step of one token from a CUDA graph."""
    rows = [
        row for row in kernels
        if (row["model"], row["batch"], row["graph"]) == (model, 1, "on")
    ]  # fmt: skip
    return best(rows, OURS)


def over_bytes(row: Row, copy_TB_s: float) -> float:
    """A step's time over that of reading the weights it needs, at the rate of a copy."""
    return float(row["ms"] / (row["read_MB"] / copy_TB_s / 1e3))


def table(kernels: Sequence[Row]) -> list[str]:
    """Markdown."""
    if not kernels:
        return []
    lines = ["", "| layer | tokens | step | kernel or peer | ms | TFLOP/s |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in kernels:
        step = row["mode"] + (", graph" if row["graph"] == "on" else "")
        lines.append(f"| {row['model']} | {row['batch']} | {step} | {row['strategy']} | "
                     f"{row['ms']:.3f} | {row['TFLOP_s']:.0f} |")  # fmt: skip
    return lines


def triton_is_fast(summary: Row) -> bool:
    return triton_rate(summary["kernels"]) >= LEAST_TFLOP_S


def one_token_is_fast(summary: Row) -> bool:
    kernels, rate = summary["kernels"], summary["facts"].get("copy_TB_s")
    qwen, mixtral = one_token(kernels, QWEN), one_token(kernels, MIXTRAL)
    if not (qwen and mixtral and rate):
        return False
    return qwen["ms"] <= MOST_ONE_TOKEN_MS and over_bytes(mixtral, rate) <= MOST_OVER_BYTES


def ours_lead(summary: Row) -> bool:
    complete = not summary["parts"].get("kernels", {"cut": True})["cut"]
    every = ratios(summary["kernels"], PEER)
    transformers = ratios(summary["kernels"], TRANSFORMERS)
    if not (complete and transformers):
        return False
    mean = statistics.geometric_mean(transformers)
    return min(every) >= LEAST_RATIO and mean >= LEAST_MEAN


POINTS: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    (f"The kernel `liger` or `triton` does at least {LEAST_TFLOP_S:.0f} TFLOP/s in a forward pass "
     f"of Qwen3's layer with {MANY:,} tokens (the goal: 400).", triton_is_fast),
    (f"One token from a CUDA graph takes at most {MOST_ONE_TOKEN_MS * 1e3:.0f} us in Qwen3's "
     f"layer, and in Mixtral's at most {MOST_OVER_BYTES} times the time of its bytes.",
     one_token_is_fast),
    ("In the part `kernels` our fastest kernel is nowhere slower than the fastest peer by more "
     f"than {1 - LEAST_RATIO:.0%}, and transformers takes at least {LEAST_MEAN} times as long "
     "(geometric mean).", ours_lead),
)  # fmt: skip
