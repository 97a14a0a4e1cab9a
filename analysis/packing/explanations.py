"""Where the differences of cells here and there come from, where both machines are calibrated."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pandas as pd

from analysis.data.cell_summary import CellSummary, summaries
from analysis.errors import InputError
from analysis.packing.side_by_side import NAMES, Pairing
from analysis.predict import explain_command
from analysis.predict.explain_command import Asked
from analysis.stats.summarize import summarize
from analysis.text import explain as words
from analysis.text.render import COMMAND

MOST = 3  # sentences; of further cells the command


def lines(
    pairs: Sequence[Pairing], frames: tuple[pd.DataFrame, pd.DataFrame], sources: tuple[str, str]
) -> list[str]:
    """A sentence for each of the largest differences shown, and commands that explain the others.
    Nothing where no difference is shown."""
    differing = sorted((pair for pair in pairs if pair.differs), key=lambda pair: -pair.distance)
    if not differing:
        return []
    lacking = [_uncalibrated(frames, pair) for pair in differing]
    known = [pair for pair, side in zip(differing, lacking, strict=True) if not side]
    result = ["Where the difference comes from, largest first (parts are there minus here):"]
    for pair in known[:MOST]:
        result.append(f"{pair.title}: {_sentence(pair, frames)}")
    if further := known[MOST:]:
        result.append(
            "1 more difference is explained by"
            if len(further) == 1
            else f"{len(further)} more differences are explained by"
        )
        result += [_command(sources, pair) for pair in further]
    for side in dict.fromkeys(filter(None, lacking)):
        count = lacking.count(side)
        result.append(
            f"{count} {'difference is' if count == 1 else 'differences are'} not explained: no "
            f"calibration {side}; measure with measure.calibrate=true"
        )
    return result if known else result[1:]


def _uncalibrated(frames: tuple[pd.DataFrame, pd.DataFrame], pair: Pairing) -> str:
    """The sides of the cell without a calibration, in words; empty where both have one."""
    sides = [
        name
        for name, frame in zip(NAMES, frames, strict=True)
        if not _of_cell(frame, pair.cell.cell_id).calibration
    ]
    return " or ".join(sides)


def _of_cell(frame: pd.DataFrame, cell_id: str) -> CellSummary:
    return next(cell for cell in summaries(summarize(frame[frame["cell_id"] == cell_id])))


def _sentence(pair: Pairing, frames: tuple[pd.DataFrame, pd.DataFrame]) -> str:
    asked = Asked(frames, NAMES, f"cell_id={pair.cell.cell_id}", None)
    try:
        return words.headline(explain_command.answer(asked))
    except InputError as error:
        return f"not explained: {error}"


def _command(sources: tuple[str, str], pair: Pairing) -> str:
    command = ["python", "-m", "analysis", "explain", *sources]
    return COMMAND + shlex.join([*command, "--a", f"cell_id={pair.cell.cell_id}"])
