"""The answers of the verbs predict and advise."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from analysis.data.cell_summary import CellSummary
from analysis.errors import InputError
from analysis.predict import candidates, present, problem, remedies, sentences
from analysis.predict.model import Prediction
from analysis.predict.problem import PredictionProblem
from moe.strategies import degrees as degrees_of
from moe.strategies import names as strategy_names

ADVISE_ROWS = 12


class Answer(NamedTuple):
    """What is printed: lines of advice, the table with its header, lines about it, files drawn."""

    advice: list[str]
    table: list[list[str]]
    notes: list[list[str]]
    files: list[Path]


def predict(options: argparse.Namespace, cells: Sequence[CellSummary]) -> Answer:
    """Every asked strategy at every asked number of ranks; draws where --output is a folder.

    Raises InputError where no strategy can be run, or the options do not fit together.
    """
    setup = problem.make(options, cells)
    asked = _strategies(options.strategy)
    predictions: list[Prediction] = []
    refused: dict[str, str] = {}
    where: dict[str, list[int]] = {}
    remedied: list[str] = []
    for ranks in problem.world_sizes(options.world_size):
        some, why = _predict_at(setup, ranks, asked, degrees=False)
        predictions += some
        remedied += remedies.lines(setup, _ranked(some))
        for name, text in why.items():
            refused.setdefault(name, text)
            where.setdefault(name, []).append(ranks)
    if not predictions:
        raise InputError(f"predict: nothing can be run; {next(iter(refused.values()), '')}")
    notes = [remedied, present.legend(setup, predictions), _refusals(refused, where)]
    output = options.output
    files = present.draw(setup, predictions, Path(output)) if output else []
    return Answer([], present.table(predictions), notes, files)


def _refusals(refused: dict[str, str], where: dict[str, list[int]]) -> list[str]:
    """One line a strategy, with the first of its reasons."""
    return [
        f"not possible: {name} on {', '.join(map(str, where[name]))} ranks: {why}"
        for name, why in refused.items()
    ]


def advise(options: argparse.Namespace, cells: Sequence[CellSummary]) -> Answer:
    """The asked strategies with all their degrees at one number of ranks, fastest first.

    Raises InputError as `predict` does, and for more than one number of ranks.
    """
    if options.placement and not options.trace:
        raise InputError(
            f"--placement {options.placement}: only with --trace, whose loads decide the new "
            "order; add --trace FILE, or leave it out"
        )
    setup = problem.make(options, cells)
    sizes = problem.world_sizes(options.world_size)
    if len(sizes) != 1:
        raise InputError(f"--world-size {options.world_size}: advise takes one number of ranks")
    asked = _strategies(options.strategy)
    predictions, refused = _predict_at(setup, sizes[0], asked, degrees=True)
    if not predictions:
        raise InputError(f"advise: nothing can be run; {next(iter(refused.values()), '')}")
    ranked = _ranked(predictions)
    table, notes = present.table(ranked[:ADVISE_ROWS]), [present.legend(setup, ranked)]
    lines = sentences.advice(setup, ranked, by_phase(setup, sizes[0], asked))
    lines += remedies.lines(setup, ranked, options.placement)
    files = _write_placement(setup, ranked, options.placement)
    return Answer(lines, table, notes, files)


def _ranked(predictions: Sequence[Prediction]) -> list[Prediction]:
    return sorted(predictions, key=lambda p: (not p.fits, p.total_ms))


def by_phase(setup: PredictionProblem, ranks: int, asked: set[str]) -> dict[str, list[Prediction]]:
    """The forms of each other phase than the asked one, fastest first; none of records, whose fit
    is of the phases that were measured."""
    if setup.fixed is None:
        return {}
    asked_phase = sentences.phase_of(setup, ranks)
    some = sentences.tokens_per_rank(setup, ranks)
    many = problem.CLUSTER_TOKENS if asked_phase == sentences.DECODE else some
    phases = {}
    for phase in sentences.PHASES:
        if phase == asked_phase:
            continue
        mode = "train" if phase == sentences.TRAINING else "forward"
        each = sentences.DECODE_TOKENS if phase == sentences.DECODE else many
        batch = each if setup.work.tokens == "replicated" else each * ranks
        work = dataclasses.replace(setup.work, mode=mode, batch_size=batch)
        other = dataclasses.replace(setup, work=work, per_rank=0)
        phases[phase] = _ranked(_predict_at(other, ranks, asked, degrees=True)[0])
    return phases


def _write_placement(
    setup: PredictionProblem, ranked: Sequence[Prediction], path: str
) -> list[Path]:
    """The new order of experts for the fastest form that splits them, one id a line."""
    form = remedies.fastest_form(ranked)
    if not path or setup.routing is None or form is None:
        return []
    order = setup.routing.new_order(degrees_of(form.cell).ep)
    try:
        Path(path).write_text("".join(f"{expert}\n" for expert in order), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--placement {path}: {error.strerror}; name a file that can be written"
        ) from None
    return [Path(path)]


def _strategies(text: str) -> set[str]:
    names = set(filter(None, text.split(","))) or set(strategy_names())
    unknown = sorted(names - set(strategy_names()))
    if unknown:
        raise InputError(f"--strategy {unknown[0]}: allowed are {', '.join(strategy_names())}")
    return names


def _predict_at(
    setup: PredictionProblem, ranks: int, asked: set[str], degrees: bool
) -> tuple[list[Prediction], dict[str, str]]:
    """Predictions at this number of ranks, and by strategy the reason why it cannot be run."""
    forms = [s for s in candidates.strategies(ranks, degrees, degrees) if s.name in asked]
    cells, refused = candidates.cells(
        setup.layer, setup.workload(ranks), setup.placement(ranks), forms
    )
    return [setup.predict(cell) for cell in cells], refused
