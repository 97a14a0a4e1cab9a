"""The real sweep at full size: simple beside transformers' layer, for three models, in time."""

from __future__ import annotations

from importlib.util import find_spec

from benchmarks.gpu import packages
from benchmarks.gpu.rows import Part
from benchmarks.gpu.sweep import SweepCase, one_sweep

MODELS = ("mixtral_8x7b", "qwen3_30b_a3b", "deepseek_v3")
OURS = "simple"
PEER = "peer_transformers"
VARIANTS = ("peer_transformers_eager", "peer_transformers_batched")
BATCHES = (1, 128, 1024, 16384)
LEAST_S = 25.0  # for another sweep
# Short enough for a cell in about 3 s beside its build and check. A wave has the cells of one
# batch: when a sweep is cut, the waves before are complete.
MEASURE = {
    "samples": 5, "samples_max": 12, "wall_limit_s": 1.0, "warmup_max": 4, "phases": 0,
    "anchors": 2, "wave_cells": 3, "calibration_limit_s": 4, "cell_limit_s": 60,
}  # fmt: skip


def case_of(model: str, strategies: tuple[str, ...], name: str, tiny: bool = False) -> SweepCase:
    settings = {
        "model": model, "strategy": ",".join(strategies),
        "batch_size": "1,16" if tiny else ",".join(map(str, BATCHES)),
    }  # fmt: skip
    if model == "deepseek_v3":
        settings["model.shared_experts"] = "0"  # transformers' layer has none
    return SweepCase(name, settings)


def cases(tiny: bool) -> list[SweepCase]:
    """First every model beside transformers' usual variant; then, where there is time, beside its
    other variants, with `simple` again."""
    if tiny:
        peers = (PEER,) if find_spec("transformers") else ()
        return [case_of("mixtral_8x7b", (OURS, *peers), "mixtral_8x7b", tiny)]
    usual = [case_of(model, (OURS, PEER), model) for model in MODELS]
    return usual + [case_of(model, (OURS, *VARIANTS), f"{model}-variants") for model in MODELS]


def run(part: Part) -> None:
    variables = packages.variables(part)
    if variables is None:
        return None
    todo = cases(part.tiny)
    first = 1 if part.tiny else len(MODELS)
    for number, case in enumerate(todo):
        share_s = part.left_s() / max(1, first - number)
        if number >= first and share_s < LEAST_S:
            return part.add(cut=True, sweeps_left=[one.name for one in todo[number:]])
        one_sweep(part, case, MEASURE, share_s, variables)
    return None
