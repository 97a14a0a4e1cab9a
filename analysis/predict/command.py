"""The answers of the verbs predict and advise."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from analysis.data.cell_summary import CellSummary
from analysis.errors import InputError
from analysis.predict import candidates, present, problem, remedies, sentences
from analysis.predict.model import Prediction
from analysis.predict.problem import PredictionProblem
from analysis.predict.whole import DECODE, PREFILL, TOKENS_PER_RANK
from analysis.text import render
from moe.strategies import degrees as degrees_of
from moe.strategies import names as strategy_names

ADVISE_ROWS = 12
MISSING_ROWS = 6  # of those that do not fit


class Answer(NamedTuple):
    """What is printed: lines of advice, the table with its header, lines about it, files drawn."""

    advice: list[str]
    table: list[list[str]]
    notes: list[list[str]]
    files: list[Path]

    def text(self, style: str) -> str:
        """Everything, in a style of analysis/text/render.py."""
        header, *rows = self.table
        parts = [
            render.commands(self.advice, style),
            render.simple(header, rows, style),
            *(render.commands(lines, style) for lines in self.notes),
            "\n".join(str(path) for path in self.files),
        ]
        return "\n\n".join(part for part in parts if part)


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
    sizes = problem.world_sizes(options.world_size)
    _check_skew(setup, sizes)
    for ranks in sizes:
        some, why = _predict_at(setup, ranks, asked, degrees=False)
        predictions += some
        remedied += remedies.lines(
            setup, _fastest_first(some), on_ranks=ranks if len(sizes) > 1 else 0
        )
        for name, text in why.items():
            refused.setdefault(name, text)
            where.setdefault(name, []).append(ranks)
    if not predictions:
        raise InputError(f"predict: nothing can be run; {next(iter(refused.values()), '')}")
    notes = [remedied, present.legend(setup, predictions), _refusals(refused, where)]
    output = options.output
    files = present.draw(setup, predictions, Path(output)) if output else []
    return Answer([], present.table(predictions, setup.whole is not None), notes, files)


def _check_skew(setup: PredictionProblem, sizes: Sequence[int]) -> None:
    if setup.skew > max(sizes):
        raise InputError(
            f"--skew {setup.skew:g}: allowed are 1 to {max(sizes)}, the ranks that share the "
            "slots; choose less, or more ranks"
        )


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
        raise InputError(
            f"--world-size {options.world_size}: advise takes one number of ranks; name one, or "
            "compare several with predict"
        )
    _check_skew(setup, sizes)
    asked = _strategies(options.strategy)
    predictions, refused = ranked(setup, sizes[0], asked)
    if not predictions:
        raise InputError(f"advise: nothing can be run; {next(iter(refused.values()), '')}")
    fitting = [p for p in predictions if p.fits]
    rows = [*fitting[:ADVISE_ROWS], *_nearest(predictions)]
    table = present.table(rows, setup.whole is not None)
    notes = [
        present.legend(setup, predictions), _refusals(refused, dict.fromkeys(refused, sizes))
    ]  # fmt: skip
    lines = sentences.advice(setup, predictions, by_phase(setup, sizes[0], asked))
    lines += remedies.lines(setup, predictions, options.placement)
    files = _write_placement(setup, predictions, options.placement) if options.placement else []
    return Answer(lines, table, notes, files)


def ranked(
    setup: PredictionProblem, ranks: int, asked: set[str]
) -> tuple[list[Prediction], dict[str, str]]:
    """Those that fit, fastest first, then the others; and by strategy why it cannot be run."""
    predictions, refused = _predict_at(setup, ranks, asked, degrees=True)
    return _fastest_first(predictions), refused


def _fastest_first(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Those that fit first; of equal times (to six digits) the one that takes less memory."""
    return sorted(
        predictions, key=lambda p: (not p.fits, float(f"{p.total_ms:.6g}"), p.memory_bytes)
    )


def _nearest(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Those that do not fit, of every strategy and its degrees the one that misses by least."""
    least: dict[tuple[str, int, int], Prediction] = {}
    for p in sorted((p for p in predictions if not p.fits), key=lambda p: p.memory.missing):
        strategy = p.cell.strategy
        least.setdefault((strategy.name, strategy.ep, strategy.tp), p)
    return [*least.values()][:MISSING_ROWS]


def by_phase(setup: PredictionProblem, ranks: int, asked: set[str]) -> dict[str, list[Prediction]]:
    """The forms of each other phase than the asked one, fastest first; none of records, whose fit
    is of the phases that were measured."""
    if setup.fixed is None:
        return {}
    asked_phase = setup.phase(ranks)
    given = setup.tokens_per_rank(ranks) if asked_phase != DECODE else TOKENS_PER_RANK[PREFILL]
    phases = {}
    for phase in (phase for phase in TOKENS_PER_RANK if phase != asked_phase):
        each = TOKENS_PER_RANK[DECODE] if phase == DECODE else given
        phases[phase] = ranked(setup.in_phase(phase, each, ranks), ranks, asked)[0]
    return phases


def _write_placement(
    setup: PredictionProblem, predictions: Sequence[Prediction], path: str
) -> list[Path]:
    """The new order of experts for the fastest form that splits them, one id a line."""
    form = remedies.fastest_form(predictions)
    assert setup.routing is not None  # `advise` refuses a placement without a trace
    if form is None:
        raise InputError(
            f"--placement {path}: no form that fits splits the experts over ranks, so that none "
            "has an order; leave it out, or allow other strategies, such as --strategy ep"
        )
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
        raise InputError(
            f"--strategy {unknown[0]}: allowed are {', '.join(strategy_names())}; choose some"
        )
    return names


def _predict_at(
    setup: PredictionProblem, ranks: int, asked: set[str], degrees: bool
) -> tuple[list[Prediction], dict[str, str]]:
    """Predictions at this number of ranks, and by strategy the reason why it cannot be run."""
    left_out = {name: why for name in sorted(asked) if (why := setup.refused(name))}
    forms = [s for s in candidates.strategies(ranks, degrees, degrees)
             if s.name in asked and s.name not in left_out]  # fmt: skip
    cells, refused = candidates.cells(
        setup.layer, setup.workload(ranks), setup.placement(ranks), forms
    )
    return _distinct([setup.predict(cell) for cell in cells]), left_out | refused


def _distinct(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Of forms that do the same the first: with sharded tokens dp is as simple, and on one rank all
    that do not dispatch are."""
    kept: dict[tuple[Any, ...], Prediction] = {}
    for p in predictions:
        ranks = p.cell.placement.world_size
        parts = tuple(p.memory.parts.items()) if ranks > 1 else ()  # what fsdp gathers is there
        kept.setdefault((ranks, p.total_ms, tuple(sorted(p.phases_ms.items())), parts), p)
    return [*kept.values()]
