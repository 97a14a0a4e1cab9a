"""Coefficients from records: non-negative least squares of relative errors.

Every measured cell gives a row for its total, and lighter ones for the phases that its separate
passes saw (router, permute, experts, unpermute), so that the fit splits a total as it was measured.
A term's coefficient is 1 / efficiency, or seconds each for what is counted (features.COUNTED).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.predict import features, model
from analysis.predict.features import Key, Step
from analysis.predict.hardware import HardwareModel
from analysis.predict.model import Coefficients
from moe.spec import Cell

LOCAL = ("router", "permute", "experts", "unpermute")
PHASE_WEIGHT = 0.3  # of a phase's row beside its total's
PULL = 0.02  # weight of the prior that efficiencies are 1, where cells do not determine them
KNOWN = 0.3  # the same where links are known: they do not run faster than they were shaped
ROUNDS = 8  # of reweighting, which takes weight from outliers
HUBER = 0.15  # relative errors beyond it count linearly
CONFIDENCE = 0.90
MIN_CELLS = 8
FOLDS = 5


@dataclass(frozen=True)
class Measured:
    """A cell with its times and its machine."""

    cell: Cell
    machine: HardwareModel
    total_s: float
    phases_s: dict[str, float]
    skew: float = 1.0
    dense: bool = False  # by the kernel that ran


def fit(cells: Sequence[Measured], folds: int = FOLDS) -> Coefficients:
    """Coefficients with the interval's factor, which comes from cells left out in turn.

    Raises InputError with fewer than MIN_CELLS cells.
    """
    if len(cells) < MIN_CELLS:
        raise InputError(
            f"predict: {len(cells)} measured cells with a calibration; allowed are {MIN_CELLS} or "
            "more; sweep more cells, or name a cluster with --cluster"
        )
    errors = left_out_errors(cells, folds) if folds else [0.0]
    fitted = _coefficients(cells)
    seen = frozenset((m.cell.strategy.name, m.cell.strategy.dispatcher) for m in cells)
    values = [model.axes(m.cell, m.skew) for m in cells]
    ranges = {a: (min(v[a] for v in values), max(v[a] for v in values)) for a in values[0]}
    error = statistics.median(abs(math.expm1(e)) for e in errors)
    return Coefficients(fitted, spread(errors), ranges, seen, len(cells), error)


def left_out_errors(cells: Sequence[Measured], folds: int) -> list[float]:
    """log(predicted / measured) of every cell, by coefficients fitted without its fold."""
    errors = [0.0] * len(cells)
    for fold in range(folds):
        kept = [m for i, m in enumerate(cells) if i % folds != fold]
        fitted = Coefficients(_coefficients(kept))
        for i in range(fold, len(cells), folds):
            errors[i] = math.log(predicted_s(cells[i], fitted) / cells[i].total_s)
    return errors


def predicted_s(measured: Measured, coefficients: Coefficients) -> float:
    """Predicted seconds of a step, without the kernel that ran, which a prediction cannot know."""
    return model.time_s(measured.cell, measured.machine, coefficients, measured.skew)[1]


def spread(errors: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Factor around an estimate that contains a new cell with this confidence, if it is like these:
    the conformal quantile of absolute log errors (Vovk et al. 2005), rank ceil((n+1) c)."""
    ordered = sorted(abs(error) for error in errors)
    rank = math.ceil((len(ordered) + 1) * confidence)
    return math.exp(ordered[min(rank, len(ordered)) - 1])


def _coefficients(cells: Sequence[Measured]) -> dict[Key, float]:
    terms = [_tied(m, features.busiest(m.cell, m.skew, m.dense)) for m in cells]
    keys = sorted({key for one in terms for key in one})
    rows, targets = [], []
    for measured, one in zip(cells, terms, strict=True):
        whole = measured.total_s
        rows.append([one.get(key, 0.0) / whole for key in keys])
        targets.append(1.0)
        for phase in LOCAL:
            if phase in measured.phases_s:
                weight = PHASE_WEIGHT / whole
                rows.append([weight * one.get(k, 0.0) if k[0] == phase else 0.0 for k in keys])
                targets.append(weight * measured.phases_s[phase])
    matrix, target = np.array(rows), np.array(targets)
    return dict(zip(keys, _robust(matrix, target, keys), strict=True))


def _tied(measured: Measured, step: Step) -> dict[Key, float]:
    """The terms of a cell; those of known links summed over the phases, as ("", term)."""
    if not measured.machine.own_links:
        return features.terms(step, measured.machine)
    sums: dict[Key, float] = {}
    for (phase, term), value in features.terms(step, measured.machine).items():
        key = ("" if term in features.OF_LINKS else phase, term)
        sums[key] = sums.get(key, 0.0) + value
    return sums


def _robust(
    matrix: NDArray[np.float64], target: NDArray[np.float64], keys: list[Key]
) -> list[float]:
    """Huber's weights by iteration, with a light pull of every efficiency towards 1; scipy is
    imported here since it is slow to import."""
    from scipy.optimize import nnls

    scale = np.linalg.norm(matrix, axis=0)
    prior = np.array([0.0 if k[1] in features.COUNTED else 1.0 for k in keys])
    sure = np.array([KNOWN if k == ("", "wire") else PULL for k in keys])
    pull = np.diag(sure * scale)
    weights = np.ones(len(target))
    solution = np.zeros(len(keys))
    for _ in range(ROUNDS):
        top = matrix * weights[:, None]
        solution, _ = nnls(np.vstack([top, pull]), np.concatenate([target * weights, pull @ prior]))
        residual = np.abs(matrix @ solution - target)
        weights = np.sqrt(np.minimum(1.0, HUBER / np.maximum(residual, 1e-12)))
    return [float(value) for value in solution]
