"""The answer of the verb explain: two cells, or a cell and what the fitted model says of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import numbers
from analysis.data.cell_summary import CellSummary, cells_frame, summaries
from analysis.data.facets import DESCRIBED
from analysis.data.frame import normal, varying
from analysis.data.series import VARIANT, series_names
from analysis.errors import InputError
from analysis.predict import explanation, fit, model, observed
from analysis.stats import explain, parts
from analysis.stats.choice import choose
from analysis.stats.compare import two_names
from analysis.stats.explain import LINKS, MOVES, Draws, Explanation, Side, explained
from analysis.stats.pairing import Series
from analysis.stats.parts import State
from analysis.stats.summarize import summarize
from analysis.text import captions
from analysis.text import explain as words
from runners.records.stats import STEADY

EXPERTS, SENDING, BACKWARD, OVERLAP = "experts", "links", "backward", "overlap"
MOST_FIELDS = 4  # that a cell's name has


@dataclass(frozen=True)
class Asked:
    """The sources' frames with their names, and what chooses the cells."""

    frames: Sequence[pd.DataFrame]
    names: Sequence[str]
    a: str
    b: str | None  # None: not given
    predicted: bool = False


def text(options: argparse.Namespace, frames: Sequence[pd.DataFrame]) -> str:
    """What the verb prints of its sources' frames; raises InputError as `answer` does."""
    sources = options.sources
    names = two_names(sources) if len(sources) == 2 else sources
    asked = Asked(frames, names, options.a, options.b, options.predicted)
    banners = list(dict.fromkeys(line for frame in frames for line in captions.banners(frame)))
    return words.text(answer(asked), banners, options.format)


def answer(asked: Asked) -> Explanation:
    """Raises InputError for options that do not go together, and where no single cell is meant."""
    if asked.predicted:
        if asked.b is not None:
            raise InputError(
                f"--b {asked.b}: not together with --predicted, whose second side is the model; "
                "leave one out"
            )
        return _against_model(_pooled(asked), asked.a)
    if asked.b is None and len(asked.frames) != 2:
        raise InputError(
            "explain: needs two cells; allowed are --a and --b with any sources, two sweeps, or "
            "--predicted; for example explain --a strategy=ep,topk=8 --b strategy=tp,topk=8"
        )
    frames: tuple[pd.DataFrame, pd.DataFrame]
    if asked.b is None:
        frames = asked.frames[0], asked.frames[1]
        chosen = asked.a, asked.a
    else:
        frames = (_pooled(asked),) * 2
        chosen = asked.a, asked.b
    options = ("--a", "--a" if asked.b is None else "--b")
    a, b = (
        choose(summarize(frame), text, option)
        for frame, text, option in zip(frames, chosen, options, strict=True)
    )
    _check(a, b, asked)
    names = _names(a, b) if asked.b is not None else (asked.names[0], asked.names[1])
    return explain.explain(*explanation.sides((a, b), frames, names))


def _pooled(asked: Asked) -> pd.DataFrame:
    return pd.concat(list(asked.frames), ignore_index=True)


def _check(a: CellSummary, b: CellSummary, asked: Asked) -> None:
    if asked.b is not None and (a.cell_id, a.host, a.metric) == (b.cell_id, b.host, b.metric):
        raise InputError(
            f"--b {asked.b}: the same cell as --a {asked.a}; allowed are two cells; for one cell "
            "of two sweeps give both sweeps and leave --b out"
        )
    if a.metric != b.metric:
        raise InputError(
            f"explain: the times are not the same metric: {a.metric} and {b.metric}; allowed are "
            "cells that were measured alike; measure one of them again"
        )


