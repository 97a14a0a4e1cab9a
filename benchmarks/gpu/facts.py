"""What the card is, and what its simplest operations cost; how a time is taken."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.rows import Part
from runners.host import environment, hardware
from runners.host.project_paths import CLONE

VERSIONS = ("python", "torch", "triton", "transformers", "cuda", "nccl")
COPIED_BYTES = 2**32
SQUARE = 8192


def device_of(tiny: bool) -> torch.device:
    """The first GPU; in a dry run the CPU."""
    return torch.device("cpu") if tiny else torch.device("cuda", 0)


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(tiny: bool) -> None:
    """Gives freed memory of the GPU back, for other processes on it."""
    gc.collect()
    if not tiny:
        torch.cuda.empty_cache()


def block_ms(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Time of a step in ms, as the mean over a block that ends with a wait for the GPU."""
    sync(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    sync(device)
    return (time.perf_counter() - start) / steps * 1e3


def median_ms(step: Callable[[], object], device: torch.device, seconds: float = 0.4) -> float:
    """Median time of a step in ms over blocks of about 20 ms, after three steps of warm-up."""
    block_ms(step, 3, device)
    steps = max(1, int(20 / max(block_ms(step, 1, device), 1e-3)))
    times_ms: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times_ms) < 5:
        times_ms.append(block_ms(step, steps, device))
    return sorted(times_ms)[len(times_ms) // 2]


def versions() -> dict[str, Any]:
    """Versions of what a time depends on; None for what is not installed."""
    known = environment.versions("cuda")
    known["torch"] = torch.__version__  # with the CUDA it was built for
    return {name: known[name] for name in VERSIONS}


def run(part: Part) -> None:
    device = device_of(part.tiny)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    gpus = hardware.gpus() if device.type == "cuda" else []
    driver = gpus[0]["driver_version"] if gpus else None
    git = environment.git_state(CLONE)
    part.add(card=card, driver=driver, versions=versions(), git=git)
    if gpus:
        part.add(state=gpus[0])
    seconds = 0.05 if part.tiny else 0.4
    for name, measure in (
        ("copy_TB_s", copy_rate), ("bf16_TFLOP_s", product_rate), ("launch_us", launch_cost),
        ("wait_us", wait_cost),
    ):  # fmt: skip
        if part.is_over():
            return part.add(cut=True)
        part.add(fact=name, value=measure(device, part.tiny, seconds))
    return None


def copy_rate(device: torch.device, tiny: bool, seconds: float) -> float:
    """Bytes read and written by a copy, in TB/s."""
    source = torch.empty(COPIED_BYTES >> (10 if tiny else 0), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_ms(lambda: target.copy_(source), device, seconds) / 1e9


def product_rate(device: torch.device, tiny: bool, seconds: float) -> float:
    """Rate of a square product of bfloat16, in TFLOP/s."""
    size = 128 if tiny else SQUARE
    square = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / median_ms(lambda: square @ square, device, seconds) / 1e9


def launch_cost(device: torch.device, tiny: bool, seconds: float) -> float:
    """One small kernel after another, in us."""
    one = torch.zeros(1, device=device)
    return 1e3 * median_ms(lambda: one.add_(1), device, seconds)


def wait_cost(device: torch.device, tiny: bool, seconds: float) -> float:
    """The same, each followed by a wait of the host, in us."""
    one = torch.zeros(1, device=device)
    return 1e3 * median_ms(lambda: one.add_(1).item(), device, seconds)
