"""The cells that could be run: a layer on so many ranks, in every form the strategies accept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from analysis.errors import InputError
from moe import spec
from moe.build import supports
from moe.spec import (
    Cell,
    LayerSpec,
    RankLayout,
    RouterSpec,
    StrategySpec,
    Unsupported,
    WorkloadSpec,
)
from moe.strategies import names, rules_of
from runners.host import project_paths

MODELS = project_paths.CONF / "model"
EXPERT_PARALLEL = tuple(name for name in names() if rules_of(name).dispatchers)
OVERLAPS = (1, 2, 4)


def model_layer(name: str, scale: int = 1, topk: int = 0, dtype: str = "bfloat16") -> LayerSpec:
    """The layer of conf/model/NAME.yaml, its sizes divided by `scale`; `topk` 0 keeps the
    file's.

    Raises InputError for an unknown name or dtype, or a scale that does not divide the sizes.
    """
    path = MODELS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in MODELS.glob("*.yaml")))
        raise InputError(f"--model {name}: no such model; allowed are {known}")
    written: dict[str, Any] = yaml.safe_load(path.read_text("utf-8")) or {}
    rule = written.pop("router", {})
    names = {field.name for field in dataclasses.fields(LayerSpec)}
    layer = LayerSpec(**{k: v for k, v in written.items() if k in names}, dtype=dtype)
    sizes: dict[str, Any] = {n: int(getattr(layer, n)) for n in ("dim", "hidden", "dim_out")}
    if scale < 1 or any(size % scale for size in sizes.values()):
        shape = ", ".join(f"{key} {size}" for key, size in sizes.items())
        raise InputError(
            f"--scale {scale}: allowed are divisors of {shape}; leave it out for the full size"
        )
    if dtype not in spec.DTYPES:
        raise InputError(f"--dtype {dtype}: allowed are {', '.join(spec.DTYPES)}; choose one")
    slots = topk or layer.topk
    return dataclasses.replace(
        layer, **{key: size // scale for key, size in sizes.items()},
        topk=slots, topk_requested=slots, router=RouterSpec(**rule),
    )  # fmt: skip


def plain(layer: LayerSpec) -> LayerSpec:
    """The layer with the simplest router of the same K; a prediction has the skew as an option."""
    return dataclasses.replace(layer, router=RouterSpec())


def strategies(ranks: int, degrees: bool, overlap: bool) -> Iterator[StrategySpec]:
    """Every strategy, and every dispatcher that is not experimental; with `degrees` every split of
    the ranks, too."""
    for name in names():
        if rules_of(name).single_rank:
            continue
        if name not in EXPERT_PARALLEL:
            yield StrategySpec(name=name)
            continue
        splits = _divisors(ranks) if degrees and name != "ep" else [0]
        for dispatcher in (d for d in spec.DISPATCHERS if d not in spec.EXPERIMENTAL):
            for ep in splits:
                if ep in (1, ranks) or (ep == 0 and name != "ep" and degrees):
                    continue
                for chunks in OVERLAPS if overlap and dispatcher == "alltoall" else (1,):
                    yield StrategySpec(name=name, dispatcher=dispatcher, ep=ep, overlap=chunks)


def _divisors(size: int) -> list[int]:
    return [n for n in range(2, size + 1) if size % n == 0]


def cells(
    layer: LayerSpec, work: WorkloadSpec, place: RankLayout, forms: Sequence[StrategySpec]
) -> tuple[list[Cell], dict[str, str]]:
    """The cells that are supported, and why a strategy is not: {its name: the reason}."""
    supported: list[Cell] = []
    refused: dict[str, str] = {}
    for strategy in forms:
        cell = Cell(layer, strategy, work, place)
        try:
            supports(cell)
        except Unsupported as error:
            refused.setdefault(strategy.name, str(error))
            continue
        supported.append(cell)
    kept = {cell.strategy.name for cell in supported}
    return supported, {name: why for name, why in refused.items() if name not in kept}


def name_of(strategy: StrategySpec) -> str:
    """The name in tables and pictures: strategy, dispatcher, degrees, chunks."""
    words = [strategy.name]
    if strategy.name in EXPERT_PARALLEL:
        words.append(strategy.dispatcher)
    words += [f"{key}={getattr(strategy, key)}" for key in ("ep", "tp") if getattr(strategy, key)]
    if strategy.overlap > 1:
        words.append(f"overlap={strategy.overlap}")
    return " ".join(words)