def _names(a: CellSummary, b: CellSummary) -> tuple[str, str]:
    """Names by what the two differ in: the strategy's form, then other settings."""
    both = cells_frame([a, b])
    forms = series_names(both)
    fields = [n for n in varying(both, DESCRIBED) if n not in ("strategy", *VARIANT)]
    if "topk" in fields:
        fields = [n for n in fields if n != "topk_requested"]
    shown = [n for n in fields if n != "load"][:MOST_FIELDS]
    texts = []
    for cell, form in zip((a, b), forms, strict=True):
        load = [cell.load] if "load" in fields else []
        texts.append(" ".join([form, *load, *(f"{n}={normal(cell.value(n))}" for n in shown)]))
    if texts[0] == texts[1]:
        texts = [f"{cell.strategy} {cell.cell_id}" for cell in (a, b)]
    return texts[0], texts[1]


def _against_model(frame: pd.DataFrame, text: str) -> Explanation:
    """A measured cell against the model fitted to all other cells of the frame."""
    cells = summarize(frame)
    chosen = choose(cells, text, "--a")
    known = observed.of_cell(chosen)
    if known is None:
        raise InputError(
            f"--predicted: the model has no such cell as {chosen.strategy} {chosen.cell_id}; "
            f"allowed are our strategies on several ranks' settings with a calibration and times "
            f"in {STEADY}; choose another, or measure with measure.calibrate=true"
        )
    others = [m for m in observed.measured(summaries(cells)) if m.cell != known.cell]
    if len(others) < fit.MIN_CELLS:
        raise InputError(
            f"--predicted: {len(others)} other measured cells with a calibration; allowed are "
            f"{fit.MIN_CELLS} or more, to which the model is fitted; give more sources"
        )
    fitted = fit.fit(others)
    phases_s, total_s = model.time_s(known.cell, known.machine, fitted, known.skew)
    phases = {name: 1e3 * seconds for name, seconds in phases_s.items()}
    measured = explanation.side("measured", chosen, frame, known.machine)
    title = f"the model, fitted to {len(others)} other cells"
    predicted = Side(title, 1e3 * total_s, Series(frame.iloc[:0]), {})
    a = Draws(measured)
    facts = _facts(a.state(), phases)
    sides = [_with(side, facts[place]) for place, side in enumerate((measured, predicted))]
    lacking = "" if a.launches else "no phases of the cell"

    def split(x: State, _: State) -> Mapping[str, float]:
        if lacking:
            return {parts.UNEXPLAINED: x.step - 1e3 * total_s}
        return _by_phase(x, phases, 1e3 * total_s)

    return explained((Draws(sides[0]), Draws(sides[1])), split, lacking)


def _with(side: Side, facts: Mapping[str, str]) -> Side:
    return Side(side.name, side.median_ms, side.series, side.passes, facts=facts)


def _by_phase(measured: State, predicted: Mapping[str, float], total_ms: float) -> dict[str, float]:
    """ms by phase, measured minus predicted; they add up to the step minus `total_ms`. The model
    has no waiting and nothing outside of the phases; what it saves by overlap is a part."""
    return {
        EXPERTS: measured.experts - predicted.get("experts", 0.0),
        SENDING: measured.links - _sum(predicted, LINKS),
        BACKWARD: measured.backward - predicted.get("backward", 0.0),
        parts.ROUTER: measured.router - predicted.get("router", 0.0),
        parts.ROWS: measured.rows - _sum(predicted, MOVES),
        OVERLAP: sum(predicted.values()) - total_ms,
        parts.WAITING: measured.waiting,
        parts.HOST: measured.host,
        parts.UNEXPLAINED: measured.step - measured.total,
    }


def _sum(phases: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(phases.get(name, 0.0) for name in names)


def _facts(state: State, predicted: Mapping[str, float]) -> tuple[dict[str, str], dict[str, str]]:
    """What was measured, and what is predicted, by part."""
    zero = _by_phase(State(0.0, 0.0), predicted, 0.0)
    first = _by_phase(state, {}, 0.0)
    names = (EXPERTS, SENDING, BACKWARD, parts.ROUTER, parts.ROWS)
    return (
        {name: f"{numbers.short(first[name])} ms" for name in names},
        {name: f"{numbers.short(abs(zero[name]))} ms" for name in names},
    )
