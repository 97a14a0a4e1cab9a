"""What can be done about skewed routing: place experts anew, copy hot ones, or balance the router.

All is of one expert-parallel form. Placements and copies are chosen on the first half of a captured
trace and judged on its second half, each by the model's time with the skew that they leave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis import numbers
from analysis.predict import candidates, measurement
from analysis.predict.model import LEAST_SHOWN, Prediction, longer
from analysis.predict.problem import PredictionProblem
from analysis.predict.routing import CapturedRouting
from analysis.text import render
from moe.build import supports
from moe.spec import Cell, StrategySpec, Unsupported
from moe.strategies import degrees, rules_of

COPIES_PER_RANK = (1, 2, 4)
WORTH = 0.02  # of a step, that a remedy has to save before it is recommended
PLACEMENT_FILE = "placement.txt"


@dataclass(frozen=True)
class Remedies:
    """Predictions of one form as it is and with each remedy; None where there is none.

    `own_skew` is what the new placement reaches on the rows it was chosen from; `copies_bytes`
    what copies take of a rank's memory, beside what their lower skew gives back.
    """

    plain: Prediction
    placed: Prediction
    copied: Prediction | None
    balanced: Prediction
    own_skew: float
    copies_bytes: float

    def saved(self, remedy: Prediction) -> float:
        """The part of the step that a remedy saves."""
        return 1 - remedy.total_ms / self.plain.total_ms

    @property
    def best(self) -> Prediction | None:
        """The faster one of placement and copies; the placement, which costs no memory, where
        copies do not save WORTH more. None where neither saves WORTH."""
        best = self.placed
        if self.copied and self.saved(self.copied) > self.saved(best) + WORTH:
            best = self.copied
        return best if self.saved(best) >= WORTH else None


def of_form(setup: PredictionProblem, cell: Cell) -> Remedies:
    """The remedies for an expert-parallel cell of a problem with a captured routing."""
    captured = setup.routing
    assert captured is not None
    plain = setup.modelled(cell, captured.skew(cell))
    placed = _placed(setup, cell)
    own = captured.skew(placed.cell, chosen=True)
    copied = _copied(setup, captured, cell)
    taken = 0.0
    if copied:
        taken = copied.memory_bytes - setup.modelled(cell, copied.skew).memory_bytes
    return Remedies(plain, placed, copied, setup.modelled(cell, 1.0), own, taken)


def _placed(setup: PredictionProblem, cell: Cell) -> Prediction:
    """With the new placement."""
    assert setup.routing is not None
    order = setup.routing.new_order(degrees(cell).ep)
    anew = with_strategy(cell, placement="explicit", expert_order=order)
    return setup.modelled(anew, setup.routing.skew(anew))


def with_strategy(cell: Cell, **knobs: Any) -> Cell:
    """The cell with some knobs of its strategy changed."""
    return dataclasses.replace(cell, strategy=dataclasses.replace(cell.strategy, **knobs))


def _copied(setup: PredictionProblem, captured: CapturedRouting, cell: Cell) -> Prediction | None:
    """With as many copies of hot experts as are fastest; None where no number of them can run."""
    ranks, fitting = degrees(cell).ep, []
    for each in COPIES_PER_RANK:
        more = with_strategy(cell, hot_replicas=each * ranks)
        try:
            supports(more)
        except Unsupported:
            break
        prediction = setup.modelled(more, captured.skew(more))
        if prediction.fits:
            fitting.append(prediction)
    return min(fitting, key=lambda p: p.total_ms, default=None)


def fastest_form(predictions: Sequence[Prediction]) -> Prediction | None:
    """The fastest fitting form that splits the experts over ranks: what a skew slows down."""
    splitting = [p for p in predictions if p.fits and degrees(p.cell).ep > 1]
    return min(splitting, key=lambda p: p.total_ms, default=None)


def lines(
    setup: PredictionProblem, ranked: Sequence[Prediction], file: str = "", on_ranks: int = 0
) -> list[str]:
    """Whether experts should be placed anew, copied or balanced, and how to measure it; nothing
    without a captured routing or a form that splits the experts. `file` has the new placement,
    `on_ranks` is named where there are several numbers of ranks."""
    form = fastest_form(ranked)
    if setup.routing is None or form is None:
        return []
    options = of_form(setup, form.cell)
    name, ranks = candidates.name_of(form.cell.strategy), degrees(form.cell).ep
    first, *rest = _verdict(options)
    where = f"on {on_ranks} ranks, {name}" if on_ranks else name
    return [
        f"{where}, busiest of {ranks} ranks that share the experts: {first}",
        *rest,
        *_changed(setup, ranked, options),
        _basis(setup.routing, options),
        *_measure(setup, options, file),
    ]


def _verdict(options: Remedies) -> list[str]:
    """What to do, then what the other remedies would do."""
    before, after = f"{options.plain.skew:.2f}", f"{options.placed.skew:.2f}"
    placed = effect(options.saved(options.placed))
    most = f"a balanced router {effect(options.saved(options.balanced))}, at most"
    anew = f"placed anew, {after}, it {placed}"
    if options.best is options.placed:
        first = (
            f"place the experts anew: {after} instead of {before} times the mean slots, which "
            f"{placed.replace('would save', 'saves')}"
        )
        return [first, f"{_copies(options)}; {most}"]
    if options.best:
        return [_replicate(options), f"{anew}; {most}"]
    if options.saved(options.balanced) < WORTH:
        return [f"leave the experts where they are: {before} times the mean slots; {most}"]
    return [
        f"only a more balanced router helps: {before} times the mean slots; {most}",
        f"{anew}; {_copies(options)}",
    ]


def effect(part: float) -> str:
    """What saving this part of the step means; less than 0 is longer."""
    if abs(part) < LEAST_SHOWN:
        return "would save nothing"
    return f"would save {part:.0%} of the step" if part > 0 else f"would take {longer(1 - part)}"


def _replicate(options: Remedies) -> str:
    assert options.copied is not None
    return (
        f"add {options.copied.cell.strategy.hot_replicas} copies of hot experts: "
        f"{options.copied.skew:.2f} instead of {options.plain.skew:.2f} times the mean slots, "
        f"which saves {options.saved(options.copied):.0%} and takes "
        f"{numbers.bytes_text(options.copies_bytes)} a rank"
    )


def _copies(options: Remedies) -> str:
    if options.copied is None and not rules_of(options.plain.cell.strategy.name).replicas:
        return f"{options.plain.cell.strategy.name} cannot hold copies of hot experts, as ep can"
    if options.copied is None:
        return "copies of hot experts do not fit"
    return (
        f"{options.copied.cell.strategy.hot_replicas} copies of hot experts, "
        f"{options.copied.skew:.2f}, {effect(options.saved(options.copied))} and take "
        f"{numbers.bytes_text(options.copies_bytes)} a rank"
    )


def _changed(
    setup: PredictionProblem, ranked: Sequence[Prediction], options: Remedies
) -> list[str]:
    """Lines: where the advised form has no skew, and which form is fastest with the remedy or with
    experts placed anew, where that is another."""
    first, lines = ranked[0], []
    if degrees(first.cell).ep == 1:
        name = candidates.name_of(first.cell.strategy)
        lines.append(f"{name} itself has no skew: its ranks take part in every expert's work")
    if options.best is None:
        return lines
    anew = [_placed(setup, p.cell) for p in ranked if degrees(p.cell).ep > 1]
    even = [p for p in ranked if degrees(p.cell).ep == 1]
    fastest = min((p for p in [*anew, *even, options.best] if p.fits), key=lambda p: p.total_ms)
    if _form(fastest) != _form(first):
        lines.append(
            f"with that, the fastest form is {candidates.name_of(_form(fastest))}: "
            f"{numbers.short(fastest.total_ms)} ms"
        )
    return lines


def _form(prediction: Prediction) -> StrategySpec:
    """The strategy without placement and copies."""
    return dataclasses.replace(
        prediction.cell.strategy, placement="contiguous", expert_order=(), hot_replicas=0
    )


def _basis(captured: CapturedRouting, options: Remedies) -> str:
    chosen, judged = len(captured.chosen_NK), len(captured.judged_NK)
    return (
        f"chosen on the first {chosen:,} rows of {captured.path}, judged on the other {judged:,}; "
        f"on its own rows the new placement has {options.own_skew:.2f}"
    )


def _measure(setup: PredictionProblem, options: Remedies, file: str) -> list[str]:
    if options.best is None:
        return []
    measured = measurement.cheapest(setup, [options.plain, options.best], file or PLACEMENT_FILE)
    where = measured.where(setup, options.plain.cell.placement.world_size)
    if options.best is options.placed and not file:
        where += f" (advise --placement {PLACEMENT_FILE} writes the file)"
    commands = [render.COMMAND + command for command in measured.commands]
    return [f"to measure that, {where}:", *commands]
