"""The verbs predict and advise."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from analysis.cli import write_output
from analysis.errors import InputError
from analysis.predict import candidates, present, problem
from analysis.predict.model import Prediction
from analysis.predict.problem import PredictionProblem
from analysis.text import render
from moe.strategies import names as strategy_names

ADVISE_ROWS = 12


def predict(options: argparse.Namespace, cells: pd.DataFrame | None) -> str:
    """Every asked strategy at every asked number of ranks; draws where --output is a folder."""
    made = problem.make(options, cells)
    asked = _asked(options.strategy)
    found: list[Prediction] = []
    refused: dict[str, str] = {}
    where: dict[str, list[int]] = {}
    for ranks in problem.world_sizes(options.world_size):
        some, why = _at(made, ranks, asked, degrees=False)
        found += some
        for name, text in why.items():
            refused.setdefault(name, text)
            where.setdefault(name, []).append(ranks)
    if not found:
        raise InputError(f"predict: nothing can be run; {next(iter(refused.values()), '')}")
    parts = [
        render.simple(present.HEADER, [present.row(p) for p in found], options.format),
        render.lines(present.legend(made, found), options.format),
        render.lines(_refusals(refused, where), options.format),
    ]
    if options.output:
        paths = present.draw(made, found, Path(options.output))
        parts.append("\n".join(str(path) for path in paths))
    return "\n\n".join(part for part in parts if part)


def _refusals(refused: dict[str, str], where: dict[str, list[int]]) -> list[str]:
    """One line a strategy, with the first of its reasons."""
    return [
        f"not possible: {name} on {', '.join(map(str, where[name]))} ranks: {why}"
        for name, why in refused.items()
    ]


def advise(options: argparse.Namespace, cells: pd.DataFrame | None) -> str:
    made = problem.make(options, cells)
    sizes = problem.world_sizes(options.world_size)
    if len(sizes) != 1:
        raise InputError(f"--world-size {options.world_size}: advise takes one number of ranks")
    found, refused = _at(made, sizes[0], _asked(options.strategy), degrees=True)
    if not found:
        raise InputError(f"advise: nothing can be run; {next(iter(refused.values()), '')}")
    ranked = sorted(found, key=lambda p: (not p.fits, p.total_ms))
    parts = [
        render.lines(present.advice(made, ranked), options.format),
        render.simple(
            present.HEADER, [present.row(p) for p in ranked[:ADVISE_ROWS]], options.format
        ),
        render.lines(present.legend(made, ranked), options.format),
    ]
    return "\n\n".join(part for part in parts if part)


def run(options: argparse.Namespace, cells: pd.DataFrame | None) -> int:
    if options.verb == "predict":
        print(predict(options, cells))
    else:
        write_output(advise(options, cells), options.output)
    return 0


def _asked(text: str) -> set[str]:
    names = set(filter(None, text.split(","))) or set(strategy_names())
    unknown = sorted(names - set(strategy_names()))
    if unknown:
        raise InputError(f"--strategy {unknown[0]}: allowed are {', '.join(strategy_names())}")
    return names


def _at(
    made: PredictionProblem, ranks: int, asked: set[str], degrees: bool
) -> tuple[list[Prediction], dict[str, str]]:
    forms = [s for s in candidates.strategies(ranks, degrees, degrees) if s.name in asked]
    cells, refused = candidates.cells(
        made.layer, made.workload(ranks), made.placement(ranks), forms
    )
    return [made.predict(cell) for cell in cells], refused
