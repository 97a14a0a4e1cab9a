"""Advice in three sentences: what to use, what it costs beside the runner-up, what to measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from analysis import numbers
from analysis.predict import candidates, measurement
from analysis.predict.model import Prediction
from analysis.predict.problem import PredictionProblem
from analysis.predict.whole import DECODE, PREFILL, TRAIN
from analysis.text import render
from moe.strategies import degrees

MOST_CELLS = 6  # that a third contestant may bring a measurement to
NOUNS = {TRAIN: "training", PREFILL: "prefill", DECODE: "decode"}


def advice(
    setup: PredictionProblem,
    ranked: Sequence[Prediction],
    by_phase: Mapping[str, Sequence[Prediction]],
) -> list[str]:
    """The three sentences and the command of the third, then one line for each other phase that
    would rather use another form.

    `ranked` has the fitting forms first, fastest first; so has `by_phase`, of the other phases.
    """
    fitting = [p for p in ranked if p.fits]
    if not fitting:
        return [_nothing_fits(ranked)]
    best, *others = fitting
    lines = [_use(setup, best)]
    if others:
        rivals = [p for p in others if not certain(best, p)]
        lines += [_cost(best, others[0], len(rivals)), *_measure(setup, best, others, rivals)]
    else:
        lines.append(
            "No other form fits: there is no runner-up, and nothing to compare by measuring."
        )
    return lines + other_phases(best, by_phase)


def _nothing_fits(ranked: Sequence[Prediction]) -> str:
    least = min(ranked, key=lambda p: p.memory_bytes)
    return (
        "Nothing fits the memory of a rank; the least is "
        f"{candidates.name_of(least.cell.strategy)} with {numbers.bytes_text(least.memory_bytes)}; "
        "use more ranks or fewer tokens."
    )


def described(prediction: Prediction) -> str:
    """ "dp_ep (ep 8, dp 32), dispatcher alltoall, overlap in 4 chunks": degrees above 1."""
    strategy = prediction.cell.strategy
    sizes = degrees(prediction.cell)._asdict()
    split = ", ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
    words = [f"{strategy.name} ({split})" if split else strategy.name]
    if strategy.name in candidates.EXPERT_PARALLEL:
        words.append(f"dispatcher {strategy.dispatcher}")
        chunked = strategy.overlap > 1
        words.append(f"overlap in {strategy.overlap} chunks" if chunked else "no overlap")
    return ", ".join(words)


def _use(setup: PredictionProblem, best: Prediction) -> str:
    ranks = best.cell.placement.world_size
    low, high = numbers.short(best.low_ms), numbers.short(best.high_ms)
    return (
        f"For {NOUNS[setup.phase(ranks)]} with {setup.tokens_per_rank(ranks):,} tokens a rank on "
        f"{ranks} rank{'' if ranks == 1 else 's'} ({setup.cluster}), use {described(best)}: "
        f"{numbers.short(best.total_ms)} ms ({low} to {high}, {best.status}) and "
        f"{numbers.bytes_text(best.memory_bytes)} a rank."
    )


def _cost(best: Prediction, second: Prediction, rivals: int) -> str:
    slower = second.total_ms / best.total_ms - 1
    more = second.memory_bytes - best.memory_bytes
    memory = (
        f"{numbers.bytes_text(abs(more))} {'more' if more > 0 else 'less'}" if more else "the same"
    )
    text = (
        f"The runner-up, {described(second)}, {_longer(slower)} "
        f"({numbers.short(second.total_ms)} ms) and {memory} memory a rank"
    )
    if certain(best, second):
        return f"{text}; the difference is larger than the model's error."
    others = rivals - 1
    also = (
        f", as {'is 1 other form' if others == 1 else f'are {others} other forms'}"
        if others
        else ""
    )
    return f"{text}, which is within the model's error{also}: the order is not certain."


def _longer(part: float) -> str:
    return f"takes {part:.0%} longer" if part >= 0.005 else "takes as long"


def certain(better: Prediction, worse: Prediction) -> bool:
    """Whether the log ratio exceeds the root sum of squares of the two intervals' half-widths."""
    spreads = [math.log(p.high_ms / p.low_ms) / 2 for p in (better, worse)]
    return math.log(worse.total_ms / better.total_ms) > math.hypot(*spreads)


def _measure(
    setup: PredictionProblem,
    best: Prediction,
    others: Sequence[Prediction],
    rivals: Sequence[Prediction],
) -> list[str]:
    """The best and the runner-up, with the first rival of another strategy where that is cheap; the
    command as a line of its own."""
    cheapest = measurement.cheapest(setup, [best, others[0]])
    names = {best.cell.strategy.name, others[0].cell.strategy.name}
    third = next((p for p in rivals if p.cell.strategy.name not in names), None)
    if third:
        three = measurement.cheapest(setup, [best, others[0], third])
        if three.ranks == cheapest.ranks and three.cells <= MOST_CELLS:
            cheapest = three
    where = cheapest.where(setup, best.cell.placement.world_size)
    layer = "of one layer, " if setup.whole else ""
    sentence = f"The cheapest measurement that could change this is {layer}{where}:"
    return [sentence, render.COMMAND + cheapest.command]


def other_phases(best: Prediction, by_phase: Mapping[str, Sequence[Prediction]]) -> list[str]:
    """A line for each phase whose best form is another one, with what the advised form takes."""
    lines = []
    for phase, ranked in by_phase.items():
        fitting = [p for p in ranked if p.fits]
        if not fitting:
            lines.append(
                f"{NOUNS[phase].capitalize()} does not fit the memory of these ranks in any form."
            )
            continue
        first = fitting[0]
        if first.cell.strategy == best.cell.strategy:
            continue
        same = next((p for p in ranked if p.cell.strategy == best.cell.strategy), None)
        text = (
            f"{NOUNS[phase].capitalize()} ({_tokens(first):,} tokens a rank) would rather use "
            f"{described(first)}: {numbers.short(first.total_ms)} ms"
        )
        lines.append(f"{text}, {_instead(same, first)}.")
    return lines


def _tokens(prediction: Prediction) -> int:
    work, ranks = prediction.cell.workload, prediction.cell.placement.world_size
    return work.batch_size if work.tokens == "replicated" else max(1, work.batch_size // ranks)


def _instead(same: Prediction | None, first: Prediction) -> str:
    if same is None:
        return "where the form above cannot run"
    if not same.fits:
        return "where the form above does not fit"
    ratio = same.total_ms / first.total_ms
    longer = f"{ratio - 1:.0%} longer" if ratio < 2 else f"{ratio:.1f} times as long"
    sure = "" if certain(first, same) else " (within the model's error)"
    return f"where the form above takes {longer}{sure}"
