"""Advice in three sentences: what to use, what it costs beside the runner-up, what to measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from analysis import numbers
from analysis.predict import candidates, measurement, plans
from analysis.predict.model import Prediction, longer
from analysis.predict.problem import PredictionProblem, tokens_per_rank
from analysis.predict.whole import DECODE, PREFILL, TP_NOT_TIMED, TRAIN, plan_text
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
        return [_nothing_fits(setup, ranked)]
    best, *others = fitting
    lines = [_use(setup, best)]
    if others:
        second = runner_up(best, others)
        rivals = [p for p in others if not certain(best, p)]
        lines += [_cost(best, second, rivals), *_measure(setup, best, second, rivals)]
    else:
        why = "fits" if len(ranked) > 1 else "was asked for or can run"
        lines.append(
            f"No other form {why}: there is no runner-up, and nothing to compare by measuring."
        )
    return lines + other_phases(setup, best, by_phase)


def kind(prediction: Prediction) -> tuple[object, ...]:
    """Strategy, degrees and dispatcher; forms that differ in overlap alone are of one kind."""
    strategy = prediction.cell.strategy
    return strategy.name, degrees(prediction.cell), strategy.dispatcher


def runner_up(best: Prediction, others: Sequence[Prediction]) -> Prediction:
    """The fastest form of another kind, else the next."""
    return next((p for p in others if kind(p) != kind(best)), others[0])


def _nothing_fits(setup: PredictionProblem, ranked: Sequence[Prediction]) -> str:
    least = min(ranked, key=lambda p: p.memory_bytes)
    text = (
        "Nothing fits the memory of a rank; the least is "
        f"{candidates.name_of(least.cell.strategy)} with {numbers.bytes_text(least.memory_bytes)}; "
    )
    fitting = plans.first_fitting(setup, ranked)
    if fitting is None:
        return text + "use more ranks or fewer tokens."
    stages = ", which is a pipeline of several such groups of ranks,"
    return (
        f"{text}with {fitting.options}{stages if '--layers' in fitting.options else ''} "
        f"{candidates.name_of(fitting.form.cell.strategy)} fits in "
        f"{numbers.bytes_text(fitting.bytes)}; or use more ranks or fewer tokens."
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
    ranks, tokens = best.cell.placement.world_size, _tokens(best)
    low, high = numbers.short(best.low_ms), numbers.short(best.high_ms)
    text = (
        f"For {NOUNS[setup.phase(ranks)]} with {tokens:,} token{'' if tokens == 1 else 's'} a rank "
        f"on {ranks} rank{'' if ranks == 1 else 's'} ({setup.cluster}), use {described(best)}: "
        f"{numbers.short(best.total_ms)} ms ({low} to {high}, {best.status}) and "
        f"{numbers.bytes_text(best.memory_bytes)} a rank."
    )
    if setup.whole and degrees(best.cell).tp > 1:
        text += f" Its tp {TP_NOT_TIMED}."
    return text


def _cost(best: Prediction, second: Prediction, rivals: Sequence[Prediction]) -> str:
    more = second.memory_bytes - best.memory_bytes
    memory = (
        f"{numbers.bytes_text(abs(more))} {'more' if more > 0 else 'less'}" if more else "the same"
    )
    text = (
        f"The runner-up, {described(second)}, takes {longer(second.total_ms / best.total_ms)} "
        f"({numbers.short(second.total_ms)} ms) and {memory} memory a rank"
    )
    if certain(best, second):
        return f"{text}; the difference is larger than the model's error."
    others = len({kind(p) for p in rivals} - {kind(best), kind(second)})
    also = (
        f", as {'is 1 other form' if others == 1 else f'are {others} other forms'}"
        if others
        else ""
    )
    return f"{text}, which is within the model's error{also}: the order is not certain."


def certain(better: Prediction, worse: Prediction) -> bool:
    """Whether the log ratio exceeds the root sum of squares of the two intervals' half-widths."""
    spreads = [math.log(p.high_ms / p.low_ms) / 2 for p in (better, worse)]
    return math.log(worse.total_ms / better.total_ms) > math.hypot(*spreads)


def _measure(
    setup: PredictionProblem, best: Prediction, second: Prediction, rivals: Sequence[Prediction]
) -> list[str]:
    """The best and the runner-up, with the first rival of another strategy where that is cheap; the
    commands as lines of their own."""
    cheapest = measurement.cheapest(setup, [best, second])
    names = {best.cell.strategy.name, second.cell.strategy.name}
    third = next((p for p in rivals if p.cell.strategy.name not in names), None)
    if third:
        three = measurement.cheapest(setup, [best, second, third])
        if three.ranks == cheapest.ranks and three.cells <= MOST_CELLS:
            cheapest = three
    where = cheapest.where(setup, best.cell.placement.world_size)
    layer = "of one layer, " if setup.whole else ""
    sentence = f"The cheapest measurement that could change this is {layer}{where}:"
    return [sentence, *(render.COMMAND + command for command in cheapest.commands)]


def other_phases(
    setup: PredictionProblem, best: Prediction, by_phase: Mapping[str, Sequence[Prediction]]
) -> list[str]:
    """A line for each phase whose best form is another one, with what the advised form takes."""
    lines = []
    for phase, ranked in by_phase.items():
        fitting = [p for p in ranked if p.fits]
        if not fitting:
            plan = f" with {plan_text(setup.whole.plan)}" if setup.whole and phase == TRAIN else ""
            lines.append(
                f"{NOUNS[phase].capitalize()}{plan} does not fit the memory of these ranks in any "
                "form."
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
    return tokens_per_rank(prediction.cell.workload, prediction.cell.placement.world_size)


def _instead(same: Prediction | None, first: Prediction) -> str:
    if same is None:
        return "where the form above cannot run"
    if not same.fits:
        return "where the form above does not fit"
    sure = "" if certain(first, same) else " (within the model's error)"
    return f"where the form above takes {longer(same.total_ms / first.total_ms)}{sure}"
